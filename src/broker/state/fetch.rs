//! Fetching: from wanting a secret to installing its value, or to what a failure means.

use std::time::Duration;

use super::cache::{Activity, Entry, Held, Retiring};
use super::jobs::{Job, Revocation};
use super::read::refusal;
use super::renewal::Expiry;
use super::token::Standing;
use super::turns::Party;
use super::{FollowUp, Pending, State};
use crate::broker::event::{Answer, EntryId, FetchedValue, Record, TokenId};
use crate::broker::lease::{Lease, backoff_delay, retry_delay};
use crate::broker::{Freshness, ReadError};
use crate::clock::BootInstant;
use crate::domain::{ConsumerId, PathKind};
use crate::source::{ErrorClass, SourceError};

/// A static credential whose rotation is imminent is asked for again after this.
const ROTATION_POLL: Duration = Duration::from_secs(1);
/// What there is no room for is asked for again after this at the earliest.
const ROOM_RETRY_MIN: Duration = Duration::from_secs(5);

impl State {
    /// Starts a fetch if nothing is going on: now if a session is live, else once it is.
    pub(super) fn want_fetch(&mut self, id: EntryId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.activity != Activity::Idle {
            return;
        }
        entry.activity = Activity::Queued;
        let session = entry.session;
        self.with_entry(id, |_, _| {});
        self.await_token(session, id);
    }

    /// A token is there: the fetch joins the queue for budget.
    pub(super) fn token_ready(&mut self, id: EntryId) {
        let entry = self.entries.get(&id);
        let Some(entry) = entry.filter(|entry| entry.activity == Activity::Queued) else { return };
        let waiting = entry.waiters.iter().map(|waiter| &waiter.consumer);
        let wanting = waiting.chain(entry.subscriptions.values()).cloned().map(Party::Consumer);
        let party = self.ordinary.soonest(wanting).unwrap_or_else(|| entry.party());
        let place = self.ordinary.push(party, Job::Fetch(id));
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.activity = Activity::InLine(place);
        }
    }

    /// A fetch in line that one more consumer wants is done in the earlier of both turns.
    pub(super) fn hasten(&mut self, entry: &mut Entry, consumer: &ConsumerId) {
        if let Activity::InLine(place) = entry.activity {
            let place = self.ordinary.also_for(place, &Party::Consumer(consumer.clone()));
            entry.activity = Activity::InLine(place);
        }
    }

    /// A fetch that has not left yet is not made for nobody. What is cached for whoever comes may
    /// be read again without a reader: an operator asks for that.
    pub(super) fn withdraw_unwanted(&mut self, entry: &mut Entry) {
        let wanted = entry.is_wanted() || !entry.waiters.is_empty();
        if wanted || (entry.current.is_some() && entry.kind != PathKind::Minting) {
            return;
        }
        if let Activity::InLine(place) = entry.activity {
            self.ordinary.take(place);
        }
        if matches!(entry.activity, Activity::Queued | Activity::InLine(_)) {
            entry.activity = Activity::Idle;
        }
    }

    pub(super) fn fetched(
        &mut self,
        entry: &mut Entry,
        token: TokenId,
        left_at: BootInstant,
        fetched: FetchedValue,
    ) {
        self.counters.fetches += 1;
        let room = self.make_room_beside(entry, fetched.value.len);
        self.bytes += fetched.value.len;
        let held = self.held(entry, token, left_at, &fetched);
        if held.dead_at <= self.now {
            self.drop_value(held.value);
            let message = "the answer took longer than the secret lives";
            self.fetch_failed(entry, SourceError::new(ErrorClass::Unreachable, message));
            return;
        }
        if self.died_with_its_token(entry, &held) {
            return;
        }
        if let Err(limit) = room {
            entry.activity = Activity::Idle;
            self.refuse_for_room(entry, held, limit);
            return;
        }
        if held.lease.is_some() {
            entry.activity = Activity::Recording(Box::new(held));
            self.persist(
                Pending::PersistLease(entry.id),
                Record::LeaseGranted { value: held.value, expires_at: held.dead_at },
            );
        } else {
            entry.activity = Activity::Idle;
            self.install(entry, held);
        }
    }

    /// The entry at hand is out of the map while it changes, so it cannot evict itself.
    fn make_room_beside(&mut self, entry: &Entry, bytes: usize) -> Result<(), &'static str> {
        if let Some(at) = entry.idle_since {
            self.idle.remove(&(at, entry.id));
        }
        self.make_room(bytes)
    }

    fn refuse_for_room(&mut self, entry: &mut Entry, held: Held, limit: &'static str) {
        self.discard_new(entry, held);
        let message = ReadError::Full { limit }.to_string();
        self.set_problem(entry, ErrorClass::InvalidRequest, message);
        // Each attempt may make a credential that has no room either.
        let attempts = entry.problem.as_ref().map_or(1, |problem| problem.attempts);
        let pause = ROOM_RETRY_MIN + backoff_delay(attempts, &mut self.rng);
        for waiter in std::mem::take(&mut entry.waiters) {
            let refused = Answer::Refused(ReadError::Full { limit });
            self.answer(waiter.id, refused);
        }
        entry.retry_at = Some(self.now + pause);
    }

    fn discard_new(&mut self, entry: &mut Entry, held: Held) {
        if held.lease.is_some() {
            self.revoke_orphan(entry, held);
        } else {
            self.drop_value(held.value);
        }
    }

    pub(super) fn lease_recorded(&mut self, entry: &mut Entry) {
        let Some(held) = entry.being_recorded().copied() else { return };
        entry.activity = Activity::Idle;
        if !self.died_with_its_token(entry, &held) {
            self.install(entry, held);
        }
    }

    /// A credential whose token ended while it was on its way is gone: it is asked for anew.
    fn died_with_its_token(&mut self, entry: &mut Entry, held: &Held) -> bool {
        let is_gone =
            held.lease.is_some() && self.standing(entry.session, held.token) == Standing::Gone;
        if is_gone {
            self.drop_value(held.value);
            let message = "the token it was made with has ended meanwhile";
            self.fetch_failed(entry, SourceError::new(ErrorClass::TokenEnded, message));
        }
        is_gone
    }

    fn held(
        &mut self,
        entry: &Entry,
        token: TokenId,
        left_at: BootInstant,
        fetched: &FetchedValue,
    ) -> Held {
        let ttl = entry.times.ttl;
        let ahead = ttl - ttl / 100 * self.rng.u32(10..=20);
        let mut held = Held {
            value: fetched.value,
            token,
            fetched_at: left_at,
            fresh_until: left_at + ttl,
            dead_at: left_at + entry.times.max_stale.max(ttl),
            refresh_at: left_at + ahead,
            version: fetched.version,
            lease: None,
        };
        if let Some(terms) = fetched.lease {
            let lease = Lease::granted(left_at, terms, &mut self.rng);
            held.lease = Some(lease);
            held.dead_at = lease.expires_at.or_token(self.token_expiry(entry.session, token));
            held.fresh_until = held.dead_at;
        } else if let Some(rotates_in) = fetched.rotates_in {
            held.fresh_until = left_at + rotates_in.max(ROTATION_POLL);
            held.dead_at = held.fresh_until;
            held.refresh_at = held.fresh_until;
        } else if entry.kind == PathKind::Minting {
            held.dead_at = BootInstant::from_nanos(u64::MAX);
            held.fresh_until = held.dead_at;
        }
        held
    }

    /// Makes a new value the current one; a live lease before it begins its overlap.
    fn install(&mut self, entry: &mut Entry, held: Held) {
        if let Some(old) = entry.current.replace(held) {
            self.retire(entry, old);
        }
        entry.problem = None;
        entry.retry_at = None;
        entry.negative_until = None;
        entry.replacing = false;
        entry.last_chance_spent = false;
        entry.tried_beside = false;
        self.session_worked(entry.session);
        self.replace_if_succeeded(entry);
        let waiters = std::mem::take(&mut entry.waiters);
        let told: Vec<_> =
            waiters.iter().map(|waiter| self.told_local(entry, &waiter.consumer)).collect();
        self.publish(entry);
        for (waiter, told) in waiters.into_iter().zip(told) {
            self.answer_told(entry.id, waiter.id, Freshness::Miss, told);
        }
        self.notify(entry, true);
    }

    fn retire(&mut self, entry: &mut Entry, old: Held) {
        match old.lease {
            Some(lease) if self.now < old.dead_at => {
                self.counters.replacements += 1;
                let overlap = lease.overlap(entry.times.overlap, self.now);
                let retiring = Retiring { held: old, ends_at: self.now + overlap, lapses: false };
                entry.retiring.push(retiring);
            }
            _ => self.drop_value(old.value),
        }
    }

    pub(super) fn fetch_failed(&mut self, entry: &mut Entry, error: SourceError) {
        entry.activity = Activity::Idle;
        if error.ambiguous && entry.kind == PathKind::Minting {
            self.ambiguous_create(entry);
        }
        match error.class {
            ErrorClass::TokenEnded => {
                self.retry_with_new_token(entry, error);
                return;
            }
            ErrorClass::Denied if self.may_try_beside(entry) => {
                entry.tried_beside = true;
                entry.activity = Activity::Queued;
                self.login_beside_for(entry.session, entry.id);
                return;
            }
            _ => {}
        }
        self.counters.failures += 1;
        self.set_problem(entry, error.class, error.message);
        let attempts = entry.problem.as_ref().map_or(1, |problem| problem.attempts);
        let delay = match entry.current {
            Some(held) if held.lease.is_some() => {
                retry_delay(attempts, self.now.until(held.dead_at), &mut self.rng)
            }
            _ => backoff_delay(attempts, &mut self.rng),
        };
        entry.retry_at = Some(self.now + delay.max(error.retry_after.unwrap_or_default()));
        entry.tried_beside = false;
        if matches!(error.class, ErrorClass::Denied | ErrorClass::NotFound) {
            self.purge(entry);
        }
        if error.class != ErrorClass::Unreachable {
            entry.negative_until = Some(self.now + self.settings.negative_ttl);
        }
        if entry.replacing && entry.last_chance_spent {
            // The one replacement failed: renewing the old lease is all that is left.
            entry.replacing = false;
        }
        self.answer_failure(entry);
    }

    /// A dead token is replaced once; a second death in a row is treated as an unusable source.
    fn retry_with_new_token(&mut self, entry: &mut Entry, error: SourceError) {
        if entry.tried_beside {
            let class = ErrorClass::Unreachable;
            let message = format!("a fresh login did not help: {}", error.message);
            self.fetch_failed(entry, SourceError { class, message, ..error });
        } else {
            entry.tried_beside = true;
            self.follow_ups.push_back(FollowUp::WantFetch(entry.id));
        }
    }

    /// What was cached is no longer ours to serve; files keep what they hold.
    fn purge(&mut self, entry: &mut Entry) {
        match entry.current {
            // Only the replacement was refused: the lease itself is alive until Vault ends it.
            Some(held) if held.lease.is_some() => {}
            Some(held) => {
                entry.current = None;
                self.retract(entry);
                self.drop_value(held.value);
            }
            None => {}
        }
    }

    /// Waiters get the stale value where one may be served, else the failure.
    fn answer_failure(&mut self, entry: &mut Entry) {
        let Some(problem) = entry.problem.clone() else { return };
        let retry_after = entry.retry_at.map(|at| self.now.until(at));
        let alive = entry.alive(self.now).is_some();
        for waiter in std::mem::take(&mut entry.waiters) {
            if alive {
                self.answer_value(entry, &waiter, Freshness::Stale);
            } else {
                let refused = refusal(&problem, retry_after);
                self.answer(waiter.id, Answer::Refused(refused));
            }
        }
    }

    /// A create whose outcome is unknown may have left a credential behind. With no live lease in
    /// its session the session is ended, which ends the unknown one too; otherwise it lapses.
    fn ambiguous_create(&mut self, entry: &mut Entry) {
        self.counters.ambiguous_creates += 1;
        let alone = entry.current.is_none()
            && self.sessions.get(&entry.session).is_some_and(|session| session.holders.len() == 1);
        if alone {
            self.end_tokens(entry.session);
        }
    }

    /// Revokes a lease that no entry keeps, best effort: its bytes go when the call is done.
    pub(super) fn revoke_orphan(&mut self, entry: &Entry, held: Held) {
        let (token, value, keeper) = (held.token, held.value, None);
        let secret = entry.key.secret.clone();
        let revocation = Revocation { secret, token, value, keeper };
        self.ordinary.push(entry.party(), Job::Revoke(revocation));
    }
}
