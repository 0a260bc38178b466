//! Leases that live: renewing, replacing with overlap, and ending what was replaced.
//!
//! A failed renewal by itself mints nothing. A replacement follows from proof (the lease is gone,
//! was granted short, or cannot be renewed), or once from the last tenth of its life while the
//! source answers.

use super::cache::{Activity, Entry};
use super::jobs::{Job, Revocation};
use super::token::Standing;
use super::{FollowUp, State};
use crate::broker::event::{SessionId, TokenId, ValueId};
use crate::broker::lease::{Renewed, retry_delay};
use crate::clock::BootInstant;
use crate::source::{ErrorClass, LeaseTerms, SourceError};

/// A lease dies with its token.
pub(super) trait Expiry {
    /// The earlier of this and the token's end.
    fn or_token(self, token: Option<BootInstant>) -> Self;
}

impl Expiry for BootInstant {
    fn or_token(self, token: Option<BootInstant>) -> Self {
        token.map_or(self, |end| end.min(self))
    }
}

impl State {
    /// Queues a renewal of the current lease.
    pub(super) fn want_renewal(&mut self, entry: &mut Entry) {
        if entry.activity == Activity::Idle {
            entry.activity = Activity::RenewQueued;
            self.urgent.push_back(Job::RenewLease(entry.id));
        }
    }

    pub(super) fn lease_renewed(
        &mut self,
        entry: &mut Entry,
        value: ValueId,
        left_at: BootInstant,
        terms: LeaseTerms,
    ) {
        entry.activity = Activity::Idle;
        let token_end = entry.current.and_then(|held| self.token_expiry(entry.session, held.token));
        let Some(held) = entry.current.as_mut().filter(|held| held.value == value) else { return };
        let Some(lease) = held.lease else { return };
        self.counters.renewals += 1;
        let renewed = lease.renewed(left_at, terms, &mut self.rng);
        let (lease, truncated) = match renewed {
            Renewed::Full(lease) => (lease, false),
            Renewed::Truncated(lease) => (lease, true),
        };
        held.lease = Some(lease);
        held.dead_at = lease.expires_at.or_token(token_end);
        held.fresh_until = held.dead_at;
        entry.problem = None;
        entry.retry_at = None;
        entry.last_chance_spent = false;
        entry.replacing = truncated || !terms.renewable;
        if truncated {
            self.follow_ups.push_back(FollowUp::WantFetch(entry.id));
        } else {
            self.replace_if_succeeded(entry);
        }
        self.publish(entry);
        self.notify(entry, true);
    }

    pub(super) fn renewal_failed(&mut self, entry: &mut Entry, value: ValueId, error: SourceError) {
        entry.activity = Activity::Idle;
        let Some(held) = entry.current.filter(|held| held.value == value) else { return };
        let Some(lease) = held.lease else { return };
        self.counters.renewals_failed += 1;
        match error.class {
            // Where the session knew the token it has taken the value already.
            ErrorClass::LeaseEnded | ErrorClass::TokenEnded => {
                self.lease_lost(entry, error.message);
                return;
            }
            _ => {}
        }
        let answered = error.class != ErrorClass::Unreachable;
        let class = if answered { ErrorClass::InvalidRequest } else { ErrorClass::Unreachable };
        self.set_problem(entry, class, format!("renewing the lease failed: {}", error.message));
        let attempts = entry.problem.as_ref().map_or(1, |problem| problem.attempts);
        let remaining = self.now.until(held.dead_at);
        let delay = retry_delay(attempts, remaining, &mut self.rng);
        let delay = error.retry_after.map_or(delay, |wait| delay.max(wait.min(remaining / 8)));
        entry.retry_at = Some(self.now + delay);
        if answered && lease.is_last_chance(self.now) && !entry.last_chance_spent {
            entry.last_chance_spent = true;
            entry.replacing = true;
            self.follow_ups.push_back(FollowUp::WantFetch(entry.id));
        }
    }

    /// Proof that the credential is dead: readers lose it now, files keep it until it is replaced.
    pub(super) fn lease_lost(&mut self, entry: &mut Entry, message: String) {
        if let Some(held) = entry.current.take() {
            self.retract(entry);
            self.drop_value(held.value);
        }
        entry.forget_lease();
        entry.retry_at = None;
        self.set_problem(entry, ErrorClass::LeaseEnded, message);
        if entry.is_wanted() {
            self.follow_ups.push_back(FollowUp::WantFetch(entry.id));
        }
    }

    /// Ends replaced credentials whose overlap is over, and forgets those that lapsed.
    pub(super) fn end_retired(&mut self, entry: &mut Entry) {
        let now = self.now;
        let mut kept = Vec::new();
        for mut old in std::mem::take(&mut entry.retiring) {
            if old.held.dead_at <= now {
                self.drop_value(old.held.value);
                self.follow_ups.push_back(FollowUp::CheckSession(entry.session));
                continue;
            }
            if old.ends_at <= now && !old.lapses {
                // Marked before the answer so that one attempt is all it gets.
                old.lapses = true;
                let (token, value) = (old.held.token, old.held.value);
                let (secret, keeper) = (entry.key.secret.clone(), Some(entry.id));
                let revocation = Revocation { secret, token, value, keeper };
                self.ordinary.push(entry.party(), Job::Revoke(revocation));
            }
            kept.push(old);
        }
        entry.retiring = kept;
    }

    /// A revocation came back: a revoked lease is forgotten, one that could not be lapses.
    pub(super) fn revoked(
        &mut self,
        entry: &mut Entry,
        value: ValueId,
        outcome: &Result<(), SourceError>,
    ) {
        let ended = match outcome {
            Ok(()) => true,
            Err(error) => error.class == ErrorClass::LeaseEnded,
        };
        let place = entry.retiring.iter().position(|old| old.held.value == value);
        if let Some(at) = place.filter(|_| ended) {
            entry.retiring.remove(at);
            self.drop_value(value);
            self.follow_ups.push_back(FollowUp::CheckSession(entry.session));
        }
    }

    /// A token died: what it had made is gone, whatever the leases say.
    pub(super) fn lose_leases_under(&mut self, session: SessionId, token: TokenId) {
        for id in self.holders(session) {
            self.with_entry(id, |state, entry| {
                let lost = entry.retiring.extract_if(.., |old| old.held.token == token);
                for old in lost.collect::<Vec<_>>() {
                    state.drop_value(old.held.value);
                }
                let current = entry.current.filter(|held| held.token == token);
                if current.is_some_and(|held| held.lease.is_some()) {
                    let message = "the token this credential was made with has ended".to_owned();
                    state.lease_lost(entry, message);
                }
            });
        }
    }

    /// A successor session is live: leases under the old token are replaced over half of what is
    /// left of them, so that one token's end is not one burst.
    pub(super) fn replace_under(&mut self, session: SessionId, token: TokenId) {
        for id in self.holders(session) {
            self.with_entry(id, |state, entry| {
                if entry.current.is_some_and(|held| held.token == token) {
                    state.replace_if_succeeded(entry);
                }
            });
        }
        self.follow_ups.push_back(FollowUp::CheckSession(session));
    }

    /// A lease under a token that has a successor is to be replaced, also one that was on its way
    /// when the successor came.
    pub(super) fn replace_if_succeeded(&mut self, entry: &mut Entry) {
        let Some(held) = entry.current.filter(|held| held.lease.is_some()) else { return };
        if entry.replacing || self.standing(entry.session, held.token) != Standing::Succeeded {
            return;
        }
        let half = self.now.until(held.dead_at) / 2;
        let spread = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        let wait = std::time::Duration::from_nanos(self.rng.u64(0..=spread));
        entry.replacing = true;
        entry.retry_at = Some(self.now + wait);
    }

    pub(super) fn token_extended(&mut self, session: SessionId, token: TokenId) {
        let end = self.token_expiry(session, token);
        for id in self.holders(session) {
            self.with_entry(id, |state, entry| {
                let Some(held) = entry.current.as_mut().filter(|held| held.token == token) else {
                    return;
                };
                let Some(lease) = held.lease else { return };
                let dead_at = lease.expires_at.or_token(end);
                if held.dead_at != dead_at {
                    held.dead_at = dead_at;
                    held.fresh_until = dead_at;
                    state.publish(entry);
                    state.notify(entry, true);
                }
            });
        }
    }
}
