//! The broker's pure core against a model of Vault, in virtual time: every rule of leases, caching,
//! sessions and local leases, one test each.

#[path = "support/world.rs"]
mod world;

use secrets_broker::broker::Freshness;
use secrets_broker::broker::event::{Answer, Event, LocalOperation, WaiterId};
use secrets_broker::broker::settings::Settings;
use secrets_broker::source::ErrorClass;
use secrets_broker::telemetry::Limit;
use std::time::Duration;
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
fn two_hundred_cold_reads_are_one_login_and_one_fetch() {
    let mut world = World::new();
    let waiters: Vec<_> = (0..200).map(|consumer| world.read(KV, consumer)).collect();
    world.advance(seconds(1));
    assert!(waiters.iter().all(|waiter| freshness(&world, *waiter) == Freshness::Miss));
    assert_eq!((world.count("login"), world.count("fetch")), (1, 1));
    let hit = world.read(KV, 1);
    assert_eq!(freshness(&world, hit), Freshness::Hit);
}

#[test]
fn a_lease_is_renewed_between_70_and_75_percent_with_the_same_value() {
    let mut world = World::new();
    world.vault.lease_max_ttl = 100_000;
    let subscription = world.subscribe(CREDS, 1);
    world.advance(seconds(1));
    let first = world.levels[&subscription].value.unwrap();
    world.advance(seconds(1000));
    assert_eq!(world.levels[&subscription].value, Some(first));
    assert_eq!(world.count("mint"), 1);
    let grants: Vec<_> =
        world.vault.log.iter().filter(|(_, w)| *w == "mint" || *w == "renew").collect();
    assert!(grants.len() > 60);
    for pair in grants.windows(2) {
        // Measured from the moment the request left: 5 ms before it was answered.
        let gap = pair[1].0.since(pair[0].0);
        assert!(gap >= seconds(14) && gap <= seconds(15), "{gap:?}");
    }
}

#[test]
fn at_max_ttl_the_replacement_overlaps_and_the_file_always_works() {
    let mut world = World::new();
    let subscription = world.subscribe(CREDS, 1);
    world.advance(seconds(1));
    let first = world.levels[&subscription].value.unwrap();
    let mut replaced_at = None;
    for _ in 0..3000 {
        world.advance(Duration::from_millis(100));
        let current = world.levels[&subscription].value.unwrap();
        assert!(world.works(current), "the published credential is dead");
        if current != first && replaced_at.is_none() {
            replaced_at = Some(world.now);
            assert!(world.works(first), "the old credential died before its overlap");
        }
    }
    assert!(replaced_at.is_some());
    assert!(world.count("mint") >= 5 && world.count("mint") <= 8, "{}", world.count("mint"));
}

#[test]
fn a_seal_in_mid_lease_mints_nothing_and_the_same_lease_goes_on() {
    let mut world = World::new();
    world.vault.lease_max_ttl = 1000;
    let subscription = world.subscribe(CREDS, 1);
    world.advance(seconds(5));
    let first = world.levels[&subscription].value.unwrap();
    world.vault.sealed = true;
    world.advance(seconds(12));
    assert!(world.levels[&subscription].problem.is_some());
    world.vault.sealed = false;
    world.advance(seconds(5));
    assert_eq!(world.count("mint"), 1);
    assert_eq!(world.count("renew"), 1);
    let level = &world.levels[&subscription];
    assert!(level.value == Some(first) && level.problem.is_none());
}

#[test]
fn renewals_that_fail_while_vault_answers_cause_exactly_one_replacement_before_expiry() {
    let mut world = World::new();
    let subscription = world.subscribe(CREDS, 1);
    world.advance(seconds(1));
    let first = world.levels[&subscription].value.unwrap();
    world.vault.renewals_fail = true;
    while world.count("mint") == 1 {
        world.advance(Duration::from_millis(10));
    }
    world.advance(Duration::from_millis(10));
    assert!(world.works(first), "the replacement came too late");
    assert_ne!(world.levels[&subscription].value, Some(first));
    assert!(world.count("renew-failed") >= 3, "it gave up too early");
    world.advance(seconds(10));
    assert_eq!(world.count("mint"), 2);
}

#[test]
fn the_last_consumer_takes_the_credential_with_it_without_a_right_to_revoke() {
    let mut world = World::new();
    let subscription = world.subscribe(CREDS, 1);
    world.advance(seconds(3));
    assert_eq!(world.vault.leases.len(), 1);
    world.unsubscribe(subscription);
    world.advance(seconds(1));
    assert_eq!((world.vault.leases.len(), world.count("end-session")), (0, 1));
    assert!(world.values.is_empty(), "bytes are left behind");
    assert_eq!(world.state.next_deadline(), None, "work is left behind");
}

#[test]
fn each_consumer_has_its_own_credential_and_reads_it_again_unchanged() {
    let mut world = World::new();
    let (a, b) = (world.read(CREDS, 1), world.read(CREDS, 2));
    world.advance(seconds(1));
    assert_eq!(world.count("mint"), 2);
    let again = world.read(CREDS, 1);
    assert_eq!(world.local_of(a), world.local_of(again));
    assert_ne!(world.local_of(a), world.local_of(b));
    assert_eq!(world.count("mint"), 2);
}

#[test]
fn a_shared_credential_ends_with_the_last_of_its_holders() {
    let mut world = World::new();
    for consumer in [1, 2] {
        let mut shared = world::want(CREDS, consumer);
        shared.owner = None;
        let waiter = WaiterId(u64::from(consumer));
        world.step(secrets_broker::broker::event::Event::Read { waiter, want: shared });
    }
    world.advance(seconds(1));
    assert_eq!(world.count("mint"), 1);
    let local = world.local_of(WaiterId(1));
    world.local(1, local, LocalOperation::Revoke);
    world.advance(seconds(1));
    assert_eq!(world.vault.leases.len(), 1);
    let local = world.local_of(WaiterId(2));
    world.local(2, local, LocalOperation::Revoke);
    world.advance(seconds(1));
    assert_eq!(world.vault.leases.len(), 0);
}

#[test]
fn an_unread_local_lease_ends_the_interest_and_a_hit_or_renewal_prolongs_it() {
    let mut world = World::new();
    world.vault.lease_max_ttl = 1000;
    let waiter = world.read(CREDS, 1);
    world.advance(seconds(10));
    let local = world.local_of(waiter);
    // A hit on the snapshot moves what was told, without an event.
    let until = world.now + seconds(30);
    world.told.insert(local, until);
    world.advance(seconds(15));
    assert_eq!(world.vault.leases.len(), 1, "the interest ended although a hit prolonged it");
    let renewed = world.local(1, local, LocalOperation::Renew);
    assert!(matches!(renewed, Answer::Local(Ok(_))), "{renewed:?}");
    world.told.insert(local, world.now);
    world.advance(seconds(40));
    assert_eq!(world.vault.leases.len(), 0);
    let gone = world.local(1, local, LocalOperation::Lookup);
    assert!(matches!(gone, Answer::Local(Err(_))));
    assert_eq!(world.count("mint"), 1);
}

#[test]
fn a_holder_that_renews_late_in_the_grant_gets_a_real_renewal_and_never_a_new_credential() {
    let mut world = World::new();
    world.vault.lease_max_ttl = 1000;
    let waiter = world.read(CREDS, 1);
    world.advance(seconds(10));
    let local = world.local_of(waiter);
    let told = |answer: &Answer| match answer {
        Answer::Local(Ok(terms)) => terms.duration,
        other => panic!("not renewed: {other:?}"),
    };
    // Half of the grant is over: nothing upstream, the real rest.
    let early = world.local(1, local, LocalOperation::Renew);
    assert!(told(&early) <= seconds(11) && world.count("renew") == 0);
    world.advance(Duration::from_millis(3_300));
    let late = WaiterId(1_000_000);
    let consumer = secrets_broker::domain::ConsumerId::host_user(1);
    world.step(Event::Local { waiter: late, consumer, local, operation: LocalOperation::Renew });
    assert!(!world.answers.contains_key(&late), "answered before the real renewal");
    world.advance(Duration::from_millis(100));
    assert!(told(&world.answers[&late]) > seconds(19));
    assert_eq!((world.count("renew"), world.count("mint")), (1, 1));
    // While renewals fail nobody waits for one: what remains is told at once.
    world.vault.renewals_fail = true;
    world.advance(seconds(16));
    let failing = world.local(1, local, LocalOperation::Renew);
    assert!(told(&failing) < seconds(5));
}

#[test]
fn a_local_lease_obeys_only_its_holder() {
    let mut world = World::new();
    let waiter = world.read(CREDS, 1);
    world.advance(seconds(1));
    let local = world.local_of(waiter);
    for operation in [LocalOperation::Lookup, LocalOperation::Renew, LocalOperation::Revoke] {
        assert!(matches!(world.local(2, local, operation), Answer::Local(Err(_))));
    }
    assert_eq!(world.vault.leases.len(), 1);
}

#[test]
fn kv_is_stale_in_an_outage_up_to_max_stale_and_refused_after() {
    let mut world = World::new();
    world.read(KV, 1);
    world.advance(seconds(1));
    world.vault.sealed = true;
    world.advance(seconds(400));
    let stale = world.read(KV, 1);
    world.advance(seconds(1));
    assert_eq!(freshness(&world, stale), Freshness::Stale);
    world.advance(seconds(3300));
    let dead = world.read(KV, 1);
    world.advance(seconds(1));
    assert_eq!(world.refused(dead), Some(ErrorClass::Unreachable));
    assert!(world.values.is_empty(), "bytes outlived max_stale");
}

#[test]
fn a_refresh_is_an_attempt_now_even_while_the_breaker_is_open() {
    let mut world = World::new();
    let subscription = world.subscribe(KV, 1);
    world.advance(seconds(1));
    world.vault.sealed = true;
    world.advance(seconds(400));
    let is_open = |world: &World| {
        let report = world.state.report(world.now, &|_| String::new());
        report.sources[0].next_attempt.is_some_and(|at| at > world.now + seconds(2))
    };
    while !is_open(&world) {
        world.advance(Duration::from_millis(100));
    }
    world.vault.sealed = false;
    let secret = world::want(KV, 1).secret;
    world.step(Event::Refresh { waiter: WaiterId(2_000_000), secret, login: None });
    world.advance(Duration::from_millis(100));
    assert!(world.levels[&subscription].problem.is_none());
}

#[test]
fn a_failure_never_refreshes_the_age_of_a_value() {
    let mut world = World::new();
    let subscription = world.subscribe(KV, 1);
    world.advance(seconds(1));
    world.vault.sealed = true;
    world.advance(seconds(3700));
    assert!(world.values.is_empty());
    let level = &world.levels[&subscription];
    assert_eq!(level.problem.as_ref().map(|p| p.class), Some(ErrorClass::Unreachable));
    world.vault.sealed = false;
    world.advance(seconds(31));
    assert!(world.levels[&subscription].problem.is_none());
}

#[test]
fn a_subscribed_secret_is_refreshed_before_it_goes_stale_and_an_idle_one_costs_nothing() {
    let mut world = World::new();
    world.read("secret/data/idle", 1);
    let _subscription = world.subscribe(KV, 1);
    world.advance(seconds(3500));
    let reads = world.count("fetch");
    assert!((12..=16).contains(&reads), "{reads}");
}

#[test]
fn a_denial_is_tried_once_more_with_a_fresh_login_then_purges_and_later_heals() {
    let mut world = World::new();
    let subscription = world.subscribe(KV, 1);
    world.advance(seconds(1));
    let value = world.levels[&subscription].value;
    world.vault.reads_denied = true;
    world.advance(seconds(310));
    let denied = world.read(KV, 1);
    world.advance(seconds(1));
    assert_eq!(world.refused(denied), Some(ErrorClass::Denied));
    assert!(world.values.is_empty(), "the cached value survived the denial");
    assert_eq!(world.levels[&subscription].value, value, "a file lost its content");
    let logins = world.count("login");
    assert!((2..=7).contains(&logins), "at most one login a minute: {logins}");
    world.vault.reads_denied = false;
    world.advance(seconds(40));
    assert!(world.levels[&subscription].problem.is_none());
}

#[test]
fn a_deleted_secret_is_not_found_and_the_answer_is_remembered_briefly() {
    let mut world = World::new();
    world.vault.gone = true;
    for _ in 0..50 {
        world.read(KV, 1);
        world.advance(Duration::from_millis(50));
    }
    let last = world.read(KV, 1);
    assert_eq!(world.refused(last), Some(ErrorClass::NotFound));
    assert_eq!(world.count("login"), 1);
}

#[test]
fn a_lease_that_cannot_be_renewed_is_replaced_at_75_percent() {
    let mut world = World::new();
    world.vault.lease_renewable = false;
    let subscription = world.subscribe(CREDS, 1);
    world.advance(seconds(1));
    for _ in 0..1000 {
        world.advance(Duration::from_millis(100));
        let current = world.levels[&subscription].value.unwrap();
        assert!(world.works(current));
    }
    assert_eq!(world.count("renew"), 0);
    assert!((6..=8).contains(&world.count("mint")));
}

#[test]
fn a_static_credential_is_read_again_at_its_rotation_and_never_served_past_it() {
    let mut world = World::new();
    let subscription = world.subscribe("database/static-creds/app", 1);
    world.advance(seconds(301));
    assert!(world.levels[&subscription].value.is_some());
    let reads = world.count("fetch-static");
    assert!((10..=32).contains(&reads), "{reads}");
}

#[test]
fn an_unknown_create_is_counted_and_its_session_ended_so_nothing_is_orphaned() {
    let mut world = World::new();
    world.vault.ambiguous = true;
    let waiter = world.read(CREDS, 1);
    world.advance(seconds(2));
    assert_eq!(world.refused(waiter), Some(ErrorClass::Unreachable));
    let report = world.state.report(world.now, &|_| String::new());
    assert_eq!((report.counters.ambiguous_creates, world.count("mint")), (1, 1));
    assert_eq!(world.vault.leases.len(), 0, "an unknown credential was left behind");
}

#[test]
fn a_full_cache_evicts_idle_kv_and_then_refuses() {
    let mut settings = Settings::default();
    settings.limits.entries = 3;
    let mut world = World::with(settings, 1);
    for path in ["secret/data/a", "secret/data/b", "secret/data/c", "secret/data/d"] {
        let waiter = world.read(path, 1);
        world.advance(seconds(1));
        assert_eq!(freshness(&world, waiter), Freshness::Miss);
    }
    for path in ["secret/data/b", "secret/data/c", "secret/data/d"] {
        world.subscribe(path, 1);
    }
    let refused = world.read("secret/data/e", 1);
    assert!(matches!(world.answers[&refused], Answer::Refused(_)));
    let limits = world.state.report(world.now, &|_| String::new()).limits;
    assert!(limits.contains(&Limit::shared("entries", 3, 3, 1)), "{limits:?}");
}

#[test]
fn an_auto_mount_is_asked_for_once_before_the_first_read() {
    let mut world = World::new();
    let waiters: Vec<_> = (0..5).map(|n| world.read(&format!("auto/data/{n}"), 1)).collect();
    world.advance(seconds(1));
    assert!(waiters.iter().all(|w| freshness(&world, *w) == Freshness::Miss));
    assert_eq!((world.count("probe"), world.count("login")), (1, 1));
}
