//! What one consumer may cost the others in the broker's pure core, and what is left of one that
//! has gone.

#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use secrets_broker::broker::event::{Answer, Event, LocalOperation, WaiterId};
use secrets_broker::domain::{ConsumerId, LoginIdentity};
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
