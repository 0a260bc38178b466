//! The pure core: `step(now, Event) -> Vec<Effect>`, and the deadlines it wants to be woken at.
//!
//! No IO, clock, lock or secret byte. The same seed and events give the same effects: maps that are
//! iterated are ordered, and the random generator is owned. Retries and deadlines are decided here
//! and nowhere else. A step touches the entities an event names, never all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::broker::budget::{Budget, Health};
use crate::broker::event::{
    CacheKey, Call, Effect, EffectId, EntryId, Event, LocalKey, Record, SessionId, SubscriptionId,
    TokenId, ValueId,
};
use crate::broker::report::Counters;
use crate::broker::settings::Settings;
use crate::clock::BootInstant;
use crate::domain::{EngineKind, SecretPath, SecretRef, SourceName};
use crate::source::SourceError;

mod cache;
mod fetch;
mod jobs;
mod local_lease;
mod mounts;
mod read;
mod renewal;
mod report;
mod session;
mod token;
mod turns;

use cache::Entry;
use jobs::{Job, WaitingJobs};
use local_lease::Local;
use mounts::{MountKey, ProbeKey, Probes};
use session::{Session, SessionKey};
use token::Ending;
use turns::Turns;

/// Everything the broker knows, less the bytes.
pub struct State {
    settings: Settings,
    rng: fastrand::Rng,
    now: BootInstant,
    next_id: u64,
    effects: Vec<Effect>,
    follow_ups: VecDeque<FollowUp>,
    pending: HashMap<EffectId, Pending>,
    deadlines: BTreeSet<(BootInstant, Timer)>,
    /// Only ever looked up; iteration goes through `index`, which is ordered.
    entries: HashMap<EntryId, Box<Entry>>,
    index: BTreeMap<CacheKey, EntryId>,
    /// Entries nobody has a standing interest in, oldest value first: what may be evicted.
    idle: BTreeSet<(BootInstant, EntryId)>,
    bytes: usize,
    sessions: BTreeMap<SessionId, Session>,
    session_index: BTreeMap<SessionKey, SessionId>,
    endings: BTreeMap<TokenId, Ending>,
    mounts: BTreeMap<MountKey, EngineKind>,
    probes: BTreeMap<MountKey, Probes>,
    locals: BTreeMap<LocalKey, Local>,
    subscriptions: HashMap<SubscriptionId, SubscriptionPlace>,
    sources: BTreeMap<SourceName, Health>,
    budget: Budget,
    urgent: VecDeque<Job>,
    ordinary: Turns<Job>,
    waiting: WaitingJobs,
    counters: Counters,
    limit_hits: LimitHits,
}

/// Where a subscription stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SubscriptionPlace {
    /// Its entry exists.
    Entry(EntryId),
    /// Its mount's kind is still being asked for.
    Probing(ProbeKey),
}

/// How often a cap was hit.
#[derive(Debug, Clone, Copy, Default)]
struct LimitHits {
    entries: u64,
    bytes: u64,
    locals: u64,
}

/// What a deadline wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Entry(EntryId),
    Session(SessionId),
    Ending(TokenId),
    Local(LocalKey),
    Pump,
}

/// What an effect that will come back was for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pending {
    Login(SessionId),
    RenewToken(SessionId, TokenId),
    EndSession(TokenId),
    Probe(ProbeKey),
    Fetch(EntryId, TokenId),
    RenewLease(EntryId, ValueId),
    RevokeLease(SourceName, Option<EntryId>, ValueId),
    PersistSession(SessionId),
    PersistLease(EntryId),
}

/// Consequences for other entities, run after the one at hand is settled.
#[derive(Debug)]
enum FollowUp {
    /// The entry wants its secret read.
    WantFetch(EntryId),
    /// The entry's fetch failed before or during the call.
    FetchFailed(EntryId, SourceError),
    /// A usable token is there for an entry that waited.
    TokenReady(EntryId),
    /// A token died: every lease made with it is gone.
    TokenEnded(SessionId, TokenId),
    /// A session has a successor token: leases under the old one are replaced, spread out.
    ReplaceUnder(SessionId, TokenId),
    /// A token's end moved: its leases' effective end moves with it.
    TokenExtended(SessionId, TokenId),
    /// The entry is gone and holds its session no more.
    Release(SessionId, EntryId),
    /// The source answers again: what backs off because of it need not wait that long.
    Recovered(SourceName),
    /// A lease under this token ended: perhaps it was the last.
    CheckSession(SessionId),
}

impl State {
    /// An empty state; `seed` drives all jitter.
    pub fn new(settings: Settings, sources: &[SourceName], now: BootInstant, seed: u64) -> Self {
        let budget = Budget::new(&settings.limits);
        Self {
            settings,
            rng: fastrand::Rng::with_seed(seed),
            now,
            next_id: 1,
            effects: Vec::new(),
            follow_ups: VecDeque::new(),
            pending: HashMap::new(),
            deadlines: BTreeSet::new(),
            entries: HashMap::new(),
            index: BTreeMap::new(),
            idle: BTreeSet::new(),
            bytes: 0,
            sessions: BTreeMap::new(),
            session_index: BTreeMap::new(),
            endings: BTreeMap::new(),
            mounts: BTreeMap::new(),
            probes: BTreeMap::new(),
            locals: BTreeMap::new(),
            subscriptions: HashMap::new(),
            sources: sources.iter().map(|name| (name.clone(), Health::new(now))).collect(),
            budget,
            urgent: VecDeque::new(),
            ordinary: Turns::new(),
            waiting: WaitingJobs::default(),
            counters: Counters::default(),
            limit_hits: LimitHits::default(),
        }
    }

    /// Takes in one event and returns what is to be done, in order.
    pub fn step(&mut self, now: BootInstant, event: Event) -> Vec<Effect> {
        // A clock that went backwards must not make anything younger.
        self.now = self.now.max(now);
        match event {
            Event::Read { waiter, want } => self.read(waiter, want),
            Event::Subscribe { subscription, want } => self.subscribe(subscription, want),
            Event::Unsubscribe { subscription } => self.unsubscribe(subscription),
            Event::Resolve { waiter, source, login, mount, path } => {
                self.resolve(waiter, source, login, mount, path);
            }
            Event::Refresh { waiter, secret, login } => {
                self.refresh(waiter, &secret, login.as_ref());
            }
            Event::Gone { consumer } => self.close_locals_of(&consumer),
            Event::SourceChanged { source } => self.source_changed(&source),
            Event::Local { waiter, consumer, local, operation } => {
                self.local_operation(waiter, &consumer, local, operation);
            }
            Event::Interest { local, until } => self.review_interest(local, until),
            Event::Completed { effect, left_at, outcome } => {
                self.completed(effect, left_at, outcome);
            }
            Event::Persisted { effect } => self.persisted(effect),
            Event::Tick => self.tick(),
        }
        self.run_follow_ups();
        self.pump();
        while !self.follow_ups.is_empty() {
            self.run_follow_ups();
            self.pump();
        }
        std::mem::take(&mut self.effects)
    }

    /// When [`Event::Tick`] is wanted next; `None` means nothing is waiting for time.
    pub fn next_deadline(&self) -> Option<BootInstant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    fn tick(&mut self) {
        while let Some(&(at, timer)) = self.deadlines.first() {
            if at > self.now {
                break;
            }
            self.deadlines.pop_first();
            match timer {
                Timer::Entry(id) => self.with_entry(id, Self::entry_due),
                Timer::Session(id) => self.session_due(id),
                Timer::Ending(token) => self.ending_due(token),
                Timer::Local(local) => self.local_due(local),
                Timer::Pump => {}
            }
            self.run_follow_ups();
        }
    }

    fn run_follow_ups(&mut self) {
        loop {
            while let Some(follow_up) = self.follow_ups.pop_front() {
                self.follow_up(follow_up);
            }
            self.fail_fast();
            if self.follow_ups.is_empty() {
                return;
            }
        }
    }

    fn follow_up(&mut self, follow_up: FollowUp) {
        match follow_up {
            FollowUp::WantFetch(id) => self.want_fetch(id),
            FollowUp::FetchFailed(id, error) => {
                self.with_entry(id, |state, entry| state.fetch_failed(entry, error));
            }
            FollowUp::TokenReady(id) => self.token_ready(id),
            FollowUp::TokenEnded(session, token) => self.token_ended(session, token),
            FollowUp::ReplaceUnder(session, token) => self.replace_under(session, token),
            FollowUp::TokenExtended(session, token) => self.token_extended(session, token),
            FollowUp::Release(session, entry) => self.release_holder(session, entry),
            FollowUp::CheckSession(session) => self.check_session(session),
            FollowUp::Recovered(source) => self.recovered(&source),
        }
    }

    fn persisted(&mut self, effect: EffectId) {
        match self.pending.remove(&effect) {
            Some(Pending::PersistLease(id)) => {
                self.with_entry(id, |state, entry| state.lease_recorded(entry));
            }
            Some(Pending::PersistSession(id)) => self.session_recorded(id),
            _ => {}
        }
    }

    fn fresh_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn call(&mut self, source: &SourceName, pending: Pending, call: Call) -> EffectId {
        let id = EffectId(self.fresh_id());
        self.pending.insert(id, pending);
        if let Some(health) = self.sources.get_mut(source) {
            health.in_flight += 1;
        }
        self.effects.push(Effect::Call { id, source: source.clone(), call });
        id
    }

    fn persist(&mut self, pending: Pending, record: Record) {
        let id = EffectId(self.fresh_id());
        self.pending.insert(id, pending);
        self.effects.push(Effect::Persist { id, record });
    }

    fn rearm(
        &mut self,
        armed: &mut Option<BootInstant>,
        wanted: Option<BootInstant>,
        timer: Timer,
    ) {
        if *armed == wanted && wanted.is_none_or(|at| self.deadlines.contains(&(at, timer))) {
            return;
        }
        if let Some(at) = armed.take() {
            self.deadlines.remove(&(at, timer));
        }
        if let Some(at) = wanted {
            self.deadlines.insert((at, timer));
        }
        *armed = wanted;
    }

    /// Every cached entry of one secret, whoever it belongs to.
    fn entries_of(&self, secret: &SecretRef) -> Vec<EntryId> {
        let start = CacheKey {
            secret: secret.clone(),
            login: crate::domain::LoginIdentity::Agent,
            consumer: None,
        };
        self.index
            .range(start..)
            .take_while(|(key, _)| key.secret == *secret)
            .map(|(_, id)| *id)
            .collect()
    }

    fn mount_key(source: &SourceName, path: &SecretPath) -> MountKey {
        (source.clone(), path.clone())
    }
}
