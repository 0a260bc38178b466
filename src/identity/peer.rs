//! Peers: who is at the other end of a Unix socket, as the kernel proves it.
//!
//! Order matters: take the handle on the process, read its credentials and its place, then see that
//! it is still alive, so that all of it belonged to one process. The credentials are those of the
//! process that called `connect`, at that moment; a descriptor that is passed on or inherited keeps
//! them, so a server asks [`Peer::still_alive`] again after it has decided and before it writes,
//! and watches [`Peer::exited`] to drop the connection with its connector.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::fs::{Mode, OFlags};

use super::cgroup::Placement;
use super::kubelet_cgroup::KubeletCgroup;
use super::process::Process;
use super::{Identity, Listener, ProofStrength};
use crate::domain::{Pod, PodUid, VaultRole, VolumeName};
use crate::sys::{self, PeerCredentials};

/// How often a peer without a pidfd is looked at.
const LIVENESS_INTERVAL: Duration = Duration::from_secs(1);
/// Questions about one peer after which more are expected: a first request causes up to four.
const ASKED_OFTEN: u32 = 5;

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
    /// Its main thread exited and left the others running, which hides its place in cgroup v1.
    #[error("the peer's main thread has exited, so its place cannot be told")]
    MainThreadExited,
    /// It runs on the host, and this door is a pod's.
    #[error("the peer runs outside every pod: this socket serves one pod only")]
    OutsidePods,
    /// It runs on the host, and this door is for pods.
    #[error("the peer runs outside every pod: this socket serves pods; use the host socket")]
    NotInPod,
    /// It runs in a pod, but not in the one that this door belongs to.
    #[error("the peer runs in another pod: this socket serves one pod only")]
    OtherPod,
    /// It runs in a user namespace of its own.
    #[error("the peer runs in another user namespace: its user id is no identity here")]
    OtherUserNamespace,
    /// Only root and the agent's own user are operators.
    #[error("user {0} is no operator: use root or the agent's own user")]
    NotOperator(u32),
    /// Only root may be the kubelet.
    #[error("user {0} is not root, as the kubelet is")]
    NotRoot(u32),
}

/// A connected process: credentials, place and a handle that outlives pid reuse.
#[derive(Debug)]
pub struct Peer {
    uid: u32,
    gid: u32,
    /// Of users of the host; nobody else's count.
    groups: Vec<u32>,
    placement: Placement,
    /// Looked at on the host only: what runs in a pod is never a user.
    own_user_namespace: bool,
    /// The text of its cgroup file; none where nobody is placed.
    cgroup: String,
    handle: Handle,
}

#[derive(Debug)]
enum Handle {
    PidFd(PidFd),
    /// Before Linux 6.5: `/proc/<pid>`, opened after the fact. It pins the process from then on,
    /// but the pid may have been reused between `connect` and here.
    ProcDirectory(OwnedFd, i32),
    /// Before Linux 6.5, and it runs in a pid namespace that this process does not see.
    Nothing,
}

#[derive(Debug)]
struct PidFd {
    pidfd: OwnedFd,
    /// Questions up to now, until there are many.
    asked: AtomicU32,
    /// An epoll instance that holds nothing else, once there were.
    epoll: OnceLock<OwnedFd>,
}

/// What `/proc` tells about a peer.
struct Seen {
    placement: Placement,
    own_user_namespace: bool,
    cgroup: String,
}

impl Seen {
    fn of(process: &Process<'_>, kubelet: Option<&KubeletCgroup>) -> Result<Self, PeerError> {
        let (placement, cgroup) = process.place(kubelet)?;
        let on_host = placement == Placement::Host;
        let own_user_namespace = on_host && process.shares_user_namespace()?;
        Ok(Self { placement, own_user_namespace, cgroup })
    }
}

impl Peer {
    /// Reads everything there is to know about the process that connected `stream`. Without a
    /// `kubelet` no process is ever placed in a pod.
    pub fn of(stream: BorrowedFd<'_>, kubelet: Option<&KubeletCgroup>) -> Result<Self, PeerError> {
        let pidfd = pidfd(stream)?;
        let PeerCredentials { pid, uid, gid } = credentials(stream)?;
        if pid <= 0 {
            return Err(PeerError::OtherPidNamespace);
        }

        let (seen, handle) = match pidfd {
            Some(pidfd) => {
                let seen = Seen::of(&Process::connected(pid, pidfd.as_fd()), kubelet);
                if seen.is_err() && sys::has_exited(&pidfd) {
                    return Err(PeerError::Gone);
                }
                (seen?, Handle::pid_fd(pidfd))
            }
            None => {
                let directory = open_process(pid)?;
                let seen = Seen::of(&Process::of_directory(&directory, pid), kubelet)?;
                (seen, Handle::ProcDirectory(directory, pid))
            }
        };
        let Seen { placement, own_user_namespace, cgroup } = seen;
        let groups = match placement {
            Placement::Host => sys::peer_groups(stream).map_err(PeerError::Credentials)?,
            Placement::Pod { .. } | Placement::Container { .. } => Vec::new(),
        };
        let peer = Self { uid, gid, groups, placement, own_user_namespace, cgroup, handle };
        if peer.still_alive() { Ok(peer) } else { Err(PeerError::Gone) }
    }

    /// A peer on a pod's own socket, on a node that cannot place it: only its end is watched, where
    /// the kernel has a handle on it.
    pub fn unplaced(stream: BorrowedFd<'_>) -> Result<Self, PeerError> {
        let PeerCredentials { uid, gid, .. } = credentials(stream)?;
        Ok(Self {
            uid,
            gid,
            groups: Vec::new(),
            placement: Placement::Container { reason: "a place that this node cannot tell" },
            own_user_namespace: false,
            cgroup: String::new(),
            handle: pidfd(stream)?.map_or(Handle::Nothing, Handle::pid_fd),
        })
    }

    /// The identity this peer has at a door for users of the host, if it has one. Whatever runs in
    /// a pod is a pod or nothing: never a user, never an operator. The one exception is the agent's
    /// own container: what `kubectl exec` starts there is an operator's, since only who may start
    /// processes in it, or root on the node, gets into its cgroups.
    pub fn identify(&self, listener: Listener) -> Result<Identity, PeerError> {
        if !(listener == Listener::Operator && self.is_at_home()?) {
            self.on_host()?;
        }
        let operator = self.uid == 0 || self.uid == rustix::process::geteuid().as_raw();
        if listener == Listener::Operator && !operator {
            return Err(PeerError::NotOperator(self.uid));
        }
        Ok(Identity::host_user(self.uid, self.gid, &self.groups, self.strength(), listener))
    }

    /// The identity this peer has on the socket in `volume`, which belongs to `pod`: the kernel
    /// must have placed it in this very pod. User ids do not matter here, nor user namespaces.
    pub fn identify_in_pod(
        &self,
        pod: &Arc<Pod>,
        volume: &VolumeName,
        role: Option<VaultRole>,
    ) -> Result<Identity, PeerError> {
        match &self.placement {
            Placement::Pod { uid, .. } if *uid == pod.uid => {
                Ok(Identity::placed_pod(Arc::clone(pod), volume, role, self.strength()))
            }
            Placement::Pod { .. } => Err(PeerError::OtherPod),
            Placement::Host => Err(PeerError::OutsidePods),
            Placement::Container { reason } => Err(PeerError::InContainer(reason)),
        }
    }

    /// The pod that the kernel placed this peer in. User ids do not matter here.
    pub fn pod(&self) -> Result<&PodUid, PeerError> {
        match &self.placement {
            Placement::Pod { uid, .. } => Ok(uid),
            Placement::Host => Err(PeerError::NotInPod),
            Placement::Container { reason } => Err(PeerError::InContainer(reason)),
        }
    }

    /// Whether it is root of the host, which is what the kubelet is on the sockets of a driver.
    pub fn host_root(&self) -> Result<(), PeerError> {
        self.on_host()?;
        if self.uid == 0 { Ok(()) } else { Err(PeerError::NotRoot(self.uid)) }
    }

    /// Whether it runs in exactly the agent's own cgroups.
    fn is_at_home(&self) -> Result<bool, PeerError> {
        Ok(self.placement != Placement::Host && self.cgroup == Process::own().cgroup()?)
    }

    /// A uid means something only outside of every container, in the agent's own user namespace.
    fn on_host(&self) -> Result<(), PeerError> {
        match self.placement {
            Placement::Host if self.own_user_namespace => Ok(()),
            Placement::Host => Err(PeerError::OtherUserNamespace),
            Placement::Pod { .. } => Err(PeerError::InContainer("a Kubernetes pod")),
            Placement::Container { reason } => Err(PeerError::InContainer(reason)),
        }
    }

    /// What its cgroup file says: its path in every hierarchy.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Frees that text once the peer is identified: it may be long, and a connection may last.
    pub fn forget_cgroup(&mut self) {
        self.cgroup = String::new();
    }

    /// Where it runs.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// How the identity is proved.
    pub fn strength(&self) -> ProofStrength {
        match self.handle {
            Handle::PidFd(_) => ProofStrength::PidFd,
            Handle::ProcDirectory(..) => ProofStrength::PeerCred,
            Handle::Nothing => ProofStrength::SocketOnly,
        }
    }

    /// Whether the process that connected still runs. One system call; never blocks. To be asked by
    /// one thread at a time: see `PidFd::has_exited`.
    pub fn still_alive(&self) -> bool {
        match &self.handle {
            Handle::PidFd(process) => !process.has_exited(),
            Handle::ProcDirectory(directory, pid) => {
                Process::of_directory(directory, *pid).is_running()
            }
            Handle::Nothing => true,
        }
    }

    /// Waits until the process that connected has exited. Cancel-safe.
    pub async fn exited(&self) {
        if let Handle::PidFd(process) = &self.handle
            && let Ok(watched) = sys::watch_readable(process.pidfd.as_fd())
            && watched.readable().await.is_ok()
        {
            return;
        }
        if matches!(self.handle, Handle::Nothing) {
            return std::future::pending().await;
        }
        while self.still_alive() {
            tokio::time::sleep(LIVENESS_INTERVAL).await;
        }
    }
}

impl Handle {
    fn pid_fd(pidfd: OwnedFd) -> Self {
        Self::PidFd(PidFd { pidfd, asked: AtomicU32::new(0), epoll: OnceLock::new() })
    }
}

impl PidFd {
    /// A pidfd is readable once its process has exited.
    ///
    /// To `poll` a descriptor the kernel copies a list, prepares to wait and asks the file. An
    /// epoll instance was told already: a question costs half as much, and making one as much as a
    /// few. The kernel looks without a lock, so while one thread takes an event out of an instance,
    /// another may be told that there is none: each peer has its own, for one thread at a time.
    fn has_exited(&self) -> bool {
        if let Some(epoll) = self.epoll.get() {
            return has_event(epoll);
        }
        if self.asked.fetch_add(1, Ordering::Relaxed) == ASKED_OFTEN
            && let Ok(epoll) = self.watching_epoll()
        {
            // Whoever was faster has an equal one.
            let _ = self.epoll.set(epoll);
        }
        sys::has_exited(&self.pidfd)
    }

    fn watching_epoll(&self) -> rustix::io::Result<OwnedFd> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Level-triggered: an exit is told each time.
        epoll::add(&epoll, &self.pidfd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        Ok(epoll)
    }
}

fn credentials(stream: BorrowedFd<'_>) -> Result<PeerCredentials, PeerError> {
    sys::peer_credentials(stream).map_err(PeerError::Credentials)
}

/// A handle on the process that connected; `None` on kernels that have none.
fn pidfd(stream: BorrowedFd<'_>) -> Result<Option<OwnedFd>, PeerError> {
    static SUPPORTED: LazyLock<bool> = LazyLock::new(|| {
        let pair = std::os::unix::net::UnixStream::pair();
        pair.is_ok_and(|(ours, _theirs)| sys::peer_pidfd(ours.as_fd()).is_ok())
    });
    match sys::peer_pidfd(stream) {
        Ok(pidfd) => Ok(Some(pidfd)),
        // Before Linux 6.16 a peer that was reaped is told in the same words.
        Err(error) if is_unsupported(&error) && *SUPPORTED => Err(PeerError::Gone),
        Err(error) if is_unsupported(&error) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(PeerError::Gone),
        Err(error) => Err(PeerError::Credentials(error)),
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EINVAL | libc::ENOSYS))
}

fn open_process(pid: i32) -> Result<OwnedFd, PeerError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())
        .map_err(|error| PeerError::Proc { pid, file: "", source: error.into() })
}

fn has_event(epoll: &OwnedFd) -> bool {
    let mut event = [MaybeUninit::<epoll::Event>::uninit()];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // Whoever cannot be watched counts as gone.
    epoll::wait(epoll, &mut event[..], Some(&now)).map_or(true, |(events, _)| !events.is_empty())
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
