//! Cgroup grammar: is a process outside every container, judged by its `/proc/<pid>/cgroup`?
//!
//! A refusal is the safe answer here, so one suspicious segment in one hierarchy is enough for it,
//! and so is a file that cannot be read. A process can make itself look contained, which harms only
//! itself; it cannot lose the segments that its runtime put above it.

/// Where a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Outside every pod and container scope.
    Host,
    /// Inside one, or not certainly outside.
    Container {
        /// What gave it away, for operators.
        reason: &'static str,
    },
}

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

const UNREADABLE: Placement =
    Placement::Container { reason: "a cgroup file that cannot be understood" };

/// Judges the text of `/proc/<pid>/cgroup` (v1, v2 or both).
pub fn placement(text: &str) -> Placement {
    let mut lines = text.lines().filter(|line| !line.is_empty()).peekable();
    if lines.peek().is_none() {
        return UNREADABLE;
    }
    for line in lines {
        let mut fields = line.splitn(3, ':');
        let hierarchy = fields.next().unwrap_or_default();
        let (Some(_controllers), Some(path)) = (fields.next(), fields.next()) else {
            return UNREADABLE;
        };
        let numbered = !hierarchy.is_empty() && hierarchy.bytes().all(|b| b.is_ascii_digit());
        if !numbered || !path.starts_with('/') {
            return UNREADABLE;
        }
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        if let Some(reason) = path.split('/').find_map(container_segment) {
            return Placement::Container { reason };
        }
    }
    Placement::Host
}

fn container_segment(segment: &str) -> Option<&'static str> {
    if segment == ".." {
        return Some("a cgroup outside this process's own cgroup namespace");
    }
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

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "4f3c0e6c2f7b8d9e0a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef";
    const UID: &str = "7d2c5a0e-3f1b-4c8d-9e6f-0a1b2c3d4e5f";
    const UID_: &str = "7d2c5a0e_3f1b_4c8d_9e6f_0a1b2c3d4e5f";

    #[test]
    fn processes_of_the_host_are_recognised() {
        let hex32 = "eb29e5255c8238157500a3535214e3c6";
        for path in [
            "/",
            "/init.scope",
            "/system.slice/ssh.service",
            "/system.slice/docker.service",
            "/system.slice/containerd.service",
            "/system.slice/kubelet.service",
            "/system.slice/system-getty.slice/getty@tty1.service",
            "/system.slice/system-dbus\\x2d:1.12.slice/dbus-:1.12-org.example@0.service",
            "/user.slice/user-1000.slice/session-3.scope",
            "/user.slice/app.slice/vte-spawn-7d2c5a0e-3f1b-4c8d-9e6f-0a1b2c3d4e5f.scope",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/podcasts.service",
            "/kubelet.slice/kubelet.service",
        ] {
            assert_eq!(placement(&format!("0::{path}\n")), Placement::Host, "{path}");
        }
        let mixed = format!("9:name=systemd:/\n4:memory:/process_api/{hex32}\n1:cpu:/\n0::/\n");
        assert_eq!(placement(&mixed), Placement::Host);
    }

    #[test]
    fn every_runtime_shape_is_inside_a_container() {
        let burstable = "/kubepods.slice/kubepods-burstable.slice";
        let kubelet = "kubelet-kubepods";
        let shapes = [
            format!("/kubepods/pod{UID}/{ID}"),
            format!("/kubepods/besteffort/pod{UID}/{ID}"),
            "/kubepods/burstable".to_owned(),
            "/kubepods.slice".to_owned(),
            format!("{burstable}/kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope"),
            format!("/kubepods.slice/kubepods-pod{UID_}.slice/crio-{ID}.scope/container"),
            format!("/kubepods.slice/kubepods-pod{UID_}.slice/crio-conmon-{ID}.scope"),
            format!("/kubelet/kubepods/burstable/pod{UID}/{ID}"),
            format!("/kubelet.slice/{kubelet}.slice/{kubelet}-besteffort-pod{UID_}.slice"),
            "/kubepods/burstable/pod0123456789abcdef0123456789abcdef/x".to_owned(),
            format!("/system.slice/kubepods-besteffort-pod{UID_}.slice:cri-containerd:{ID}"),
            "/system.slice/x.slice:cri-containerd:short".to_owned(),
            format!("/docker/{ID}"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/system.slice/docker-{ID}.scope/user.slice/user-0.slice"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
            format!("/user.slice/user@1000.service/user.slice/user-libpod_pod_{ID}.slice/x"),
            format!("/libpod_parent/libpod-{ID}"),
            format!("/default/{ID}"),
            format!("/k8s.io/{ID}"),
            format!("/ecs/0123/{ID}"),
            format!("/actions_job/{ID}"),
            "/lxc/web".to_owned(),
            "/lxc.payload.web/system.slice/ssh.service".to_owned(),
            "/machine.slice/machine-web.scope/payload".to_owned(),
            "/machine.slice/systemd-nspawn@web.service/payload".to_owned(),
            "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope".to_owned(),
            "/nomad.slice/share.slice/alloc.task.scope".to_owned(),
            "/kata_overhead/sandbox".to_owned(),
            format!("/../../pod{UID}/{ID}"),
            "/../user.slice".to_owned(),
            format!("/system.slice/docker-{ID}.scope (deleted)"),
        ];
        for path in shapes {
            let found = placement(&format!("0::{path}\n"));
            assert!(matches!(found, Placement::Container { .. }), "{path}");
        }
    }

    #[test]
    fn one_contained_hierarchy_outweighs_all_others() {
        let v1 = format!("3:cpu:/\n2:memory:/kubepods/pod{UID}/{ID}\n0::/\n");
        assert!(matches!(placement(&v1), Placement::Container { .. }));
        let order = format!("2:memory:/docker/{ID}\n1:cpu:/user.slice\n");
        assert!(matches!(placement(&order), Placement::Container { .. }));
    }

    #[test]
    fn a_file_that_is_not_understood_is_no_proof_of_being_outside() {
        for text in
            ["", "\n", "0::", "nonsense", "0:", "x::/", "::/", "0::relative", "0::/\nbroken"]
        {
            assert_eq!(placement(text), UNREADABLE, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_below_a_pod_can_hide_it(below in "[a-z0-9./:_-]{0,60}") {
            let text = format!("0::/kubepods/pod{UID}/{below}\n");
            let contained = matches!(placement(&text), Placement::Container { .. });
            prop_assert!(contained);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}", bytes in "[0-9:/a-z\\n.-]{0,80}") {
            placement(&text);
            placement(&bytes);
        }
    }
}
