//! The doors: which kind of socket a connection came through, and whom that lets in.

use std::sync::Arc;

use tokio::net::UnixStream;

use crate::domain::{Pod, VaultRole, VolumeName};
use crate::identity::peer::{Peer, PeerError};
use crate::identity::self_test::NodeProof;
use crate::identity::{Identity, Listener};

/// One socket, and who may be at its other end.
#[derive(Debug, Clone)]
pub enum Door {
    /// Root and the agent's own user; no values.
    Operator,
    /// Users of this host, outside of every container.
    Host,
    /// The pod that the socket was published for, and nobody else.
    Pod(PodDoor),
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

impl Door {
    /// Who connected, by what this node can prove about its processes.
    pub(super) fn identify(
        &self,
        stream: &UnixStream,
        proof: &NodeProof,
    ) -> Result<(Identity, Peer), PeerError> {
        let kubelet = proof.kubelet.as_ref();
        if let (Self::Pod(PodDoor { pod, volume, role }), None) = (self, kubelet) {
            let peer = Peer::unplaced(stream)?;
            return Ok((Identity::on_own_socket(Arc::clone(pod), volume, role.clone()), peer));
        }
        let peer = Peer::of(stream, kubelet)?;
        let identity = match self {
            Self::Operator | Self::Host => peer.identify(self.listener())?,
            Self::Pod(PodDoor { pod, volume, role }) => {
                peer.identify_in_pod(pod, volume, role.clone())?
            }
        };
        Ok((identity, peer))
    }

    /// Its kind, as policy, the audit log and metrics know it.
    pub(super) fn listener(&self) -> Listener {
        match self {
            Self::Operator => Listener::Operator,
            Self::Host => Listener::Host,
            Self::Pod(_) => Listener::PodSocket,
        }
    }
}
