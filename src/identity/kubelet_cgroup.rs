//! The kubelet's cgroup root, and the grammar of what lies below it: which pod is at this path?
//!
//! The grammar is anchored and covers the whole path: root, quality of service, pod, container. A
//! name that looks like a pod anywhere else is not one. The root is learned from the agent's own
//! pod, whose uid is known from elsewhere, or configured; it is never searched for.
//!
//! | kubelet's driver | root | below it |
//! |---|---|---|
//! | `cgroupfs` | `…/kubepods` | `[<qos>/]pod<uid>/<id>`, CRI-O: `crio-<id>` |
//! | `systemd` | `…kubepods.slice` | `[<slice>/]kubepods[-<qos>]-pod<uid>.slice/<rt>-<id>.scope` |
//! | `systemd`, runtime `cgroupfs` | any | `kubepods[-<qos>]-pod<uid>.slice:<rt>:<id>` |

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::cgroup::{goes_up, lines};
use super::placed::Placed;
use super::runtime_names::{container_segment, is_hex};
use crate::domain::{ContainerId, PodUid};

/// Quality-of-service classes that have a directory; Guaranteed has none.
const QOS: [&str; 2] = ["burstable", "besteffort"];
/// Runtimes, as they begin the names of their containers' scopes.
const RUNTIMES: [&str; 4] = ["cri-containerd", "crio", "docker", "libpod"];
/// The directory or slice that the kubelet makes for all pods.
const KUBEPODS: &str = "kubepods";

/// Why the kubelet's cgroup root is not known. Peers in pods have no identity then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KubeletCgroupError {
    /// The agent's own cgroup file shows no path.
    #[error(
        "the agent's own cgroup reads as '/': its cgroup namespace is private; set cgroup_root to \
         the kubelet's, such as /kubepods.slice, or run the agent in the host's cgroup namespace"
    )]
    PrivateNamespace,
    /// The agent's own cgroup file does not hold its pod at a place that a kubelet makes.
    #[error("the agent's own cgroup is not that of its pod {0}; set cgroup_root to the kubelet's")]
    NotOwnPod(&'static str),
    /// What was configured is no such root.
    #[error(
        "cgroup_root must be an absolute path that ends in the kubelet's own directory, such as \
         /kubepods, /kubelet/kubepods or /kubepods.slice"
    )]
    NotARoot,
}

/// How pods lie below the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Cgroupfs,
    Systemd,
    /// One segment for pod and container: the runtime takes the kubelet's slice for a name.
    OneSegment,
}

/// Where this node's kubelet keeps its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletCgroup {
    layout: Layout,
    /// Directory that holds pods and classes; absolute, without a `/` at its end.
    root: String,
    /// What the names of slices begin with.
    slice: String,
    /// Hierarchies in which the agent's own pod was found, so that others must be, too.
    hierarchies: BTreeSet<String>,
    namespace: Option<Namespace>,
    placed: Placed,
}

/// The agent's own cgroup namespace, if it is not the host's: paths are then relative to its root.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Namespace {
    pod: PodUid,
    /// How deep the namespace's root lies below the host's, by hierarchy.
    depths: BTreeMap<String, usize>,
}

/// What a path says about a process.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Not below the kubelet's root.
    Outside,
    Pod(PodUid, Option<ContainerId>),
    Doubtful(&'static str),
}

impl KubeletCgroup {
    /// Learns the root from `own`, the text of the agent's `/proc/self/cgroup`, by the place of the
    /// agent's own `pod` in it.
    pub fn learned(own: &str, pod: &PodUid) -> Result<Self, KubeletCgroupError> {
        let lines = lines(own).ok_or(KubeletCgroupError::NotOwnPod("(it cannot be understood)"))?;
        if lines.iter().all(|line| line.path == "/") {
            return Err(KubeletCgroupError::PrivateNamespace);
        }
        let mut found: Option<Self> = None;
        for line in lines {
            let Some(one) = Self::around(line.path, pod) else { continue };
            let found = found.get_or_insert_with(|| one.clone());
            if (found.layout, &found.root, &found.slice) != (one.layout, &one.root, &one.slice) {
                return Err(KubeletCgroupError::NotOwnPod("(two hierarchies disagree)"));
            }
            found.hierarchies.insert(line.hierarchy.to_owned());
        }
        found.ok_or(KubeletCgroupError::NotOwnPod("(no hierarchy names it)"))
    }

    /// Takes the root from the configuration: the directory or slice of all pods, as an absolute
    /// path that ends in `kubepods`, `kubepods.slice` or `…-kubepods.slice`.
    pub fn configured(root: &str) -> Result<Self, KubeletCgroupError> {
        let segments: Vec<&str> = root.split('/').skip(1).collect();
        let plain = |segment: &&str| !matches!(*segment, "" | "." | "..");
        if !root.starts_with('/') || !segments.iter().all(plain) {
            return Err(KubeletCgroupError::NotARoot);
        }
        let last = segments.last().copied().unwrap_or_default();
        match last.strip_suffix(".slice") {
            None if last == KUBEPODS => Ok(Self::new(Layout::Cgroupfs, root, KUBEPODS)),
            Some(slice) if slice == KUBEPODS || slice.ends_with("-kubepods") => {
                Ok(Self::new(Layout::Systemd, root, slice))
            }
            _ => Err(KubeletCgroupError::NotARoot),
        }
    }

    /// Makes relative paths readable: the agent, in `pod`, has a cgroup namespace of its own.
    ///
    /// `init` is the text of `/proc/1/cgroup`: the node's first process lies outside of everything,
    /// so the steps up to it tell how deep our own namespace's root lies. They are counted for each
    /// hierarchy; one without steps is not relative.
    #[must_use]
    pub fn seen_from(mut self, init: &str, pod: PodUid) -> Self {
        let steps = |path: &str| path.split('/').filter(|segment| *segment == "..").count();
        let lines = lines(init).unwrap_or_default().into_iter();
        let depths = lines.map(|line| (line.hierarchy.to_owned(), steps(line.path)));
        let depths: BTreeMap<String, usize> = depths.filter(|(_, depth)| *depth > 0).collect();
        self.namespace = (!depths.is_empty()).then_some(Namespace { pod, depths });
        self.placed = Placed::default();
        self
    }

    fn new(layout: Layout, root: &str, slice: &str) -> Self {
        Self {
            layout,
            root: root.to_owned(),
            slice: slice.to_owned(),
            hierarchies: BTreeSet::new(),
            namespace: None,
            placed: Placed::default(),
        }
    }

    /// The root around the one segment of `path` that is `pod`.
    fn around(path: &str, pod: &PodUid) -> Option<Self> {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let names =
            |segment: &&str| segment.contains(&slice_uid(pod)) || segment.contains(pod.as_str());
        let at = segments.iter().position(names)?;
        let candidates = (0..=at).rev().flat_map(|end| {
            let root = format!("/{}", segments[..end].join("/"));
            let configured = Self::configured(&root).ok();
            let one_segment = (end == at).then(|| Self::one_segment(&root, segments[at])).flatten();
            [configured, one_segment]
        });
        let fits =
            |one: &Self| matches!(one.place_absolute(path), Place::Pod(uid, _) if uid == *pod);
        candidates.flatten().find(fits)
    }

    fn one_segment(parent: &str, segment: &str) -> Option<Self> {
        let (slice, _) = segment.split_once(':')?;
        let end = slice.find(KUBEPODS)? + KUBEPODS.len();
        Some(Self::new(Layout::OneSegment, parent.trim_end_matches('/'), &slice[..end]))
    }

    /// Hierarchies that a peer's pod must be found in.
    pub(super) fn hierarchies(&self) -> &BTreeSet<String> {
        &self.hierarchies
    }

    /// Placements of this kubelet's node that were worked out before.
    pub(super) fn placed(&self) -> &Placed {
        &self.placed
    }

    /// `path` as the host's root shows it, if that can be told.
    ///
    /// Steps up lead to one of our own ancestors, all of which the kubelet made. Where the name of
    /// one is not known (our own class, our own container), one that reads the same is put in its
    /// place: the answer does not depend on it.
    pub(super) fn absolute<'a>(&self, hierarchy: &str, path: &'a str) -> Option<Cow<'a, str>> {
        let namespace = self.namespace.as_ref();
        let Some((namespace, depth)) =
            namespace.and_then(|namespace| Some((namespace, *namespace.depths.get(hierarchy)?)))
        else {
            return (!goes_up(path)).then_some(Cow::Borrowed(path));
        };
        let segments: Vec<&str> = path.split('/').skip(1).filter(|s| !s.is_empty()).collect();
        let ups = segments.iter().take_while(|segment| **segment == "..").count();
        let rest = &segments[ups..];
        if rest.contains(&"..") {
            return None;
        }
        let root: Vec<&str> = self.root.split('/').skip(1).collect();
        // Our own path is root, perhaps a class, pod, container; nothing else is understood.
        let classes = depth.checked_sub(root.len() + 2).filter(|classes| *classes <= 1)?;
        let level = depth.checked_sub(ups)?;
        let own_pod = self.pod_segment(&namespace.pod);
        let own_class = self.class_segment(rest.first().copied().unwrap_or_default());
        let mut absolute: Vec<&str> = root.iter().copied().take(level).collect();
        match level.checked_sub(root.len()) {
            None | Some(0) => absolute.extend(rest),
            Some(1) if classes == 1 => absolute.extend([own_class.as_str()].iter().chain(rest)),
            Some(below) if below == classes + 1 => {
                absolute.extend([own_pod.as_str()].iter().chain(rest));
            }
            // Our own container, and whatever it makes below itself.
            Some(_) => absolute.push(&own_pod),
        }
        Some(Cow::Owned(format!("/{}", absolute.join("/"))))
    }

    fn pod_segment(&self, pod: &PodUid) -> String {
        match self.layout {
            Layout::Cgroupfs => format!("pod{pod}"),
            _ => format!("{}-pod{}.slice", self.slice, slice_uid(pod)),
        }
    }

    /// The directory of a class that could hold `pod`.
    fn class_segment(&self, pod: &str) -> String {
        let named = |qos: &&&str| pod.starts_with(&format!("{}-{qos}-", self.slice));
        let qos = QOS.iter().find(named).unwrap_or(&QOS[0]);
        match self.layout {
            Layout::Cgroupfs => (*qos).to_owned(),
            _ => format!("{}-{qos}.slice", self.slice),
        }
    }

    /// Judges one absolute path.
    pub(super) fn place_absolute(&self, path: &str) -> Place {
        let Some(rest) = path.strip_prefix(self.root.as_str()) else { return Place::Outside };
        if !rest.is_empty() && !rest.starts_with('/') {
            return Place::Outside;
        }
        let mut segments = rest.split('/').skip(1);
        let first = segments.next().unwrap_or_default();
        if self.layout == Layout::OneSegment {
            return self.one_segment_pod(first).map_or(Place::Outside, |(pod, container)| {
                place(pod, Some(Ok(container)), segments)
            });
        }
        let class = QOS.into_iter().find(|qos| match self.layout {
            Layout::Cgroupfs => first == *qos,
            _ => {
                let name = first.strip_suffix(".slice");
                name.and_then(|name| self.below_slice(name)) == Some(*qos)
            }
        });
        let pod = if class.is_some() { segments.next().unwrap_or_default() } else { first };
        let uid = match self.layout {
            Layout::Cgroupfs => pod.strip_prefix("pod"),
            _ => pod.strip_suffix(".slice").and_then(|name| self.slice_pod(name, class)),
        };
        let container = segments.next().map(|segment| match self.layout {
            Layout::Cgroupfs => cgroupfs_container(segment),
            _ => scope_container(segment),
        });
        match uid.map(|uid| self.pod_uid(uid)) {
            Some(Ok(uid)) => place(uid, container, segments),
            Some(Err(reason)) => Place::Doubtful(reason),
            None => Place::Doubtful("a cgroup of the kubelet's that is no pod's"),
        }
    }

    /// What follows `<slice>[-<qos>]-pod` in a slice's name.
    fn slice_pod<'a>(&self, name: &'a str, class: Option<&str>) -> Option<&'a str> {
        let name = self.below_slice(name)?;
        let name = class.map_or(Some(name), |qos| name.strip_prefix(qos)?.strip_prefix('-'))?;
        name.strip_prefix("pod")
    }

    /// What a slice's name adds to the name of the slice of all pods.
    fn below_slice<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(self.slice.as_str())?.strip_prefix('-')
    }

    fn one_segment_pod(&self, segment: &str) -> Option<(PodUid, ContainerId)> {
        let mut parts = segment.split(':');
        let (name, runtime, id) = (parts.next()?, parts.next()?, parts.next()?);
        let name = name.strip_suffix(".slice")?;
        let pod = QOS.into_iter().map(Some).chain([None]);
        let uid = pod.filter_map(|class| self.slice_pod(name, class)).next()?;
        let known = RUNTIMES.contains(&runtime) && parts.next().is_none();
        Some((self.pod_uid(uid).ok()?, known.then(|| id.parse().ok()).flatten()?))
    }

    /// A UUID as this layout writes it. A static pod's 32 hex digits are the hash of its manifest,
    /// not the uid that the API server knows it by.
    fn pod_uid(&self, text: &str) -> Result<PodUid, &'static str> {
        let separator = if self.layout == Layout::Cgroupfs { '-' } else { '_' };
        let lengths = [8, 4, 4, 4, 12];
        let mut groups = text.split(separator);
        let mut is_group = |length| groups.next().is_some_and(|group| is_hex(group, length));
        let is_uuid = lengths.into_iter().all(&mut is_group) && groups.next().is_none();
        let uid = match separator {
            '-' => text.parse(),
            _ => text.replace(separator, "-").parse(),
        };
        match uid {
            Ok(uid) if is_uuid => Ok(uid),
            _ if is_hex(text, 32) => Err("a static pod, which has no identity"),
            _ => Err("a pod's cgroup whose uid is none"),
        }
    }
}

fn slice_uid(pod: &PodUid) -> String {
    pod.as_str().replace('-', "_")
}

/// The answer for a pod, unless its container or something below raises a doubt.
fn place<'a>(
    pod: PodUid,
    container: Option<Result<ContainerId, &'static str>>,
    mut below: impl Iterator<Item = &'a str>,
) -> Place {
    let container = match container.transpose() {
        Ok(container) => container,
        Err(reason) => return Place::Doubtful(reason),
    };
    if below.any(|segment| container_segment(segment).is_some()) {
        return Place::Doubtful("a container inside a pod's container");
    }
    Place::Pod(pod, container)
}

fn cgroupfs_container(segment: &str) -> Result<ContainerId, &'static str> {
    let id = segment.strip_prefix("crio-").unwrap_or(segment);
    id.parse().map_err(|_| no_container(segment))
}

fn scope_container(segment: &str) -> Result<ContainerId, &'static str> {
    let name = segment.strip_suffix(".scope");
    let id = name.and_then(|name| {
        let of = |runtime: &&str| name.strip_prefix(*runtime)?.strip_prefix('-');
        RUNTIMES.iter().find_map(of)
    });
    id.and_then(|id| id.parse().ok()).ok_or_else(|| no_container(segment))
}

fn no_container(segment: &str) -> &'static str {
    if segment.starts_with("crio-conmon-") {
        "a container's monitor"
    } else {
        "a cgroup of a pod that is no container's"
    }
}

#[cfg(test)]
#[path = "kubelet_cgroup_tests.rs"]
mod tests;
