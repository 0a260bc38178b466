//! The node socket's wiring: who names its callers, and who judges their tokens.

use std::sync::Arc;

use crate::delivery::socket::{NodeDoor, NodeSocket};
use crate::identity::pods::PodDirectory;
use crate::identity::self_test::NodeProof;
use crate::identity::token::Verifier;
use crate::telemetry::Metrics;

/// The door of the node's socket, if there is to be one: with the keys that pods' volumes are
/// judged by, for tokens of its own audience.
pub(super) fn door(
    socket: Option<&NodeSocket>,
    directory: &PodDirectory,
    verifier: Option<&Verifier>,
    proof: &NodeProof,
    metrics: &Metrics,
) -> Option<Arc<NodeDoor>> {
    let (socket, verifier) = (socket?, verifier?);
    if proof.kubelet.is_none() {
        tracing::error!("the node socket refuses everybody: {proof}");
    }
    let verifier = verifier.for_audience(socket.proof_audience.clone());
    Some(Arc::new(NodeDoor::new(directory.clone(), verifier, socket.proof, metrics)))
}
