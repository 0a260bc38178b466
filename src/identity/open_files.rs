//! Files in `/proc` of processes that connected a moment ago, kept open. Whoever connects anew for
//! each request has them read anew each time; only looking them up is saved, which costs as much.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use rustix::process::{PidfdFlags, getpid, pidfd_open};

/// Files kept open; the oldest gives way.
const FILES_MAX: usize = 256;
/// `PID_FS_MAGIC`: pidfds are files of a file system of their own, since Linux 6.9.
const PIDFS: i64 = 0x5049_4446;

/// A process, told from all others since the machine started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ProcessId(u64);

impl ProcessId {
    /// What the kernel numbers the process by that this pidfd is a handle on: unlike a pid it is
    /// never used again. `None` before Linux 6.9, where it does so for none.
    pub(super) fn of(pidfd: BorrowedFd<'_>) -> Option<Self> {
        static NUMBERED: LazyLock<bool> = LazyLock::new(|| {
            // Shorter numbers come round.
            let whole = size_of::<libc::ino_t>() == 8 && cfg!(target_pointer_width = "64");
            let own = pidfd_open(getpid(), PidfdFlags::empty());
            whole && own.and_then(rustix::fs::fstatfs).is_ok_and(|about| about.f_type == PIDFS)
        });
        let about = NUMBERED.then(|| rustix::fs::fstat(pidfd))?;
        about.ok().map(|about| Self(about.st_ino))
    }
}

/// A process and which of its files.
type Key = (ProcessId, &'static str);

/// Open files by process and name.
#[derive(Default)]
pub(super) struct OpenFiles(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    files: HashMap<Key, Arc<OwnedFd>>,
    by_age: VecDeque<Key>,
}

impl OpenFiles {
    pub(super) fn get(&self, key: Key) -> Option<Arc<OwnedFd>> {
        self.kept().files.get(&key).cloned()
    }

    /// Keeps a file that was found by the process's pid. If that was another process's by then,
    /// this one has exited, and what is kept for it is of no use to anybody.
    pub(super) fn keep(&self, key: Key, file: Arc<OwnedFd>) {
        let mut kept = self.kept();
        if kept.files.insert(key, file).is_some() {
            return;
        }
        kept.by_age.push_back(key);
        let oldest = (kept.by_age.len() > FILES_MAX).then(|| kept.by_age.pop_front()).flatten();
        let closed = oldest.and_then(|oldest| kept.files.remove(&oldest));
        drop(kept);
        drop(closed);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    fn handle(child: &std::process::Child) -> ProcessId {
        let pid = rustix::process::Pid::from_child(child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        ProcessId::of(pidfd.as_fd()).unwrap()
    }

    #[test]
    fn a_process_has_one_number_and_no_other_has_it() {
        let start = || std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (mut one, mut other) = (start(), start());
        assert_eq!(handle(&one), handle(&one));
        assert_ne!(handle(&one), handle(&other));
        for child in [&mut one, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn the_oldest_gives_way() {
        let files = OpenFiles::default();
        let file = Arc::new(OwnedFd::from(File::open("/proc/self/stat").unwrap()));
        let most = u64::try_from(FILES_MAX).unwrap();
        for number in 0..=most {
            files.keep((ProcessId(number), "stat"), Arc::clone(&file));
            files.keep((ProcessId(number), "stat"), Arc::clone(&file));
        }
        assert!(files.get((ProcessId(0), "stat")).is_none());
        assert!(files.get((ProcessId(1), "stat")).is_some());
        assert!(files.get((ProcessId(1), "cgroup")).is_none());
        assert_eq!(Arc::strong_count(&file), FILES_MAX + 1);
    }
}
