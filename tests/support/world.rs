//! A model of Vault and the clock around the broker's pure core: virtual time, no IO, no sleeping.

#![allow(dead_code, reason = "every test binary compiles this and uses a part of it")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use secrets_broker::broker::event::{
    Answer, Call, Done, Effect, EffectId, EntryId, Event, FetchedValue, LocalKey, LocalOperation,
    PublishedTimes, SubscriptionId, TokenId, ValueId, WaiterId, Want,
};
use secrets_broker::broker::settings::Settings;
use secrets_broker::broker::state::State;
use secrets_broker::broker::{Problem, ReadError};
use secrets_broker::clock::BootInstant;
use secrets_broker::domain::{ConsumerId, EngineKind, LoginIdentity, Mount, PathKind, SecretRef};
use secrets_broker::source::{
    ConfiguredMount, ErrorClass, LeaseTerms, SourceError, TokenGrant, TokenKind,
};

/// What the model's Vault does with calls.
#[derive(Debug, Clone)]
pub struct Vault {
    pub sealed: bool,
    pub renewals_fail: bool,
    pub reads_denied: bool,
    pub gone: bool,
    pub revoke_permitted: bool,
    pub ambiguous: bool,
    pub login_denied: bool,
    pub lease_ttl: u64,
    pub lease_max_ttl: u64,
    pub lease_renewable: bool,
    pub token_ttl: u64,
    pub token_max_ttl: u64,
    pub token_kind: TokenKind,
    pub rotation: u64,
    pub content: u64,
    pub latency: Duration,
    pub tokens: BTreeMap<TokenId, (BootInstant, BootInstant)>,
    pub leases: BTreeMap<u64, Lease>,
    pub log: Vec<(BootInstant, &'static str)>,
}

#[derive(Debug, Clone)]
pub struct Lease {
    pub token: TokenId,
    pub issued: BootInstant,
    pub expires: BootInstant,
}

impl Default for Vault {
    fn default() -> Self {
        Self {
            sealed: false,
            renewals_fail: false,
            reads_denied: false,
            gone: false,
            revoke_permitted: false,
            ambiguous: false,
            login_denied: false,
            lease_ttl: 20,
            lease_max_ttl: 60,
            lease_renewable: true,
            token_ttl: 3600,
            token_max_ttl: 1_000_000,
            token_kind: TokenKind::Service,
            rotation: 30,
            content: 1,
            latency: Duration::from_millis(5),
            tokens: BTreeMap::new(),
            leases: BTreeMap::new(),
            log: Vec::new(),
        }
    }
}

/// The core, its clock and the model.
pub struct World {
    pub state: State,
    pub now: BootInstant,
    pub vault: Vault,
    pub answers: BTreeMap<WaiterId, Answer>,
    pub levels: BTreeMap<SubscriptionId, Level>,
    pub published: BTreeMap<EntryId, (ValueId, PublishedTimes)>,
    pub values: BTreeSet<ValueId>,
    pub told: BTreeMap<LocalKey, BootInstant>,
    pub fetching: BTreeMap<(SecretRef, TokenId), usize>,
    in_flight: VecDeque<(BootInstant, BootInstant, EffectId, Call)>,
    next: u64,
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
        own_dynamic: true,
    }
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
            answers: BTreeMap::new(),
            levels: BTreeMap::new(),
            published: BTreeMap::new(),
            values: BTreeSet::new(),
            told: BTreeMap::new(),
            fetching: BTreeMap::new(),
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
                self.in_flight.push_back((self.now + self.vault.latency, self.now, id, call));
            }
            Effect::Persist { id, .. } => events.push_back(Event::Persisted { effect: id }),
            Effect::ReviewInterest { local } => {
                let until = self.told.get(&local).copied().unwrap_or_default();
                events.push_back(Event::Interest { local, until });
            }
            Effect::Publish { entry, value, times, .. } => {
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
            let call = self.in_flight.iter().map(|(at, ..)| *at).min();
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
        let index = self.in_flight.iter().position(|(due, ..)| *due == at).unwrap();
        let (_, left_at, effect, call) = self.in_flight.remove(index).unwrap();
        if let Call::Fetch { token, secret, .. } = &call {
            *self.fetching.get_mut(&(secret.clone(), *token)).unwrap() -= 1;
        }
        let outcome = self.answer(call, left_at);
        self.step(Event::Completed { effect, left_at, outcome });
    }

    fn answer(&mut self, call: Call, left_at: BootInstant) -> Result<Done, SourceError> {
        let error = |class, text: &str| Err(SourceError::new(class, text));
        self.expire();
        if self.vault.sealed {
            return error(ErrorClass::Unreachable, "sealed");
        }
        let token = match &call {
            Call::Login(_) => None,
            Call::RenewToken { token, .. }
            | Call::EndSession { token }
            | Call::Probe { token, .. }
            | Call::Fetch { token, .. }
            | Call::RenewLease { token, .. }
            | Call::RevokeLease { token, .. } => Some(*token),
        };
        if token.is_some_and(|token| !self.vault.tokens.contains_key(&token)) {
            return error(ErrorClass::TokenEnded, "bad token");
        }
        match call {
            Call::Login(_) => self.login(left_at),
            Call::RenewToken { token, .. } => self.renew_token(token, left_at),
            Call::EndSession { token } => {
                self.note("end-session");
                self.vault.tokens.remove(&token);
                self.vault.leases.retain(|_, lease| lease.token != token);
                Ok(Done::Ended)
            }
            Call::Probe { .. } => {
                self.note("probe");
                let path = "auto".parse().unwrap();
                Ok(Done::Probed(Mount { path, kind: EngineKind::Kv2 }))
            }
            Call::Fetch { token, kind, secret } => self.fetch(token, kind, &secret, left_at),
            Call::RenewLease { value, increment, .. } => self.renew(value, increment, left_at),
            Call::RevokeLease { value, .. } => {
                if !self.vault.revoke_permitted {
                    return error(ErrorClass::Denied, "permission denied");
                }
                self.note("revoke");
                self.vault.leases.remove(&value.id);
                Ok(Done::Ended)
            }
        }
    }

    fn login(&mut self, left_at: BootInstant) -> Result<Done, SourceError> {
        if self.vault.login_denied {
            self.note("login-denied");
            return Err(SourceError::new(ErrorClass::Denied, "role not allowed"));
        }
        self.note("login");
        let token = TokenId(1_000_000 + self.id());
        let ttl = seconds(self.vault.token_ttl);
        let max = left_at + seconds(self.vault.token_max_ttl);
        self.vault.tokens.insert(token, ((left_at + ttl).min(max), max));
        let renewable = self.vault.token_kind == TokenKind::Service;
        let terms = TokenGrant { ttl, renewable };
        Ok(Done::LoggedIn { token, terms, kind: self.vault.token_kind })
    }

    fn renew_token(&mut self, token: TokenId, left_at: BootInstant) -> Result<Done, SourceError> {
        self.note("renew-token");
        let ttl = seconds(self.vault.token_ttl);
        let (expires, max) = self.vault.tokens.get_mut(&token).unwrap();
        *expires = (left_at + ttl).min(*max);
        let ttl = expires.since(left_at);
        Ok(Done::TokenRenewed(TokenGrant { ttl, renewable: true }))
    }

    fn fetch(
        &mut self,
        token: TokenId,
        kind: PathKind,
        secret: &SecretRef,
        left_at: BootInstant,
    ) -> Result<Done, SourceError> {
        if self.vault.reads_denied {
            return Err(SourceError::new(ErrorClass::Denied, "permission denied"));
        }
        if self.vault.gone {
            return Err(SourceError::new(ErrorClass::NotFound, "not found"));
        }
        let id = self.id();
        let fingerprint = self.vault.content + secret.path.as_str().len() as u64;
        let value = ValueId { id, len: 100, fingerprint };
        let mut fetched = FetchedValue { value, lease: None, rotates_in: None, version: None };
        match kind {
            PathKind::Kv => self.note("fetch"),
            PathKind::Static => {
                self.note("fetch-static");
                let period = self.vault.rotation * 1_000_000_000;
                let left = period - left_at.as_nanos() % period;
                fetched.rotates_in = Some(Duration::from_secs(left / 1_000_000_000));
            }
            PathKind::Minting => {
                self.note("mint");
                let duration = seconds(self.vault.lease_ttl);
                let lease = Lease { token, issued: left_at, expires: left_at + duration };
                self.vault.leases.insert(id, lease);
                if self.vault.ambiguous {
                    let mut error = SourceError::new(ErrorClass::Unreachable, "no answer");
                    error.ambiguous = true;
                    return Err(error);
                }
                let renewable = self.vault.lease_renewable;
                fetched.lease = Some(LeaseTerms { duration, renewable });
            }
        }
        self.values.insert(value);
        Ok(Done::Fetched(fetched))
    }

    fn renew(
        &mut self,
        value: ValueId,
        increment: Duration,
        left_at: BootInstant,
    ) -> Result<Done, SourceError> {
        if self.vault.renewals_fail {
            self.note("renew-failed");
            return Err(SourceError::new(ErrorClass::InvalidRequest, "failed to renew entry"));
        }
        let max = seconds(self.vault.lease_max_ttl);
        let Some(lease) = self.vault.leases.get_mut(&value.id) else {
            return Err(SourceError::new(ErrorClass::LeaseEnded, "lease not found"));
        };
        lease.expires = (left_at + increment).min(lease.issued + max);
        let duration = lease.expires.since(left_at);
        self.note("renew");
        Ok(Done::LeaseRenewed(LeaseTerms { duration, renewable: true }))
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
        let waiter = WaiterId(self.id());
        self.step(Event::Read { waiter, want: want(path, consumer) });
        waiter
    }

    pub fn subscribe(&mut self, path: &str, consumer: u32) -> SubscriptionId {
        let subscription = SubscriptionId(self.id());
        self.step(Event::Subscribe { subscription, want: want(path, consumer) });
        subscription
    }

    pub fn unsubscribe(&mut self, subscription: SubscriptionId) {
        self.step(Event::Unsubscribe { subscription });
    }

    pub fn local(&mut self, consumer: u32, local: LocalKey, operation: LocalOperation) -> Answer {
        let waiter = WaiterId(self.id());
        let consumer = ConsumerId::host_user(consumer);
        self.step(Event::Local { waiter, consumer, local, operation });
        self.answers[&waiter].clone()
    }

    pub fn refused(&self, waiter: WaiterId) -> Option<ErrorClass> {
        match self.answers.get(&waiter) {
            Some(Answer::Refused(ReadError::Source { class, .. })) => Some(*class),
            _ => None,
        }
    }
}
