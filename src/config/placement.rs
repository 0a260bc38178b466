//! `[placement]`: telling which pod a process is in.

use crate::config::document::Section;
use crate::config::settings::PlacementSettings;
use crate::identity::kubelet_cgroup::KubeletCgroup;

/// `None` without `pod_uid`, or after a problem.
pub(super) fn read(root: &Section) -> Option<PlacementSettings> {
    let section = root.section("placement");
    let cgroup_root = section.get("cgroup_root").map(|field| {
        let checked = |text: &str| KubeletCgroup::configured(text).map(|_| text.to_owned());
        field.convert(checked, "write the kubelet's --cgroup-root with its kubepods, or remove it")
    });
    let pod = section.get("pod_uid").map(|field| {
        field.parsed("write pod_uid = \"${POD_UID}\", from the downward API's metadata.uid")
    });
    if cgroup_root.is_some() && pod.is_none() {
        let message =
            "cgroup_root has no effect without pod_uid, which the agent attests itself by";
        section.problem_at("cgroup_root", message, "write pod_uid = \"${POD_UID}\", too");
    }
    section.finish();
    let cgroup_root = match cgroup_root {
        Some(root) => Some(root?),
        None => None,
    };
    Some(PlacementSettings { pod: pod??, cgroup_root })
}
