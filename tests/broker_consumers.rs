//! What one consumer may cost the others in the broker's pure core, and what is left of one that
//! has gone.

#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use secrets_broker::broker::ReadError;
use secrets_broker::broker::event::{Answer, Event, LocalOperation, WaiterId};
use secrets_broker::broker::settings::Settings;
use secrets_broker::domain::{ConsumerId, LoginIdentity};
use secrets_broker::telemetry::Limit;
use world::{World, seconds};

const CREDS: &str = "database/creds/shop";
const KV: &str = "secret/data/shop/web";

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
    assert!(!world.answers.contains_key(&waiter), "answered before the source was");
    let consumer = ConsumerId::host_user(1);
    world.step(Event::Gone { consumer });
    world.advance(seconds(2));
    assert_eq!(world.vault.leases.len(), 0);
}

#[test]
fn a_workloads_refresh_leaves_the_breaker_that_protects_the_others() {
    let mut world = World::new();
    world.subscribe(KV, 1);
    world.advance(seconds(1));
    world.vault.sealed = true;
    world.advance(seconds(400));
    let next =
        |world: &World| world.state.report(world.now, &|_| String::new()).sources[0].next_attempt;
    while next(&world).is_none_or(|at| at <= world.now + seconds(2)) {
        world.advance(Duration::from_millis(100));
    }
    let before = next(&world);
    let login = Some(LoginIdentity::Agent);
    let secret = world::want(KV, 1).secret;
    world.step(Event::Refresh { waiter: WaiterId(2_000_000), secret, login });
    assert_eq!(next(&world), before);
}

#[test]
fn at_the_cap_of_local_leases_nothing_is_minted_and_those_who_hold_one_keep_it() {
    let mut settings = Settings::default();
    settings.limits.local_leases = 2;
    let mut world = World::with(settings, 1);
    let [first, _second] = [1, 2].map(|consumer| world.read(CREDS, consumer));
    world.advance(seconds(1));
    let full = world.read(CREDS, 3);
    let cap = "limits.local_leases";
    assert_eq!(world.answers[&full], Answer::Refused(ReadError::Full { limit: cap }));
    world.advance(seconds(1));
    assert_eq!((world.count("mint"), world.vault.leases.len()), (2, 2));
    let limits = world.state.report(world.now, &|_| String::new()).limits;
    assert!(limits.contains(&Limit::shared("local_leases", 2, 2, 1)), "{limits:?}");
    // Its holder reads on, and what it gives back is there for the next one.
    let again = world.read(CREDS, 1);
    let local = world.local_of(first);
    assert_eq!(world.local_of(again), local);
    world.local(1, local, LocalOperation::Revoke);
    let third = world.read(CREDS, 3);
    world.advance(seconds(1));
    world.local_of(third);
}

#[test]
fn a_credential_that_comes_when_the_cap_of_local_leases_is_reached_ends_at_once() {
    let mut settings = Settings::default();
    settings.limits.local_leases = 1;
    let mut world = World::with(settings, 1);
    let waiters = [1, 2].map(|consumer| world.read(CREDS, consumer));
    world.advance(seconds(2));
    let told = waiters.map(|waiter| matches!(world.answers[&waiter], Answer::Value { .. }));
    assert_eq!(told, [true, false]);
    assert_eq!((world.count("mint"), world.vault.leases.len()), (2, 1));
}

#[test]
fn calls_that_wait_are_counted_for_the_cap_they_wait_for() {
    let mut settings = Settings::default();
    settings.limits.upstream_in_flight = 2;
    settings.limits.upstream_per_second = 1000;
    let mut world = World::with(settings, 1);
    let hits = |world: &World| {
        let limits = world.state.report(world.now, &|_| String::new()).limits;
        let of = |name| limits.iter().find(|limit: &&Limit| limit.name == name).unwrap().hits;
        (of("upstream_in_flight") > 0, of("upstream_per_second") > 0)
    };
    assert_eq!(hits(&world), (false, false));
    for path in ["secret/data/a", "secret/data/b", "secret/data/c"] {
        world.read(path, 1);
    }
    world.advance(seconds(2));
    assert_eq!(hits(&world), (true, false));
}
