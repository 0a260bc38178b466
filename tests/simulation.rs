//! Whole-node simulation in virtual time: random consumers, outages, denials, revocations and
//! losses from a seed. Invariants hold after every step; a failing seed is printed.

#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use secrets_broker::broker::event::{Answer, Event, LocalOperation};
use secrets_broker::broker::settings::Settings;
use secrets_broker::domain::{ConsumerId, LoginIdentity};
use secrets_broker::source::TokenKind;
use world::{World, account, seconds};

const SEEDS: u64 = 100;
const STEPS: usize = 400;
const CONSUMERS: u32 = 4;

fn disturb(world: &mut World, rng: &mut fastrand::Rng) {
    match rng.u8(0..17) {
        0 => world.vault.sealed = true,
        1 => world.vault.renewals_fail = !world.vault.renewals_fail,
        2 => world.vault.reads_denied = !world.vault.reads_denied,
        3 => world.vault.gone = !world.vault.gone,
        4 => world.vault.revoke_permitted = !world.vault.revoke_permitted,
        5 => world.vault.ambiguous = !world.vault.ambiguous,
        6 => world.vault.login_denied = !world.vault.login_denied,
        7 => {
            world.vault.tokens.clear();
            world.vault.leases.clear();
        }
        8 => world.vault.leases.clear(),
        9 => world.vault.latency = Duration::from_millis(rng.u64(1..5_000)),
        10 => world.vault.lease_ttl = rng.u64(2..200),
        11 => world.vault.token_ttl = rng.u64(5..500),
        12 => world.vault.token_kind = TokenKind::Batch,
        13 => world.vault.probes_denied.extend([login(rng.u32(0..CONSUMERS))]),
        14 => world.vault.shut_out.extend([login(rng.u32(0..CONSUMERS))]),
        // The kinds of mounts are not known any more.
        15 => world.step(Event::SourceChanged { source: "vault".parse().unwrap() }),
        _ => world.vault.content += 1,
    }
}

fn heal(world: &mut World) {
    world.vault.sealed = false;
    world.vault.renewals_fail = false;
    world.vault.reads_denied = false;
    world.vault.gone = false;
    world.vault.ambiguous = false;
    world.vault.login_denied = false;
    world.vault.probes_denied.clear();
    world.vault.shut_out.clear();
    world.vault.latency = Duration::from_millis(5);
}

/// Two of the consumers are the agent's, the others' pods have accounts of their own.
fn login(consumer: u32) -> LoginIdentity {
    match consumer {
        0 | 1 => LoginIdentity::Agent,
        _ => account(&format!("web-{consumer}")),
    }
}

fn path(rng: &mut fastrand::Rng) -> String {
    match rng.u8(0..6) {
        0..3 => format!("secret/data/{}", rng.u8(0..6)),
        3 => "auto/data/x".to_owned(),
        4 => "database/static-creds/app".to_owned(),
        _ => format!("database/creds/{}", rng.u8(0..3)),
    }
}

fn run(seed: u64) -> Vec<(u64, &'static str)> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut settings = Settings::default();
    settings.limits.entries = 12;
    settings.limits.bytes = 1500;
    let mut world = World::with(settings, seed);
    world.vault.lease_max_ttl = rng.u64(30..400);
    world.vault.token_max_ttl = rng.u64(60..4000);
    let mut subscriptions = Vec::new();
    for _ in 0..STEPS {
        match rng.u8(0..10) {
            0..3 => {
                let (path, consumer) = (path(&mut rng), rng.u32(0..CONSUMERS));
                world.read_as(&login(consumer), &path, consumer);
            }
            3..5 => {
                let (path, consumer) = (path(&mut rng), rng.u32(0..CONSUMERS));
                subscriptions.push(world.subscribe_as(&login(consumer), &path, consumer));
            }
            5 if !subscriptions.is_empty() => {
                let gone = subscriptions.swap_remove(rng.usize(..subscriptions.len()));
                world.unsubscribe(gone);
            }
            6 => {
                let local = world.told.keys().nth(rng.usize(0..4)).copied();
                if let Some(local) = local {
                    let operation = *rng
                        .choice(&[
                            LocalOperation::Lookup,
                            LocalOperation::Renew,
                            LocalOperation::Revoke,
                        ])
                        .unwrap();
                    world.ask_local(rng.u32(0..CONSUMERS), local, operation);
                }
            }
            7 => disturb(&mut world, &mut rng),
            8 => heal(&mut world),
            9 => {
                let consumer = ConsumerId::host_user(rng.u32(0..CONSUMERS));
                world.step(Event::Gone { consumer });
            }
            _ => {}
        }
        world.advance(Duration::from_millis(rng.u64(0..30_000)));
        invariants(&world);
    }
    heal(&mut world);
    for subscription in subscriptions {
        world.unsubscribe(subscription);
    }
    // Local leases end unread, sessions linger a minute, cached KV dies at max_stale.
    world.advance(seconds(5_000));
    invariants(&world);
    let answered = world.asked.iter().all(|waiter| world.answers.contains_key(waiter));
    assert!(answered, "somebody waits for ever");
    assert!(world.told.is_empty(), "local leases are left");
    assert!(world.values.is_empty(), "bytes are left: {:?}", world.values);
    assert_eq!(world.state.next_deadline(), None, "work is left");
    let report = world.state.report(world.now, &|_| String::new());
    assert!(report.sessions.is_empty() && report.secrets.is_empty(), "{report:?}");
    world.vault.log.iter().map(|(at, what)| (at.as_nanos(), *what)).collect()
}

fn invariants(world: &World) {
    assert!(world.fetching.values().all(|running| *running <= 1), "two fetches for one key");
    assert!(world.published.len() <= 13, "the entry bound is broken");
    let report = world.state.report(world.now, &|_| String::new());
    for secret in &report.secrets {
        let leased = secret.lease.is_some() && !secret.consumers.is_empty();
        let idle = secret.next.is_some();
        let busy = report.sources[0].in_flight > 0 || world.state.next_deadline().is_some();
        assert!(!leased || idle || busy, "a live lease that nothing will renew: {secret:?}");
        if let Some((_, at)) = secret.next {
            assert!(world.state.next_deadline().is_some_and(|d| d <= at), "{secret:?}");
        }
    }
    for answer in world.answers.values() {
        if let Answer::Value { local: Some(local), .. } = answer {
            assert!(local.duration <= seconds(400), "a local lease outlives the real one");
        }
    }
}

#[test]
fn no_seed_breaks_an_invariant_and_everything_ends_in_the_end() {
    let base = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = base.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        assert!(outcome.is_ok(), "broken by SIMULATION_SEED={seed}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..10 {
        assert_eq!(run(seed), run(seed));
    }
}
