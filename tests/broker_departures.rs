//! What consumers of the broker's pure core leave behind: nothing is made for one that has gone,
//! what it held ends, and what is held lives as long as its holder was told.

#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use secrets_broker::broker::ReadError;
use secrets_broker::broker::event::{Answer, Call, Event, LocalOperation};
use secrets_broker::broker::settings::Settings;
use secrets_broker::domain::{ConsumerId, EngineKind};
use world::{World, account, seconds};

const CREDS: &str = "database/creds/shop";

#[test]
fn a_consumer_that_is_gone_ends_all_it_read_and_nothing_of_others() {
    let mut world = World::new();
    let first = world.read(CREDS, 1);
    let second = world.read(CREDS, 2);
    world.advance(seconds(1));
    assert_eq!(world.vault.leases.len(), 2);
    let consumer = ConsumerId::host_user(1);
    let (ended, kept) = (world.local_of(first), world.local_of(second));
    world.step(Event::Gone { consumer });
    world.advance(seconds(1));
    assert_eq!(world.vault.leases.len(), 1);
    assert!(matches!(world.local(1, ended, LocalOperation::Lookup), Answer::Local(Err(_))));
    assert!(matches!(world.local(2, kept, LocalOperation::Lookup), Answer::Local(Ok(_))));
}

#[test]
fn a_credential_that_comes_after_its_consumer_has_gone_ends_at_once() {
    let mut world = World::new();
    let waiter = world.read(CREDS, 1);
    // Logged in after 5 ms, and the request for the credential has left.
    world.advance(Duration::from_millis(7));
    assert!(!world.answers.contains_key(&waiter), "answered before the source was");
    gone(&mut world, 1);
    world.advance(seconds(2));
    assert_eq!((world.count("mint"), world.vault.leases.len()), (1, 0));
}

fn gone(world: &mut World, consumer: u32) {
    world.step(Event::Gone { consumer: ConsumerId::host_user(consumer) });
}

fn asked_for(world: &World, path: &str) -> bool {
    let asks =
        |call: &Call| matches!(call, Call::Fetch { secret, .. } if secret.path.as_str() == path);
    world.sent.iter().any(asks)
}

#[test]
fn what_waits_in_line_is_not_made_for_one_that_has_gone_and_a_read_of_others_is() {
    let mut settings = Settings::default();
    settings.limits.upstream_in_flight = 2;
    let mut world = World::with(settings, 1);
    world.read("secret/data/warm", 2);
    world.subscribe(CREDS, 1);
    world.advance(seconds(1));
    // The one slot for ordinary calls is taken: what follows waits in line.
    world.read("secret/data/slow", 2);
    let (read, subscribed) = ("database/creds/read", "database/creds/subscribed");
    let waiter = world.read(read, 1);
    let subscription = world.subscribe(subscribed, 1);
    let alone = world.read("secret/data/alone", 1);
    world.read("secret/data/both", 1);
    let other = world.read("secret/data/both", 2);
    gone(&mut world, 1);
    world.unsubscribe(subscription);
    world.advance(seconds(2));
    for waiter in [waiter, alone] {
        assert_eq!(world.answers[&waiter], Answer::Refused(ReadError::Busy));
    }
    for path in [read, subscribed, "secret/data/alone"] {
        assert!(!asked_for(&world, path), "{path} was asked for");
    }
    assert!(matches!(world.answers[&other], Answer::Value { .. }));
    let report = world.state.report(world.now, &|_| String::new());
    assert_eq!(report.secrets.len(), 4, "{report:?}");
}

#[test]
fn a_consumer_that_goes_before_the_login_is_answered_has_nothing_made() {
    let mut world = World::new();
    let waiter = world.read(CREDS, 1);
    gone(&mut world, 1);
    world.advance(seconds(2));
    assert_eq!(world.answers[&waiter], Answer::Refused(ReadError::Busy));
    assert_eq!((world.count("mint"), world.vault.tokens.len()), (0, 0));
    assert_eq!(world.state.next_deadline(), None, "work is left behind");
}

#[test]
fn a_read_that_waits_for_a_mounts_kind_goes_with_its_consumer() {
    let mut world = World::new();
    world.vault.auto_kind = EngineKind::Database;
    let web = account("web");
    let theirs = [world.read("auto/creds/a", 1), world.read_as(&web, "auto/creds/b", 1)];
    let other = world.read("auto/creds/a", 2);
    gone(&mut world, 1);
    for waiter in theirs {
        assert_eq!(world.answers.get(&waiter), Some(&Answer::Refused(ReadError::Busy)));
    }
    world.advance(seconds(2));
    world.local_of(other);
    assert_eq!((world.count("mint"), world.vault.leases.len(), world.told.len()), (1, 1, 1));
}

#[test]
fn what_ends_with_a_consumer_ends_in_the_same_order_each_time() {
    let ends = || {
        let mut world = World::new();
        for n in 0..20 {
            world.read(&format!("database/creds/{n}"), 1);
        }
        world.advance(seconds(1));
        world.vault.latency = seconds(1);
        for n in 20..40 {
            world.read(&format!("secret/data/{n}"), 1);
        }
        world.state.step(world.now, Event::Gone { consumer: ConsumerId::host_user(1) })
    };
    assert_eq!(ends(), ends());
}

#[test]
fn asking_about_a_local_lease_that_was_renewed_does_not_shorten_it() {
    let mut world = World::new();
    world.vault.lease_max_ttl = 1000;
    let waiter = world.read(CREDS, 1);
    world.advance(seconds(13));
    let local = world.local_of(waiter);
    let renewal = world.ask_local(1, local, LocalOperation::Renew);
    world.advance(seconds(1));
    let Answer::Local(Ok(terms)) = world.answers[&renewal].clone() else {
        panic!("not renewed: {:?}", world.answers[&renewal]);
    };
    let until = world.now + terms.duration;
    world.local(1, local, LocalOperation::Lookup);
    world.advance(until.since(world.now).saturating_sub(seconds(3)));
    let told = world.local(1, local, LocalOperation::Lookup);
    assert!(matches!(told, Answer::Local(Ok(_))), "it ended before its holder was told: {told:?}");
    world.advance(seconds(4));
    assert_eq!(world.vault.leases.len(), 0, "nobody prolonged it");
}

#[test]
fn who_leaves_during_an_overlap_leaves_no_replaced_credential_behind() {
    let mut world = World::new();
    world.vault.revoke_permitted = true;
    let creds = world.subscribe(CREDS, 1);
    let other = "database/creds/other";
    world.subscribe(other, 1);
    let leases = |world: &World, path: &str| {
        world.vault.leases.values().filter(|lease| lease.secret.path.as_str() == path).count()
    };
    while leases(&world, CREDS) < 2 {
        world.advance(Duration::from_millis(100));
    }
    world.unsubscribe(creds);
    world.advance(seconds(1));
    assert_eq!(leases(&world, CREDS), 0);
    assert!(leases(&world, other) > 0, "its session goes on");
}
