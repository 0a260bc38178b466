//! Whom an operator means by a name: a pod may come through several doors with different proofs,
//! and its account's pods may have different labels. Policy can tell all of these apart.

use std::sync::Arc;

use crate::identity::pods::{DirectoryPod, PodDirectory};
use crate::identity::supposed::{SupposedError, SupposedPod};
use crate::identity::{Identity, Listener, ProofStrength, Subject};

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
    /// account, the pods that the directory knows and that go on, one of those with the same
    /// labels; where it knows none, one without known labels.
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
        let known = alike(directory.of_account(&account.namespace, &account.name));
        let mut pods: Vec<_> = known.into_iter().map(Some).collect();
        if pods.is_empty() {
            pods.push(None);
        }
        let through = |pods: &Option<Alike>, (listener, strength)| {
            let supposed = SupposedPod {
                namespace: account.namespace.clone(),
                service_account: account.name.clone(),
                listener,
                strength,
                known: pods.as_ref().map(|alike| (alike.one.uid.clone(), alike.one.name.clone())),
            };
            let name = pods.as_ref().map_or_else(String::new, Alike::name);
            (format!("{text}{name} ({listener}, {strength})"), Identity::supposed_pod(&supposed))
        };
        let all = pods.iter().flat_map(|pod| self.0.iter().map(move |door| through(pod, *door)));
        Ok(all.collect())
    }
}

/// Pods of one account that only their names tell apart.
struct Alike {
    one: Arc<DirectoryPod>,
    others: usize,
}

impl Alike {
    fn name(&self) -> String {
        match self.others {
            0 => format!(", pod {}", self.one.name),
            others => format!(", pod {} and {others} like it", self.one.name),
        }
    }
}

fn alike(pods: Vec<Arc<DirectoryPod>>) -> Vec<Alike> {
    let mut all: Vec<Alike> = Vec::new();
    for pod in pods.into_iter().filter(|pod| !pod.leaving) {
        match all.iter_mut().find(|alike| alike.one.labels == pod.labels) {
            Some(alike) => alike.others += 1,
            None => all.push(Alike { one: pod, others: 0 }),
        }
    }
    all
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

    #[test]
    fn pods_with_the_same_labels_are_asked_about_once_and_those_that_end_not_at_all() {
        let pod = |name: &str, tier: &str, leaving: bool| {
            Arc::new(DirectoryPod {
                uid: format!("{name}-uid").parse().unwrap(),
                name: name.parse().unwrap(),
                namespace: "shop".parse().unwrap(),
                service_account: "web".parse().unwrap(),
                labels: Arc::new([("tier".to_owned(), tier.to_owned())].into()),
                leaving,
            })
        };
        let pods = vec![
            pod("done", "back", true),
            pod("a", "front", false),
            pod("b", "back", false),
            pod("c", "front", false),
        ];
        let names: Vec<String> = alike(pods).iter().map(Alike::name).collect();
        assert_eq!(names, [", pod a and 1 like it", ", pod b"]);
    }
}
