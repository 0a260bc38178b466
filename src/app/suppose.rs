//! Whom an operator means by a name: a pod may come through several doors with different proofs,
//! and its account's pods may have different labels. Policy can tell all of these apart.

use std::sync::Arc;

use crate::identity::pods::{DirectoryPod, PodDirectory};
use crate::identity::supposed::{SupposedError, SupposedPod};
use crate::identity::{Identity, Listener, ProofStrength, Subject};

/// Pods of one account that are asked about, at most.
const PODS_MAX: usize = 8;

/// The doors of this agent, as pods are proved there.
#[derive(Debug, Clone)]
pub(super) struct Doors(Vec<(Listener, ProofStrength)>);

impl Doors {
    /// Volumes, pods' own sockets with the strongest proof that this node has, and the node's
    /// socket if there is one.
    pub(super) fn new(pod_socket: ProofStrength, node_socket: bool) -> Self {
        let mut doors =
            vec![(Listener::Csi, ProofStrength::Token), (Listener::PodSocket, pod_socket)];
        if node_socket {
            doors.push((Listener::Node, ProofStrength::Token));
        }
        Self(doors)
    }

    /// Everybody that `text` may mean, each with a name that says what is supposed. Of a pod's
    /// account, the pods that the directory knows; where it knows none, one without known labels.
    ///
    /// # Errors
    /// It names nobody.
    pub(super) fn supposed(
        &self,
        text: &str,
        directory: &PodDirectory,
    ) -> Result<Vec<(String, Identity)>, SupposedError> {
        let identity = Identity::supposed(text)?;
        let Subject::Pod(pod) = identity.subject() else {
            return Ok(vec![(identity.to_string(), identity)]);
        };
        let account = &pod.account;
        let known = directory.of_account(&account.namespace, &account.name);
        let mut pods: Vec<Option<Arc<DirectoryPod>>> =
            known.into_iter().take(PODS_MAX).map(Some).collect();
        if pods.is_empty() {
            pods.push(None);
        }
        let through = |pod: &Option<Arc<DirectoryPod>>, (listener, strength)| {
            let supposed = SupposedPod {
                namespace: account.namespace.clone(),
                service_account: account.name.clone(),
                listener,
                strength,
                known: pod.as_ref().map(|pod| (pod.uid.clone(), pod.name.clone())),
            };
            let name = pod.as_ref().map_or_else(String::new, |pod| format!(", pod {}", pod.name));
            (format!("{text}{name} ({listener}, {strength})"), Identity::supposed_pod(&supposed))
        };
        let all = pods.iter().flat_map(|pod| self.0.iter().map(move |door| through(pod, *door)));
        Ok(all.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_asked_about_at_every_door_and_others_once() {
        let doors = Doors::new(ProofStrength::SocketOnly, true);
        let names = |text: &str| {
            let all = doors.supposed(text, &PodDirectory::none()).unwrap();
            all.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let expected = [
            "pod:shop/web (csi, token)",
            "pod:shop/web (pod-socket, socket-only)",
            "pod:shop/web (node, token)",
        ];
        assert_eq!(names("pod:shop/web"), expected);
        assert_eq!(names("uid:1000"), ["uid:1000"]);
        assert!(doors.supposed("web", &PodDirectory::none()).is_err());
    }
}
