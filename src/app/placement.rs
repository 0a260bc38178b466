//! What this node can prove about callers in pods, found out at start.

use crate::config::PlacementSettings;
use crate::domain::PodUid;
use crate::hardening::Hardened;
use crate::identity::self_test::{NodeProof, attest_self};

/// What this node can prove about processes in pods; a node that serves pods and cannot place their
/// processes says so loudly.
pub(super) fn prove(placement: Option<&PlacementSettings>, serves_pods: bool) -> NodeProof {
    let proof = placement.map_or_else(NodeProof::not_asked, |placement| {
        attest_self(&placement.pod, placement.cgroup_root.as_deref())
    });
    match &proof.limit {
        Some(limit) if placement.is_some() => tracing::warn!(strength = %proof.strength, "{limit}"),
        Some(_) if !serves_pods => {}
        _ => tracing::info!("{proof}"),
    }
    proof
}

/// The agent's own pod, if the agent sees the processes of the node.
pub(super) fn seen_as<'a>(
    placement: Option<&'a PlacementSettings>,
    proof: &NodeProof,
) -> Option<&'a PodUid> {
    placement.filter(|_| proof.kubelet.is_some()).map(|placement| &placement.pod)
}

/// What protects this process and its callers, for status.
pub(super) fn protections(
    hardened: &Hardened,
    proof: &NodeProof,
    serves_pods: bool,
) -> Vec<String> {
    let steps = hardened.steps.iter().map(ToString::to_string);
    steps.chain(serves_pods.then(|| proof.to_string())).collect()
}
