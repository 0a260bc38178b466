//! What all connections of one caller share: the decisions about it. Whoever connects anew for each
//! request is answered as on a kept connection, and its reads are summed up in the audit log as
//! there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;

use super::memos::Memos;
use crate::clock::BootInstant;
use crate::identity::Identity;

/// Callers known at once; the connections of others share nothing.
const CALLERS_MAX: usize = 4096;
/// Memos kept for all absent callers together.
const ABSENT_MEMOS_MAX: usize = 16 * 1024;
/// How long an absent caller is waited for. What was served to it is recorded then.
pub(super) const WAIT: Duration = Duration::from_secs(60);

/// Lines of one caller at once, and the pause then; it may have 200 a second.
const LINES_AT_ONCE: usize = 32;
const NEXT_LINES: Duration = Duration::from_secs(1);
/// Pause between the lines of two callers: the audit log's queue is everybody's.
const NEXT_CALLER: Duration = Duration::from_millis(5);

/// One caller's memos. The lock is never held while anything is waited for; a caller may ask some
/// thousand times a second, so its connections seldom meet there.
pub(super) type SharedMemos = Arc<Mutex<Memos>>;

/// The callers that have connections or had one a moment ago.
#[derive(Default)]
pub(super) struct Callers(Mutex<Known>);

#[derive(Default)]
struct Known {
    callers: HashMap<Identity, Caller>,
    absent_memos: usize,
}

struct Caller {
    memos: SharedMemos,
    connections: usize,
    /// When the last of its connections ended, while it has none.
    absent_since: BootInstant,
}

impl Caller {
    fn is_absent(&self) -> bool {
        self.connections == 0
    }
}

impl Callers {
    /// What this caller's other connections remember, or an earlier one did. Whether a decision
    /// still holds is asked where it is used. To be [left](Self::leave).
    pub(super) fn join(&self, identity: &Identity) -> SharedMemos {
        let mut known = self.known();
        if let Some(caller) = known.callers.get_mut(identity) {
            let memos = Arc::clone(&caller.memos);
            // Nobody added to them in between.
            let kept = if caller.is_absent() { locked(&memos).len() } else { 0 };
            caller.connections += 1;
            known.absent_memos -= kept;
            return memos;
        }
        let memos = SharedMemos::default();
        if known.callers.len() < CALLERS_MAX {
            let absent_since = BootInstant::default();
            let caller = Caller { memos: Arc::clone(&memos), connections: 1, absent_since };
            known.callers.insert(identity.clone(), caller);
        }
        memos
    }

    /// Ends a connection's part. What the last one leaves waits for the caller's next one; without
    /// room it is dropped, which records what was served.
    pub(super) fn leave(&self, identity: &Identity, memos: &SharedMemos, now: BootInstant) {
        let mut known = self.known();
        let room = ABSENT_MEMOS_MAX - known.absent_memos;
        let Some(caller) = known.callers.get_mut(identity) else { return };
        if !Arc::ptr_eq(&caller.memos, memos) {
            return;
        }
        caller.connections -= 1;
        if !caller.is_absent() {
            return;
        }
        let kept = locked(memos).len();
        if (1..=room).contains(&kept) {
            caller.absent_since = now;
            known.absent_memos += kept;
        } else {
            // The connection has the memos still, and drops them after this.
            known.callers.remove(identity);
        }
    }

    /// Records what was served a while ago, and drops what has waited too long for its caller.
    /// Cancel-safe.
    pub(super) async fn settle(&self, now: BootInstant) {
        let mut due = self.memos();
        while !due.is_empty() {
            for memos in std::mem::take(&mut due) {
                let lines = locked(&memos).record_due(now, LINES_AT_ONCE);
                if lines > 0 {
                    tokio::time::sleep(NEXT_CALLER).await;
                }
                if lines == LINES_AT_ONCE {
                    due.push(memos);
                }
            }
            if !due.is_empty() {
                tokio::time::sleep(NEXT_LINES).await;
            }
        }
        self.forget(now);
    }

    fn forget(&self, now: BootInstant) {
        let mut known = self.known();
        let Known { callers, absent_memos } = &mut *known;
        let is_over =
            |caller: &Caller| caller.is_absent() && now.since(caller.absent_since) >= WAIT;
        let over: Vec<_> = callers.extract_if(|_, caller| is_over(caller)).collect();
        *absent_memos -= over.iter().map(|(_, caller)| locked(&caller.memos).len()).sum::<usize>();
        // What is not recorded yet is when it is dropped; nobody has to wait for it.
        drop(known);
    }

    fn memos(&self) -> Vec<SharedMemos> {
        self.known().callers.values().map(|caller| Arc::clone(&caller.memos)).collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memos, for one look.
pub(super) fn locked(memos: &SharedMemos) -> MutexGuard<'_, Memos> {
    memos.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::memos::tests::remember;
    use super::*;
    use crate::delivery::testing::{Rig, pod};
    use crate::domain::SecretRef;

    fn caller(volume: &str) -> Identity {
        Identity::published_pod(Arc::new(pod()), &volume.parse().unwrap(), None)
    }

    fn at(seconds: u64) -> BootInstant {
        BootInstant::from_nanos(seconds * 1_000_000_000)
    }

    fn len(memos: &SharedMemos) -> usize {
        locked(memos).len()
    }

    /// Has this caller read `secret/open/<number>` once, at the time 0.
    fn read(rig: &Rig, identity: &Identity, memos: &SharedMemos, number: usize) {
        let path = format!("secret/data/open/{number}").parse().unwrap();
        let secret = SecretRef { source: "local".parse().unwrap(), path, version: None };
        let authorized = rig.files.policy.authorize(identity, &secret, at(0)).unwrap();
        remember(rig, &mut locked(memos), authorized, at(0)).served.note(at(0)).unwrap();
    }

    fn served_lines(log: &str) -> usize {
        log.lines().filter(|line| line.contains(r#""event":"served""#)).count()
    }

    #[tokio::test]
    async fn connections_of_one_caller_share_and_its_next_one_finds_the_same() {
        let (rig, callers, (web, other)) =
            (Rig::start(), Callers::default(), (caller("web"), caller("other")));
        let first = callers.join(&web);
        read(&rig, &web, &first, 1);
        let second = callers.join(&web);
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(len(&callers.join(&other)), 0);
        callers.leave(&web, &first, at(0));
        callers.settle(at(3600)).await;
        assert_eq!(len(&second), 1, "one connection is there");
        callers.leave(&web, &second, at(3600));
        callers.settle(at(3659)).await;
        assert!(Arc::ptr_eq(&first, &callers.join(&web)), "it is waited for");
        callers.leave(&web, &first, at(3659));
        callers.settle(at(3719)).await;
        assert!(!Arc::ptr_eq(&first, &callers.join(&web)), "no longer");
        assert_eq!(callers.known().absent_memos, 0);
    }

    /// Whether the caller has a connection, or one now and then: nobody reads the same again.
    #[tokio::test]
    async fn what_was_served_is_recorded_after_a_while() {
        let (rig, callers, web) = (Rig::start(), Callers::default(), caller("web"));
        let memos = callers.join(&web);
        (0..=LINES_AT_ONCE).for_each(|number| read(&rig, &web, &memos, number));
        let unrecorded = || locked(&memos).unrecorded();
        callers.settle(at(59)).await;
        assert_eq!(unrecorded(), LINES_AT_ONCE as u64 + 1);
        callers.settle(at(60)).await;
        assert_eq!(unrecorded(), 0);
        read(&rig, &web, &memos, 100);
        callers.leave(&web, &memos, at(70));
        callers.settle(at(80)).await;
        assert_eq!((unrecorded(), callers.known().callers.len()), (0, 1));
        drop(callers);
        assert_eq!(served_lines(&rig.stop().await), LINES_AT_ONCE + 2);
    }

    #[tokio::test]
    async fn callers_and_memos_of_absent_ones_are_bounded_and_nothing_served_is_lost() {
        let (rig, callers) = (Rig::start(), Callers::default());
        callers.known().absent_memos = ABSENT_MEMOS_MAX - 1;
        for (volume, memos) in [("two", 2), ("one", 1), ("none", 0)] {
            let identity = caller(volume);
            let shared = callers.join(&identity);
            (0..memos).for_each(|number| read(&rig, &identity, &shared, number));
            callers.leave(&identity, &shared, at(0));
            assert_eq!(callers.known().callers.contains_key(&identity), memos == 1, "{volume}");
        }
        callers.known().absent_memos = 1;
        let one = callers.known().callers.len();
        for number in one..CALLERS_MAX {
            callers.join(&caller(&format!("v{number}")));
        }
        let late = caller("late");
        let (first, second) = (callers.join(&late), callers.join(&late));
        assert!(!Arc::ptr_eq(&first, &second));
        read(&rig, &late, &first, 1);
        callers.leave(&late, &first, at(0));
        drop((first, callers));
        assert_eq!(served_lines(&rig.stop().await), 2 + 1 + 1);
    }
}
