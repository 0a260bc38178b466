//! `[sockets.node]`: one socket for all pods of this node.

use std::path::Path;

use crate::config::document::Section;
use crate::config::settings::{CsiSettings, PlacementSettings};
use crate::delivery::socket::{NodeSocket, ProofToken};
use crate::identity::pods::WatchedNode;

/// Audiences that API servers have by default: a token for one could be used on the cluster.
const API_SERVER_AUDIENCES: [&str; 4] = [
    "https://kubernetes.default.svc",
    "https://kubernetes.default.svc.cluster.local",
    "kubernetes.default.svc",
    "api",
];

/// `None` while it is not enabled, or after a problem. `taken` are the other sockets.
pub(super) fn read(section: &Section, runtime_dir: &Path, taken: &[&Path]) -> Option<NodeSocket> {
    let enabled = section.boolean("enabled", false);
    let path = section.path("path", &runtime_dir.join("node/node.sock").to_string_lossy());
    let audience = section.get("proof_audience").map_or_else(
        || Some("secrets-broker".to_owned()),
        |field| field.convert(audience, "write a name of its own, for example secrets-broker"),
    );
    let proofs = [("required", ProofToken::Required), ("below-pidfd", ProofToken::BelowPidFd)];
    let proof = section.choice("proof_token", ProofToken::Required, &proofs);
    if taken.iter().any(|other| is_beside(&path, other)) || is_beside(&path, runtime_dir) {
        let message = "pods mount this socket's directory, and it holds more of the agent's";
        section.problem_at("path", message, "give it a directory of its own");
    }
    section.finish();
    Some(NodeSocket { path, proof_audience: audience?, proof }).filter(|_| enabled)
}

/// Whether whoever mounts the socket's directory has this in it, too.
fn is_beside(socket: &Path, other: &Path) -> bool {
    socket.parent().is_some_and(|directory| other.starts_with(directory))
}

fn audience(text: &str) -> Result<String, &'static str> {
    match text {
        "" => Err("is empty"),
        text if API_SERVER_AUDIENCES.contains(&text) => {
            Err("is an audience of the API server, so the token would be good there, too")
        }
        text => Ok(text.to_owned()),
    }
}

/// What a pod needs to be named by: a node that can place processes, and a directory of pods.
pub(super) fn check(
    root: &Section,
    runtime_dir: &Path,
    node: Option<&NodeSocket>,
    csi: Option<&CsiSettings>,
    placement: Option<&PlacementSettings>,
    pods: Option<&WatchedNode>,
) {
    let Some(node) = node else { return };
    let sockets = root.section("sockets");
    let section = sockets.section("node");
    if placement.is_none() {
        let message = "callers cannot be placed in their pods without [placement]";
        section.problem_at("enabled", message, "set [placement] pod_uid = \"${POD_UID}\"");
    }
    if pods.is_none() {
        let message = "callers' pods cannot be named without a pod directory";
        section.problem_at("enabled", message, "set [pods] directory = \"apiserver\"");
    }
    if let Some(CsiSettings { expectations, driver, .. }) = csi {
        // Of what holds the runtime directory more is said elsewhere.
        if is_beside(&node.path, &driver.state_dir) && !is_beside(&node.path, runtime_dir) {
            let message = "pods mount this socket's directory, and it holds [csi] state_dir";
            section.problem_at("path", message, "give it a directory of its own");
        }
        let audience = &node.proof_audience;
        if *audience == expectations.audience {
            let message = "is the audience of the tokens that Vault takes, see [csi] audience";
            section.problem_at("proof_audience", message, "name another one");
        }
        if expectations.issuers.contains(audience) {
            let message = "is the cluster's issuer, which is an audience of the API server";
            section.problem_at("proof_audience", message, "name another one");
        }
    }
}
