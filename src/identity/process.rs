//! What `/proc` shows of one process: where it runs, and whether user ids mean the same there.

use std::borrow::Cow;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, LazyLock};

use rustix::fs::{CWD, Mode, OFlags};

use super::cgroup::{Placement, may_hide_an_exit, placement};
use super::kubelet_cgroup::KubeletCgroup;
use super::open_files::{Kept, OpenFiles};
use super::peer::PeerError;

/// Longest file read; a v1 cgroup file has about 15 lines.
const FILE_BYTES_MAX: usize = 64 * 1024;
/// What nearly every file fits into.
const FILE_BYTES_USUAL: usize = 4096;
/// The file that says where a process runs.
const CGROUP: &str = "cgroup";
/// The kernel's mark of a thread that is exiting, among the flags in `/proc/<pid>/stat`.
const PF_EXITING: u32 = 4;

/// A process that has a number here.
pub(super) struct Process<'a> {
    pid: i32,
    /// Its directory, unless it is looked up by its number.
    directory: Option<BorrowedFd<'a>>,
    /// A handle on it, if its files are to be kept open.
    pidfd: Option<BorrowedFd<'a>>,
}

/// The files that are read of whoever connects.
static OPEN_FILES: LazyLock<OpenFiles> = LazyLock::new(OpenFiles::default);

impl<'a> Process<'a> {
    /// The process that has this number now. For whoever has a pidfd: if it has not exited when all
    /// is read, the number was its own all the time.
    pub(super) fn numbered(pid: i32) -> Process<'static> {
        Process { pid, directory: None, pidfd: None }
    }

    /// The same, with a handle on it: a process that comes again is read faster.
    pub(super) fn connected(pid: i32, pidfd: BorrowedFd<'a>) -> Self {
        Process { pidfd: Some(pidfd), ..Process::numbered(pid) }
    }

    /// The agent itself.
    pub(super) fn own() -> Process<'static> {
        Process::numbered(rustix::process::getpid().as_raw_pid())
    }

    /// The process whose directory this is: it stays the same one when its number is used again.
    pub(super) fn of_directory(directory: &'a OwnedFd, pid: i32) -> Self {
        Self { pid, directory: Some(directory.as_fd()), pidfd: None }
    }

    /// Where it runs, and the text that says so.
    ///
    /// The kernel shows `/` as the v1 cgroup of a thread that is exiting, and a process whose main
    /// thread has exited runs on in its others. So a v1 file that says "host" counts only if the
    /// main thread was not exiting when it was read. One look afterwards is not enough: `exec` puts
    /// another thread in the main one's place, so the same is read once more between two looks.
    pub(super) fn place(
        &self,
        kubelet: Option<&KubeletCgroup>,
    ) -> Result<(Placement, String), PeerError> {
        let (shown, cgroup) = self.show(CGROUP)?;
        let judge = || placement(&cgroup, kubelet);
        let placement = match kubelet {
            Some(kubelet) => kubelet.placed().or_judge(&cgroup, judge),
            None => judge(),
        };
        if placement == Placement::Host && may_hide_an_exit(&cgroup) {
            let (stat, before) = self.show("stat")?;
            let same = self.text(&shown)? == cgroup;
            if is_exiting(&before) || !same || is_exiting(&self.text(&stat)?) {
                return Err(PeerError::MainThreadExited);
            }
        }
        Ok((placement, cgroup))
    }

    /// The text of its cgroup file.
    pub(super) fn cgroup(&self) -> Result<String, PeerError> {
        Ok(self.show(CGROUP)?.1)
    }

    /// Whether it is in the agent's own user namespace, which on a host is the initial one.
    ///
    /// `ns/user` of another user's process needs a capability that an unprivileged agent lacks. Its
    /// `uid_map` is readable for everybody and shown relative to the reader, so a map equal to our
    /// own means that user ids mean the same there as here, which is all that is relied on.
    pub(super) fn shares_user_namespace(&self) -> Result<bool, PeerError> {
        static OURS: LazyLock<Option<CString>> =
            LazyLock::new(|| rustix::fs::readlink("/proc/self/ns/user", Vec::new()).ok());
        let (directory, path) = self.at("ns/user");
        let theirs = rustix::fs::readlinkat(directory, path.as_ref(), Vec::new());
        if let (Ok(theirs), Some(ours)) = (theirs, &*OURS) {
            return Ok(theirs == *ours);
        }
        Ok(self.uid_map()? == Process::own().uid_map()?)
    }

    /// Not gone and not a zombie, by the state letter behind the command in `stat`.
    pub(super) fn is_running(&self) -> bool {
        let Ok((_, stat)) = self.show("stat") else { return false };
        let state = behind_command(&stat).and_then(|rest| rest.chars().next());
        state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
    }

    fn uid_map(&self) -> Result<String, PeerError> {
        let shown = self.look_up("uid_map")?;
        let mut text = String::new();
        // Made line by line: a short read is not the end of it.
        let file = std::fs::File::from(shown);
        let mut limited = io::Read::take(file, FILE_BYTES_MAX as u64);
        io::Read::read_to_string(&mut limited, &mut text)
            .map_err(|error| self.failed("uid_map", error))?;
        Ok(text)
    }

    /// A file, and what it says now.
    fn show(&self, name: &'static str) -> Result<(Shown, String), PeerError> {
        let key = (self.pid, name);
        if let Some(fd) = self.pidfd.and_then(|_| OPEN_FILES.get(key)) {
            let shown = Shown { name, fd };
            if let Ok(text) = shown.text() {
                return Ok((shown, text));
            }
        }
        let shown = Shown { name, fd: Arc::new(self.look_up(name)?) };
        if let Some(pidfd) = self.pidfd {
            // One for each process: this file is read of all.
            let handle = (name == CGROUP).then(|| pidfd.try_clone_to_owned().ok()).flatten();
            OPEN_FILES.keep(key, Kept { file: Arc::clone(&shown.fd), handle });
        }
        let text = self.text(&shown)?;
        Ok((shown, text))
    }

    fn look_up(&self, name: &'static str) -> Result<OwnedFd, PeerError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let (directory, path) = self.at(name);
        let opened = rustix::fs::openat(directory, path.as_ref(), flags, Mode::empty());
        opened.map_err(|error| self.failed(name, error.into()))
    }

    /// What a file says now.
    fn text(&self, shown: &Shown) -> Result<String, PeerError> {
        shown.text().map_err(|error| self.failed(shown.name, error))
    }

    /// Where one of its files is.
    fn at(&self, name: &'static str) -> (BorrowedFd<'a>, Cow<'static, str>) {
        match self.directory {
            Some(directory) => (directory, name.into()),
            None => (CWD, format!("/proc/{}/{name}", self.pid).into()),
        }
    }

    fn failed(&self, file: &'static str, source: io::Error) -> PeerError {
        match source.raw_os_error() {
            Some(libc::ESRCH) => PeerError::Gone,
            _ => PeerError::Proc { pid: self.pid, file, source },
        }
    }
}

/// An open file that the kernel writes anew, and as a whole, whenever it is read from its start.
struct Shown {
    name: &'static str,
    fd: Arc<OwnedFd>,
}

impl Shown {
    fn text(&self) -> io::Result<String> {
        let mut usual = [const { MaybeUninit::<u8>::uninit() }; FILE_BYTES_USUAL];
        let (text, rest) = rustix::io::pread(&self.fd, &mut usual[..], 0)?;
        if !rest.is_empty() {
            return utf8(text.to_vec());
        }
        let mut long = vec![0; FILE_BYTES_MAX + 1];
        let length = rustix::io::pread(&self.fd, &mut long[..], 0)?;
        if length > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "file is too long"));
        }
        long.truncate(length);
        utf8(long)
    }
}

fn utf8(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// What `stat` says behind the command, which may itself hold anything.
fn behind_command(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.strip_prefix(' ')
}

/// Whether the main thread is exiting or has exited; also if the file cannot be understood.
fn is_exiting(stat: &str) -> bool {
    // State, ppid, pgrp, session, tty_nr, tpgid, flags.
    let flags = behind_command(stat).and_then(|rest| rest.split(' ').nth(6)?.parse::<u32>().ok());
    flags.is_none_or(|flags| flags & PF_EXITING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exiting_thread_is_seen_behind_any_command() {
        let stat = |flags: &str| format!("7 (a) Z (b) S 1 7 7 0 -1 {flags} 0 0");
        assert!(!is_exiting(&stat("4194304")));
        assert!(is_exiting(&stat("4227084")));
        for broken in ["", "7 (a) S 1", &stat("x")] {
            assert!(is_exiting(broken), "{broken}");
        }
    }

    #[test]
    fn a_file_is_read_whole_and_anew_each_time_whatever_its_length() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let fd = Arc::new(std::fs::File::open(file.path()).unwrap().into());
        let shown = Shown { name: "test", fd };
        let usual = FILE_BYTES_USUAL;
        for length in [0, 1, usual - 1, usual, usual + 1, FILE_BYTES_MAX] {
            std::fs::write(file.path(), "x".repeat(length)).unwrap();
            assert_eq!(shown.text().unwrap().len(), length);
        }
        std::fs::write(file.path(), "x".repeat(FILE_BYTES_MAX + 1)).unwrap();
        assert!(shown.text().is_err());
    }

    #[test]
    fn what_is_kept_of_an_earlier_process_is_looked_up_anew() {
        let start = || std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (mut earlier, mut later) = (start(), start());
        let file = std::fs::File::open(format!("/proc/{}/cgroup", earlier.id())).unwrap();
        earlier.kill().unwrap();
        earlier.wait().unwrap();
        // As if it had had the number of the later one.
        let pid = i32::try_from(later.id()).unwrap();
        OPEN_FILES.keep((pid, CGROUP), Kept { file: Arc::new(file.into()), handle: None });
        let raw = rustix::process::Pid::from_child(&later);
        let flags = rustix::process::PidfdFlags::empty();
        let pidfd = rustix::process::pidfd_open(raw, flags).unwrap();
        let found = Process::connected(pid, pidfd.as_fd()).cgroup().unwrap();
        assert_eq!(found, Process::numbered(pid).cgroup().unwrap());
        later.kill().unwrap();
        later.wait().unwrap();
    }

    #[test]
    fn a_process_is_the_same_by_its_number_and_by_its_directory() {
        let own = Process::own();
        let directory = std::fs::File::open(format!("/proc/{}", own.pid)).unwrap().into();
        let by_directory = Process::of_directory(&directory, own.pid);
        assert_eq!(own.cgroup().unwrap(), by_directory.cgroup().unwrap());
        assert_eq!(own.place(None).unwrap(), by_directory.place(None).unwrap());
        assert_eq!(own.uid_map().unwrap(), by_directory.uid_map().unwrap());
        assert!(by_directory.shares_user_namespace().unwrap() && by_directory.is_running());
    }
}
