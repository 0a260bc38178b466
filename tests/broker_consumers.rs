//! What one consumer may cost the others in the broker's pure core, and what is left of one that
//! has gone.

#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use secrets_broker::broker::ReadError;
use secrets_broker::broker::event::{
    Answer, Event, LocalOperation, SubscriptionId, WaiterId, Want,
};
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

/// What a leaving consumer wants.
fn leaving(path: &str, consumer: u32) -> Want {
    Want { may_mint: false, ..world::want(path, consumer) }
}

fn read(world: &mut World, id: u64, want: Want) -> Option<Answer> {
    let waiter = WaiterId(id);
    world.step(Event::Read { waiter, want });
    world.advance(seconds(2));
    world.answers.get(&waiter).cloned()
}

#[test]
fn a_leaving_consumer_reads_on_and_nothing_new_is_made_for_it() {
    let mut world = World::new();
    world.read(CREDS, 1);
    world.advance(seconds(2));
    let made = world.vault.leases.len();
    let again = read(&mut world, 1_000_000, leaving(CREDS, 1));
    assert!(matches!(again, Some(Answer::Value { .. })), "{again:?}");
    // Also below a mount whose kind is asked for first.
    for (id, path) in [(1_000_001, KV), (1_000_002, "auto/data/shop")] {
        let kv = read(&mut world, id, leaving(path, 1));
        assert!(matches!(kv, Some(Answer::Value { .. })), "{path}: {kv:?}");
    }
    let refused = read(&mut world, 1_000_003, leaving(CREDS, 2));
    assert_eq!(refused, Some(Answer::Refused(ReadError::Leaving)));
    let subscription = SubscriptionId(1_000_000);
    world.step(Event::Subscribe { subscription, want: leaving(CREDS, 2) });
    world.advance(seconds(2));
    let problem = world.levels[&subscription].problem.clone().expect("it is told");
    assert!(problem.message.contains("no new credential"), "{}", problem.message);
    assert_eq!(world.vault.leases.len(), made);
}

#[test]
fn nothing_is_made_for_a_leaving_pod_that_others_would_not_have_made() {
    let mut world = World::new();
    let shared = |want: Want| Want { owner: Some(ConsumerId::host_user(9)), ..want };
    let refused = read(&mut world, 1_000_000, shared(leaving(CREDS, 1)));
    assert_eq!(refused, Some(Answer::Refused(ReadError::Leaving)));
    let other = read(&mut world, 1_000_001, shared(world::want(CREDS, 2)));
    assert!(matches!(other, Some(Answer::Value { .. })), "{other:?}");
    let joined = read(&mut world, 1_000_002, shared(leaving(CREDS, 1)));
    assert!(matches!(joined, Some(Answer::Value { .. })), "{joined:?}");
    assert_eq!(world.vault.leases.len(), 1);
}
