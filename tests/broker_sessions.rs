//! Sessions in the broker's pure core, against a model of Vault in virtual time: when a token is
//! succeeded, and what a refused or dead one does to secrets.

#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use secrets_broker::broker::Freshness;
use secrets_broker::broker::event::{Answer, WaiterId};
use secrets_broker::broker::settings::Settings;
use secrets_broker::source::{ErrorClass, TokenKind};
use world::{World, seconds};

const CREDS: &str = "database/creds/shop";
const KV: &str = "secret/data/shop/web";

fn freshness(world: &World, waiter: WaiterId) -> Freshness {
    match &world.answers[&waiter] {
        Answer::Value { freshness, .. } => *freshness,
        other => panic!("no value: {other:?}"),
    }
}

#[test]
fn a_revoked_token_costs_one_login_and_one_replacement() {
    let mut world = World::new();
    world.vault.lease_max_ttl = 1000;
    let creds = world.subscribe(CREDS, 1);
    let kv = world.subscribe(KV, 1);
    world.advance(seconds(5));
    let kept = world.levels[&kv].value;
    world.vault.tokens.clear();
    world.vault.leases.clear();
    world.advance(seconds(30));
    assert_eq!(world.count("mint"), 2);
    let current = world.levels[&creds].value.unwrap();
    assert!(world.works(current));
    assert_eq!(world.levels[&kv].value, kept);
    assert!(world.count("login") <= 4, "{}", world.count("login"));
}

#[test]
fn a_batch_token_is_succeeded_at_75_percent_with_its_leases_overlapping() {
    let mut world = World::new();
    world.vault.token_kind = TokenKind::Batch;
    world.vault.token_ttl = 100;
    world.vault.lease_ttl = 1000;
    world.vault.lease_max_ttl = 10_000;
    let subscription = world.subscribe(CREDS, 1);
    world.advance(seconds(1));
    for _ in 0..5000 {
        world.advance(Duration::from_millis(100));
        let current = world.levels[&subscription].value.unwrap();
        assert!(world.works(current), "died with its batch token at {:?}", world.now);
    }
    assert!((6..=9).contains(&world.count("mint")), "{}", world.count("mint"));
}

#[test]
fn nothing_is_minted_under_a_token_that_is_about_to_be_succeeded() {
    // As Vault does: a lease ends with its batch token, so its renewal is cut short; in whole
    // seconds, it is granted up to one less than the token has left.
    for (seed, lease_ttl) in (0..20).flat_map(|seed| [(seed, 10), (seed, 9)]) {
        let mut world = World::with(Settings::default(), seed);
        world.vault.token_kind = TokenKind::Batch;
        world.vault.token_ttl = 10;
        (world.vault.lease_ttl, world.vault.lease_max_ttl) = (lease_ttl, lease_ttl);
        world.subscribe(CREDS, 1);
        world.advance(seconds(100));
        assert_eq!(world.count("mint"), world.count("login"), "seed {seed}");
    }
}

#[test]
fn a_token_near_its_max_ttl_is_succeeded_before_its_end() {
    let mut world = World::new();
    world.vault.token_ttl = 60;
    world.vault.token_max_ttl = 150;
    world.vault.lease_ttl = 500;
    world.vault.lease_max_ttl = 10_000;
    let subscription = world.subscribe(CREDS, 1);
    world.advance(seconds(1));
    for _ in 0..6000 {
        world.advance(Duration::from_millis(100));
        let current = world.levels[&subscription].value.unwrap();
        assert!(world.works(current));
    }
}

#[test]
fn a_refused_login_purges_nothing_and_is_told_with_its_reason() {
    let mut world = World::new();
    world.vault.login_denied = true;
    let waiter = world.read(KV, 1);
    world.advance(seconds(1));
    assert_eq!(world.refused(waiter), Some(ErrorClass::Unreachable));
    world.vault.login_denied = false;
    world.advance(seconds(31));
    let again = world.read(KV, 1);
    world.advance(seconds(1));
    assert_eq!(freshness(&world, again), Freshness::Miss);
}

#[test]
fn a_refused_login_is_not_repeated_for_every_read_of_a_mount_of_unknown_kind() {
    let mut world = World::new();
    world.vault.login_denied = true;
    for _ in 0..100 {
        let waiter = world.read("auto/data/web", 1);
        world.advance(Duration::from_millis(20));
        assert_eq!(world.refused(waiter), Some(ErrorClass::Unreachable));
    }
    assert!(world.count("login-denied") <= 10, "{} in 2 s", world.count("login-denied"));
    world.vault.login_denied = false;
    world.advance(seconds(31));
    let waiter = world.read("auto/data/web", 1);
    world.advance(seconds(1));
    assert_eq!(freshness(&world, waiter), Freshness::Miss);
}
