//! Callers' budgets: how many lines one caller may make in a second, and how many of its records
//! may wait at once, so that nobody fills the log or keeps others out of it.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::AuditEvent;
use super::line::LeftOut;
use crate::clock::BootInstant;
use crate::domain::ConsumerId;
use crate::identity::Identity;
use crate::telemetry::Hits;

/// The time for which lines are counted, and after which what was left out is written.
pub(super) const WINDOW: Duration = Duration::from_secs(1);
/// Callers with a budget of their own; further ones share one.
pub(super) const CALLERS_MAX: usize = 4096;

/// What becomes of a record.
pub(super) enum Admission {
    /// It gets a line.
    Line(Place),
    /// It is counted, and the count gets a line.
    Counted,
    /// It is counted, and must not happen.
    Refused,
}

/// A caller's place in the queue; dropping it frees the place.
pub(super) struct Place(Arc<AtomicUsize>);

/// All callers' budgets.
pub(super) struct Budgets {
    pub(super) lines_per_window: u32,
    pub(super) reached: Reached,
    /// Every read is to have a line: reads are not counted together.
    per_read: bool,
    hasher: RandomState,
    /// `None` is everybody for whom there was no room.
    callers: Mutex<HashMap<Option<ConsumerId>, Caller>>,
    /// Something was left out, so a summary is due after [`WINDOW`].
    pub(super) left_out: Notify,
}

/// How often each cap kept a record from having a line of its own.
#[derive(Default)]
pub(super) struct Reached {
    pub(super) lines: Hits,
    /// A caller's share of the queue.
    pub(super) share: Hits,
    /// The whole queue.
    pub(super) queue: Hits,
    pub(super) callers: Hits,
}

/// One caller.
#[derive(Default)]
struct Caller {
    waiting: Arc<AtomicUsize>,
    window_began: BootInstant,
    lines: u32,
    /// Permissions with a line in this window, as hashes; at most as many as lines.
    permissions: Vec<u64>,
    left_out: LeftOut,
}

/// What kind of record a caller makes.
#[derive(Clone, Copy)]
enum Kind {
    Denial,
    /// By its hash.
    Permission(u64),
    /// A summary of so many reads.
    Served(u64),
    /// One read that must have its own line.
    Read,
}

impl Budgets {
    pub(super) fn new(lines_per_window: u32, per_read: bool) -> Self {
        Self {
            lines_per_window,
            reached: Reached::default(),
            per_read,
            hasher: RandomState::new(),
            callers: Mutex::default(),
            left_out: Notify::new(),
        }
    }

    /// Judges a record of a caller while `free` places are left in the queue; `None` for what no
    /// caller did.
    pub(super) fn admit(
        &self,
        event: &AuditEvent,
        free: usize,
        now: BootInstant,
    ) -> Option<Admission> {
        let (identity, kind) = self.kind_of(event)?;
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let caller = find(&mut callers, identity.consumer().clone(), now, &self.reached.callers);
        let admission = caller.admit(kind, free, self.lines_per_window, now);
        if !matches!(admission, Admission::Line(_)) {
            self.left_out.notify_one();
            let over = !matches!(kind, Kind::Read) && caller.lines >= self.lines_per_window;
            self.reached.count(over, free);
        }
        Some(admission)
    }

    /// Counts a denial without asking whether there is room for its line.
    pub(super) fn count_denial(&self, identity: &Identity, now: BootInstant) {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let caller = find(&mut callers, identity.consumer().clone(), now, &self.reached.callers);
        caller.left_out.denied = caller.left_out.denied.saturating_add(1);
        self.left_out.notify_one();
    }

    /// Callers with a budget of their own.
    pub(super) fn callers(&self) -> usize {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Takes what was left out since the last time, by caller.
    pub(super) fn take_left_out(&self) -> Vec<(Option<ConsumerId>, LeftOut)> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = callers.iter_mut().map(|(id, caller)| {
            let left_out = std::mem::take(&mut caller.left_out);
            (id.clone(), left_out)
        });
        let mut taken: Vec<_> =
            taken.filter(|(_, left_out)| *left_out != LeftOut::default()).collect();
        taken.sort_by(|a, b| a.0.cmp(&b.0));
        taken
    }

    fn kind_of<'e>(&self, event: &'e AuditEvent) -> Option<(&'e Identity, Kind)> {
        match event {
            AuditEvent::Decision { identity, allowed: false, .. }
            | AuditEvent::Proof { identity, .. } => Some((identity, Kind::Denial)),
            AuditEvent::Decision { identity, secret, rule, .. } => {
                let strength = (identity.listener(), identity.strength());
                let hash = self.hasher.hash_one((secret, rule, strength));
                Some((identity, Kind::Permission(hash)))
            }
            AuditEvent::Served { identity, .. } if self.per_read => Some((identity, Kind::Read)),
            AuditEvent::Served { identity, count, .. } => Some((identity, Kind::Served(*count))),
            AuditEvent::Upstream { .. }
            | AuditEvent::Volume { .. }
            | AuditEvent::Lifecycle { .. } => None,
        }
    }
}

impl Reached {
    /// A caller's own cap is its own matter, whatever else was short.
    fn count(&self, over_lines: bool, free: usize) {
        match (over_lines, free) {
            (true, _) => self.lines.count(),
            (false, 0) => self.queue.count(),
            (false, _) => self.share.count(),
        }
    }
}

/// The caller's entry. At the bound, callers that nothing is known about any more make room.
fn find<'c>(
    callers: &'c mut HashMap<Option<ConsumerId>, Caller>,
    id: ConsumerId,
    now: BootInstant,
    at_the_bound: &Hits,
) -> &'c mut Caller {
    let mut id = Some(id);
    if callers.len() >= CALLERS_MAX && !callers.contains_key(&id) {
        callers.retain(|_, caller| !caller.is_idle(now));
        if callers.len() >= CALLERS_MAX {
            id = None;
            at_the_bound.count();
        }
    }
    match callers.entry(id) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Caller::default()),
    }
}

impl Caller {
    /// A caller may have no more records waiting than places are free: one caller gets half of the
    /// queue, the next half of the rest; as records are written, greedy callers even out.
    fn admit(&mut self, kind: Kind, free: usize, limit: u32, now: BootInstant) -> Admission {
        if now.since(self.window_began) >= WINDOW {
            (self.window_began, self.lines) = (now, 0);
            self.permissions.clear();
        }
        let has_place = self.waiting.load(Ordering::Relaxed) < free;
        if has_place && (self.lines < limit || matches!(kind, Kind::Read)) {
            self.lines = self.lines.saturating_add(1);
            if let Kind::Permission(hash) = kind {
                self.permissions.push(hash);
            }
            self.waiting.fetch_add(1, Ordering::Relaxed);
            return Admission::Line(Place(Arc::clone(&self.waiting)));
        }
        let repeated = matches!(kind, Kind::Permission(hash) if self.permissions.contains(&hash));
        let (count, by, admission) = match kind {
            Kind::Denial => (&mut self.left_out.denied, 1, Admission::Counted),
            Kind::Permission(_) if repeated => (&mut self.left_out.repeated, 1, Admission::Counted),
            Kind::Served(reads) => (&mut self.left_out.served, reads, Admission::Counted),
            Kind::Permission(_) | Kind::Read => (&mut self.left_out.refused, 1, Admission::Refused),
        };
        *count = count.saturating_add(by);
        admission
    }

    /// Indistinguishable from a caller that was never seen.
    fn is_idle(&self, now: BootInstant) -> bool {
        now.since(self.window_began) >= WINDOW
            && self.waiting.load(Ordering::Relaxed) == 0
            && self.left_out == LeftOut::default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    fn shown(admission: &Admission) -> char {
        match admission {
            Admission::Line(_) => 'l',
            Admission::Counted => 'c',
            Admission::Refused => 'r',
        }
    }

    #[test]
    fn a_caller_over_its_lines_is_counted_and_only_new_permissions_are_refused() {
        let mut caller = Caller::default();
        let mut admit = |kind, now| shown(&caller.admit(kind, 100, 3, at(now)));
        let (old, new) = (Kind::Permission(1), Kind::Permission(2));
        let kinds = [old, Kind::Denial, Kind::Served(5), old, new, Kind::Denial, Kind::Served(7)];
        assert_eq!(kinds.map(|kind| admit(kind, 0)).iter().collect::<String>(), "lllcrcc");
        assert_eq!(admit(Kind::Read, 0), 'l');
        assert_eq!(admit(old, 999), 'c');
        // A second later each has a line again, and what was permitted before has to have its own.
        assert_eq!([new, old, new, new].map(|kind| admit(kind, 1000)), ['l', 'l', 'l', 'c']);
        let expected = LeftOut { denied: 1, repeated: 3, served: 7, refused: 1 };
        assert_eq!(caller.left_out, expected);
    }

    #[test]
    fn a_denial_without_a_line_is_counted_for_its_caller() {
        let budgets = Budgets::new(3, false);
        let identity = Identity::declared_volume("shop".parse().unwrap());
        (0..2).for_each(|_| budgets.count_denial(&identity, at(0)));
        let left_out = LeftOut { denied: 2, ..LeftOut::default() };
        assert_eq!(budgets.take_left_out(), [(Some(identity.consumer().clone()), left_out)]);
        assert_eq!(budgets.take_left_out(), []);
    }

    #[test]
    fn a_caller_waits_with_no_more_records_than_places_are_free() {
        let mut caller = Caller::default();
        let mut admit = |free| caller.admit(Kind::Denial, free, 100, at(0));
        let first = admit(2);
        let second = admit(2);
        assert_eq!([shown(&first), shown(&second), shown(&admit(2))], ['l', 'l', 'c']);
        drop(first);
        assert_eq!([shown(&admit(2)), shown(&admit(1))], ['l', 'c']);
        assert_eq!(shown(&admit(0)), 'c');
    }

    #[test]
    fn idle_callers_make_room_and_the_rest_share_one_budget() {
        let (mut callers, shared) = (HashMap::new(), Hits::default());
        for uid in 0..u32::try_from(CALLERS_MAX).unwrap() {
            find(&mut callers, ConsumerId::host_user(uid), at(0), &shared).window_began = at(0);
        }
        let late = ConsumerId::host_user(u32::MAX);
        assert_eq!(shared.total(), 0);
        find(&mut callers, late.clone(), at(0), &shared).window_began = at(0);
        assert_eq!(shared.total(), 1);
        assert!(callers.contains_key(&None) && !callers.contains_key(&Some(late.clone())));
        find(&mut callers, late.clone(), at(1000), &shared);
        assert_eq!(shared.total(), 1);
        assert_eq!(callers.keys().collect::<Vec<_>>(), [&Some(late)]);
    }
}
