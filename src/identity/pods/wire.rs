//! What is read of a pod: a dozen fields. Environment and arguments, in which people keep secrets,
//! are dropped while the answer is decoded.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::DirectoryPod;
use crate::domain::{KubernetesNameError, NodeName, PodUid};

/// Length of the uid that the kubelet makes up for a static pod: MD5 in hex, no UUID.
const STATIC_UID_BYTES: usize = 32;

/// A pod as the API server sends it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct WirePod {
    metadata: WireMetadata,
    #[serde(default)]
    spec: WireSpec,
    #[serde(default)]
    status: WireStatus,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMetadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: WireAnnotations,
    #[serde(default)]
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct WireAnnotations {
    /// Set by the kubelet on what it shows the API server of a static pod: the uid that the node
    /// itself knows the pod by, which is not the API's.
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireSpec {
    node_name: String,
    service_account_name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct WireStatus {
    phase: String,
}

/// A list of pods.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct WireList {
    pub(super) metadata: WireListMetadata,
    pub(super) items: Vec<WirePod>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireListMetadata {
    pub(super) resource_version: String,
}

/// What a pod of the API server is to this directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Listed {
    /// One that may have an identity.
    Pod(DirectoryPod),
    /// A static pod, by the uid its node knows it by. It has no service account and gets nothing.
    Static(PodUid),
}

impl Listed {
    pub(super) fn uid(&self) -> &PodUid {
        match self {
            Self::Pod(pod) => &pod.uid,
            Self::Static(uid) => uid,
        }
    }
}

impl WirePod {
    pub(super) fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }

    /// `None` for a pod of another node, which the API server was not asked for.
    pub(super) fn listed(self, node: &NodeName) -> Option<Result<Listed, KubernetesNameError>> {
        (self.spec.node_name == node.as_str()).then(|| self.parsed())
    }

    fn parsed(self) -> Result<Listed, KubernetesNameError> {
        let Self { metadata, spec, status } = self;
        if let Some(mirrored) = metadata.annotations.mirror {
            // Anybody may write the annotation; believed is only what no ordinary pod is called.
            let made_up = mirrored.len() == STATIC_UID_BYTES && !mirrored.contains('-');
            return Ok(Listed::Static(if made_up { &mirrored } else { &metadata.uid }.parse()?));
        }
        let ended = matches!(status.phase.as_str(), "Succeeded" | "Failed");
        Ok(Listed::Pod(DirectoryPod {
            uid: metadata.uid.parse()?,
            name: metadata.name.parse()?,
            namespace: metadata.namespace.parse()?,
            service_account: spec.service_account_name.parse()?,
            labels: Arc::new(metadata.labels),
            leaving: ended || metadata.deletion_timestamp.is_some(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MIRROR: &str = "kubernetes.io/config.mirror";

    fn listed(change: impl FnOnce(&mut serde_json::Value)) -> Option<Result<Listed, String>> {
        let mut pod = json!({
            "metadata": {
                "name": "web-0", "namespace": "shop", "uid": "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab",
                "resourceVersion": "7", "labels": { "app": "shop" },
                "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "s3cret" },
            },
            "spec": {
                "nodeName": "node-1", "serviceAccountName": "web",
                "containers": [{ "name": "main", "args": ["--password=s3cret"],
                    "env": [{ "name": "PASSWORD", "value": "s3cret" }] }],
            },
            "status": { "phase": "Running" },
        });
        change(&mut pod);
        let pod: WirePod = serde_json::from_value(pod).unwrap();
        assert!(!format!("{pod:?}").contains("s3cret"), "{pod:?}");
        let node = "node-1".parse().unwrap();
        pod.listed(&node).map(|result| result.map_err(|error| error.to_string()))
    }

    fn pod(change: impl FnOnce(&mut serde_json::Value)) -> DirectoryPod {
        match listed(change) {
            Some(Ok(Listed::Pod(pod))) => pod,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pod_keeps_its_names_and_labels_and_loses_environment_and_arguments() {
        let pod = pod(|_| ());
        let names = (pod.namespace.as_str(), pod.name.as_str(), pod.service_account.as_str());
        assert_eq!(names, ("shop", "web-0", "web"));
        assert_eq!(pod.labels.get("app").map(String::as_str), Some("shop"));
        assert!(!pod.leaving);
    }

    #[test]
    fn a_pod_that_is_being_deleted_or_has_ended_is_leaving() {
        assert!(
            pod(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-11-25T00:00:00Z")).leaving
        );
        assert!(pod(|pod| pod["status"]["phase"] = json!("Failed")).leaving);
        assert!(pod(|pod| pod["status"]["phase"] = json!("Succeeded")).leaving);
        assert!(!pod(|pod| pod["status"] = json!({})).leaving);
    }

    #[test]
    fn a_static_pod_goes_by_its_nodes_uid_which_is_never_another_pods() {
        let hash = "0123456789abcdef0123456789abcdef";
        let mirror =
            |value: &str| listed(|pod| pod["metadata"]["annotations"][MIRROR] = json!(value));
        let uid = |found| match found {
            Some(Ok(Listed::Static(uid))) => uid.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(uid(mirror(hash)), hash);
        let own = "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab";
        assert_eq!(uid(mirror("11111111-2222-3333-4444-555555555555")), own);
        assert_eq!(uid(mirror("")), own);
    }

    #[test]
    fn other_nodes_pods_are_none_and_bad_names_are_errors() {
        assert_eq!(listed(|pod| pod["spec"]["nodeName"] = json!("node-2")), None);
        assert!(matches!(listed(|pod| pod["metadata"]["name"] = json!("a/b")), Some(Err(_))));
        assert!(matches!(listed(|pod| pod["metadata"]["uid"] = json!("..")), Some(Err(_))));
    }
}
