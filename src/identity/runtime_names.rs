//! Names that give a container away: segments of cgroup paths as the known runtimes make them.
//!
//! Matching too much only refuses somebody, so the lists may be generous.

/// Directories that container runtimes make, as whole segments.
const RUNTIME_DIRECTORIES: [(&str, &str); 14] = [
    ("docker", "a docker cgroup"),
    ("buildkit", "a BuildKit cgroup"),
    ("lxc", "an LXC cgroup"),
    ("lxc.payload", "an LXC cgroup"),
    ("lxc.monitor", "an LXC cgroup"),
    ("k8s.io", "a containerd cgroup"),
    ("machine", "a machine cgroup"),
    ("machine.slice", "a machine slice (nspawn, podman or a virtual machine)"),
    ("garden", "a Garden cgroup"),
    ("mesos", "a Mesos cgroup"),
    ("ecs", "an ECS task cgroup"),
    ("ecstasks.slice", "an ECS task cgroup"),
    ("nomad", "a Nomad task cgroup"),
    ("nomad.slice", "a Nomad task cgroup"),
];

/// How the names of container scopes, slices and services begin.
const RUNTIME_PREFIXES: [(&str, &str); 21] = [
    ("docker-", "a docker scope"),
    ("libpod-", "a podman scope"),
    ("libpod_", "a podman pod"),
    ("user-libpod", "a podman pod"),
    ("machine-libpod", "a podman pod"),
    ("podman-", "a podman scope"),
    ("cri-containerd-", "a containerd scope"),
    ("containerd-", "a containerd scope"),
    ("nerdctl-", "a nerdctl scope"),
    ("crio-", "a CRI-O scope"),
    ("lxc.payload.", "an LXC cgroup"),
    ("lxc.monitor.", "an LXC cgroup"),
    ("lxc-payload", "an LXC cgroup"),
    ("machine-", "a machine scope"),
    ("systemd-nspawn@", "an nspawn service"),
    ("runc-", "a runc scope"),
    ("crun-", "a crun scope"),
    ("kata_", "a Kata sandbox"),
    ("kata-", "a Kata sandbox"),
    ("apptainer-", "an Apptainer scope"),
    ("singularity-", "a Singularity scope"),
];

/// Runtimes in the one-segment form `….slice:cri-containerd:<id>` that a driver mismatch makes.
const COLON_RUNTIMES: [&str; 5] = ["cri-containerd", "crio", "docker", "libpod", "runc"];

/// What about one segment of a cgroup's path says that a container is there, if anything does.
pub(super) fn container_segment(segment: &str) -> Option<&'static str> {
    let directory = RUNTIME_DIRECTORIES.iter().find(|(name, _)| segment == *name);
    let prefix = || RUNTIME_PREFIXES.iter().find(|(start, _)| segment.starts_with(start));
    if let Some((_, reason)) = directory.or_else(prefix) {
        return Some(reason);
    }
    if is_kubepods(segment) || has_pod_uid(segment) {
        return Some("a Kubernetes pod cgroup");
    }
    if segment.split(':').skip(1).any(|part| COLON_RUNTIMES.contains(&part)) {
        return Some("a container runtime's cgroup");
    }
    let mut words = segment.split(|c: char| !c.is_ascii_alphanumeric());
    words.any(|word| is_hex(word, 64)).then_some("a container id")
}

/// `kubepods`, `kubepods.slice`, `kubepods-burstable.slice`, `kubelet-kubepods-….slice`.
fn is_kubepods(segment: &str) -> bool {
    let name = segment.split_once(".slice").map_or(segment, |(name, _)| name);
    name.split('-').any(|part| part == "kubepods")
}

/// `pod<uid>`, alone or as the last part of a slice name; a static pod's is 32 hex digits.
fn has_pod_uid(segment: &str) -> bool {
    let name = segment.split_once(".slice").map_or(segment, |(name, _)| name);
    let starts = name.match_indices("pod").map(|(at, _)| at);
    let after_break = |at: &usize| *at == 0 || name.as_bytes()[at - 1] == b'-';
    starts.filter(after_break).any(|at| is_uid(&name[at + 3..]))
}

fn is_uid(text: &str) -> bool {
    let groups: Vec<&str> = text.split(['-', '_']).collect();
    let lengths = [8, 4, 4, 4, 12];
    is_hex(text, 32)
        || (groups.len() == lengths.len()
            && groups.iter().zip(lengths).all(|(group, length)| is_hex(group, length)))
}

/// Whether `text` is `length` hex digits of either case.
pub(super) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
