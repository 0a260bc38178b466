//! Sessions: one token per purpose, renewed at 75 %, replaced beside itself before a known end,
//! ended with its last holder.

use std::collections::BTreeSet;
use std::time::Duration;

use super::jobs::Job;
use super::mounts::ProbeKey;
use super::token::Generation;
use super::turns::Party;
use super::{FollowUp, Pending, State, Timer};
use crate::broker::event::{CacheKey, Call, EntryId, Record, SessionId, TokenId};
use crate::broker::lease::{backoff_delay, retry_delay};
use crate::clock::BootInstant;
use crate::domain::{ConsumerId, LoginIdentity, PathKind, SecretRef, SourceName};
use crate::source::{ErrorClass, SourceError, TokenGrant, TokenKind};

/// A KV session without holders is kept this long: reads of absent secrets must not log in each
/// time.
const LINGER: Duration = Duration::from_secs(60);
/// Logging in beside a live session after a denial happens at most this often.
const BESIDE_INTERVAL: Duration = Duration::from_secs(60);
/// The same while the session has leases: each such login has all of them replaced.
const BESIDE_INTERVAL_LEASED: Duration = Duration::from_secs(15 * 60);

/// Scope of a session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SessionKey {
    pub source: SourceName,
    pub login: LoginIdentity,
    pub purpose: Purpose,
}

/// What a session is for: its end must end exactly this.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// Reads that everybody of the login identity shares.
    Kv,
    /// One consumer's dynamic credentials.
    Consumer(ConsumerId),
    /// One dynamic credential that a rule shares.
    Shared(SecretRef),
}

impl SessionKey {
    /// In whose turn it is begun and ended.
    pub(super) fn party(&self) -> Party {
        match &self.purpose {
            Purpose::Consumer(consumer) => Party::Consumer(consumer.clone()),
            Purpose::Kv | Purpose::Shared(_) => Party::Login(self.login.clone()),
        }
    }
}

/// A session with its tokens, holders and waiters.
pub(super) struct Session {
    pub key: SessionKey,
    pub logging_in: bool,
    pub current: Option<Generation>,
    /// Predecessors that still have leases.
    pub retiring: Vec<Generation>,
    pub holders: BTreeSet<EntryId>,
    pub waiting: Vec<Waiting>,
    pub attempts: u32,
    pub retry_at: Option<BootInstant>,
    pub last_error: Option<SourceError>,
    pub beside_at: Option<BootInstant>,
    pub linger_until: Option<BootInstant>,
    armed: Option<BootInstant>,
}

/// What waits for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Waiting {
    Entry(EntryId),
    Probe(ProbeKey),
}

impl State {
    /// Finds or creates the session for an entry and counts the entry as a holder.
    pub(super) fn hold_session(
        &mut self,
        key: &CacheKey,
        kind: PathKind,
        id: EntryId,
    ) -> SessionId {
        let purpose = match &key.consumer {
            _ if Self::is_shared(kind) => Purpose::Kv,
            Some(consumer) => Purpose::Consumer(consumer.clone()),
            None => Purpose::Shared(key.secret.clone()),
        };
        let (source, login) = (key.secret.source.clone(), key.login.clone());
        let session = self.session(SessionKey { source, login, purpose });
        if let Some(held) = self.sessions.get_mut(&session) {
            held.holders.insert(id);
            held.linger_until = None;
        }
        session
    }

    pub(super) fn kv_session(&mut self, source: &SourceName, login: &LoginIdentity) -> SessionId {
        let (source, login) = (source.clone(), login.clone());
        self.session(SessionKey { source, login, purpose: Purpose::Kv })
    }

    fn session(&mut self, key: SessionKey) -> SessionId {
        if let Some(id) = self.session_index.get(&key) {
            return *id;
        }
        let id = SessionId(self.fresh_id());
        self.session_index.insert(key.clone(), id);
        let session = Session {
            key,
            logging_in: false,
            current: None,
            retiring: Vec::new(),
            holders: BTreeSet::new(),
            waiting: Vec::new(),
            attempts: 0,
            retry_at: None,
            last_error: None,
            beside_at: None,
            linger_until: None,
            armed: None,
        };
        self.sessions.insert(id, session);
        id
    }

    pub(super) fn await_token(&mut self, session: SessionId, entry: EntryId) {
        self.await_token_for(session, Waiting::Entry(entry));
    }

    /// Goes on at once with a live token; else logs in, or fails with the last login's reason.
    /// What would be minted under a token near its end waits for a successor that can be had.
    pub(super) fn await_token_for(&mut self, id: SessionId, waiting: Waiting) {
        let now = self.now;
        let mints = self.mints(&waiting);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let login_failed = session.retry_at.is_some_and(|at| at > now) && !session.logging_in;
        let usable = session.current.as_ref().is_some_and(|token| {
            let live = token.expires_at.is_none_or(|at| at > now);
            live && (!mints || login_failed || !token.nears_its_end(now))
        });
        if usable {
            self.wake(waiting);
            return;
        }
        if let (Some(at), Some(error)) = (session.retry_at, session.last_error.clone())
            && at > now
            && !session.logging_in
        {
            let retry_after = Some(now.until(at));
            self.fail_waiting(waiting, SourceError { retry_after, ..error });
            return;
        }
        session.waiting.push(waiting);
        self.start_login(id);
    }

    fn mints(&self, waiting: &Waiting) -> bool {
        let Waiting::Entry(id) = waiting else { return false };
        self.entries.get(id).is_some_and(|entry| entry.kind == PathKind::Minting)
    }

    fn start_login(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !session.logging_in {
            session.logging_in = true;
            session.retry_at = None;
            self.ordinary.push(session.key.party(), Job::Login(id));
        }
        self.arm_session(id);
    }

    /// After a denial: a fresh login may carry a changed role. The old token lives on.
    pub(super) fn login_beside_for(&mut self, id: SessionId, entry: EntryId) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.beside_at = Some(now);
        session.waiting.push(Waiting::Entry(entry));
        self.start_login(id);
    }

    /// Whether a denied read may be tried once more with a fresh login.
    pub(super) fn may_try_beside(&self, entry: &super::cache::Entry) -> bool {
        let Some(session) = self.sessions.get(&entry.session) else { return false };
        let is_leased = |id: &EntryId| self.entries.get(id).is_some_and(|entry| entry.is_leased());
        let recently = |at: BootInstant| {
            let any_leased = entry.is_leased() || session.holders.iter().any(is_leased);
            let interval = if any_leased { BESIDE_INTERVAL_LEASED } else { BESIDE_INTERVAL };
            self.now.since(at) < interval
        };
        !entry.tried_beside && !session.beside_at.is_some_and(recently)
    }

    fn wake(&mut self, waiting: Waiting) {
        match waiting {
            Waiting::Entry(id) => self.follow_ups.push_back(FollowUp::TokenReady(id)),
            Waiting::Probe(key) => self.probe_ready(key),
        }
    }

    fn fail_waiting(&mut self, waiting: Waiting, error: SourceError) {
        match waiting {
            Waiting::Entry(id) => self.follow_ups.push_back(FollowUp::FetchFailed(id, error)),
            Waiting::Probe(key) => self.probe_failed(&key, &error),
        }
    }

    pub(super) fn logged_in(
        &mut self,
        id: SessionId,
        left_at: BootInstant,
        token: TokenId,
        terms: TokenGrant,
        kind: TokenKind,
    ) {
        self.counters.logins += 1;
        let generation = Generation::granted(token, kind, left_at, terms, &mut self.rng);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.attempts = 0;
        session.last_error = None;
        session.retry_at = None;
        let old = session.current.replace(generation);
        if let Some(old) = old {
            let token = old.token;
            session.retiring.push(old);
            self.follow_ups.push_back(FollowUp::ReplaceUnder(id, token));
        }
        // Nothing is minted under a session that a successor would not know of.
        self.persist(Pending::PersistSession(id), Record::SessionStarted { token });
    }

    pub(super) fn session_recorded(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.logging_in = false;
        for waiting in std::mem::take(&mut session.waiting) {
            self.wake(waiting);
        }
        self.check_session(id);
    }

    pub(super) fn login_failed(&mut self, id: SessionId, error: SourceError) {
        self.counters.failures += 1;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.logging_in = false;
        session.attempts = session.attempts.saturating_add(1);
        let delay = backoff_delay(session.attempts, &mut self.rng);
        session.retry_at = Some(self.now + delay.max(error.retry_after.unwrap_or_default()));
        // A refused login says nothing about the secret itself: nothing cached is purged by it.
        let error = SourceError {
            class: ErrorClass::Unreachable,
            message: format!("login failed: {}", error.message),
            retry_after: Some(delay),
            ambiguous: false,
            asked: error.asked,
        };
        session.last_error = Some(error.clone());
        if let Some(generation) = &mut session.current {
            generation.attempts = generation.attempts.saturating_add(1);
            let remaining = generation.expires_at.map_or(delay, |at| self.now.until(at));
            let pause = retry_delay(generation.attempts, remaining, &mut self.rng);
            generation.renew_at = Some(self.now + pause);
        }
        for waiting in std::mem::take(&mut session.waiting) {
            self.fail_waiting(waiting, error.clone());
        }
        self.check_session(id);
    }

    pub(super) fn session_worked(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.attempts = 0;
        }
    }

    /// The source answers again: a login that backed off may be tried at once.
    pub(super) fn sessions_recovered(&mut self, source: &SourceName) {
        for session in self.sessions.values_mut().filter(|s| s.key.source == *source) {
            session.retry_at = None;
        }
    }

    pub(super) fn holders(&self, id: SessionId) -> Vec<EntryId> {
        self.sessions
            .get(&id)
            .map_or(Vec::new(), |session| session.holders.iter().copied().collect())
    }

    pub(super) fn release_holder(&mut self, id: SessionId, entry: EntryId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.holders.remove(&entry);
            session.waiting.retain(|waiting| *waiting != Waiting::Entry(entry));
        }
        self.check_session(id);
    }

    /// Ends tokens that nothing needs any more, and the session with its last holder.
    pub(super) fn check_session(&mut self, id: SessionId) {
        let in_use = self.tokens_in_use(id);
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let idle: Vec<Generation> =
            session.retiring.extract_if(.., |old| !in_use.contains(&old.token)).collect();
        let unheld =
            session.holders.is_empty() && session.waiting.is_empty() && !session.logging_in;
        // A login that failed is remembered too, or every read would try it again.
        let known = session.current.is_some() || session.retry_at.is_some_and(|at| at > now);
        if !unheld {
            session.linger_until = None;
        } else if session.key.purpose == Purpose::Kv && known {
            session.linger_until.get_or_insert(now + LINGER);
        }
        let over = unheld && session.linger_until.is_none_or(|until| until <= now);
        for generation in idle {
            self.end_token(id, &generation);
        }
        if over {
            self.end_tokens(id);
            self.forget_session(id);
        } else {
            self.arm_session(id);
        }
    }

    fn forget_session(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.remove(&id) {
            self.session_index.remove(&session.key);
            if let Some(at) = session.armed {
                self.deadlines.remove(&(at, Timer::Session(id)));
            }
        }
    }

    /// What a deadline means for a session.
    pub(super) fn session_due(&mut self, id: SessionId) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.armed = None;
        let all = session.current.iter().chain(&session.retiring);
        let dead = all.filter(|t| t.expires_at.is_some_and(|at| at <= now)).map(|t| t.token);
        for token in dead.collect::<Vec<_>>() {
            self.follow_ups.push_back(FollowUp::TokenEnded(id, token));
        }
        let holds = !session.holders.is_empty();
        let due = session
            .current
            .as_mut()
            .filter(|t| !t.renewing && t.renew_at.is_some_and(|at| at <= now));
        match due {
            Some(generation) if generation.renewable => {
                generation.renewing = true;
                self.urgent.push_back(Job::RenewToken(id));
            }
            Some(generation) => {
                generation.renew_at = None;
                if holds {
                    self.start_login(id);
                }
            }
            None => {}
        }
        self.check_session(id);
    }

    pub(super) fn arm_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let current = session.current.iter().filter(|t| !t.renewing).filter_map(|t| t.renew_at);
        let ends = session.current.iter().chain(&session.retiring).filter_map(|t| t.expires_at);
        let wanted = current.chain(ends).chain(session.linger_until).min();
        let mut armed = session.armed;
        self.rearm(&mut armed, wanted, Timer::Session(id));
        if let Some(session) = self.sessions.get_mut(&id) {
            session.armed = armed;
        }
    }

    pub(super) fn login_call(&self, id: SessionId) -> Option<(SourceName, Call)> {
        let session = self.sessions.get(&id)?;
        Some((session.key.source.clone(), Call::Login(session.key.login.clone())))
    }
}
