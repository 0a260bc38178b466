//! The doors: which kind of socket a connection came through, and whom that lets in.

use std::hash::{BuildHasher, RandomState};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, LazyLock};

use super::admission::Payer;
use super::node_door::NodeDoor;
use crate::domain::{Pod, PodUid, VaultRole, VolumeName};
use crate::identity::cgroup::Placement;
use crate::identity::peer::{Peer, PeerError};
use crate::identity::self_test::NodeProof;
use crate::identity::{Identity, Listener, Subject};

/// One socket, and who may be at its other end.
#[derive(Clone)]
pub enum Door {
    /// Root and the agent's own user; no values.
    Operator,
    /// Users of this host, outside of every container.
    Host,
    /// The pod that the socket was published for, and nobody else.
    Pod(PodDoor),
    /// All pods of this node.
    Node(Arc<NodeDoor>),
}

/// Whose socket it is.
#[derive(Debug, Clone)]
pub struct PodDoor {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The volume that holds the socket: the consumer of what is read through it.
    pub volume: VolumeName,
    /// The Vault role the pod logs in with in place of the configured pattern.
    pub role: Option<VaultRole>,
}

/// Somebody who is nobody at this door.
pub(super) struct Nobody {
    pub(super) why: PeerError,
    /// Whose budget the look at it takes from.
    pub(super) payer: Payer,
}

impl Nobody {
    /// Its place is not known, which may be its own doing.
    fn unseen(why: PeerError) -> Self {
        Self { why, payer: Payer::Unplaced }
    }

    /// A pod pays as itself also where it has no business.
    fn seen(why: PeerError, peer: &Peer) -> Self {
        static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let payer = match peer.placement() {
            Placement::Pod { uid, .. } => Payer::Pod(uid.clone()),
            Placement::Host | Placement::Container { .. } => {
                Payer::Cgroup(HASHES.hash_one(peer.cgroup()))
            }
        };
        Self { why, payer }
    }
}

/// Who connected, as far as the kernel says.
pub(super) enum Found {
    /// A caller with an identity.
    Caller(Identity),
    /// Somebody in this pod, whom the door has to name.
    Pod(PodUid, Arc<NodeDoor>),
}

impl Found {
    /// Whose budget the connection takes from.
    pub(super) fn payer(&self) -> Payer {
        match self {
            Self::Pod(uid, _) => Payer::Pod(uid.clone()),
            Self::Caller(identity) => match identity.subject() {
                Subject::HostUser { uid, .. } => Payer::User(*uid),
                Subject::Pod(pod) => Payer::Pod(pod.uid.clone()),
                // Never connects; it would pay as the agent's own user.
                Subject::Volume(_) => Payer::User(rustix::process::geteuid().as_raw()),
            },
        }
    }
}

impl Door {
    /// Who connected, by what this node can prove about its processes.
    pub(super) fn find(
        &self,
        stream: BorrowedFd<'_>,
        proof: &NodeProof,
    ) -> Result<(Found, Peer), Nobody> {
        let kubelet = proof.kubelet.as_ref();
        if let (Self::Pod(PodDoor { pod, volume, role }), None) = (self, kubelet) {
            let peer = Peer::unplaced(stream).map_err(Nobody::unseen)?;
            let identity = Identity::on_own_socket(Arc::clone(pod), volume, role.clone());
            return Ok((Found::Caller(identity), peer));
        }
        let mut peer = Peer::of(stream, kubelet).map_err(Nobody::unseen)?;
        match self.identify(&peer) {
            Ok(found) => {
                peer.forget_cgroup();
                Ok((found, peer))
            }
            Err(why) => Err(Nobody::seen(why, &peer)),
        }
    }

    fn identify(&self, peer: &Peer) -> Result<Found, PeerError> {
        Ok(match self {
            Self::Operator | Self::Host => Found::Caller(peer.identify(self.listener())?),
            Self::Pod(PodDoor { pod, volume, role }) => {
                Found::Caller(peer.identify_in_pod(pod, volume, role.clone())?)
            }
            Self::Node(door) => Found::Pod(peer.pod()?.clone(), Arc::clone(door)),
        })
    }

    /// Whose budget everybody takes from who is let in, where that is one caller's only.
    pub(super) fn owner(&self) -> Option<Payer> {
        match self {
            Self::Pod(PodDoor { pod, .. }) => Some(Payer::Pod(pod.uid.clone())),
            Self::Operator | Self::Host | Self::Node(_) => None,
        }
    }

    /// Its kind, as policy, the audit log and metrics know it.
    pub(super) fn listener(&self) -> Listener {
        match self {
            Self::Operator => Listener::Operator,
            Self::Host => Listener::Host,
            Self::Pod(_) => Listener::PodSocket,
            Self::Node(_) => Listener::Node,
        }
    }
}
