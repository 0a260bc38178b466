//! Kubernetes' names and uids, parsed once: whoever holds one may use it as a path segment.

use std::fmt;

use super::text_name::text_name;

/// RFC 1123 label, the bound on namespaces.
const LABEL_BYTES_MAX: usize = 63;
/// RFC 1123 subdomain, the bound on names of pods, service accounts and nodes.
const SUBDOMAIN_BYTES_MAX: usize = 253;
/// Longer than any uid Kubernetes gives out (36), and short enough for a directory name.
const UID_BYTES_MAX: usize = 64;
/// SHA-256 in hex.
const CONTAINER_ID_BYTES: usize = 64;

/// Why a Kubernetes name or uid was refused. The message never repeats hostile bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KubernetesNameError {
    /// No characters.
    #[error("name is empty")]
    Empty,
    /// Over its bound.
    #[error("name is longer than {0} bytes")]
    TooLong(usize),
    /// Not a name Kubernetes would accept.
    #[error("name is not what Kubernetes accepts (a-z, 0-9, '-', and '.' where dots are allowed)")]
    Character,
}

/// RFC 1123: labels of `a-z 0-9 -`, none starting or ending with `-`, joined by dots if allowed.
fn check_dns(name: &str, bytes_max: usize, dots: bool) -> Result<(), KubernetesNameError> {
    if name.is_empty() {
        return Err(KubernetesNameError::Empty);
    }
    if name.len() > bytes_max {
        return Err(KubernetesNameError::TooLong(bytes_max));
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = |label: &str| {
        let ends_well = !label.starts_with('-') && !label.ends_with('-');
        !label.is_empty() && ends_well && label.chars().all(allowed)
    };
    let good = if dots { name.split('.').all(is_label) } else { is_label(name) };
    if good { Ok(()) } else { Err(KubernetesNameError::Character) }
}

/// Kubernetes promises only that a uid is an opaque string; in practice it is a UUID, or 32 hex
/// digits for a static pod. What is refused here could not be a directory's name.
fn check_uid(uid: &str) -> Result<(), KubernetesNameError> {
    if uid.is_empty() {
        return Err(KubernetesNameError::Empty);
    }
    if uid.len() > UID_BYTES_MAX {
        return Err(KubernetesNameError::TooLong(UID_BYTES_MAX));
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if uid.chars().all(allowed) { Ok(()) } else { Err(KubernetesNameError::Character) }
}

fn check_container_id(id: &str) -> Result<(), KubernetesNameError> {
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let good = id.len() == CONTAINER_ID_BYTES && id.chars().all(hex);
    if good { Ok(()) } else { Err(KubernetesNameError::Character) }
}

text_name!(
    /// A namespace.
    Namespace,
    KubernetesNameError,
    |name| check_dns(name, LABEL_BYTES_MAX, false)
);
text_name!(
    /// The name of a service account; identifies nothing without its namespace and uid.
    ServiceAccountName,
    KubernetesNameError,
    |name| check_dns(name, SUBDOMAIN_BYTES_MAX, true)
);
text_name!(
    /// The uid of a service account: a re-created account of the same name has another.
    ServiceAccountUid,
    KubernetesNameError,
    check_uid
);
text_name!(
    /// The name of a pod; a StatefulSet's successor has the same.
    PodName,
    KubernetesNameError,
    |name| check_dns(name, SUBDOMAIN_BYTES_MAX, true)
);
text_name!(
    /// The uid of a pod, never used again: what identifies it here, and its directory's name below
    /// the kubelet's root.
    PodUid,
    KubernetesNameError,
    check_uid
);
text_name!(
    /// A container's id as its runtime gives it: 64 hex digits in every runtime Kubernetes knows.
    ContainerId,
    KubernetesNameError,
    check_container_id
);
text_name!(
    /// The name of a node.
    NodeName,
    KubernetesNameError,
    |name| check_dns(name, SUBDOMAIN_BYTES_MAX, true)
);
text_name!(
    /// The name of a CSI driver: a subdomain, but with a label's bound on its length.
    CsiDriverName,
    KubernetesNameError,
    |name| check_dns(name, LABEL_BYTES_MAX, true)
);
text_name!(
    /// The name of a volume in a pod's spec, unique within the pod.
    PodVolumeName,
    KubernetesNameError,
    |name| check_dns(name, LABEL_BYTES_MAX, false)
);

/// One service account, told apart from an earlier one of the same name by its uid.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: ServiceAccountName,
    /// Its uid.
    pub uid: ServiceAccountUid,
}

impl ServiceAccount {
    /// The account of a pod that showed no token: which account of that name it is was not proved,
    /// so it is equal to no other pod's, and its uid is one that Kubernetes gives to nobody.
    pub fn unproved(namespace: Namespace, name: ServiceAccountName, pod: &PodUid) -> Self {
        let uid = ServiceAccountUid(format!("unproved-{pod}").into());
        Self { namespace, name, uid }
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One pod on this node and the service account it runs as.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pod {
    /// Its uid.
    pub uid: PodUid,
    /// Its name.
    pub name: PodName,
    /// The account it runs as; the account's namespace is the pod's.
    pub account: ServiceAccount,
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.account.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_what_kubernetes_accepts() {
        for good in ["default", "kube-system", "a", "0", "a1-b2"] {
            assert!(good.parse::<Namespace>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a_b", "..", &"a".repeat(64)] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad}");
        }
        for good in ["web-0", "ip-10-0-0-1.ec2.internal", "a.b"] {
            assert!(good.parse::<PodName>().is_ok(), "{good}");
        }
        for bad in ["a..b", ".a", "a.", "a/b", "..", "a\n", &"a".repeat(254)] {
            assert!(bad.parse::<PodName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_uid_is_a_uuid_or_a_static_pods_hash() {
        for good in ["8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab", "0123456789abcdef0123456789abcdef"] {
            assert!(good.parse::<PodUid>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a\0", "A", &"a".repeat(65)] {
            assert!(bad.parse::<PodUid>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unproved_account_is_that_of_one_pod_only() {
        let account = |pod: &str| {
            let (namespace, name) = ("shop".parse().unwrap(), "web".parse().unwrap());
            ServiceAccount::unproved(namespace, name, &pod.parse().unwrap())
        };
        let (a, b) = ("8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab", "0123456789abcdef0123456789abcdef");
        assert_eq!(account(a), account(a));
        assert_ne!(account(a), account(b));
        assert_eq!(account(a).to_string(), "shop/web");
    }

    proptest! {
        #[test]
        fn whatever_parses_is_one_harmless_path_segment(text in "[a-zA-Z0-9./_\\-]{0,8}") {
            let parsed = [
                text.parse::<PodUid>().map(|name| name.to_string()),
                text.parse::<PodName>().map(|name| name.to_string()),
                text.parse::<PodVolumeName>().map(|name| name.to_string()),
            ];
            for name in parsed.into_iter().flatten() {
                prop_assert!(!name.contains('/') && name != "." && name != "..");
            }
        }
    }
}
