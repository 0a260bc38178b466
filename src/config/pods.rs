//! `[pods]`: what is known of this node's pods beside their tokens.

use crate::config::csi;
use crate::config::document::Section;
use crate::config::settings::CsiSettings;
use crate::identity::pods::WatchedNode;

/// `None` with `directory = "none"`, or after a problem. Node, kubelet and API server are those of
/// `[csi]`: there is one node, and one cluster that it belongs to.
pub(super) fn read(root: &Section, csi: Option<&CsiSettings>) -> Option<WatchedNode> {
    let section = root.section("pods");
    let is_on = section.choice("directory", false, &[("none", false), ("apiserver", true)]);
    section.finish();
    if !is_on {
        return None;
    }
    let csi_section = root.section("csi");
    let Some(csi) = csi else {
        if !csi_section.boolean("enabled", false) {
            let message =
                "the directory watches the pods of [csi]'s node, and [csi] is not enabled";
            section.problem_at("directory", message, "set [csi] enabled = true and node");
        }
        return None;
    };
    Some(WatchedNode {
        server: csi::api_server(&csi_section)?,
        node: csi.driver.node.clone(),
        kubelet_root: csi.driver.kubelet_root.as_str().to_owned(),
    })
}
