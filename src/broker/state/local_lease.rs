//! Local leases: what a socket caller holds on a dynamic secret. Its end ends the interest.

use super::cache::{Activity, Entry};
use super::{State, Timer};
use crate::broker::event::{
    Answer, Effect, EntryId, LocalKey, LocalOperation, LocalTerms, ValueId, WaiterId,
};
use crate::broker::{LocalLeaseError, ReadError};
use crate::clock::BootInstant;
use crate::domain::ConsumerId;

/// A local lease.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Local {
    pub entry: EntryId,
    pub consumer: ConsumerId,
    /// The credential it is for; a replaced one cannot be prolonged.
    pub value: ValueId,
    pub issued_at: BootInstant,
    /// Until when its holder was told it lives.
    pub until: BootInstant,
}

impl State {
    /// Whether there is room for one more local lease.
    pub(super) fn room_for_local(&mut self) -> Result<(), &'static str> {
        if self.locals.len() < self.settings.limits.local_leases {
            return Ok(());
        }
        self.limit_hits.locals += 1;
        Err("limits.local_leases")
    }

    /// The terms a reader of a leased secret is told: its local lease, opened if need be.
    pub(super) fn told_local(
        &mut self,
        entry: &mut Entry,
        consumer: &ConsumerId,
    ) -> Result<Option<LocalTerms>, &'static str> {
        let Some(held) = entry.current.filter(|held| held.lease.is_some()) else {
            return Ok(None);
        };
        let open = entry.locals.iter().copied().find(|key| {
            let local = self.locals.get(key);
            local.is_some_and(|l| l.value == held.value && l.consumer == *consumer)
        });
        let key = match open {
            Some(key) => key,
            None => {
                self.room_for_local()?;
                self.open_local(entry, consumer, held.value, held.dead_at)
            }
        };
        self.prolong(key, held.dead_at);
        Ok(self.local_terms(entry, key))
    }

    fn open_local(
        &mut self,
        entry: &mut Entry,
        consumer: &ConsumerId,
        value: ValueId,
        until: BootInstant,
    ) -> LocalKey {
        let key = LocalKey(self.fresh_id());
        let local = Local {
            entry: entry.id,
            consumer: consumer.clone(),
            value,
            issued_at: self.now,
            until,
        };
        self.locals.insert(key, local);
        self.deadlines.insert((until, Timer::Local(key)));
        entry.locals.push(key);
        let path = entry.key.secret.path.clone();
        self.effects.push(Effect::OpenLocal { local: key, path, until });
        self.publish(entry);
        key
    }

    fn prolong(&mut self, key: LocalKey, until: BootInstant) {
        if let Some(local) = self.locals.get_mut(&key)
            && until > local.until
        {
            self.deadlines.remove(&(local.until, Timer::Local(key)));
            local.until = until;
            self.deadlines.insert((until, Timer::Local(key)));
        }
    }

    fn local_terms(&self, entry: &Entry, key: LocalKey) -> Option<LocalTerms> {
        let local = self.locals.get(&key)?;
        let current = entry.current.as_ref().filter(|held| held.value == local.value);
        let retired = entry.retiring.iter().find(|old| old.held.value == local.value);
        let end = current.map(|held| held.dead_at).or_else(|| {
            retired.map(|old| if old.lapses { old.held.dead_at } else { old.ends_at })
        })?;
        Some(LocalTerms {
            local: key,
            path: entry.key.secret.path.clone(),
            issued_at: local.issued_at,
            duration: self.now.until(end.min(local.until)),
            renewable: current.is_some(),
        })
    }

    pub(super) fn local_operation(
        &mut self,
        waiter: WaiterId,
        consumer: &ConsumerId,
        key: LocalKey,
        operation: LocalOperation,
    ) {
        let own = self.locals.get(&key).filter(|local| local.consumer == *consumer);
        let entry = own.map(|local| local.entry).filter(|entry| self.entries.contains_key(entry));
        let Some(entry) = entry else {
            self.answer(waiter, Answer::Local(Err(LocalLeaseError::NotFound)));
            return;
        };
        self.with_entry(entry, |state, entry| {
            if operation == LocalOperation::Renew && state.renew_for_holder(entry, waiter, key) {
                return;
            }
            let told = state.local_terms(entry, key).filter(|terms| !terms.duration.is_zero());
            let over = operation == LocalOperation::Revoke || told.is_none();
            // Answered first: closing forgets the id that the answer names.
            state.answer(waiter, Answer::Local(told.ok_or(LocalLeaseError::NotFound)));
            if over {
                state.close_local(entry, key);
            }
        });
    }

    /// Prolongs a local lease. True if the real lease is renewed first, which then answers.
    fn renew_for_holder(&mut self, entry: &mut Entry, waiter: WaiterId, key: LocalKey) -> bool {
        let local = self.locals.get(&key).map(|local| local.value);
        let Some(held) = entry.current.filter(|held| Some(held.value) == local) else {
            return false;
        };
        self.prolong(key, held.dead_at);
        let early = held.lease.is_some_and(|lease| lease.may_renew_early(self.now));
        // A renewal that keeps failing has its own pace, and a replacement is no renewal.
        if !early || entry.replacing || entry.retry_at.is_some() {
            return false;
        }
        self.want_renewal(entry);
        let under_way = matches!(entry.activity, Activity::RenewQueued | Activity::Renewing(_));
        if under_way {
            entry.renewing.push((waiter, key));
        }
        under_way
    }

    /// The real renewal is over, one way or the other: its holders are told what remains.
    pub(super) fn answer_renewing(&mut self, entry: &mut Entry) {
        for (waiter, key) in std::mem::take(&mut entry.renewing) {
            let local = self.locals.get(&key).map(|local| local.value);
            if let Some(held) = entry.current.filter(|held| Some(held.value) == local) {
                self.prolong(key, held.dead_at);
            }
            let told = self.local_terms(entry, key).filter(|terms| !terms.duration.is_zero());
            self.answer(waiter, Answer::Local(told.ok_or(LocalLeaseError::NotFound)));
        }
    }

    /// Its time seems over; hits may have moved it without telling us, so ask before ending it.
    pub(super) fn local_due(&mut self, key: LocalKey) {
        if self.locals.contains_key(&key) {
            self.effects.push(Effect::ReviewInterest { local: key });
        }
    }

    pub(super) fn review_interest(&mut self, key: LocalKey, until: BootInstant) {
        // A renewal of its own may have moved its end further than any hit.
        self.prolong(key, until);
        let Some(local) = self.locals.get(&key).filter(|local| local.until <= self.now) else {
            return;
        };
        let entry = local.entry;
        self.with_entry(entry, |state, entry| state.close_local(entry, key));
    }

    /// Ends every interest of a consumer that is gone, also the one in what is being fetched or
    /// waits for its mount's kind.
    pub(super) fn close_locals_of(&mut self, consumer: &ConsumerId) {
        self.unpark_reads_of(consumer);
        let waits = |entry: &Entry| entry.waiters.iter().any(|waiter| waiter.consumer == *consumer);
        let awaited = |id: &EntryId| self.entries.get(id).is_some_and(|entry| waits(entry));
        let awaited: Vec<EntryId> = self.index.values().copied().filter(awaited).collect();
        for id in awaited {
            self.with_entry(id, |state, entry| {
                let gone = entry.waiters.extract_if(.., |waiter| waiter.consumer == *consumer);
                for waiter in gone.collect::<Vec<_>>() {
                    state.answer(waiter.id, Answer::Refused(ReadError::Busy));
                }
            });
        }
        let its = self.locals.iter().filter(|(_, local)| local.consumer == *consumer);
        let its: Vec<_> = its.map(|(key, local)| (*key, local.entry)).collect();
        for (key, entry) in its {
            self.with_entry(entry, |state, entry| state.close_local(entry, key));
        }
    }

    fn close_local(&mut self, entry: &mut Entry, key: LocalKey) {
        entry.locals.retain(|open| *open != key);
        if let Some(local) = self.locals.remove(&key) {
            self.deadlines.remove(&(local.until, Timer::Local(key)));
            self.effects.push(Effect::CloseLocal(key));
        }
    }
}
