//! A publish call, read: which volume, for which pod, with which token, holding what. Pure.

use std::collections::HashMap;
use std::str::FromStr;

use crate::domain::Token;
use crate::identity::token::{PodInfo, token_for_audience};
use crate::mounter::{KubeletRoot, Target};

use super::attributes::{Attributes, account_id};
use super::proto::csi::NodePublishVolumeRequest;
use super::proto::csi::volume_capability::AccessType;

/// Where the kubelet puts the pod's tokens: in `secrets` since Kubernetes 1.35, before that among
/// the attributes.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// What a volume that a pod could write to is told.
pub const WRITABLE: &str = "the volume is writable; write readOnly: true under csi";
/// Set for volumes that are written in the pod's own spec.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// What a publish call asks for. Nothing in it is believed before the token is verified.
pub(super) struct Publish {
    /// The kubelet's id of the volume.
    pub(super) volume_id: String,
    /// Where it is to appear, and with that which volume of which pod it is.
    pub(super) target: Target,
    /// The pod, as the kubelet says.
    pub(super) pod: PodInfo,
    /// The pod's token for this driver's audience.
    pub(super) token: Token,
    /// What it is to hold.
    pub(super) attributes: Attributes,
    /// The pod's `fsGroup`.
    pub(super) fs_group: Option<u32>,
}

impl Publish {
    /// Reads a call; on failure says everything that is wrong with it.
    pub(super) fn read(
        request: &NodePublishVolumeRequest,
        root: &KubeletRoot,
        audience: &str,
    ) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        if request.volume_id.is_empty() {
            problems.push("volume_id is missing".to_owned());
        }
        let fs_group = capability(request, &mut problems);
        if !request.readonly {
            problems.push(WRITABLE.to_owned());
        }
        let target = noted(Target::parse(root, &request.target_path), &mut problems);
        let context = &request.volume_context;
        if context.get(EPHEMERAL).map(String::as_str) != Some("true") {
            let message = "only ephemeral inline volumes are served; write the volume into the \
                           pod's spec, and list Ephemeral in the CSIDriver's volumeLifecycleModes";
            problems.push(message.to_owned());
        }
        let pod = pod_info(context, &mut problems);
        if let (Some(target), Some(pod)) = (&target, &pod)
            && target.key().pod != pod.uid
        {
            problems.push("target_path is another pod's".to_owned());
        }
        let token = match request.secrets.get(TOKENS).or_else(|| context.get(TOKENS)) {
            Some(tokens) => noted(token_for_audience(tokens, audience), &mut problems),
            None => {
                problems.push(format!(
                    "no token of the pod came with the call; list audience '{audience}' under the \
                     CSIDriver's tokenRequests"
                ));
                None
            }
        };
        let pairs = context.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let attributes = match Attributes::parse(pairs) {
            Ok(attributes) => Some(attributes),
            Err(more) => {
                problems.extend(more);
                None
            }
        };
        match (target, pod, token, attributes) {
            (Some(target), Some(pod), Some(token), Some(attributes)) if problems.is_empty() => {
                let volume_id = request.volume_id.clone();
                Ok(Self { volume_id, target, pod, token, attributes, fs_group })
            }
            _ => Err(problems),
        }
    }
}

/// The volume's group, if the capability is one that can be served.
fn capability(request: &NodePublishVolumeRequest, problems: &mut Vec<String>) -> Option<u32> {
    let capability = request.volume_capability.as_ref();
    let group = match capability.and_then(|capability| capability.access_type.as_ref()) {
        Some(AccessType::Mount(mount)) => &mount.volume_mount_group,
        Some(AccessType::Block(_)) => {
            problems.push("a block volume holds no files; use volumeMounts".to_owned());
            return None;
        }
        None => {
            problems.push("volume_capability is missing".to_owned());
            return None;
        }
    };
    if group.is_empty() {
        return None;
    }
    let parsed = account_id(group);
    if parsed.is_none() {
        problems.push("volume_mount_group is not a number".to_owned());
    }
    parsed
}

fn pod_info(context: &HashMap<String, String>, problems: &mut Vec<String>) -> Option<PodInfo> {
    let namespace = named(context, "csi.storage.k8s.io/pod.namespace", problems);
    let pod = named(context, "csi.storage.k8s.io/pod.name", problems);
    let uid = named(context, "csi.storage.k8s.io/pod.uid", problems);
    let service_account = named(context, "csi.storage.k8s.io/serviceAccount.name", problems);
    Some(PodInfo {
        namespace: namespace?,
        pod: pod?,
        uid: uid?,
        service_account: service_account?,
        account_uid_before: None,
    })
}

fn named<T: FromStr<Err: std::fmt::Display>>(
    context: &HashMap<String, String>,
    name: &str,
    problems: &mut Vec<String>,
) -> Option<T> {
    match context.get(name) {
        Some(text) => match text.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                None
            }
        },
        None => {
            problems.push(format!("{name} is missing; set podInfoOnMount: true in the CSIDriver"));
            None
        }
    }
}

fn noted<T, E: std::fmt::Display>(result: Result<T, E>, problems: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| problems.push(error.to_string())).ok()
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
