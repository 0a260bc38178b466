//! Which volume is meant: the grammar of the kubelet's target paths. Pure.
//!
//! `<kubelet root>/pods/<pod uid>/volumes/kubernetes.io~csi/<volume name>/mount`, and nothing else.
//! The text only names a pod's volume; whoever acts on it builds the path anew from the two names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::domain::{PodUid, PodVolumeName};

/// The longest path of a kubelet's root; leaves room for the longest target in one request.
const ROOT_BYTES_MAX: usize = 1024;
/// Between the pod's uid and the volume's name in a directory name; no part of either.
const SEPARATOR: char = '~';
/// The last component of a target: the directory that the driver makes and removes.
pub const TARGET_DIRECTORY: &str = "mount";

/// One volume of one pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeKey {
    /// The pod.
    pub pod: PodUid,
    /// The volume's name in the pod's spec.
    pub volume: PodVolumeName,
}

impl VolumeKey {
    /// The name of its private directory: `<pod uid>~<volume name>`.
    pub fn directory(&self) -> String {
        format!("{}{SEPARATOR}{}", self.pod, self.volume)
    }

    /// The directory its target lies in, relative to the kubelet's root. The kubelet makes it.
    pub fn target_parent(&self) -> String {
        format!("pods/{}/volumes/kubernetes.io~csi/{}", self.pod, self.volume)
    }
}

impl fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pod, self.volume)
    }
}

/// Why a text names no volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum TargetError {
    /// Not below the kubelet's root.
    #[error("target is not below the kubelet's root; give its --root-dir as --kubelet-root")]
    OtherRoot,
    /// Not the path of a CSI volume.
    #[error("target is not '<kubelet root>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount'")]
    Shape,
    /// Not a pod's uid.
    #[error("target has no uid of a pod where one belongs")]
    PodUid,
    /// Not a volume's name.
    #[error("target has no name of a volume where one belongs")]
    VolumeName,
}

fn key(pod: &str, volume: &str) -> Result<VolumeKey, TargetError> {
    let pod = pod.parse().map_err(|_| TargetError::PodUid)?;
    let volume = volume.parse().map_err(|_| TargetError::VolumeName)?;
    Ok(VolumeKey { pod, volume })
}

/// Parses the name of a private directory.
impl FromStr for VolumeKey {
    type Err = TargetError;

    fn from_str(directory: &str) -> Result<Self, TargetError> {
        let (pod, volume) = directory.split_once(SEPARATOR).ok_or(TargetError::Shape)?;
        key(pod, volume)
    }
}

impl TryFrom<String> for VolumeKey {
    type Error = TargetError;

    fn try_from(directory: String) -> Result<Self, TargetError> {
        directory.parse()
    }
}

impl From<VolumeKey> for String {
    fn from(key: VolumeKey) -> Self {
        key.directory()
    }
}

/// The kubelet's root directory as the kubelet spells it (`--root-dir`): absolute, without `.`,
/// `..`, doubled or trailing slashes, and not `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletRoot(String);

/// Why a text is no root of a kubelet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "give an absolute path of at most {ROOT_BYTES_MAX} bytes, as the kubelet's --root-dir has it, \
     without '.', '..' and doubled slashes: /var/lib/kubelet"
)]
pub struct KubeletRootError;

impl FromStr for KubeletRoot {
    type Err = KubeletRootError;

    fn from_str(path: &str) -> Result<Self, KubeletRootError> {
        let segments = path.strip_prefix('/').ok_or(KubeletRootError)?;
        let plain = |segment: &str| !matches!(segment, "" | "." | "..") && !segment.contains('\0');
        if path.len() > ROOT_BYTES_MAX || !segments.split('/').all(plain) {
            return Err(KubeletRootError);
        }
        Ok(Self(path.to_owned()))
    }
}

impl KubeletRoot {
    /// As the kubelet spells it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A target path that the kubelet would give for one of its pods' CSI volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    key: VolumeKey,
    path: String,
}

impl Target {
    /// Parses `path` as the kubelet with this root would spell it.
    pub fn parse(root: &KubeletRoot, path: &str) -> Result<Self, TargetError> {
        let rest = path.strip_prefix(root.as_str()).ok_or(TargetError::OtherRoot)?;
        let rest = rest.strip_prefix('/').ok_or(TargetError::OtherRoot)?;
        let segments: Vec<&str> = rest.split('/').collect();
        let ["pods", pod, "volumes", "kubernetes.io~csi", volume, TARGET_DIRECTORY] = segments[..]
        else {
            return Err(TargetError::Shape);
        };
        Ok(Self { key: key(pod, volume)?, path: path.to_owned() })
    }

    /// The target of a volume.
    pub fn of(root: &KubeletRoot, key: &VolumeKey) -> Self {
        let path = format!("{}/{}/{TARGET_DIRECTORY}", root.as_str(), key.target_parent());
        Self { key: key.clone(), path }
    }

    /// Whose it is.
    pub fn key(&self) -> &VolumeKey {
        &self.key
    }

    /// As the kubelet spells it.
    pub fn as_str(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab";

    fn root() -> KubeletRoot {
        "/var/lib/kubelet".parse().unwrap()
    }

    fn refused(path: &str) -> TargetError {
        Target::parse(&root(), path).unwrap_err()
    }

    #[test]
    fn the_kubelets_path_of_a_csi_volume_names_pod_and_volume() {
        let path = format!("/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/secrets/mount");
        let target = Target::parse(&root(), &path).unwrap();
        assert_eq!((target.key().pod.as_str(), target.key().volume.as_str()), (UID, "secrets"));
        assert_eq!(target, Target::of(&root(), target.key()));
        assert_eq!(target.key().directory(), format!("{UID}~secrets"));
        assert_eq!(target.key().directory().parse::<VolumeKey>().as_ref(), Ok(target.key()));
    }

    #[test]
    fn every_other_path_is_refused() {
        let volumes = format!("/var/lib/kubelet/pods/{UID}/volumes");
        for (path, why) in [
            (String::new(), TargetError::OtherRoot),
            ("/var/lib/kubelet".into(), TargetError::OtherRoot),
            (
                "/var/lib/kubelet2/pods/a/volumes/kubernetes.io~csi/a/mount".into(),
                TargetError::OtherRoot,
            ),
            (
                "/var/lib/kubelet/../kubelet/pods/a/volumes/kubernetes.io~csi/a/mount".into(),
                TargetError::Shape,
            ),
            (
                format!("/srv/kubelet/pods/{UID}/volumes/kubernetes.io~csi/a/mount"),
                TargetError::OtherRoot,
            ),
            (
                format!("//var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/a/mount"),
                TargetError::OtherRoot,
            ),
            (format!("{volumes}/kubernetes.io~empty-dir/a/mount"), TargetError::Shape),
            (format!("{volumes}/kubernetes.io~csi/a"), TargetError::Shape),
            (format!("{volumes}/kubernetes.io~csi/a/mount/"), TargetError::Shape),
            (format!("{volumes}/kubernetes.io~csi/a/mount/b"), TargetError::Shape),
            (format!("{volumes}/kubernetes.io~csi//mount"), TargetError::VolumeName),
            (format!("{volumes}/kubernetes.io~csi/../mount"), TargetError::VolumeName),
            (format!("{volumes}/kubernetes.io~csi/a\0b/mount"), TargetError::VolumeName),
            (format!("{volumes}//kubernetes.io~csi/a/mount"), TargetError::Shape),
            (
                "/var/lib/kubelet/pods/../volumes/kubernetes.io~csi/a/mount".into(),
                TargetError::PodUid,
            ),
            (
                "/var/lib/kubelet/pods//volumes/kubernetes.io~csi/a/mount".into(),
                TargetError::PodUid,
            ),
        ] {
            assert_eq!(refused(&path), why, "{path:?}");
        }
    }

    #[test]
    fn a_kubelets_root_is_one_plain_absolute_path() {
        for bad in ["", "/", "var", "/a/", "/a//b", "/a/./b", "/a/../b", "/a\0b"] {
            assert!(bad.parse::<KubeletRoot>().is_err(), "{bad:?}");
        }
        assert!(format!("/{}", "a".repeat(1024)).parse::<KubeletRoot>().is_err());
        assert!("/var/lib/k8s..x/kubelet".parse::<KubeletRoot>().is_ok());
    }

    proptest! {
        /// Whatever is accepted is spelled exactly as we would spell it ourselves.
        #[test]
        fn an_accepted_path_is_the_only_spelling_of_its_volume(
            segments in proptest::collection::vec(
                "(pods|volumes|kubernetes\\.io~csi|mount|[a-z0-9./~\\-]{0,6})", 1..8,
            ),
        ) {
            let path = format!("/var/lib/kubelet/{}", segments.join("/"));
            if let Ok(target) = Target::parse(&root(), &path) {
                prop_assert_eq!(&target, &Target::of(&root(), target.key()));
                prop_assert!(!path.contains("..") && !path.contains("//"));
            }
        }

        #[test]
        fn a_directory_name_that_parses_is_one_harmless_segment(name in "[a-z0-9./~\\-]{0,12}") {
            if let Ok(key) = name.parse::<VolumeKey>() {
                prop_assert_eq!(key.directory(), name.clone());
                prop_assert!(!name.contains('/') && !name.contains('.'));
            }
        }
    }
}
