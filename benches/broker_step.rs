//! The cost of one step of the broker's pure core with 1 000, 10 000 and 100 000 live leases, and
//! how many steps idle KV entries cost.
//!
//! Virtual time and an instant, faultless source; only `State::step` is timed. Each lease has a
//! consumer, and with that a session, of its own. The sizes take turns in one run. Target: under
//! 5 µs at 100 000 leases, at most 3 × the cost at 10 000, and no step for entries nobody reads.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use secrets_broker::broker::event::{
    Call, Done, Effect, Event, FetchedValue, SubscriptionId, TokenId, ValueId, WaiterId, Want,
};
use secrets_broker::broker::settings::Settings;
use secrets_broker::broker::state::State;
use secrets_broker::clock::BootInstant;
use secrets_broker::domain::{ConsumerId, EngineKind, LoginIdentity, SecretRef};
use secrets_broker::source::{ConfiguredMount, LeaseTerms, SourceError, TokenGrant, TokenKind};

use crate::report::{self, median, percentile, verdict};

const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
const STEP_MOST: f64 = 5.0;
const GROWTH_MOST: f64 = 3.0;
const ROUNDS: usize = 5;
const STEPS_PER_ROUND: usize = 100_000;
const HOUR: Duration = Duration::from_secs(3600);

/// The core, its clock, and a source that answers at once.
struct Driver {
    state: State,
    now: BootInstant,
    next: u64,
    /// By kind of event, in nanoseconds.
    due: Vec<u32>,
    done: Vec<u32>,
    read: Vec<u32>,
}

impl Driver {
    fn new() -> Self {
        let mut settings = Settings::default();
        settings.defaults.max_stale = 48 * HOUR;
        settings.limits.entries = 1_000_000;
        settings.limits.bytes = usize::MAX / 2;
        settings.limits.upstream_per_second = 1_000_000;
        let now = BootInstant::from_nanos(1_000_000_000_000);
        let state = State::new(settings, &["vault".parse().expect("a name")], now, 7);
        let (due, done, read) = Default::default();
        Self { state, now, next: 1, due, done, read }
    }

    /// With this many leases, granted evenly over ten minutes.
    fn with_leases(count: u32) -> Self {
        let mut driver = Self::new();
        for consumer in 0..count {
            let subscription = SubscriptionId(driver.id());
            let want = want("database", "creds", consumer);
            driver.step(Event::Subscribe { subscription, want });
            driver.now = driver.now + Duration::from_secs(600) / count;
        }
        driver
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Steps with an event and with everything that follows from it at this moment.
    fn step(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let kind = match &event {
                Event::Tick => Some(&mut self.due),
                Event::Completed { .. } | Event::Persisted { .. } => Some(&mut self.done),
                Event::Read { .. } => Some(&mut self.read),
                _ => None,
            };
            let started = Instant::now();
            let effects = self.state.step(self.now, event);
            let took = started.elapsed();
            if let Some(kind) = kind {
                kind.push(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
            }
            for effect in effects {
                events.extend(self.outcome(effect));
            }
        }
    }

    fn outcome(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Call { id, call, .. } => {
                let outcome = self.answer(&call);
                Some(Event::Completed { effect: id, left_at: self.now, outcome })
            }
            Effect::Persist { id, .. } => Some(Event::Persisted { effect: id }),
            Effect::ReviewInterest { local } => {
                Some(Event::Interest { local, until: self.now + HOUR })
            }
            _ => None,
        }
    }

    fn answer(&mut self, call: &Call) -> Result<Done, SourceError> {
        let terms = TokenGrant { ttl: HOUR, renewable: true };
        let lease = LeaseTerms { duration: HOUR, renewable: true };
        Ok(match call {
            Call::Login(_) => {
                let token = TokenId(self.id());
                Done::LoggedIn { token, terms, kind: TokenKind::Service }
            }
            Call::RenewToken { .. } => Done::TokenRenewed(terms),
            Call::RenewLease { .. } => Done::LeaseRenewed(lease),
            Call::Fetch { secret, .. } => {
                let value = ValueId { id: self.id(), len: 100, fingerprint: 1 };
                let leased = secret.path.as_str().starts_with("database/");
                let lease = leased.then_some(lease);
                Done::Fetched(FetchedValue { value, lease, rotates_in: None, version: None })
            }
            Call::EndSession { .. } | Call::RevokeLease { .. } => Done::Ended,
            Call::Probe { .. } => unreachable!("every mount's kind is configured"),
        })
    }

    /// Lets time pass until `end`, waking the core exactly when it asked to be; counts the steps.
    fn advance(&mut self, end: BootInstant) -> usize {
        let before = self.timed();
        while let Some(at) = self.state.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.step(Event::Tick);
        }
        self.now = end;
        self.timed() - before
    }

    fn timed(&self) -> usize {
        self.due.len() + self.done.len() + self.read.len()
    }

    /// Renewals until enough steps are timed; a consumer reads again now and then.
    fn round(&mut self, leases: u32) -> Round {
        (self.due, self.done, self.read) = Default::default();
        let mut reader = 0;
        while self.timed() < STEPS_PER_ROUND {
            let soon = self.now + Duration::from_secs(1);
            let next = self.state.next_deadline().unwrap_or(soon).min(soon);
            self.advance(next);
            let waiter = WaiterId(self.id());
            reader = (reader + 7919) % leases;
            self.step(Event::Read { waiter, want: want("database", "creds", reader) });
        }
        let mut all = [&self.due[..], &self.done, &self.read].concat();
        all.sort_unstable();
        let p99 = percentile(&all, 0.99).as_secs_f64() * 1e6;
        let [due, done, read] = [&self.due, &self.done, &self.read].map(|kind| mean(kind));
        Round { all: mean(&all), p99, due, done, read }
    }
}

/// Means of one round, in microseconds.
struct Round {
    all: f64,
    p99: f64,
    due: f64,
    done: f64,
    read: f64,
}

fn mean(nanos: &[u32]) -> f64 {
    nanos.iter().map(|n| f64::from(*n)).sum::<f64>() / nanos.len() as f64 / 1e3
}

fn want(mount: &str, kind: &str, number: u32) -> Want {
    let path = format!("{mount}/{kind}/shop-{number}").parse().expect("a path");
    let engine = if mount == "database" { EngineKind::Database } else { EngineKind::Kv2 };
    Want {
        secret: SecretRef { source: "vault".parse().expect("a name"), path, version: None },
        mount: ConfiguredMount { path: mount.parse().expect("a path"), kind: Some(engine) },
        login: LoginIdentity::Agent,
        consumer: ConsumerId::host_user(number),
        owner: Some(ConsumerId::host_user(number)),
        may_mint: true,
    }
}

/// Steps in each of a day's hours with `count` cached KV entries that nobody reads again.
fn idle_steps_per_hour(count: u32) -> f64 {
    let mut driver = Driver::new();
    for number in 0..count {
        let waiter = WaiterId(driver.id());
        driver.step(Event::Read { waiter, want: want("secret", "data", number) });
    }
    driver.advance(driver.now + 24 * HOUR) as f64 / 24.0
}

/// Prints the tables.
pub fn run() -> io::Result<()> {
    let mut drivers = SIZES.map(Driver::with_leases);
    let mut rounds: [Vec<Round>; 3] = Default::default();
    for _ in 0..ROUNDS {
        for ((driver, size), rounds) in drivers.iter_mut().zip(SIZES).zip(&mut rounds) {
            rounds.push(driver.round(size));
        }
    }
    let middle = |at: usize, of: fn(&Round) -> f64| median(rounds[at].iter().map(of));
    let rows: [[String; 7]; 3] = std::array::from_fn(|at| {
        let mean = middle(at, |round| round.all);
        let target = match SIZES[at] {
            100_000 => verdict(format!("< {STEP_MOST} µs"), mean < STEP_MOST),
            _ => String::new(),
        };
        let figure = |of| format!("{:.2}", middle(at, of));
        [
            SIZES[at].to_string(),
            format!("{mean:.2}"),
            figure(|round| round.p99),
            figure(|round| round.due),
            figure(|round| round.done),
            figure(|round| round.read),
            target,
        ]
    });
    let columns = ["leases", "mean", "p99", "renewal due", "call done", "read", "target"];
    report::print("One step of the broker, µs", columns, &rows);
    let growth = middle(2, |round| round.all) / middle(1, |round| round.all);
    let growth_verdict = verdict(format!("≤ {GROWTH_MOST}"), growth <= GROWTH_MOST);
    println!("  100 000 / 10 000: {growth:.2} ({growth_verdict})");

    let idle = SIZES.map(idle_steps_per_hour);
    let rows: [_; 3] =
        std::array::from_fn(|at| [SIZES[at].to_string(), format!("{:.1}", idle[at])]);
    report::print(
        "Steps per hour with idle KV entries (their one session's token is renewed)",
        ["entries", "steps per hour"],
        &rows,
    );
    let same = idle[2] - idle[0] < 1.0;
    println!("  {}", verdict("not more with more entries:", same));
    Ok(())
}
