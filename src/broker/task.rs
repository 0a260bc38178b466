//! The broker task: the only writer. Runs the core's effects and feeds their outcomes back.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::calls::{self, Outgoing, Returned, ValueCap};
use super::event::{
    Answer, CacheKey, Effect, EntryId, Event, LocalKey, LocalTerms, PublishedTimes, SubscriptionId,
    ValueId, WaiterId, Want,
};
use super::request::{Release, Released, Request, Waiting};
use super::settings::Settings;
use super::snapshot::Snapshot;
use super::state::State;
use super::store::Store;
use super::{
    Broker, Entry, Interest, LocalLease, LocalLeaseError, LoginTokens, ReadError, Reply,
    Subscription, Update,
};
use crate::audit::Audit;
use crate::clock::{BootInstant, BootTimer};
use crate::domain::{LocalLeaseId, SecretPath, SourceName};
use crate::source::SharedSource;
use crate::telemetry::Hits;

/// Requests that may wait for the task. Each waits for an answer, so connections bound this too.
const REQUESTS_MAX: usize = 1024;
/// How long running calls may take to come back when the task stops.
const DRAIN: Duration = Duration::from_secs(3);

/// The task; [`BrokerTask::run`] consumes it.
pub struct BrokerTask {
    state: State,
    store: Store,
    snapshot: Arc<Snapshot>,
    sources: Arc<BTreeMap<SourceName, SharedSource>>,
    audit: Audit,
    value_cap: ValueCap,
    requests: mpsc::Receiver<Request>,
    released: Arc<Released>,
    changes: watch::Sender<u64>,
    next_waiter: u64,
    waiting: HashMap<WaiterId, Waiting>,
    subscribers: HashMap<SubscriptionId, watch::Sender<Update>>,
    published: HashMap<EntryId, Arc<Entry>>,
    locals: HashMap<LocalKey, Arc<Interest>>,
    local_keys: HashMap<LocalLeaseId, LocalKey>,
    calls: JoinSet<Returned>,
    watchers: JoinSet<SourceChange>,
    timer: BootTimer,
    login_tokens: LoginTokens,
}

impl BrokerTask {
    /// Builds the task and its handle; must be called inside a tokio runtime.
    pub fn new(
        settings: Settings,
        sources: BTreeMap<SourceName, SharedSource>,
        audit: Audit,
    ) -> std::io::Result<(Broker, Self)> {
        let names: Vec<SourceName> = sources.keys().cloned().collect();
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let (changes, watched) = watch::channel(0);
        let (snapshot, sources) = (Arc::new(Snapshot::new()), Arc::new(sources));
        let login_tokens = LoginTokens::default();
        let refused = Hits::default();
        let value_cap = ValueCap { bytes: settings.limits.value_bytes, refused };
        let broker = Broker {
            requests: sender,
            queue_full: Hits::default(),
            value_cap: value_cap.clone(),
            snapshot: Arc::clone(&snapshot),
            sources: Arc::clone(&sources),
            audit: audit.clone(),
            changes: watched,
            login_tokens: login_tokens.clone(),
        };
        let task = Self {
            value_cap,
            state: State::new(settings, &names, BootInstant::now(), fastrand::u64(..)),
            store: Store::new(),
            snapshot,
            sources,
            audit,
            requests,
            released: Arc::default(),
            changes,
            next_waiter: 1,
            waiting: HashMap::new(),
            subscribers: HashMap::new(),
            published: HashMap::new(),
            locals: HashMap::new(),
            local_keys: HashMap::new(),
            calls: JoinSet::new(),
            watchers: JoinSet::new(),
            timer: BootTimer::new()?,
            login_tokens,
        };
        Ok((broker, task))
    }

    /// Runs until `work` is cancelled; then lets running calls come back, and ends no lease.
    pub async fn run(mut self, work: CancellationToken) -> anyhow::Result<()> {
        self.watch_sources();
        loop {
            self.timer.arm(self.state.next_deadline())?;
            let released = Arc::clone(&self.released);
            // Every arm is cancel-safe: an unread message, join or expiry stays where it is.
            tokio::select! {
                () = work.cancelled() => break,
                Some(joined) = self.calls.join_next() => self.returned(joined?),
                fired = self.timer.fired() => { fired?; self.step(Event::Tick); }
                // A stop drops every subscription, and ends no lease.
                () = released.noticed() => if !work.is_cancelled() {
                    self.unsubscribe_released();
                },
                Some(change) = self.watchers.join_next() => self.source_changed(change?),
                Some(request) = self.requests.recv() => self.request(request),
            }
        }
        self.requests.close();
        let drained = async {
            while let Some(joined) = self.calls.join_next().await {
                if let Ok(returned) = joined {
                    self.returned(returned);
                }
            }
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("some upstream calls did not come back before the stop");
        }
        Ok(())
    }

    fn watch_sources(&mut self) {
        for (name, source) in self.sources.iter() {
            if let Some(changes) = source.changes() {
                self.watchers.spawn(next_change(name.clone(), changes));
            }
        }
    }

    fn source_changed(&mut self, change: SourceChange) {
        let (source, changes, sender_lives) = change;
        if sender_lives {
            self.step(Event::SourceChanged { source: source.clone() });
            self.watchers.spawn(next_change(source, changes));
        }
    }

    fn returned(&mut self, returned: Returned) {
        let Returned { effect, left_at, outcome } = returned;
        let outcome = calls::keep(outcome, &mut self.store, &self.value_cap);
        self.step(Event::Completed { effect, left_at, outcome });
    }

    fn unsubscribe_released(&mut self) {
        for subscription in self.released.take() {
            self.subscribers.remove(&subscription);
            self.step(Event::Unsubscribe { subscription });
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Read { want, reply } => {
                let waiter = self.wait(Waiting::Read(reply));
                self.step(Event::Read { waiter, want });
            }
            Request::Subscribe { want, reply } => self.subscribe(want, reply),
            Request::Resolve { source, login, mount, path, reply } => {
                let waiter = self.wait(Waiting::Resolve(reply));
                self.step(Event::Resolve { waiter, source, login, mount, path });
            }
            Request::Refresh { secret, login, reply } => {
                let waiter = self.wait(Waiting::Refresh(reply));
                self.step(Event::Refresh { waiter, secret, login });
            }
            Request::Gone { consumer } => self.step(Event::Gone { consumer }),
            Request::Local { consumer, id, operation, reply } => {
                let Some(local) = self.local_keys.get(&id).copied() else {
                    let _ = reply.send(Err(LocalLeaseError::NotFound));
                    return;
                };
                self.collect_interest(local);
                let waiter = self.wait(Waiting::Local(reply));
                self.step(Event::Local { waiter, consumer, local, operation });
            }
            Request::Report { reply } => {
                let (store, audit) = (&self.store, &self.audit);
                let mac = |value: ValueId| {
                    store.lease(value).map_or_else(String::new, |lease| {
                        audit.mac_lease(&lease).chars().take(12).collect()
                    })
                };
                let _ = reply.send(self.state.report(BootInstant::now(), &mac));
            }
        }
    }

    /// Hits may have moved the end of a local lease: the core hears of it before it decides.
    fn collect_interest(&mut self, local: LocalKey) {
        let until = self.told_until(local);
        if until > BootInstant::now() {
            self.step(Event::Interest { local, until });
        }
    }

    fn told_until(&self, local: LocalKey) -> BootInstant {
        let interest = self.locals.get(&local);
        let nanos = interest.map_or(0, |interest| interest.told_until.load(Ordering::Acquire));
        BootInstant::from_nanos(nanos)
    }

    fn wait(&mut self, waiting: Waiting) -> WaiterId {
        let id = WaiterId(self.next_waiter);
        self.next_waiter += 1;
        self.waiting.insert(id, waiting);
        id
    }

    fn subscribe(&mut self, want: Want, reply: oneshot::Sender<Subscription>) {
        let id = SubscriptionId(self.next_waiter);
        self.next_waiter += 1;
        let (sender, updates) = watch::channel(Update { entry: None, problem: None, sequence: 0 });
        self.subscribers.insert(id, sender);
        let released = Arc::clone(&self.released);
        let subscription = Subscription { updates, _release: Release { id, released } };
        self.step(Event::Subscribe { subscription: id, want });
        // A caller that is gone drops the subscription, which releases it.
        let _ = reply.send(subscription);
    }

    /// One event, its effects, and the events those effects answer at once.
    fn step(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut published = false;
        while let Some(event) = events.pop_front() {
            for effect in self.state.step(BootInstant::now(), event) {
                published |= matches!(
                    effect,
                    Effect::Publish { .. } | Effect::Retract { .. } | Effect::Notify { .. }
                );
                self.perform(effect, &mut events);
            }
        }
        if published {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    fn perform(&mut self, effect: Effect, events: &mut VecDeque<Event>) {
        match effect {
            Effect::Call { id, source, call } => {
                let known = self.sources.get(&source).cloned();
                let (store, tokens) = (&self.store, &self.login_tokens);
                let outgoing = Outgoing::new(call, store, tokens);
                self.calls.spawn(outgoing.run(id, source, known, self.audit.clone()));
            }
            // The journal is not there yet: a record counts as written at once.
            Effect::Persist { id, record: _ } => events.push_back(Event::Persisted { effect: id }),
            Effect::ReviewInterest { local } => {
                let until = self.told_until(local);
                events.push_back(Event::Interest { local, until });
            }
            Effect::Publish { entry, key, value, times, interest } => {
                self.publish(entry, key, value, times, interest);
            }
            Effect::Retract { entry, key } => {
                self.snapshot.retract(key);
                self.published.remove(&entry);
            }
            Effect::DropValue(value) => self.store.drop_value(value),
            Effect::DropToken(token) => self.store.drop_token(token),
            Effect::OpenLocal { local, path, until } => self.open_local(local, &path, until),
            Effect::CloseLocal(local) => {
                if let Some(interest) = self.locals.remove(&local) {
                    self.local_keys.remove(&interest.id);
                }
            }
            Effect::Answer { waiter, answer } => self.answer(waiter, answer),
            Effect::EndSubscription(subscription) => {
                self.subscribers.remove(&subscription);
            }
            Effect::Notify { subscription, entry, problem } => {
                if let Some(subscriber) = self.subscribers.get(&subscription) {
                    let value = entry.and_then(|id| self.published.get(&id)).cloned();
                    subscriber.send_modify(|update| {
                        update.sequence += 1;
                        update.problem = problem;
                        if value.is_some() {
                            update.entry = value;
                        }
                    });
                }
            }
        }
    }

    fn publish(
        &mut self,
        entry: EntryId,
        key: Option<CacheKey>,
        value: ValueId,
        times: PublishedTimes,
        interest: Option<LocalKey>,
    ) {
        let Some(data) = self.store.view(value) else { return };
        let published = Arc::new(Entry {
            data,
            kind: times.kind,
            fetched_at: times.fetched_at,
            fresh_until: times.fresh_until,
            dead_at: times.dead_at,
            version: times.version,
            fingerprint: value.fingerprint,
            interest: interest.and_then(|local| self.locals.get(&local).cloned()),
        });
        self.published.insert(entry, Arc::clone(&published));
        if let Some(key) = key {
            self.snapshot.publish(key, published);
        }
    }

    fn open_local(&mut self, local: LocalKey, path: &SecretPath, until: BootInstant) {
        // Unguessable although it is only honoured for its own holder: ids end up in logs.
        let interest = Arc::new(Interest {
            id: LocalLeaseId::new(path, random_id()),
            issued_at: BootInstant::now(),
            told_until: AtomicU64::new(until.as_nanos()),
        });
        self.local_keys.insert(interest.id.clone(), local);
        self.locals.insert(local, interest);
    }

    fn answer(&mut self, waiter: WaiterId, answer: Answer) {
        let Some(waiting) = self.waiting.remove(&waiter) else { return };
        // Nobody listening any more is fine for all of these.
        match (waiting, answer) {
            (Waiting::Read(reply), Answer::Value { entry, freshness, local }) => {
                let local_lease = local.and_then(|terms| self.local_lease(terms));
                let published = self.published.get(&entry).cloned();
                let found = published.map(|entry| Reply { entry, freshness, local_lease });
                let _ = reply.send(found.ok_or(ReadError::Busy));
            }
            (Waiting::Read(reply), Answer::Refused(error)) => drop(reply.send(Err(error))),
            (Waiting::Resolve(reply), Answer::Mount(mount)) => drop(reply.send(Ok(mount))),
            (Waiting::Resolve(reply), Answer::Refused(error)) => drop(reply.send(Err(error))),
            (Waiting::Refresh(reply), Answer::Refreshed(count)) => drop(reply.send(count)),
            (Waiting::Local(reply), Answer::Local(terms)) => {
                let told = terms
                    .and_then(|terms| self.local_lease(terms).ok_or(LocalLeaseError::NotFound));
                let _ = reply.send(told);
            }
            (_, answer) => debug_assert!(false, "an answer of another kind: {answer:?}"),
        }
    }

    fn local_lease(&self, terms: LocalTerms) -> Option<LocalLease> {
        let id = self.locals.get(&terms.local)?.id.clone();
        Some(LocalLease {
            id,
            path: terms.path,
            issued_at: terms.issued_at,
            duration: terms.duration,
            renewable: terms.renewable,
        })
    }
}

/// A source's change notice, with what is needed to wait for the next one.
type SourceChange = (SourceName, watch::Receiver<u64>, bool);

async fn next_change(name: SourceName, mut changes: watch::Receiver<u64>) -> SourceChange {
    let sender_lives = changes.changed().await.is_ok();
    (name, changes, sender_lives)
}

fn random_id() -> u128 {
    let mut bytes = [0u8; 16];
    // The kernel's generator does not fail once the system has booted; weaker ids stay unique.
    if getrandom::fill(&mut bytes).is_err() {
        return fastrand::u128(..);
    }
    u128::from_le_bytes(bytes)
}
