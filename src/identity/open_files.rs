//! Files in `/proc` of processes that connected a moment ago, kept open. Whoever connects anew for
//! each request has them read anew each time; only looking them up is saved, which costs as much.
//!
//! They are kept by the number of the process. A number is used again, but an open file is not: it
//! belongs to the process that it was opened for, and once that one is gone no read succeeds
//! (`ESRCH`). So whoever has this number while a read succeeds is that very process.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

/// Files kept open; the oldest gives way.
const FILES_MAX: usize = 256;

/// The number of a process, and which of its files.
type Key = (i32, &'static str);

/// What is kept of a process.
pub(super) struct Kept {
    /// Its file.
    pub(super) file: Arc<OwnedFd>,
    /// A handle on it, if one is kept: while there is one, the kernel makes the next of the same
    /// inode, which costs it half. It proves nothing: an earlier process with this number may have
    /// left it.
    #[expect(dead_code, reason = "it is there to be open")]
    pub(super) handle: Option<OwnedFd>,
}

/// Open files by process and name.
#[derive(Default)]
pub(super) struct OpenFiles(Mutex<Files>);

#[derive(Default)]
struct Files {
    by_key: HashMap<Key, Kept>,
    by_age: VecDeque<Key>,
}

impl OpenFiles {
    /// A file that may be an earlier process's: see whether it can be read.
    pub(super) fn get(&self, key: Key) -> Option<Arc<OwnedFd>> {
        self.files().by_key.get(&key).map(|kept| Arc::clone(&kept.file))
    }

    /// Keeps a file, in place of that of an earlier process.
    pub(super) fn keep(&self, key: Key, kept: Kept) {
        let mut files = self.files();
        let earlier = files.by_key.insert(key, kept);
        let mut oldest = None;
        if earlier.is_none() {
            files.by_age.push_back(key);
            oldest = (files.by_age.len() > FILES_MAX).then(|| files.by_age.pop_front()).flatten();
        }
        let closed = oldest.and_then(|oldest| files.by_key.remove(&oldest));
        drop(files);
        drop((earlier, closed));
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn kept(file: &Arc<OwnedFd>) -> Kept {
        Kept { file: Arc::clone(file), handle: None }
    }

    #[test]
    fn what_was_opened_for_a_process_cannot_be_read_once_it_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        for name in ["cgroup", "stat"] {
            let file = File::open(format!("/proc/{}/{name}", child.id())).unwrap();
            let read = || rustix::io::pread(&file, &mut [0_u8; 4096], 0);
            assert!(read().is_ok_and(|length| length > 0));
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(read(), Err(rustix::io::Errno::SRCH), "{name}");
            child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_file_of_a_process_gives_way_to_that_of_the_next_with_its_number() {
        let files = OpenFiles::default();
        let open = |path| Arc::new(OwnedFd::from(File::open(path).unwrap()));
        let (earlier, later) = (open("/proc/self/stat"), open("/proc/self/cgroup"));
        files.keep((7, "stat"), kept(&earlier));
        files.keep((7, "stat"), kept(&later));
        assert!(files.get((7, "stat")).is_some_and(|kept| Arc::ptr_eq(&kept, &later)));
    }

    #[test]
    fn the_oldest_gives_way() {
        let files = OpenFiles::default();
        let file = Arc::new(OwnedFd::from(File::open("/proc/self/stat").unwrap()));
        let most = i32::try_from(FILES_MAX).unwrap();
        for number in 0..=most {
            files.keep((number, "stat"), kept(&file));
            files.keep((number, "stat"), kept(&file));
        }
        assert!(files.get((0, "stat")).is_none());
        assert!(files.get((1, "stat")).is_some());
        assert!(files.get((1, "cgroup")).is_none());
        assert_eq!(Arc::strong_count(&file), FILES_MAX + 1);
    }
}
