//! The second source: what the node itself still has of a pod.

use std::io;
use std::path::PathBuf;

use crate::domain::PodUid;

/// Whether a pod is still on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Present,
    /// Nothing of it is left.
    Absent,
    /// This process cannot see it.
    Unknown,
}

/// Asks for the pod's directory below the kubelet's root, which the kubelet removes when the pod's
/// containers have ended and its volumes are taken away. Blocks on one or two calls of `stat`.
pub fn kubelet_presence(kubelet_root: &str) -> impl Fn(&PodUid) -> Presence + Send + Sync + use<> {
    let pods = PathBuf::from(kubelet_root).join("pods");
    move |uid| match pods.join(uid.as_str()).symlink_metadata() {
        Ok(_) => Presence::Present,
        // In a container that is not shown the kubelet's directory everything is missing.
        Err(error) if error.kind() == io::ErrorKind::NotFound && pods.is_dir() => Presence::Absent,
        Err(_) => Presence::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_without_its_directory_is_absent_only_where_the_others_can_be_seen() {
        let root = tempfile::tempdir().unwrap();
        let presence = kubelet_presence(root.path().to_str().unwrap());
        let uid: PodUid = "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab".parse().unwrap();
        assert_eq!(presence(&uid), Presence::Unknown);
        let pod = root.path().join("pods").join(uid.as_str());
        std::fs::create_dir_all(&pod).unwrap();
        assert_eq!(presence(&uid), Presence::Present);
        std::fs::remove_dir(&pod).unwrap();
        assert_eq!(presence(&uid), Presence::Absent);
    }
}
