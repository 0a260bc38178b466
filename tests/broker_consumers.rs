//! What one consumer may cost the others in the broker's pure core, and what a leaving one gets.

#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use secrets_broker::broker::ReadError;
use secrets_broker::broker::event::{
    Answer, Call, Event, LocalOperation, SubscriptionId, WaiterId, Want,
};
use secrets_broker::broker::settings::Settings;
use secrets_broker::domain::{ConsumerId, LoginIdentity};
use secrets_broker::source::ErrorClass;
use secrets_broker::telemetry::Limit;
use world::{World, account, seconds};

const CREDS: &str = "database/creds/shop";
const KV: &str = "secret/data/shop/web";

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

#[test]
fn a_call_that_waits_is_counted_once_however_often_it_is_tried() {
    let mut settings = Settings::default();
    settings.limits.upstream_in_flight = 2;
    settings.limits.upstream_per_second = 10;
    let mut world = World::with(settings, 1);
    world.read("secret/data/warm", 1);
    world.advance(seconds(2));
    let hits = |world: &World, name| {
        let limits = world.state.report(world.now, &|_| String::new()).limits;
        limits.iter().find(|limit| limit.name == name).unwrap().hits
    };
    for path in ["secret/data/a", "secret/data/b", "secret/data/c"] {
        world.read(path, 1);
    }
    for _ in 0..100 {
        let hit = world.read("secret/data/warm", 1);
        assert!(matches!(world.answers[&hit], Answer::Value { .. }));
    }
    assert_eq!(hits(&world, "upstream_in_flight"), 1);
    world.advance(seconds(2));
    assert_eq!(hits(&world, "upstream_in_flight"), 2, "both that waited, once each");
    assert_eq!(hits(&world, "upstream_per_second"), 0);
    world.vault.latency = Duration::ZERO;
    for n in 0..30 {
        world.read(&format!("secret/data/rate/{n}"), 1);
        world.advance(Duration::from_nanos(1));
    }
    let waited = hits(&world, "upstream_per_second");
    for _ in 0..100 {
        world.read("secret/data/warm", 1);
    }
    assert_eq!((waited, hits(&world, "upstream_per_second")), (1, 1));
}

/// What a pod may have under way at once: its connections.
const FLOOD: usize = 128;

/// A world whose agent is logged in, with one consumer's flood of misses just begun; how many calls
/// had left by then.
fn flooded(login: &LoginIdentity) -> (World, usize) {
    let mut world = World::new();
    world.read_as(login, "secret/data/warm", 1);
    world.advance(seconds(2));
    for n in 0..FLOOD {
        world.read_as(login, &format!("secret/data/flood/{n}"), 1);
    }
    let sent = world.sent.len();
    assert!(sent < FLOOD, "nothing is left in line");
    (world, sent)
}

/// The place of the first call that reads `path` among all that left.
fn sent_at(world: &World, path: &str) -> usize {
    let reads =
        |call: &Call| matches!(call, Call::Fetch { secret, .. } if secret.path.as_str() == path);
    world.sent.iter().position(reads).expect("it was never read")
}

#[test]
fn one_miss_beside_a_flood_of_anothers_is_sent_next_but_one_at_the_latest() {
    let (mut world, sent) = flooded(&LoginIdentity::Agent);
    let waiter = world.read(KV, 2);
    world.advance(seconds(5));
    assert!(matches!(world.answers[&waiter], Answer::Value { .. }));
    assert!(sent_at(&world, KV) <= sent + 1, "{} of {sent}", sent_at(&world, KV));
}

#[test]
fn accounts_take_turns_as_consumers_do_and_a_flood_goes_on_in_its_order() {
    let flooding = account("flood");
    let (mut world, sent) = flooded(&flooding);
    let others: Vec<_> = ["a", "b", "c"].map(account).into();
    for other in &others {
        world.read_as(other, KV, 2);
    }
    world.advance(seconds(5));
    let logins = world.sent[sent..].iter().take(2 * others.len());
    let logins = logins.filter(|call| matches!(call, Call::Login(_))).count();
    assert_eq!(logins, others.len(), "a login waited for more than one call of the flood's");
    let flood: Vec<_> =
        (0..FLOOD).map(|n| sent_at(&world, &format!("secret/data/flood/{n}"))).collect();
    assert!(flood.is_sorted(), "{flood:?}");
}

#[test]
fn who_wants_what_already_waits_in_a_floods_line_has_it_in_a_turn_of_his_own() {
    let last = format!("secret/data/flood/{}", FLOOD - 1);
    let (mut world, sent) = flooded(&LoginIdentity::Agent);
    let waiter = world.read(&last, 2);
    let (mut others, others_sent) = flooded(&LoginIdentity::Agent);
    others.subscribe(&last, 2);
    world.advance(seconds(5));
    others.advance(seconds(5));
    assert!(matches!(world.answers[&waiter], Answer::Value { .. }));
    assert!(sent_at(&world, &last) <= sent + 1, "{}", sent_at(&world, &last));
    assert!(sent_at(&others, &last) <= others_sent + 1, "{}", sent_at(&others, &last));
    assert_eq!(world.count("fetch"), FLOOD + 1, "it was read twice");
}

#[test]
fn an_end_does_not_wait_behind_the_flood_of_another() {
    let mut world = World::new();
    let theirs = world.subscribe(CREDS, 2);
    world.read("secret/data/warm", 1);
    world.advance(seconds(2));
    for n in 0..FLOOD {
        world.read(&format!("secret/data/flood/{n}"), 1);
    }
    let sent = world.sent.len();
    world.unsubscribe(theirs);
    world.advance(seconds(5));
    let end = world.sent.iter().position(|call| matches!(call, Call::EndSession { .. }));
    assert!(end.expect("the session ends") <= sent + 1, "{end:?} of {sent}");
}

#[test]
fn a_refused_probe_counts_for_the_account_it_was_refused_to_and_for_nobody_else() {
    let (refused, allowed) = (account("refused"), account("web"));
    for refused_asks_first in [true, false] {
        let mut world = World::new();
        world.vault.probes_denied.insert(refused.clone());
        let mut read = |login: &LoginIdentity| -> Vec<_> {
            (0..3).map(|n| world.read_as(login, &format!("auto/data/{n}"), 1)).collect()
        };
        let first = if refused_asks_first { &refused } else { &allowed };
        let mut waiters = vec![(first, read(first))];
        let second = if refused_asks_first { &allowed } else { &refused };
        waiters.push((second, read(second)));
        let files = world.subscribe_as(&allowed, "auto/data/files", 3);
        world.advance(seconds(1));
        // An answer that came first is the refused account's too.
        let refusals = usize::from(refused_asks_first);
        for (login, waiters) in waiters {
            let denied = *login == refused && refused_asks_first;
            for waiter in waiters {
                let told = world.refused(waiter);
                assert_eq!(told, denied.then_some(ErrorClass::Denied), "{login}");
            }
        }
        assert!(world.levels[&files].value.is_some());
        assert_eq!((world.count("probe-denied"), world.count("probe")), (refusals, 1));
    }
}

#[test]
fn an_answered_probe_serves_every_account_that_waits_for_it() {
    let mut world = World::new();
    let waiters: Vec<_> =
        (0..20).map(|n| world.read_as(&account(&format!("web-{n}")), "auto/data/web", n)).collect();
    world.advance(seconds(2));
    assert!(waiters.iter().all(|waiter| matches!(world.answers[waiter], Answer::Value { .. })));
    assert_eq!(world.count("probe"), 1);
}

#[test]
fn an_account_that_cannot_log_in_keeps_nobody_else_from_a_mounts_kind() {
    let mut world = World::new();
    let (out, web) = (account("a"), account("web"));
    world.vault.shut_out.insert(out.clone());
    let theirs = world.read_as(&out, "auto/data/web", 1);
    let ours = world.read_as(&web, "auto/data/web", 2);
    world.advance(seconds(1));
    assert_eq!(world.refused(theirs), Some(ErrorClass::Unreachable));
    assert!(matches!(world.answers[&ours], Answer::Value { .. }));
}

#[test]
fn accounts_without_a_token_open_no_breaker_for_the_others() {
    let mut world = World::new();
    for n in 0..8 {
        let lacking = account(&format!("lacking-{n}"));
        world.vault.tokenless.insert(lacking.clone());
        world.subscribe_as(&lacking, KV, n);
    }
    world.advance(seconds(10));
    let waiter = world.read_as(&account("web"), KV, 100);
    world.advance(seconds(1));
    assert!(matches!(world.answers[&waiter], Answer::Value { .. }));
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

/// Who reads the snapshot would have the lease of whoever came first, and lose it with them.
#[test]
fn a_credential_that_an_account_shares_is_published_with_nobodys_local_lease() {
    let of_the_account = |want: Want| Want { owner: Some(ConsumerId::host_user(9)), ..want };
    for (want, published) in [
        (world::want(CREDS, 1), true),
        (of_the_account(world::want(CREDS, 1)), false),
        (Want { owner: None, ..world::want(CREDS, 1) }, false),
    ] {
        let mut world = World::new();
        let answer = read(&mut world, 1_000_000, want);
        assert!(matches!(answer, Some(Answer::Value { .. })), "{answer:?}");
        let interests: Vec<_> = world.interests.values().map(Option::is_some).collect();
        assert_eq!(interests, [published]);
    }
}
