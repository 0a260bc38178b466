//! Containers that run as a user who could not open a volume's files. Pure.

use super::judge::container_name;
use super::manifest::PodOf;
use super::plan::PlannedFile;
use super::yaml::Node;
use crate::delivery::files::FileOwnership;

/// A line and what to say, for each container that mounts the volume and cannot read a file of it.
/// Who runs as root, or as whatever the image says, is left alone.
pub(super) fn unreadable(
    pod: &PodOf<'_>,
    volume: &str,
    files: &[PlannedFile],
) -> Vec<(u64, String)> {
    let context = pod.spec.get("securityContext");
    let group = |key| context.and_then(|context| context.get(key));
    let supplemental = group("supplementalGroups").map_or(&[][..], Node::elements);
    let shared: Vec<u32> =
        group("fsGroup").into_iter().chain(supplemental).filter_map(Node::id).collect();
    let mut found = Vec::new();
    for container in pod.containers().filter(|container| mounts(container, volume)) {
        let own = container.get("securityContext");
        let set = |key| own.and_then(|own| own.get(key)).or(context.and_then(|all| all.get(key)));
        let Some(uid) = set("runAsUser").and_then(Node::id).filter(|uid| *uid != 0) else {
            continue;
        };
        // Without runAsGroup the group is the image's business, or root's.
        let group = set("runAsGroup").and_then(Node::id).unwrap_or(0);
        let gids: Vec<u32> = shared.iter().copied().chain([group]).collect();
        let closed: Vec<&str> = files
            .iter()
            .filter(|file| !may_read(file.ownership, uid, &gids))
            .map(|file| file.file.as_str())
            .collect();
        if !closed.is_empty() {
            let message = format!(
                "container '{}' runs as user {uid} and cannot read {}; set owner: \"{uid}\", or \
                 fsGroup and a mode such as \"0440\"",
                container_name(container),
                closed.join(", ")
            );
            found.push((container.line, message));
        }
    }
    found
}

fn mounts(container: &Node, volume: &str) -> bool {
    let mounts = container.get("volumeMounts").map_or(&[][..], Node::elements);
    mounts.iter().any(|mount| mount.get("name").and_then(Node::text) == Some(volume))
}

/// The kernel's rule: the first class that fits decides.
fn may_read(file: FileOwnership, uid: u32, gids: &[u32]) -> bool {
    let bit = if file.uid == uid {
        0o400
    } else if gids.contains(&file.gid) {
        0o040
    } else {
        0o004
    };
    file.mode & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owners_class_decides_before_the_groups_and_that_before_the_others() {
        let file = |mode| FileOwnership { uid: 1000, gid: 2000, mode };
        assert!(may_read(file(0o400), 1000, &[]));
        assert!(!may_read(file(0o044), 1000, &[2000]));
        assert!(may_read(file(0o040), 1, &[1, 2000]));
        assert!(!may_read(file(0o404), 1, &[2000]));
        assert!(may_read(file(0o004), 1, &[1]));
    }
}
