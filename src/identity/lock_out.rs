//! Pods that sent forged proofs: after a few within an hour, the node socket is closed to them.
//!
//! Only pods that the kernel placed and the directory knows are ever counted, and only for tokens
//! whose signature is not their key's: an expired or misdirected token is a mistake, not an attack.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::BootInstant;
use crate::domain::Pod;

/// Forged proofs within [`WINDOW`] that close the door.
pub const FORGERIES_MAX: usize = 5;
/// For how long a forgery counts, and the door then stays closed.
pub const WINDOW: Duration = Duration::from_secs(60 * 60);
/// Pods remembered; beyond, the one whose last forgery is the oldest is forgotten.
const PODS_MAX: usize = 1024;

/// A pod that is locked out, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedPod {
    /// Which pod.
    pub pod: Pod,
    /// Since when.
    pub since: BootInstant,
    /// Until when, unless an operator ends it.
    pub until: BootInstant,
}

/// Who sent forged proofs, and when.
#[derive(Debug, Default)]
pub struct LockOut(BTreeMap<Pod, Forgeries>);

#[derive(Debug, Default)]
struct Forgeries {
    /// The latest ones, oldest first; at most [`FORGERIES_MAX`].
    at: Vec<BootInstant>,
    locked_at: Option<BootInstant>,
}

impl Forgeries {
    fn is_locked(&self, now: BootInstant) -> bool {
        self.locked_at.is_some_and(|at| now.since(at) < WINDOW)
    }

    fn is_over(&self, now: BootInstant) -> bool {
        !self.is_locked(now) && self.at.last().is_none_or(|at| now.since(*at) >= WINDOW)
    }
}

impl LockOut {
    /// Counts a forgery; whether the pod is locked out by it.
    pub fn forged(&mut self, pod: &Pod, now: BootInstant) -> bool {
        self.make_room(pod, now);
        let forgeries = self.0.entry(pod.clone()).or_default();
        if forgeries.is_locked(now) {
            return false;
        }
        forgeries.at.retain(|at| now.since(*at) < WINDOW);
        forgeries.at.push(now);
        if forgeries.at.len() < FORGERIES_MAX {
            return false;
        }
        forgeries.at.clear();
        forgeries.locked_at = Some(now);
        true
    }

    /// For how much longer the pod is locked out.
    pub fn left(&self, pod: &Pod, now: BootInstant) -> Option<Duration> {
        let at = self.0.get(pod).filter(|forgeries| forgeries.is_locked(now))?.locked_at?;
        Some(WINDOW.saturating_sub(now.since(at)))
    }

    /// Forgets what the pods did that `matches` picks; how many of them were locked out.
    pub fn unlock(&mut self, matches: impl Fn(&Pod) -> bool, now: BootInstant) -> usize {
        let mut unlocked = 0;
        self.0.retain(|pod, forgeries| {
            let picked = matches(pod);
            unlocked += usize::from(picked && forgeries.is_locked(now));
            !picked
        });
        unlocked
    }

    /// Who is locked out now.
    pub fn locked(&self, now: BootInstant) -> Vec<LockedPod> {
        let locked = self.0.iter().filter(|(_, forgeries)| forgeries.is_locked(now));
        let locked = locked.filter_map(|(pod, forgeries)| {
            let since = forgeries.locked_at?;
            Some(LockedPod { pod: pod.clone(), since, until: since + WINDOW })
        });
        locked.collect()
    }

    fn make_room(&mut self, pod: &Pod, now: BootInstant) {
        if self.0.len() < PODS_MAX || self.0.contains_key(pod) {
            return;
        }
        self.0.retain(|_, forgeries| !forgeries.is_over(now));
        let last = |forgeries: &Forgeries| forgeries.locked_at.max(forgeries.at.last().copied());
        while self.0.len() >= PODS_MAX {
            let oldest = self.0.iter().min_by_key(|(_, forgeries)| last(forgeries));
            let Some(oldest) = oldest.map(|(pod, _)| pod.clone()) else { return };
            self.0.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ServiceAccount;

    fn pod(number: usize) -> Pod {
        Pod {
            uid: format!("00000000-0000-4000-8000-{number:012}").parse().unwrap(),
            name: format!("web-{number}").parse().unwrap(),
            account: ServiceAccount {
                namespace: "shop".parse().unwrap(),
                name: "web".parse().unwrap(),
                uid: "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab".parse().unwrap(),
            },
        }
    }

    fn at(minutes: u64) -> BootInstant {
        BootInstant::from_nanos(1_000_000_000_000) + Duration::from_secs(60 * minutes)
    }

    #[test]
    fn five_forgeries_within_an_hour_lock_that_pod_out_for_an_hour() {
        let mut lock_out = LockOut::default();
        let locking: Vec<bool> = (0..5).map(|n| lock_out.forged(&pod(1), at(n))).collect();
        assert_eq!(locking, [false, false, false, false, true]);
        assert_eq!(lock_out.left(&pod(1), at(4)), Some(WINDOW));
        assert_eq!(lock_out.left(&pod(2), at(4)), None);
        assert_eq!(lock_out.left(&pod(1), at(63)), Some(Duration::from_secs(60)));
        assert_eq!(lock_out.left(&pod(1), at(64)), None);
        let seen = lock_out.locked(at(5));
        assert_eq!(seen, [LockedPod { pod: pod(1), since: at(4), until: at(64) }]);
    }

    #[test]
    fn forgeries_further_apart_lock_nobody_out() {
        let mut lock_out = LockOut::default();
        assert!((0..50).all(|n| !lock_out.forged(&pod(1), at(16 * n))));
    }

    #[test]
    fn what_a_locked_out_pod_sends_does_not_make_it_longer() {
        let mut lock_out = LockOut::default();
        (0..20).for_each(|n| _ = lock_out.forged(&pod(1), at(n)));
        assert_eq!(lock_out.left(&pod(1), at(64)), None);
        // What it sent while it was locked out does not count afterwards either.
        assert!(!lock_out.forged(&pod(1), at(64)));
    }

    #[test]
    fn an_operator_ends_it() {
        let mut lock_out = LockOut::default();
        (0..5).for_each(|n| _ = lock_out.forged(&pod(1), at(n)));
        (0..4).for_each(|n| _ = lock_out.forged(&pod(2), at(n)));
        assert_eq!(lock_out.unlock(|pod| pod.name.as_str() == "web-3", at(5)), 0);
        assert_eq!(lock_out.unlock(|_| true, at(5)), 1);
        assert_eq!(lock_out.left(&pod(1), at(5)), None);
        assert!(!lock_out.forged(&pod(2), at(5)));
    }

    #[test]
    fn it_is_bounded_and_the_oldest_is_forgotten() {
        let mut lock_out = LockOut::default();
        (0..5).for_each(|_| _ = lock_out.forged(&pod(0), at(1)));
        (1..PODS_MAX).for_each(|n| _ = lock_out.forged(&pod(n), at(2)));
        assert!(lock_out.left(&pod(0), at(2)).is_some());
        lock_out.forged(&pod(PODS_MAX), at(3));
        assert_eq!(lock_out.0.len(), PODS_MAX);
        assert!(lock_out.left(&pod(0), at(3)).is_none());
    }
}
