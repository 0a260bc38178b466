//! Memos of callers that are between two connections: whoever connects anew for each request is
//! answered as on a kept connection, and its reads are summed up in the audit log as there.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;

use super::secrets::Memos;
use crate::clock::BootInstant;
use crate::identity::Identity;

/// Memos kept for all callers together.
const MEMOS_MAX: usize = 16 * 1024;
/// Callers waited for.
const CALLERS_MAX: usize = 1024;
/// Connections that one caller may have at once and find their memos again.
const SETS_PER_CALLER_MAX: usize = 8;
/// How long a caller is waited for. What was served to it is recorded then.
pub(super) const WAIT: Duration = Duration::from_secs(60);

/// Memos that no connection has.
#[derive(Default)]
pub(super) struct Between(Mutex<Sets>);

#[derive(Default)]
struct Sets {
    of_callers: HashMap<Identity, Vec<Set>>,
    memos: usize,
}

/// What one connection left.
struct Set {
    memos: Memos,
    left_at: BootInstant,
}

impl Between {
    /// What an earlier connection of this very caller left, if anything. Whether a decision still
    /// holds is asked where it is used.
    pub(super) fn take(&self, caller: &Identity) -> Memos {
        let mut sets = self.sets();
        let Some(set) = sets.of_callers.get_mut(caller).and_then(Vec::pop) else {
            return Memos::default();
        };
        sets.memos -= set.memos.len();
        set.memos
    }

    /// Leaves a connection's memos for the caller's next one; without room they are dropped, which
    /// records what was served.
    pub(super) fn leave(&self, caller: &Identity, memos: Memos, left_at: BootInstant) {
        if memos.is_empty() {
            return;
        }
        let mut sets = self.sets();
        if sets.memos + memos.len() > MEMOS_MAX {
            return;
        }
        let count = memos.len();
        if let Some(own) = sets.of_callers.get_mut(caller) {
            if own.len() >= SETS_PER_CALLER_MAX {
                return;
            }
            own.push(Set { memos, left_at });
        } else if sets.of_callers.len() >= CALLERS_MAX {
            return;
        } else {
            sets.of_callers.insert(caller.clone(), vec![Set { memos, left_at }]);
        }
        sets.memos += count;
    }

    /// Drops what has waited too long.
    pub(super) fn forget(&self, now: BootInstant) {
        let mut over = Vec::new();
        let mut sets = self.sets();
        sets.of_callers.retain(|_, own| {
            over.extend(own.extract_if(.., |set| now.since(set.left_at) >= WAIT));
            !own.is_empty()
        });
        sets.memos -= over.iter().map(|set| set.memos.len()).sum::<usize>();
        // Recording takes its time; nobody has to wait for it.
        drop(sets);
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
