//! Entries: what is held of one secret, when it must be looked at again, and when it ends.

use std::collections::BTreeMap;

use super::turns::{Party, Place};
use super::{FollowUp, State, Timer};
use crate::broker::Problem;
use crate::broker::event::{
    CacheKey, Effect, EffectId, EntryId, LocalKey, PublishedTimes, SessionId, SubscriptionId,
    TokenId, ValueId, WaiterId,
};
use crate::broker::lease::Lease;
use crate::broker::settings::CacheTimes;
use crate::clock::BootInstant;
use crate::domain::{ConsumerId, PathKind};
use crate::source::ErrorClass;

/// One secret as held for one login identity and, if it is dynamic, one consumer.
pub(super) struct Entry {
    pub id: EntryId,
    pub key: CacheKey,
    pub kind: PathKind,
    pub session: SessionId,
    pub times: CacheTimes,
    pub current: Option<Held>,
    /// Replaced credentials still inside their overlap.
    pub retiring: Vec<Retiring>,
    pub activity: Activity,
    pub waiters: Vec<Waiter>,
    pub subscriptions: BTreeMap<SubscriptionId, ConsumerId>,
    pub locals: Vec<LocalKey>,
    /// Holders whose renewal of a local lease waits for the real one.
    pub renewing: Vec<(WaiterId, LocalKey)>,
    pub problem: Option<Problem>,
    /// When the next attempt at what failed last is due.
    pub retry_at: Option<BootInstant>,
    /// Until when the problem is answered without asking again.
    pub negative_until: Option<BootInstant>,
    /// The current lease is to be replaced, not renewed.
    pub replacing: bool,
    /// The one replacement that failing renewals may cause has been tried.
    pub last_chance_spent: bool,
    /// A denial has already been tried again with a fresh login.
    pub tried_beside: bool,
    pub armed: Option<BootInstant>,
    pub idle_since: Option<BootInstant>,
}

/// A value in hand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Held {
    pub value: ValueId,
    pub token: TokenId,
    pub fetched_at: BootInstant,
    pub fresh_until: BootInstant,
    pub dead_at: BootInstant,
    /// When a subscribed value is fetched again.
    pub refresh_at: BootInstant,
    pub version: Option<u64>,
    pub lease: Option<Lease>,
}

/// A replaced credential: kept until `ends_at`, then revoked if that is permitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Retiring {
    pub held: Held,
    pub ends_at: BootInstant,
    /// Revoking was tried and not possible: it lapses when its lease ends.
    pub lapses: bool,
}

/// What is going on for an entry; at most one thing at a time.
#[derive(Debug, PartialEq)]
pub(super) enum Activity {
    Idle,
    /// Waits for a session.
    Queued,
    /// Waits for its turn and for budget.
    InLine(Place),
    Fetching(EffectId),
    /// Fetched; the record of its lease is being written. Apart: every entry would be larger by it.
    Recording(Box<Held>),
    /// A renewal waits for budget.
    RenewQueued,
    Renewing(EffectId),
}

/// A socket caller that waits for an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Waiter {
    pub id: WaiterId,
    pub consumer: ConsumerId,
}

/// What an entry does next by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Fetch,
    Refresh,
    Renew,
    Replace,
}

impl Entry {
    pub(super) fn new(id: EntryId, key: CacheKey, kind: PathKind, times: CacheTimes) -> Self {
        Self {
            id,
            key,
            kind,
            session: SessionId(0),
            times,
            current: None,
            retiring: Vec::new(),
            activity: Activity::Idle,
            waiters: Vec::new(),
            subscriptions: BTreeMap::new(),
            locals: Vec::new(),
            renewing: Vec::new(),
            problem: None,
            retry_at: None,
            negative_until: None,
            replacing: false,
            last_chance_spent: false,
            tried_beside: false,
            armed: None,
            idle_since: None,
        }
    }

    /// The current lease is gone, and with it whatever was under way for it.
    pub(super) fn forget_lease(&mut self) {
        self.replacing = false;
        self.last_chance_spent = false;
        if self.activity == Activity::RenewQueued {
            self.activity = Activity::Idle;
        }
    }

    /// Whether its value is a credential with a lease.
    pub(super) fn is_leased(&self) -> bool {
        self.current.is_some_and(|held| held.lease.is_some())
    }

    /// What was fetched and is not its value yet.
    pub(super) fn being_recorded(&self) -> Option<&Held> {
        match &self.activity {
            Activity::Recording(held) => Some(held),
            _ => None,
        }
    }

    /// In whose turn what nobody waits for is done.
    pub(super) fn party(&self) -> Party {
        let owner = self.key.consumer.clone();
        owner.map_or_else(|| Party::Login(self.key.login.clone()), Party::Consumer)
    }

    /// Whether anybody has a standing interest.
    pub(super) fn is_wanted(&self) -> bool {
        !self.subscriptions.is_empty() || !self.locals.is_empty()
    }

    /// The value, if it may still be served.
    pub(super) fn alive(&self, now: BootInstant) -> Option<&Held> {
        self.current.as_ref().filter(|held| now < held.dead_at)
    }

    /// Whether it has a value, or somebody's standing interest gets it one.
    pub(super) fn serves(&self, now: BootInstant) -> bool {
        self.alive(now).is_some() || self.is_wanted()
    }

    /// What this entry does next by itself, and when.
    pub(super) fn next_action(&self) -> Option<(Action, BootInstant)> {
        if self.activity != Activity::Idle || !self.is_wanted() {
            return None;
        }
        let when = |due: BootInstant| self.retry_at.unwrap_or(due);
        match &self.current {
            Some(Held { lease: Some(lease), .. }) if lease.renewable && !self.replacing => {
                Some((Action::Renew, when(lease.renew_at)))
            }
            Some(Held { lease: Some(lease), fetched_at, .. }) => {
                let due = if self.replacing { *fetched_at } else { lease.renew_at };
                Some((Action::Replace, when(due)))
            }
            Some(_) if self.kind == PathKind::Minting => None,
            Some(held) => Some((Action::Refresh, when(held.refresh_at))),
            None => Some((Action::Fetch, when(BootInstant::default()))),
        }
    }

    /// When this entry must be looked at.
    fn wake_at(&self) -> Option<BootInstant> {
        let retiring = self.retiring.iter().map(|old| {
            if old.lapses { old.held.dead_at } else { old.ends_at.min(old.held.dead_at) }
        });
        let action = self.next_action().map(|(_, at)| at);
        let death = self.current.as_ref().map(|held| held.dead_at);
        let forget =
            if self.current.is_none() && !self.is_wanted() { self.negative_until } else { None };
        retiring.chain(action).chain(death).chain(forget).min()
    }

    /// The published times of what is held.
    pub(super) fn published_times(&self, held: &Held) -> PublishedTimes {
        PublishedTimes {
            kind: self.kind,
            fetched_at: held.fetched_at,
            fresh_until: held.fresh_until,
            dead_at: held.dead_at,
            version: held.version,
        }
    }
}

impl State {
    /// Runs `change` on an entry, then settles it: ends it if unwanted, re-arms its deadline.
    pub(super) fn with_entry(&mut self, id: EntryId, change: impl FnOnce(&mut Self, &mut Entry)) {
        let Some(mut entry) = self.entries.remove(&id) else { return };
        change(self, &mut entry);
        self.settle(entry);
    }

    pub(super) fn settle(&mut self, mut entry: Box<Entry>) {
        self.withdraw_unwanted(&mut entry);
        if entry.activity == Activity::Idle {
            self.answer_renewing(&mut entry);
        }
        let unwanted =
            !entry.is_wanted() && entry.waiters.is_empty() && entry.activity == Activity::Idle;
        let empty = entry.current.is_none() && entry.negative_until.is_none_or(|at| at <= self.now);
        if unwanted && (empty || entry.kind == PathKind::Minting) {
            self.end_entry(*entry);
            return;
        }
        let idle_since = unwanted.then(|| entry.current.map_or(self.now, |held| held.fetched_at));
        if idle_since != entry.idle_since {
            if let Some(at) = entry.idle_since {
                self.idle.remove(&(at, entry.id));
            }
            if let Some(at) = idle_since {
                self.idle.insert((at, entry.id));
            }
            entry.idle_since = idle_since;
        }
        let (wake_at, timer) = (entry.wake_at(), Timer::Entry(entry.id));
        let mut armed = entry.armed;
        self.rearm(&mut armed, wake_at, timer);
        entry.armed = armed;
        self.entries.insert(entry.id, entry);
    }

    /// The last interest is gone: values are dropped, leases ended, the session let go.
    fn end_entry(&mut self, mut entry: Entry) {
        self.index.remove(&entry.key);
        if let Some(at) = entry.idle_since.take() {
            self.idle.remove(&(at, entry.id));
        }
        let mut armed = entry.armed;
        self.rearm(&mut armed, None, Timer::Entry(entry.id));
        if let Some(held) = entry.current.take() {
            self.retract(&entry);
            self.end_held(&mut entry, held);
        }
        for old in std::mem::take(&mut entry.retiring) {
            self.end_held(&mut entry, old.held);
        }
        self.follow_ups.push_back(FollowUp::Release(entry.session, entry.id));
    }

    /// Ends a value: its lease is revoked unless its session ends with it anyway.
    fn end_held(&mut self, entry: &mut Entry, held: Held) {
        let shares_session =
            self.sessions.get(&entry.session).is_some_and(|session| session.holders.len() > 1);
        if held.lease.is_some() && shares_session && self.now < held.dead_at {
            self.revoke_orphan(entry, held);
        } else {
            self.drop_value(held.value);
        }
    }

    /// Evicts idle KV until there is room for one more entry and `bytes` more bytes.
    pub(super) fn make_room(&mut self, bytes: usize) -> Result<(), &'static str> {
        loop {
            let limit = if self.entries.len() >= self.settings.limits.entries {
                "limits.entries"
            } else if self.bytes + bytes > self.settings.limits.bytes {
                "limits.bytes"
            } else {
                return Ok(());
            };
            let Some((_, id)) = self.idle.pop_first() else {
                match limit {
                    "limits.entries" => self.limit_hits.entries += 1,
                    _ => self.limit_hits.bytes += 1,
                }
                return Err(limit);
            };
            if let Some(entry) = self.entries.remove(&id) {
                self.counters.evictions += 1;
                self.end_entry(*entry);
            }
        }
    }

    /// What a deadline means for an entry; everything that is due is done.
    pub(super) fn entry_due(&mut self, entry: &mut Entry) {
        entry.armed = None;
        entry.negative_until = entry.negative_until.filter(|until| *until > self.now);
        self.end_retired(entry);
        if entry.current.is_some_and(|held| held.dead_at <= self.now) {
            self.current_died(entry);
        }
        match entry.next_action() {
            Some((Action::Renew, at)) if at <= self.now => self.want_renewal(entry),
            Some((_, at)) if at <= self.now => {
                self.follow_ups.push_back(FollowUp::WantFetch(entry.id));
            }
            _ => {}
        }
    }

    fn current_died(&mut self, entry: &mut Entry) {
        let Some(held) = entry.current.take() else { return };
        self.retract(entry);
        self.drop_value(held.value);
        if held.lease.is_some() {
            entry.forget_lease();
            let told = entry.problem.as_ref().map(|problem| problem.message.clone());
            let message = match told {
                Some(cause) => format!("the lease expired; renewing it had failed: {cause}"),
                None => "the lease expired".to_owned(),
            };
            self.set_problem(entry, ErrorClass::LeaseEnded, message);
        }
    }

    /// Puts the current value where readers find it, with its present times.
    pub(super) fn publish(&mut self, entry: &Entry) {
        let Some(held) = &entry.current else { return };
        // A shared credential has many holders; their reads go through the task.
        let interest = entry.locals.iter().copied().find(|local| {
            self.locals.get(local).is_some_and(|open| {
                open.value == held.value && entry.key.consumer.as_ref() == Some(&open.consumer)
            })
        });
        let cacheable = entry.kind != PathKind::Minting || held.lease.is_some();
        self.effects.push(Effect::Publish {
            entry: entry.id,
            key: cacheable.then(|| entry.key.clone()),
            value: held.value,
            times: entry.published_times(held),
            interest,
        });
    }

    pub(super) fn retract(&mut self, entry: &Entry) {
        self.effects.push(Effect::Retract { entry: entry.id, key: entry.key.clone() });
    }

    pub(super) fn drop_value(&mut self, value: ValueId) {
        self.bytes = self.bytes.saturating_sub(value.len);
        self.effects.push(Effect::DropValue(value));
    }

    /// Sets or replaces what is wrong; subscribers hear of it when its class changes.
    pub(super) fn set_problem(&mut self, entry: &mut Entry, class: ErrorClass, message: String) {
        let previous = entry.problem.take();
        let same = previous.as_ref().filter(|problem| problem.class == class);
        let since = same.map_or(self.now, |problem| problem.since);
        let attempts = previous.as_ref().map_or(0, |problem| problem.attempts) + 1;
        let changed = same.is_none();
        entry.problem = Some(Problem { class, message, since, attempts });
        if changed {
            self.notify(entry, false);
        }
    }

    /// Tells every subscriber the current level, with the value when it is new.
    pub(super) fn notify(&mut self, entry: &Entry, with_value: bool) {
        for subscription in entry.subscriptions.keys() {
            self.effects.push(Effect::Notify {
                subscription: *subscription,
                entry: with_value.then_some(entry.id),
                problem: entry.problem.clone(),
            });
        }
    }
}
