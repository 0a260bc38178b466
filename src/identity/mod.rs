//! Who is asking, as proved by the kernel or by our own configuration; never as claimed.

use std::fmt;
use std::sync::Arc;

use crate::domain::{ConsumerId, Pod, VaultRole, VolumeName};

pub mod cgroup;
pub mod kubelet_cgroup;
pub mod lock_out;
mod open_files;
pub mod peer;
mod placed;
pub mod pods;
mod process;
mod runtime_names;
pub mod self_test;
pub mod supposed;
pub mod token;

/// How an identity was proved, weakest first so that policy can name the least it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProofStrength {
    /// The socket alone: it lies in the pod's own volume, and the kernel cannot say here which
    /// process is at its other end.
    SocketOnly,
    /// `SO_PEERCRED` only (kernels before 6.5): the pid may have been reused.
    PeerCred,
    /// `SO_PEERPIDFD`: a handle on the very process that connected.
    PidFd,
    /// The kubelet published a volume with the pod's own token, which was verified.
    Token,
    /// Our own configuration: no caller is involved.
    Declared,
}

impl fmt::Display for ProofStrength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SocketOnly => "socket-only",
            Self::PeerCred => "peercred",
            Self::PidFd => "pidfd",
            Self::Token => "token",
            Self::Declared => "declared",
        })
    }
}

/// Which door the request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Listener {
    /// The operator socket.
    Operator,
    /// The host socket.
    Host,
    /// A declared volume: no socket at all.
    Volume,
    /// A volume that the kubelet published for a pod.
    Csi,
    /// The socket in a pod's own volume.
    PodSocket,
    /// The one socket for all pods of this node.
    Node,
}

impl Listener {
    /// Its name in policy, the audit log and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Host => "host",
            Self::Volume => "volume",
            Self::Csi => "csi",
            Self::PodSocket => "pod-socket",
            Self::Node => "node",
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who the caller is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A user of this host, outside every container, in the initial user namespace.
    HostUser {
        /// Effective uid of the connecting process.
        uid: u32,
        /// Effective gid first, then supplementary groups, sorted and without duplicates.
        gids: Arc<[u32]>,
    },
    /// A volume declared in our configuration.
    Volume(VolumeName),
    /// A pod of this node.
    Pod(Arc<Pod>),
}

/// A proved caller. Only this folder constructs one. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    subject: Subject,
    strength: ProofStrength,
    listener: Listener,
    consumer: ConsumerId,
    role: Option<VaultRole>,
}

impl Identity {
    /// The identity of a declared volume.
    pub fn declared_volume(name: VolumeName) -> Self {
        Self {
            consumer: ConsumerId::volume(&name),
            subject: Subject::Volume(name),
            strength: ProofStrength::Declared,
            listener: Listener::Volume,
            role: None,
        }
    }

    /// The identity of a pod in whose name the kubelet published `volume`, proved by the verified
    /// token of the call. Each volume is a consumer of its own.
    /// `role` is what the pod asked for in place of the configured pattern, if that is permitted.
    pub fn published_pod(pod: Arc<Pod>, volume: &VolumeName, role: Option<VaultRole>) -> Self {
        Self {
            consumer: ConsumerId::volume(volume),
            subject: Subject::Pod(pod),
            strength: ProofStrength::Token,
            listener: Listener::Csi,
            role,
        }
    }

    /// The identity of whoever is at the other end of the socket in `volume`, which the kubelet
    /// published for `pod`, on a node that cannot place callers: the socket alone proves it.
    pub(crate) fn on_own_socket(
        pod: Arc<Pod>,
        volume: &VolumeName,
        role: Option<VaultRole>,
    ) -> Self {
        Self::placed_pod(pod, volume, role, ProofStrength::SocketOnly)
    }

    /// The identity of a caller on the socket in `volume`, as [`peer::Peer::identify_in_pod`]
    /// placed it in this very pod.
    fn placed_pod(
        pod: Arc<Pod>,
        volume: &VolumeName,
        role: Option<VaultRole>,
        strength: ProofStrength,
    ) -> Self {
        Self {
            consumer: ConsumerId::volume(volume),
            subject: Subject::Pod(pod),
            strength,
            listener: Listener::PodSocket,
            role,
        }
    }

    /// The identity of a caller on the node's socket, which the kernel placed in this pod. With the
    /// pod's own token beside, it is proved twice, and `strength` is [`ProofStrength::Token`].
    pub(crate) fn on_node_socket(pod: Arc<Pod>, strength: ProofStrength) -> Self {
        Self {
            consumer: ConsumerId::pod(&pod),
            subject: Subject::Pod(pod),
            strength,
            listener: Listener::Node,
            role: None,
        }
    }

    /// The identity of a user of this host: what [`peer`] proved, or what is [`supposed`].
    pub(crate) fn host_user(
        uid: u32,
        gid: u32,
        supplementary: &[u32],
        strength: ProofStrength,
        listener: Listener,
    ) -> Self {
        let mut others: Vec<u32> = supplementary.iter().copied().filter(|g| *g != gid).collect();
        others.sort_unstable();
        others.dedup();
        let gids = std::iter::once(gid).chain(others).collect();
        let consumer = ConsumerId::host_user(uid);
        let subject = Subject::HostUser { uid, gids };
        Self { subject, strength, listener, consumer, role: None }
    }

    /// Who it is.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Whether it was proved which service account of its name a pod runs as: on the node's socket
    /// only a token does that.
    pub fn is_account_proved(&self) -> bool {
        self.listener != Listener::Node || self.strength >= ProofStrength::Token
    }

    /// How that was proved.
    pub fn strength(&self) -> ProofStrength {
        self.strength
    }

    /// Which door it came through.
    pub fn listener(&self) -> Listener {
        self.listener
    }

    /// The Vault role a pod logs in with in place of the configured pattern.
    pub fn role(&self) -> Option<&VaultRole> {
        self.role.as_ref()
    }

    /// The consumer whose dynamic credentials this caller gets.
    pub fn consumer(&self) -> &ConsumerId {
        &self.consumer
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.consumer())
    }
}
