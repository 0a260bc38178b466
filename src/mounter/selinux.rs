//! SELinux: which label the files of volumes have. Pure.
//!
//! A container may read what has the type that runtimes give to containers' files. Without it a
//! tmpfs has one that depends on the node's policy, and the kubelet relabels no read-only volume.
//! No label of the pod's own comes from the kubelet: it passes one with persistent volumes only.

use rustix::io::Errno;

use crate::mountinfo::MountLine;

/// Of all files of every volume: readable for containers, whatever their categories.
const LABEL: &str = "system_u:object_r:container_file_t:s0";

/// The label of a new volume, by the mount of the kubelet's root: the kernel marks file systems
/// whose files have labels, once SELinux has a policy. Its own file system in `/sys` would say so
/// too, but is not there in containers.
pub(super) fn label(kubelet: Option<&MountLine>) -> Option<&'static str> {
    let labelled = |line: &MountLine| line.super_options.split(',').any(|o| o == "seclabel");
    kubelet.is_some_and(labelled).then_some(LABEL)
}

/// Whether this may be the node's policy, which does not know the label or may not have it given.
pub(super) fn refuses_labels(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::ACCESS | Errno::PERM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mountinfo;

    fn labelled(super_options: &str) -> bool {
        let line = format!("36 35 8:1 / /var/lib/kubelet rw shared:1 - xfs /dev/a {super_options}");
        label(mountinfo::parse(line.as_bytes()).first()).is_some()
    }

    #[test]
    fn volumes_are_labelled_where_the_kubelets_own_files_are() {
        assert!(labelled("rw,seclabel,attr2,noquota"));
        for without in ["rw", "rw,noseclabel", "rw,seclabel=x", "rw,context=system_u:object_r:x:s0"]
        {
            assert!(!labelled(without), "{without}");
        }
        assert!(label(None).is_none());
    }

    #[test]
    fn a_policy_that_refuses_the_label_is_told_from_a_node_without_memory() {
        assert!(refuses_labels(Errno::ACCESS) && refuses_labels(Errno::INVAL));
        assert!(!refuses_labels(Errno::NOMEM));
    }
}
