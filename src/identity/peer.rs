//! Peers: who is at the other end of a Unix socket, as the kernel proves it.
//!
//! Order matters: take the handle on the process, read its credentials and its place, then see that
//! it is still alive, so that all of it belonged to one process. The credentials are those of the
//! process that called `connect`, at that moment; a descriptor that is passed on or inherited keeps
//! them, so a server watches [`Peer::exited`] and drops the connection with its connector.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;

use super::cgroup::{Placement, placement};
use super::{Identity, Listener, ProofStrength};
use crate::sys;

/// Longest `/proc` file read; a v1 cgroup file has about 15 lines.
const PROC_FILE_BYTES_MAX: usize = 64 * 1024;
/// How often a peer without a pidfd is looked at.
const LIVENESS_INTERVAL: Duration = Duration::from_secs(1);

/// Why a peer has no identity. Callers without one are refused before anything else.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel did not say who it is.
    #[error("cannot read the peer's credentials")]
    Credentials(#[source] io::Error),
    /// Its pid does not exist here.
    #[error("the peer runs outside this agent's pid namespace; run the agent in the host's")]
    OtherPidNamespace,
    /// `/proc/<pid>` cannot be read.
    #[error("cannot read /proc/{pid}/{file}; is /proc mounted with hidepid?")]
    Proc {
        /// Which process.
        pid: i32,
        /// Which file.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It exited before it was identified.
    #[error("the peer exited before it was identified")]
    Gone,
    /// It runs inside a pod or container.
    #[error("the peer runs in {0}: a user id is an identity only outside every container")]
    InContainer(&'static str),
    /// It runs in a user namespace of its own.
    #[error("the peer runs in another user namespace: its user id is no identity here")]
    OtherUserNamespace,
    /// Only root and the agent's own user are operators.
    #[error("user {0} is no operator: use root or the agent's own user")]
    NotOperator(u32),
}

/// A connected process: credentials, place and a handle that outlives pid reuse.
#[derive(Debug)]
pub struct Peer {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    placement: Placement,
    own_user_namespace: bool,
    /// It runs in the very cgroups that the agent runs in: its own container, when it has one.
    own_cgroups: bool,
    handle: Handle,
}

#[derive(Debug)]
enum Handle {
    PidFd(OwnedFd),
    /// Before Linux 6.5: `/proc/<pid>`, opened after the fact. It pins the process from then on,
    /// but the pid may have been reused between `connect` and here.
    ProcDirectory(OwnedFd),
}

impl Peer {
    /// Reads everything there is to know about the process that connected `stream`.
    pub fn of(stream: &UnixStream) -> Result<Self, PeerError> {
        let pidfd = match sys::peer_pidfd(stream.as_fd()) {
            Ok(pidfd) => Some(pidfd),
            Err(error) if is_unsupported(&error) => None,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(PeerError::Gone),
            Err(error) => return Err(PeerError::Credentials(error)),
        };
        let credentials = stream.peer_cred().map_err(PeerError::Credentials)?;
        let groups = sys::peer_groups(stream.as_fd()).map_err(PeerError::Credentials)?;
        let pid = credentials.pid().filter(|pid| *pid > 0).ok_or(PeerError::OtherPidNamespace)?;

        let directory = match (open_process(pid), &pidfd) {
            (Err(_), Some(pidfd)) if is_readable(pidfd.as_fd()) => return Err(PeerError::Gone),
            (directory, _) => directory?,
        };
        let cgroup = read(&directory, pid, "cgroup")?;
        let peer = Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            groups,
            placement: placement(&cgroup),
            own_cgroups: cgroup == own_cgroups(),
            own_user_namespace: shares_user_namespace(&directory, pid)?,
            handle: pidfd.map_or(Handle::ProcDirectory(directory), Handle::PidFd),
        };
        if peer.still_alive() { Ok(peer) } else { Err(PeerError::Gone) }
    }

    /// The identity this peer has at a door, if it has one.
    pub fn identify(&self, listener: Listener) -> Result<Identity, PeerError> {
        // What `kubectl exec` starts in the agent's container is an operator's; only who may start
        // processes there, or root on the node, gets into its cgroups.
        let at_home = listener == Listener::Operator && self.own_cgroups;
        if let Placement::Container { reason } = self.placement
            && !at_home
        {
            return Err(PeerError::InContainer(reason));
        }
        if !self.own_user_namespace {
            return Err(PeerError::OtherUserNamespace);
        }
        let operator = self.uid == 0 || self.uid == rustix::process::geteuid().as_raw();
        if listener == Listener::Operator && !operator {
            return Err(PeerError::NotOperator(self.uid));
        }
        Ok(Identity::host_user(self.uid, self.gid, &self.groups, self.strength(), listener))
    }

    /// How the identity is proved.
    pub fn strength(&self) -> ProofStrength {
        match self.handle {
            Handle::PidFd(_) => ProofStrength::PidFd,
            Handle::ProcDirectory(_) => ProofStrength::PeerCred,
        }
    }

    /// Whether the process that connected still runs. One system call; never blocks.
    pub fn still_alive(&self) -> bool {
        match &self.handle {
            Handle::PidFd(pidfd) => !is_readable(pidfd.as_fd()),
            Handle::ProcDirectory(directory) => is_running(directory),
        }
    }

    /// Waits until the process that connected has exited. Cancel-safe.
    pub async fn exited(&self) {
        if let Handle::PidFd(pidfd) = &self.handle
            && let Ok(watched) = sys::watch_readable(pidfd.as_fd())
            && watched.readable().await.is_ok()
        {
            return;
        }
        while self.still_alive() {
            tokio::time::sleep(LIVENESS_INTERVAL).await;
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EINVAL | libc::ENOSYS))
}

/// The agent's own; empty, and so nobody's, if it cannot be read.
fn own_cgroups() -> String {
    let own = rustix::process::getpid().as_raw_pid();
    open_process(own).and_then(|directory| read(&directory, own, "cgroup")).unwrap_or_default()
}

fn open_process(pid: i32) -> Result<OwnedFd, PeerError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())
        .map_err(|error| PeerError::Proc { pid, file: "", source: error.into() })
}

fn read(directory: &OwnedFd, pid: i32, file: &'static str) -> Result<String, PeerError> {
    read_at(directory, file).map_err(|source| match source.raw_os_error() {
        Some(libc::ESRCH) => PeerError::Gone,
        _ => PeerError::Proc { pid, file, source },
    })
}

fn read_at(directory: &OwnedFd, file: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(directory, file, flags, Mode::empty())?;
    let mut text = Vec::with_capacity(1024);
    io::Read::read_to_end(
        &mut io::Read::take(std::fs::File::from(fd), PROC_FILE_BYTES_MAX as u64 + 1),
        &mut text,
    )?;
    if text.len() > PROC_FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "file is too long"));
    }
    String::from_utf8(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Whether the peer is in the agent's own user namespace, which on a host is the initial one.
///
/// `ns/user` of another user's process needs a capability that an unprivileged agent lacks. Its
/// `uid_map` is readable for everybody and shown relative to the reader, so a map equal to our own
/// means that user ids mean the same there as here, which is all that is relied on.
fn shares_user_namespace(directory: &OwnedFd, pid: i32) -> Result<bool, PeerError> {
    let theirs = rustix::fs::readlinkat(directory, "ns/user", Vec::new());
    let ours = rustix::fs::readlink("/proc/self/ns/user", Vec::new());
    if let (Ok(theirs), Ok(ours)) = (theirs, ours) {
        return Ok(theirs == ours);
    }
    let own = open_process(rustix::process::getpid().as_raw_pid())?;
    Ok(read(directory, pid, "uid_map")? == read(&own, pid, "uid_map")?)
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // An error counts as readable: whoever cannot be watched is treated as gone.
    rustix::event::poll(&mut fds, Some(&now)).map_or(true, |ready| ready > 0)
}

/// Not gone and not a zombie, by the state letter behind the command in `/proc/<pid>/stat`.
fn is_running(directory: &OwnedFd) -> bool {
    let Ok(stat) = read_at(directory, "stat") else { return false };
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, placement: Placement, own_user_namespace: bool) -> Peer {
        let handle =
            Handle::ProcDirectory(open_process(rustix::process::getpid().as_raw_pid()).unwrap());
        let (groups, own_cgroups) = (vec![9, 8, 7], false);
        Peer { uid, gid: 7, groups, placement, own_user_namespace, own_cgroups, handle }
    }

    #[test]
    fn a_uid_is_an_identity_only_outside_containers_and_other_namespaces() {
        let identity = peer(4242, Placement::Host, true).identify(Listener::Host).unwrap();
        assert_eq!(identity.consumer().as_str(), "uid:4242");
        assert_eq!(identity.strength(), ProofStrength::PeerCred);

        let inside = Placement::Container { reason: "a test" };
        let refused = |peer: Peer, listener| peer.identify(listener).unwrap_err().to_string();
        assert!(refused(peer(0, inside, true), Listener::Host).contains("a test"));
        assert!(refused(peer(0, inside, true), Listener::Operator).contains("a test"));
        assert!(refused(peer(0, Placement::Host, false), Listener::Host).contains("namespace"));
    }

    #[test]
    fn in_the_agents_own_container_root_is_an_operator_and_nobody_is_a_host_user() {
        let inside = Placement::Container { reason: "a test" };
        let at_home = |uid| Peer { own_cgroups: true, ..peer(uid, inside, true) };
        assert!(at_home(0).identify(Listener::Operator).is_ok());
        assert!(at_home(0).identify(Listener::Host).is_err());
        let other = rustix::process::geteuid().as_raw() + 4242;
        assert!(at_home(other).identify(Listener::Operator).is_err());
    }

    #[test]
    fn only_root_and_the_agents_own_user_are_operators() {
        let own = rustix::process::geteuid().as_raw();
        for (uid, allowed) in [(0, true), (own, true), (own + 4242, false)] {
            let identified = peer(uid, Placement::Host, true).identify(Listener::Operator);
            assert_eq!(identified.is_ok(), allowed, "{uid}");
        }
    }

    #[tokio::test]
    async fn a_socket_pair_of_this_process_names_this_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        assert!(peer.own_user_namespace);
        assert!(peer.still_alive());
    }

    #[tokio::test]
    async fn the_exit_of_a_process_is_seen_through_both_kinds_of_handle() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let raw = rustix::process::Pid::from_raw(pid).unwrap();
        let flags = rustix::process::PidfdFlags::empty();
        let pidfd = rustix::process::pidfd_open(raw, flags).unwrap();
        let with = |handle| Peer {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            placement: Placement::Host,
            own_user_namespace: true,
            own_cgroups: false,
            handle,
        };
        let modern = with(Handle::PidFd(pidfd));
        let older = with(Handle::ProcDirectory(open_process(pid).unwrap()));
        assert!(modern.still_alive() && older.still_alive());
        child.kill().unwrap();
        modern.exited().await;
        older.exited().await;
        assert!(!modern.still_alive() && !older.still_alive());
        child.wait().unwrap();
        assert!(!older.still_alive());
    }
}
