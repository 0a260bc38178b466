//! A model of Vault and the clock around the broker's pure core: virtual time, no IO, no sleeping.

#![allow(dead_code, reason = "every test binary compiles this and uses a part of it")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use secrets_broker::broker::event::{
    Answer, Call, Done, Effect, EffectId, EntryId, Event, LocalKey, LocalOperation, PublishedTimes,
    SubscriptionId, TokenId, ValueId, WaiterId, Want,
};
use secrets_broker::broker::settings::Settings;
use secrets_broker::broker::state::State;
use secrets_broker::broker::{Problem, ReadError};
use secrets_broker::clock::BootInstant;
use secrets_broker::domain::{ConsumerId, EngineKind, LoginIdentity, SecretRef, ServiceAccount};
use secrets_broker::source::{ConfiguredMount, ErrorClass, SourceError};

#[path = "vault_model.rs"]
mod vault_model;

pub use vault_model::Vault;

/// The core, its clock and the model.
pub struct World {
    pub state: State,
    pub now: BootInstant,
    pub vault: Vault,
    pub asked: BTreeSet<WaiterId>,
    pub answers: BTreeMap<WaiterId, Answer>,
    pub levels: BTreeMap<SubscriptionId, Level>,
    pub published: BTreeMap<EntryId, (ValueId, PublishedTimes)>,
    pub values: BTreeSet<ValueId>,
    pub told: BTreeMap<LocalKey, BootInstant>,
    pub fetching: BTreeMap<(SecretRef, TokenId), usize>,
    /// Every call, in the order in which they left.
    pub sent: Vec<Call>,
    /// The local leases that the snapshot's readers are told of.
    pub interests: BTreeMap<EntryId, Option<LocalKey>>,
    in_flight: VecDeque<InFlight>,
    next: u64,
}

/// A call that is under way; with its outcome where that was decided when it left.
struct InFlight {
    due: BootInstant,
    left_at: BootInstant,
    id: EffectId,
    call: Call,
    outcome: Option<Result<Done, SourceError>>,
}

/// What a subscriber last heard.
#[derive(Debug, Clone, Default)]
pub struct Level {
    pub value: Option<ValueId>,
    pub problem: Option<Problem>,
}

pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub fn want(path: &str, consumer: u32) -> Want {
    let (mount, kind) = match path.split('/').next().unwrap() {
        "secret" => ("secret", Some(EngineKind::Kv2)),
        "database" => ("database", Some(EngineKind::Database)),
        "auto" => ("auto", None),
        other => panic!("no mount {other}"),
    };
    Want {
        secret: SecretRef {
            source: "vault".parse().unwrap(),
            path: path.parse().unwrap(),
            version: None,
        },
        mount: ConfiguredMount { path: mount.parse().unwrap(), kind },
        login: LoginIdentity::Agent,
        consumer: ConsumerId::host_user(consumer),
        owner: Some(ConsumerId::host_user(consumer)),
        may_mint: true,
    }
}

/// A pod's service account in namespace `shop`, as it logs in.
pub fn account(name: &str) -> LoginIdentity {
    let (namespace, uid) = ("shop".parse().unwrap(), name.parse().unwrap());
    let name = name.parse().unwrap();
    LoginIdentity::service_account(ServiceAccount { namespace, name, uid }, None)
}

impl World {
    pub fn new() -> Self {
        Self::with(Settings::default(), 7)
    }

    pub fn with(settings: Settings, seed: u64) -> Self {
        let now = BootInstant::from_nanos(1_000_000_000_000);
        Self {
            state: State::new(settings, &["vault".parse().unwrap()], now, seed),
            now,
            vault: Vault::default(),
            asked: BTreeSet::new(),
            answers: BTreeMap::new(),
            levels: BTreeMap::new(),
            published: BTreeMap::new(),
            values: BTreeSet::new(),
            told: BTreeMap::new(),
            fetching: BTreeMap::new(),
            sent: Vec::new(),
            interests: BTreeMap::new(),
            in_flight: VecDeque::new(),
            next: 1,
        }
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn step(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.state.step(self.now, event) {
                self.perform(effect, &mut events);
            }
        }
    }

    fn perform(&mut self, effect: Effect, events: &mut VecDeque<Event>) {
        match effect {
            Effect::Call { id, call, .. } => {
                if let Call::Fetch { token, secret, .. } = &call {
                    let key = (secret.clone(), *token);
                    *self.fetching.entry(key).or_default() += 1;
                }
                self.sent.push(call.clone());
                let slow = match &call {
                    Call::Fetch { secret, .. } => self.vault.slow.get(secret.path.as_str()),
                    _ => None,
                };
                let (left_at, slow) = (self.now, slow.copied());
                let due = left_at + slow.unwrap_or(self.vault.latency);
                let outcome = slow.map(|_| self.answer(call.clone(), left_at));
                self.in_flight.push_back(InFlight { due, left_at, id, call, outcome });
            }
            Effect::Persist { id, .. } => events.push_back(Event::Persisted { effect: id }),
            Effect::ReviewInterest { local } => {
                let until = self.told.get(&local).copied().unwrap_or_default();
                events.push_back(Event::Interest { local, until });
            }
            Effect::Publish { entry, value, times, interest, .. } => {
                self.interests.insert(entry, interest);
                assert!(self.values.contains(&value), "a dropped value is published");
                self.published.insert(entry, (value, times));
            }
            Effect::Retract { entry, .. } => {
                self.published.remove(&entry);
            }
            Effect::DropValue(value) => assert!(self.values.remove(&value), "dropped twice"),
            Effect::OpenLocal { local, until, .. } => {
                self.told.insert(local, until);
            }
            Effect::CloseLocal(local) => {
                self.told.remove(&local);
            }
            Effect::Answer { waiter, answer } => {
                if let Answer::Value { entry, .. } = &answer {
                    let (_, times) = self.published[entry];
                    assert!(self.now < times.dead_at, "a dead value is served");
                }
                if let Answer::Local(Ok(terms)) = &answer {
                    assert!(self.told.contains_key(&terms.local), "its id is already forgotten");
                }
                assert!(self.answers.insert(waiter, answer).is_none(), "answered twice");
            }
            Effect::Notify { subscription, entry, problem } => {
                let level = self.levels.entry(subscription).or_default();
                level.problem = problem;
                if let Some(entry) = entry {
                    level.value = Some(self.published[&entry].0);
                }
            }
            Effect::DropToken(_) | Effect::EndSubscription(_) => {}
        }
    }

    /// Lets virtual time pass, waking the core exactly when it asked to be woken.
    pub fn advance(&mut self, duration: Duration) {
        let end = self.now + duration;
        for _ in 0..1_000_000 {
            let call = self.in_flight.iter().map(|call| call.due).min();
            let next = call.into_iter().chain(self.state.next_deadline()).min();
            let Some(at) = next.filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(at);
            if call == Some(at) {
                self.return_call(at);
            } else {
                self.step(Event::Tick);
            }
        }
        panic!("the core never comes to rest: next deadline {:?}", self.state.next_deadline());
    }

    fn return_call(&mut self, at: BootInstant) {
        let index = self.in_flight.iter().position(|call| call.due == at).unwrap();
        let InFlight { left_at, id: effect, call, outcome, .. } =
            self.in_flight.remove(index).unwrap();
        if let Call::Fetch { token, secret, .. } = &call {
            *self.fetching.get_mut(&(secret.clone(), *token)).unwrap() -= 1;
        }
        let outcome = outcome.unwrap_or_else(|| self.answer(call, left_at));
        self.step(Event::Completed { effect, left_at, outcome });
    }

    fn expire(&mut self) {
        let now = self.now;
        self.vault.tokens.retain(|_, (expires, _)| *expires > now);
        let tokens = &self.vault.tokens;
        self.vault
            .leases
            .retain(|_, lease| lease.expires > now && tokens.contains_key(&lease.token));
    }

    fn note(&mut self, what: &'static str) {
        self.vault.log.push((self.now, what));
    }

    pub fn count(&self, what: &str) -> usize {
        self.vault.log.iter().filter(|(_, noted)| *noted == what).count()
    }

    /// Whether the model's Vault still honours a credential.
    pub fn works(&mut self, value: ValueId) -> bool {
        self.expire();
        self.vault.leases.contains_key(&value.id)
    }

    pub fn read(&mut self, path: &str, consumer: u32) -> WaiterId {
        self.read_as(&LoginIdentity::Agent, path, consumer)
    }

    pub fn read_as(&mut self, login: &LoginIdentity, path: &str, consumer: u32) -> WaiterId {
        let waiter = self.waiter();
        let want = Want { login: login.clone(), ..want(path, consumer) };
        self.step(Event::Read { waiter, want });
        waiter
    }

    pub fn subscribe(&mut self, path: &str, consumer: u32) -> SubscriptionId {
        self.subscribe_as(&LoginIdentity::Agent, path, consumer)
    }

    pub fn subscribe_as(
        &mut self,
        login: &LoginIdentity,
        path: &str,
        consumer: u32,
    ) -> SubscriptionId {
        let subscription = SubscriptionId(self.id());
        let want = Want { login: login.clone(), ..want(path, consumer) };
        self.step(Event::Subscribe { subscription, want });
        subscription
    }

    pub fn unsubscribe(&mut self, subscription: SubscriptionId) {
        self.step(Event::Unsubscribe { subscription });
    }

    /// Asks for an operation on a local lease; a renewal may be answered later. As the task does,
    /// it first says until when the holder was told that it lives.
    pub fn ask_local(
        &mut self,
        consumer: u32,
        local: LocalKey,
        operation: LocalOperation,
    ) -> WaiterId {
        if let Some(until) = self.told.get(&local).copied().filter(|until| *until > self.now) {
            self.step(Event::Interest { local, until });
        }
        let waiter = self.waiter();
        let consumer = ConsumerId::host_user(consumer);
        self.step(Event::Local { waiter, consumer, local, operation });
        waiter
    }

    /// The local lease that a reader was told.
    pub fn local_of(&self, waiter: WaiterId) -> LocalKey {
        match &self.answers[&waiter] {
            Answer::Value { local: Some(local), .. } => local.local,
            other => panic!("no local lease: {other:?}"),
        }
    }

    pub fn local(&mut self, consumer: u32, local: LocalKey, operation: LocalOperation) -> Answer {
        let waiter = self.ask_local(consumer, local, operation);
        self.answers[&waiter].clone()
    }

    fn waiter(&mut self) -> WaiterId {
        let waiter = WaiterId(self.id());
        self.asked.insert(waiter);
        waiter
    }

    pub fn refused(&self, waiter: WaiterId) -> Option<ErrorClass> {
        match self.answers.get(&waiter) {
            Some(Answer::Refused(ReadError::Source { class, .. })) => Some(*class),
            _ => None,
        }
    }
}
