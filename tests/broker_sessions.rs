//! Sessions in the broker's pure core, against a model of Vault in virtual time: when a token is
//! succeeded, and what a refused or dead one does to secrets.

#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use secrets_broker::broker::Freshness;
use secrets_broker::broker::event::{Answer, Call, WaiterId};
use secrets_broker::broker::settings::Settings;
use secrets_broker::clock::BootInstant;
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

const DENIED: &str = "database/creds/denied";

/// One path of a consumer is denied, so it logs in beside while another one is being read.
#[test]
fn a_credential_on_its_way_when_its_token_gets_a_successor_is_replaced_and_never_dead() {
    let mut world = World::new();
    (world.vault.lease_ttl, world.vault.lease_max_ttl) = (1000, 100_000);
    world.vault.denied.insert(DENIED);
    world.vault.slow.insert(CREDS, seconds(2));
    let creds = world.subscribe(CREDS, 1);
    world.subscribe(DENIED, 1);
    world.advance(seconds(3));
    assert_eq!(world.count("login"), 2);
    for _ in 0..2000 {
        let current = world.levels[&creds].value.expect("a credential");
        assert!(world.works(current), "dead at {:?}", world.now);
        world.advance(seconds(1));
    }
    assert!(world.sent.len() < 400, "{} calls in half an hour", world.sent.len());
}

#[test]
fn a_credential_whose_token_ended_while_it_was_on_its_way_is_asked_for_anew() {
    let mut world = World::new();
    world.vault.token_kind = TokenKind::Batch;
    world.vault.token_ttl = 10;
    world.vault.slow.insert(CREDS, seconds(12));
    let creds = world.subscribe(CREDS, 1);
    world.advance(seconds(1));
    (world.vault.token_ttl, world.vault.lease_ttl) = (3600, 1000);
    world.vault.slow.clear();
    world.advance(seconds(12));
    let current = world.levels[&creds].value.expect("a credential");
    assert!(world.works(current));
}

#[test]
fn one_path_that_is_denied_has_the_others_credentials_replaced_now_and_then_at_most() {
    let mut world = World::new();
    (world.vault.lease_ttl, world.vault.lease_max_ttl) = (1000, 100_000);
    world.subscribe(CREDS, 1);
    world.advance(seconds(1));
    world.vault.denied.insert(DENIED);
    world.subscribe(DENIED, 1);
    world.advance(seconds(3600));
    assert!((1..=6).contains(&world.count("mint")), "{} in an hour", world.count("mint"));
}

#[test]
fn one_path_that_fails_among_answers_is_tried_again_in_growing_pauses() {
    let mut world = World::new();
    world.vault.failing.insert(DENIED);
    world.subscribe(DENIED, 1);
    world.subscribe(KV, 1);
    world.advance(seconds(600));
    let logins = world.count("login");
    assert!((15..=60).contains(&logins), "{logins} logins in ten minutes");
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

/// A world whose source has been unreachable for a while when a credential's last interest goes.
fn ended_in_an_outage() -> World {
    let mut world = World::new();
    (world.vault.lease_ttl, world.vault.lease_max_ttl) = (100_000, 100_000);
    let creds = world.subscribe(CREDS, 1);
    world.advance(seconds(1));
    world.vault.sealed = true;
    world.subscribe(KV, 2);
    while next_attempt(&world).is_none_or(|at| at < world.now + seconds(1)) {
        world.advance(Duration::from_millis(100));
    }
    world.unsubscribe(creds);
    world
}

fn next_attempt(world: &World) -> Option<BootInstant> {
    world.state.report(world.now, &|_| String::new()).sources[0].next_attempt
}

fn ends_sent(world: &World) -> usize {
    world.sent.iter().filter(|call| matches!(call, Call::EndSession { .. })).count()
}

#[test]
fn a_session_that_ends_in_an_outage_is_ended_after_it() {
    let mut world = ended_in_an_outage();
    assert_eq!(ends_sent(&world), 0, "it was sent although the source is known to be away");
    world.advance(seconds(900));
    assert_eq!(world.vault.leases.len(), 1);
    let sent = ends_sent(&world);
    assert!((1..=120).contains(&sent), "{sent} calls in 15 minutes");
    // Whoever asks first finds it answering; the end follows within the spread of a recovery.
    world.vault.sealed = false;
    while next_attempt(&world).is_some() {
        world.advance(Duration::from_millis(10));
    }
    world.advance(Duration::from_millis(2_100));
    assert_eq!((world.count("end-session"), world.vault.leases.len()), (1, 0));
}

#[test]
fn an_end_is_tried_until_its_token_has_expired_by_itself_and_then_counted() {
    let mut world = World::new();
    world.vault.token_ttl = 120;
    let creds = world.subscribe(CREDS, 1);
    world.advance(seconds(1));
    world.vault.sealed = true;
    world.unsubscribe(creds);
    let failures =
        |world: &World| world.state.report(world.now, &|_| String::new()).counters.failures;
    world.advance(seconds(110));
    assert_eq!(failures(&world), 0, "given up after {} calls", ends_sent(&world));
    assert!(world.state.next_deadline().is_some());
    world.advance(seconds(10));
    assert_eq!((failures(&world), world.state.next_deadline()), (1, None));
}

#[test]
fn an_end_that_was_refused_is_not_tried_again_and_counted() {
    let mut world = World::new();
    world.vault.ends_denied = true;
    let creds = world.subscribe(CREDS, 1);
    world.advance(seconds(1));
    world.unsubscribe(creds);
    world.advance(seconds(100));
    let report = world.state.report(world.now, &|_| String::new());
    assert_eq!((ends_sent(&world), report.counters.failures), (1, 1));
}

#[test]
fn the_end_of_a_token_that_does_not_expire_is_tried_for_long_and_not_for_ever() {
    for (outage, ended) in [(seconds(1200), true), (seconds(24 * 3600), false)] {
        let mut world = World::new();
        world.vault.token_ttl = 0;
        let creds = world.subscribe(CREDS, 1);
        world.advance(seconds(1));
        world.vault.sealed = true;
        world.unsubscribe(creds);
        world.advance(outage);
        world.vault.sealed = false;
        world.advance(seconds(60));
        assert_eq!(world.count("end-session") == 1, ended, "{} calls", ends_sent(&world));
        let report = world.state.report(world.now, &|_| String::new());
        assert_eq!(report.counters.failures, u64::from(!ended));
        assert_eq!(world.state.next_deadline(), None, "it is tried for ever");
    }
}
