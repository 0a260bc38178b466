//! Placement: host, pod or container, judged by the text of a process's `/proc/<pid>/cgroup`.
//!
//! A refusal is the safe answer, so one suspicious segment in one hierarchy is enough for it, and
//! so is a file that cannot be read. A process can make itself look contained, which harms only
//! itself; it cannot lose the segments that its runtime put above it, nor get below the kubelet's
//! root.

use std::borrow::Cow;

use super::kubelet_cgroup::{KubeletCgroup, Place};
use super::runtime_names::container_segment;
use crate::domain::{ContainerId, PodUid};

/// Where a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Outside every pod and container scope.
    Host,
    /// Inside one pod of this node, without doubt.
    Pod {
        /// Which pod. Decide by this.
        uid: PodUid,
        /// Which container of it, where the process is in one.
        container: Option<ContainerId>,
    },
    /// Inside a container that cannot be told, or not certainly outside: no identity.
    Container {
        /// What gave it away, for operators.
        reason: &'static str,
    },
}

const UNREADABLE: Placement =
    Placement::Container { reason: "a cgroup file that cannot be understood" };

/// One hierarchy's line.
pub(super) struct Line<'a> {
    pub(super) hierarchy: &'a str,
    pub(super) path: &'a str,
}

/// Judges the text of `/proc/<pid>/cgroup` (v1, v2 or both). Without a kubelet nothing is a pod.
///
/// In v1 a process is in many hierarchies, and not all of them have to know pods. Those that do
/// must agree; none may hint at another container; and a hierarchy that holds the agent's own pod
/// must hold the peer's.
pub fn placement(text: &str, kubelet: Option<&KubeletCgroup>) -> Placement {
    let (mut pod, mut in_pod, mut empty) = (None, Vec::new(), true);
    for line in each_line(text) {
        let Some(line) = line else { return UNREADABLE };
        empty = false;
        match place(&line, kubelet) {
            Place::Outside => {}
            Place::Doubtful(reason) => return Placement::Container { reason },
            Place::Pod(uid, container) => {
                in_pod.push(line.hierarchy);
                if *pod.get_or_insert_with(|| (uid.clone(), container.clone())) != (uid, container)
                {
                    return Placement::Container { reason: "two pods or containers at once" };
                }
            }
        }
    }
    let Some((uid, container)) = pod else {
        return if empty { UNREADABLE } else { Placement::Host };
    };
    let mut expected = kubelet.into_iter().flat_map(KubeletCgroup::hierarchies);
    if expected.all(|hierarchy| in_pod.contains(&hierarchy.as_str())) {
        Placement::Pod { uid, container }
    } else {
        Placement::Container { reason: "a pod in some hierarchies only" }
    }
}

/// Whether the text would look the same for a process in a container whose main thread has exited:
/// the kernel then shows `/` for every v1 hierarchy (a v2 path stays).
pub fn may_hide_an_exit(text: &str) -> bool {
    !text.lines().all(|line| line.starts_with("0:") || line.is_empty())
}

/// The lines of a cgroup file; `None` if there are none or one does not fit the grammar.
pub(super) fn lines(text: &str) -> Option<Vec<Line<'_>>> {
    let lines: Option<Vec<_>> = each_line(text).collect();
    lines.filter(|lines| !lines.is_empty())
}

fn each_line(text: &str) -> impl Iterator<Item = Option<Line<'_>>> {
    text.lines().filter(|line| !line.is_empty()).map(line)
}

fn line(text: &str) -> Option<Line<'_>> {
    let mut fields = text.splitn(3, ':');
    let (hierarchy, _controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let numbered = !hierarchy.is_empty() && hierarchy.bytes().all(|byte| byte.is_ascii_digit());
    (numbered && path.starts_with('/')).then_some(Line { hierarchy, path })
}

fn place(line: &Line<'_>, kubelet: Option<&KubeletCgroup>) -> Place {
    let path = match kubelet {
        Some(kubelet) => kubelet.absolute(line.hierarchy, line.path),
        None => Some(line.path).filter(|path| !goes_up(path)).map(Cow::Borrowed),
    };
    let Some(path) = path else {
        return Place::Doubtful("a cgroup outside this process's own cgroup namespace");
    };
    match kubelet.map_or(Place::Outside, |kubelet| kubelet.place_absolute(&path)) {
        Place::Outside => outside(&path),
        found => found,
    }
}

/// Whether a path has a step up, so begins outside of the reader's cgroup namespace.
pub(super) fn goes_up(path: &str) -> bool {
    path.contains("/..") && path.split('/').any(|segment| segment == "..")
}

/// A path that is no pod's: the host's, unless anything hints at a container.
fn outside(path: &str) -> Place {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    // On v1 most hierarchies say "/": nothing to look at.
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    segments.find_map(container_segment).map_or(Place::Outside, Place::Doubtful)
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
            assert_eq!(placement(&format!("0::{path}\n"), None), Placement::Host, "{path}");
        }
        let mixed = format!("9:name=systemd:/\n4:memory:/process_api/{hex32}\n1:cpu:/\n0::/\n");
        assert_eq!(placement(&mixed, None), Placement::Host);
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
            let found = placement(&format!("0::{path}\n"), None);
            assert!(matches!(found, Placement::Container { .. }), "{path}");
        }
    }

    #[test]
    fn one_contained_hierarchy_outweighs_all_others() {
        let v1 = format!("3:cpu:/\n2:memory:/kubepods/pod{UID}/{ID}\n0::/\n");
        assert!(matches!(placement(&v1, None), Placement::Container { .. }));
        let order = format!("2:memory:/docker/{ID}\n1:cpu:/user.slice\n");
        assert!(matches!(placement(&order, None), Placement::Container { .. }));
    }

    #[test]
    fn a_file_that_is_not_understood_is_no_proof_of_being_outside() {
        for text in
            ["", "\n", "0::", "nonsense", "0:", "x::/", "::/", "0::relative", "0::/\nbroken"]
        {
            assert_eq!(placement(text, None), UNREADABLE, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_below_a_pod_can_hide_it(below in "[a-z0-9./:_-]{0,60}") {
            let text = format!("0::/kubepods/pod{UID}/{below}\n");
            let contained = matches!(placement(&text, None), Placement::Container { .. });
            prop_assert!(contained);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}", bytes in "[0-9:/a-z\\n.-]{0,80}") {
            placement(&text, None);
            placement(&bytes, None);
        }
    }
}
