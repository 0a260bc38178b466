//! Reads and subscriptions: which entry they mean, and what can be answered at once.

use std::time::Duration;

use super::cache::{Activity, Entry, Waiter};
use super::mounts::Parked;
use super::{FollowUp, State, SubscriptionPlace};
use crate::broker::event::{
    Answer, CacheKey, Effect, EntryId, LocalTerms, SubscriptionId, WaiterId, Want,
};
use crate::broker::{Freshness, Problem, ReadError};
use crate::domain::{LoginIdentity, Mount, PathKind, SecretRef, SourceName};
use crate::source::ErrorClass;

/// After a recovery the next attempts are spread over this.
const RECOVERY_SPREAD_MS: u64 = 2_000;

impl State {
    pub(super) fn read(&mut self, waiter: WaiterId, want: Want) {
        let Some(mount) = self.known_mount(&want) else {
            self.park(Parked::Read(waiter, want));
            return;
        };
        match self.entry_for(&want, &mount) {
            Err(refused) => self.answer(waiter, Answer::Refused(refused)),
            Ok(id) => self.with_entry(id, |state, entry| {
                state.read_entry(entry, Waiter { id: waiter, consumer: want.consumer });
            }),
        }
    }

    fn read_entry(&mut self, entry: &mut Entry, waiter: Waiter) {
        let now = self.now;
        if let Some(held) = entry.alive(now) {
            if now < held.fresh_until {
                self.answer_value(entry, &waiter, Freshness::Hit);
                return;
            }
            if entry.retry_at.is_some_and(|at| at > now) {
                self.answer_value(entry, &waiter, Freshness::Stale);
                return;
            }
        } else if let Some(refusal) = self.remembered_refusal(entry) {
            self.answer(waiter.id, Answer::Refused(refusal));
            return;
        }
        // Nothing is minted for a reader who could not hold it.
        if entry.kind == PathKind::Minting
            && let Err(limit) = self.room_for_local()
        {
            self.answer(waiter.id, Answer::Refused(ReadError::Full { limit }));
            return;
        }
        self.hasten(entry, &waiter.consumer);
        entry.waiters.push(waiter);
        if entry.activity == Activity::Idle {
            self.follow_ups.push_back(FollowUp::WantFetch(entry.id));
        }
    }

    /// A failure that is answered without asking again: remembered briefly, or until the retry.
    fn remembered_refusal(&self, entry: &Entry) -> Option<ReadError> {
        let problem = entry.problem.as_ref()?;
        let negative = entry.negative_until.filter(|until| *until > self.now);
        let waiting =
            entry.retry_at.filter(|at| *at > self.now && entry.activity == Activity::Idle);
        let until = negative.or(waiting.filter(|_| problem.class == ErrorClass::Unreachable))?;
        Some(refusal(problem, Some(self.now.until(until))))
    }

    pub(super) fn subscribe(&mut self, subscription: SubscriptionId, want: Want) {
        let Some(mount) = self.known_mount(&want) else {
            let place = SubscriptionPlace::Probing(Self::probe_key(&want));
            self.subscriptions.insert(subscription, place);
            self.park(Parked::Subscribe(subscription, want));
            return;
        };
        self.subscribe_known(subscription, want, &mount);
    }

    pub(super) fn subscribe_known(
        &mut self,
        subscription: SubscriptionId,
        want: Want,
        mount: &Mount,
    ) {
        match self.entry_for(&want, mount) {
            Err(refused) => {
                let class = ErrorClass::InvalidRequest;
                self.refuse_subscription(subscription, class, refused.to_string());
            }
            Ok(id) => {
                self.subscriptions.insert(subscription, SubscriptionPlace::Entry(id));
                self.with_entry(id, |state, entry| {
                    state.hasten(entry, &want.consumer);
                    entry.subscriptions.insert(subscription, want.consumer);
                    state.greet(subscription, entry);
                });
            }
        }
    }

    /// A new subscriber hears the current level, if there is one.
    fn greet(&mut self, subscription: SubscriptionId, entry: &Entry) {
        let alive = entry.alive(self.now).is_some();
        if alive || entry.problem.is_some() {
            self.effects.push(Effect::Notify {
                subscription,
                entry: alive.then_some(entry.id),
                problem: entry.problem.clone(),
            });
        }
    }

    /// Tells a subscriber why it cannot be one now, and lets it go.
    pub(super) fn refuse_subscription(
        &mut self,
        subscription: SubscriptionId,
        class: ErrorClass,
        message: String,
    ) {
        let problem = Problem { class, message, since: self.now, attempts: 1 };
        self.effects.push(Effect::Notify { subscription, entry: None, problem: Some(problem) });
        self.effects.push(Effect::EndSubscription(subscription));
    }

    pub(super) fn unsubscribe(&mut self, subscription: SubscriptionId) {
        match self.subscriptions.remove(&subscription) {
            Some(SubscriptionPlace::Entry(id)) => self.with_entry(id, |_, entry| {
                entry.subscriptions.remove(&subscription);
            }),
            Some(SubscriptionPlace::Probing(key)) => self.unpark(&key, subscription),
            None => {}
        }
    }

    /// The entry a read or subscription means, created if need be, if there is room, and if what it
    /// takes may be made.
    fn entry_for(&mut self, want: &Want, mount: &Mount) -> Result<EntryId, ReadError> {
        let kind = mount.path_kind(&want.secret.path);
        let key = CacheKey {
            secret: want.secret.clone(),
            login: want.login.clone(),
            consumer: want.owner.clone().filter(|_| kind == PathKind::Minting),
        };
        let known = self.index.get(&key).copied();
        if kind == PathKind::Minting && !want.may_mint {
            // What others keep alive is made for them.
            let serves = |id: &EntryId| self.entries.get(id).is_some_and(|e| e.serves(self.now));
            return known.filter(serves).ok_or(ReadError::Leaving);
        }
        if let Some(id) = known {
            return Ok(id);
        }
        self.make_room(0).map_err(|limit| ReadError::Full { limit })?;
        let id = EntryId(self.fresh_id());
        let times = self.settings.times(&want.secret);
        let mut entry = Box::new(Entry::new(id, key.clone(), kind, times));
        entry.session = self.hold_session(&key, kind, id);
        self.index.insert(key, id);
        self.entries.insert(id, entry);
        Ok(id)
    }

    pub(super) fn refresh(
        &mut self,
        waiter: WaiterId,
        secret: &SecretRef,
        login: Option<&LoginIdentity>,
    ) {
        let mut ids = self.entries_of(secret);
        let whose = |id: &EntryId| self.entries.get(id).map(|entry| &entry.key.login);
        ids.retain(|id| login.is_none_or(|login| whose(id) == Some(login)));
        // An operator asks for an attempt now: neither the breaker nor a login's backoff is in its
        // way. They protect all workloads from each of them.
        if login.is_none() {
            if let Some(health) = self.sources.get_mut(&secret.source) {
                health.open_until = None;
            }
            self.sessions_recovered(&secret.source);
        }
        for id in &ids {
            self.with_entry(*id, Self::refresh_entry);
        }
        self.answer(waiter, Answer::Refreshed(ids.len()));
    }

    fn refresh_entry(&mut self, entry: &mut Entry) {
        if entry.activity != Activity::Idle {
            return;
        }
        entry.retry_at = None;
        entry.negative_until = None;
        match entry.current {
            Some(held) if held.lease.is_some_and(|lease| lease.renewable) && !entry.replacing => {
                self.want_renewal(entry);
            }
            Some(held) if held.lease.is_some() => {}
            _ => self.follow_ups.push_back(FollowUp::WantFetch(entry.id)),
        }
    }

    /// The content behind a source changed: what is subscribed is read again, the rest forgotten.
    pub(super) fn source_changed(&mut self, source: &SourceName) {
        self.mounts.retain(|(name, _), _| name != source);
        for id in self.entries_from(source) {
            self.with_entry(id, |state, entry| {
                if entry.kind == PathKind::Minting && entry.current.is_some() {
                    return;
                }
                state.refresh_entry(entry);
            });
        }
    }

    /// What waits for its next attempt gets it within two seconds, spread out.
    pub(super) fn recovered(&mut self, source: &SourceName) {
        self.sessions_recovered(source);
        self.endings_recovered(source);
        for id in self.entries_from(source) {
            self.with_entry(id, |state, entry| {
                let soon = state.now + state.recovery_pause();
                let of_an_outage = |problem: &Problem| problem.class == ErrorClass::Unreachable;
                let backs_off =
                    entry.problem.as_ref().is_some_and(of_an_outage) && entry.is_wanted();
                entry.retry_at = entry.retry_at.map(|at| if backs_off { at.min(soon) } else { at });
            });
        }
    }

    pub(super) fn recovery_pause(&mut self) -> Duration {
        Duration::from_millis(self.rng.u64(0..=RECOVERY_SPREAD_MS))
    }

    fn entries_from(&self, source: &SourceName) -> Vec<EntryId> {
        let of_source =
            |(key, id): (&CacheKey, &EntryId)| (key.secret.source == *source).then_some(*id);
        self.index.iter().filter_map(of_source).collect()
    }

    /// Answers with the current value; leased ones get or keep a local lease.
    pub(super) fn answer_value(
        &mut self,
        entry: &mut Entry,
        waiter: &Waiter,
        freshness: Freshness,
    ) {
        let told = self.told_local(entry, &waiter.consumer);
        self.answer_told(entry.id, waiter.id, freshness, told);
    }

    /// The same, with what was told about a local lease before.
    pub(super) fn answer_told(
        &mut self,
        entry: EntryId,
        waiter: WaiterId,
        freshness: Freshness,
        told: Result<Option<LocalTerms>, &'static str>,
    ) {
        let answer = match told {
            Ok(local) => Answer::Value { entry, freshness, local },
            Err(limit) => Answer::Refused(ReadError::Full { limit }),
        };
        self.answer(waiter, answer);
    }

    pub(super) fn answer(&mut self, waiter: WaiterId, answer: Answer) {
        self.effects.push(Effect::Answer { waiter, answer });
    }
}

/// A problem as the refusal a reader gets.
pub(super) fn refusal(problem: &Problem, retry_after: Option<Duration>) -> ReadError {
    ReadError::Source { class: problem.class, message: problem.message.clone(), retry_after }
}
