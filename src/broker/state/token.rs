//! Tokens of sessions: renewed at 75 %, lost, and revoked with everything made under them.

use std::collections::BTreeSet;
use std::time::Duration;

use super::jobs::Job;
use super::turns::Party;
use super::{FollowUp, Pending, State, Timer};
use crate::broker::event::{Effect, EntryId, SessionId, TokenId};
use crate::broker::lease::{backoff_delay, renew_after, retry_delay};
use crate::clock::BootInstant;
use crate::domain::SourceName;
use crate::source::{ErrorClass, SourceError, TokenGrant, TokenKind};

/// A token grant shorter than the first by more than this proves its maximum TTL.
const TRUNCATION_TOLERANCE: Duration = Duration::from_secs(1);
/// The end of a token that does not expire gets this many unanswered calls: half an hour at the
/// longest pause. Any other is tried until it has expired.
const END_ATTEMPTS_MAX: u32 = 120;

/// One token of a session.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Generation {
    pub token: TokenId,
    pub first_ttl: Duration,
    /// `None` does not expire.
    pub expires_at: Option<BootInstant>,
    pub renewable: bool,
    /// When it is renewed, or replaced if it cannot be.
    pub renew_at: Option<BootInstant>,
    pub attempts: u32,
    pub renewing: bool,
}

/// What a session knows of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is the one that is used.
    Current,
    /// It has a successor, and lives as long as something made under it.
    Succeeded,
    /// It has ended.
    Gone,
}

/// A token that is being revoked.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub source: SourceName,
    pub party: Party,
    /// Calls that were not answered.
    pub attempts: u32,
    pub expires_at: Option<BootInstant>,
    /// When it is tried again.
    armed: Option<BootInstant>,
}

impl Generation {
    pub(super) fn granted(
        token: TokenId,
        kind: TokenKind,
        left_at: BootInstant,
        terms: TokenGrant,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let forever = terms.ttl.is_zero();
        Self {
            token,
            first_ttl: terms.ttl,
            expires_at: (!forever).then(|| left_at + terms.ttl),
            renewable: terms.renewable && kind == TokenKind::Service,
            renew_at: (!forever).then(|| left_at + renew_after(terms.ttl, rng)),
            attempts: 0,
            renewing: false,
        }
    }

    /// Whether its successor is due within a quarter of its life: what is made under it now would
    /// soon be made again. Leases are granted in whole seconds, so under a short token their
    /// replacement can come well before the token's own.
    pub(super) fn nears_its_end(&self, now: BootInstant) -> bool {
        let soon = now + self.first_ttl / 4;
        !self.renewable && self.expires_at.is_some() && self.renew_at.is_none_or(|at| at <= soon)
    }
}

impl State {
    pub(super) fn token_renewed(
        &mut self,
        id: SessionId,
        token: TokenId,
        left_at: BootInstant,
        terms: TokenGrant,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(generation) = session.current.as_mut().filter(|t| t.token == token) else {
            return;
        };
        generation.renewing = false;
        generation.attempts = 0;
        generation.expires_at = Some(left_at + terms.ttl);
        generation.renew_at = Some(left_at + renew_after(terms.ttl, &mut self.rng));
        if terms.ttl + TRUNCATION_TOLERANCE < generation.first_ttl {
            // Its maximum TTL is near: a successor is needed before the end that is now known.
            generation.renewable = false;
            generation.renew_at = Some(self.now);
        }
        self.follow_ups.push_back(FollowUp::TokenExtended(id, token));
        self.arm_session(id);
    }

    pub(super) fn token_renewal_failed(
        &mut self,
        id: SessionId,
        token: TokenId,
        error: SourceError,
    ) {
        self.counters.failures += 1;
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.last_error = Some(error.clone());
        let Some(generation) = session.current.as_mut().filter(|t| t.token == token) else {
            return;
        };
        generation.renewing = false;
        generation.attempts = generation.attempts.saturating_add(1);
        match error.class {
            ErrorClass::TokenEnded => {
                self.follow_ups.push_back(FollowUp::TokenEnded(id, token));
                return;
            }
            ErrorClass::Unreachable | ErrorClass::LeaseEnded => {
                let remaining = generation.expires_at.map_or(Duration::MAX, |at| now.until(at));
                let pause = retry_delay(generation.attempts, remaining, &mut self.rng);
                generation.renew_at = Some(now + pause);
            }
            // The token lives but may not renew itself: it is replaced like one that cannot be.
            ErrorClass::Denied | ErrorClass::NotFound | ErrorClass::InvalidRequest => {
                generation.renewable = false;
                generation.renew_at = Some(now);
            }
        }
        self.arm_session(id);
    }

    /// The token is dead, by proof or by the clock.
    pub(super) fn token_ended(&mut self, id: SessionId, token: TokenId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let known = session.current.as_ref().is_some_and(|t| t.token == token);
        if known {
            session.current = None;
        }
        let retiring = session.retiring.len();
        session.retiring.retain(|generation| generation.token != token);
        if known || session.retiring.len() != retiring {
            self.effects.push(Effect::DropToken(token));
            self.lose_leases_under(id, token);
        }
        self.check_session(id);
    }

    pub(super) fn token_expiry(&self, id: SessionId, token: TokenId) -> Option<BootInstant> {
        let session = self.sessions.get(&id)?;
        let mut generations = session.current.iter().chain(&session.retiring);
        generations.find(|generation| generation.token == token)?.expires_at
    }

    pub(super) fn standing(&self, id: SessionId, token: TokenId) -> Standing {
        let Some(session) = self.sessions.get(&id) else { return Standing::Gone };
        let is_it = |generation: &Generation| generation.token == token;
        match () {
            () if session.current.as_ref().is_some_and(is_it) => Standing::Current,
            () if session.retiring.iter().any(is_it) => Standing::Succeeded,
            () => Standing::Gone,
        }
    }

    /// Revokes every token of a session, which ends every lease made under it, known or not.
    pub(super) fn end_tokens(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let tokens: Vec<Generation> =
            session.current.take().into_iter().chain(session.retiring.drain(..)).collect();
        for generation in tokens {
            self.end_token(id, &generation);
        }
    }

    /// Revokes one token of a session, in the turn of those it was for.
    pub(super) fn end_token(&mut self, id: SessionId, generation: &Generation) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (source, party) = (session.key.source.clone(), session.key.party());
        let expires_at = generation.expires_at;
        let ending = Ending { source, party: party.clone(), attempts: 0, expires_at, armed: None };
        self.endings.insert(generation.token, ending);
        self.ordinary.push(party, Job::EndSession(generation.token));
    }

    pub(super) fn session_ended(&mut self, token: TokenId, outcome: Result<(), SourceError>) {
        let Some(ending) = self.endings.get_mut(&token) else { return };
        match outcome.map_err(|error| error.class) {
            Err(ErrorClass::Unreachable) => {
                ending.attempts = ending.attempts.saturating_add(1);
                if ending.expires_at.is_none() && ending.attempts >= END_ATTEMPTS_MAX {
                    self.abandon_ending(token);
                } else {
                    let at = self.now + backoff_delay(ending.attempts, &mut self.rng);
                    self.arm_ending(token, at);
                }
            }
            // A token that is dead already is what was wanted.
            Ok(()) | Err(ErrorClass::TokenEnded) => self.forget_ending(token),
            Err(_) => self.abandon_ending(token),
        }
    }

    /// The source's breaker is open: no call was made, so none is counted.
    pub(super) fn postpone_ending(&mut self, token: TokenId, until: BootInstant) {
        let at = until + self.recovery_pause();
        self.arm_ending(token, at);
    }

    /// The source answers again: what backs off because of it need not wait that long.
    pub(super) fn endings_recovered(&mut self, source: &SourceName) {
        let of_source = self.endings.iter().filter(|(_, ending)| ending.source == *source);
        let waiting = of_source.filter_map(|(token, ending)| Some((*token, ending.armed?)));
        for (token, at) in waiting.collect::<Vec<_>>() {
            let soon = self.now + self.recovery_pause();
            self.arm_ending(token, at.min(soon));
        }
    }

    /// Tried again at `at`, or given up when the token expires before that.
    fn arm_ending(&mut self, token: TokenId, at: BootInstant) {
        let Some(ending) = self.endings.get(&token) else { return };
        let mut armed = ending.armed;
        let at = ending.expires_at.map_or(at, |end| end.min(at));
        self.rearm(&mut armed, Some(at), Timer::Ending(token));
        if let Some(ending) = self.endings.get_mut(&token) {
            ending.armed = armed;
        }
    }

    pub(super) fn ending_due(&mut self, token: TokenId) {
        let Some(ending) = self.endings.get_mut(&token) else { return };
        ending.armed = None;
        if ending.expires_at.is_some_and(|at| at <= self.now) {
            self.abandon_ending(token);
        } else {
            self.ordinary.push(ending.party.clone(), Job::EndSession(token));
        }
    }

    /// Left to lapse, with what was made under it.
    fn abandon_ending(&mut self, token: TokenId) {
        self.counters.failures += 1;
        self.forget_ending(token);
    }

    fn forget_ending(&mut self, token: TokenId) {
        self.endings.remove(&token);
        self.effects.push(Effect::DropToken(token));
    }

    /// Tokens that leases were made under, or may be by a call that is under way.
    pub(super) fn tokens_in_use(&self, id: SessionId) -> BTreeSet<TokenId> {
        let Some(session) = self.sessions.get(&id) else { return BTreeSet::new() };
        if session.retiring.is_empty() {
            return BTreeSet::new();
        }
        let held = |entry: &EntryId| self.entries.get(entry);
        let leased = session.holders.iter().filter_map(held).flat_map(|entry| {
            let current = entry.current.iter().chain(entry.being_recorded());
            let current = current.filter(|held| held.lease.is_some()).map(|held| held.token);
            current.chain(entry.retiring.iter().map(|old| old.held.token))
        });
        let asked = self.pending.values().filter_map(|pending| match pending {
            Pending::Fetch(entry, token) if session.holders.contains(entry) => Some(*token),
            _ => None,
        });
        leased.chain(asked).collect()
    }
}
