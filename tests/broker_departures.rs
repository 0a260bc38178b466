//! What consumers of the broker's pure core leave behind: nothing is made for one that has gone,
//! what it held ends, and what is held lives as long as its holder was told.

#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use secrets_broker::broker::ReadError;
use secrets_broker::broker::event::{Answer, Event, LocalOperation};
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
