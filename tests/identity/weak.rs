//! Attestors with the usual mistakes, to prove that each class of lies would bite.

use std::fs;
use std::os::fd::AsFd;

use secrets_broker::identity::cgroup::{Placement, placement};
use secrets_broker::identity::kubelet_cgroup::KubeletCgroup;
use secrets_broker::sys;
use tokio::net::UnixStream;

use crate::door::Door;
use crate::place::VICTIM;

/// The name of a mistake.
pub(crate) type Weakness = &'static str;

/// The mistake of believing where the pid is; none as long as the caller has it.
pub(crate) const TRUSTS_PID: Weakness = "trusts the pid";
/// The mistake of believing a good token whoever has it.
pub(crate) const BELIEVES_TOKEN: Weakness = "believes the token";
/// The group that owns the victim's files.
pub(crate) const VICTIMS_GROUP: u32 = 4711;
/// The victim's user.
pub(crate) const VICTIMS_USER: u32 = 4712;
/// What the victim calls itself.
pub(crate) const VICTIMS_COMMAND: &str = "victims-app";

/// Which mistakes take the caller for the owner of the door.
pub(crate) fn believed(stream: &UnixStream, kubelet: &KubeletCgroup, door: Door) -> Vec<Weakness> {
    let Ok(credentials) = stream.peer_cred() else { return Vec::new() };
    let pid = credentials.pid().unwrap_or_default();
    let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let groups = sys::peer_groups(stream.as_fd()).unwrap_or_default();
    let placed = placement(&file("cgroup"), Some(kubelet));
    let mistakes: [(Weakness, bool); 7] = match door {
        Door::Victim | Door::PodSocket | Door::NodeSocket => [
            ("searches the cgroup", names_victim(&file("cgroup"))),
            ("reads mountinfo", names_victim(&file("mountinfo"))),
            (TRUSTS_PID, is_victim(&placed)),
            ("trusts groups", groups.contains(&VICTIMS_GROUP)),
            ("trusts the uid", credentials.uid() == VICTIMS_USER),
            ("reads the command", file("comm").trim() == VICTIMS_COMMAND),
            ("reads the arguments", file("cmdline").starts_with(VICTIMS_COMMAND)),
        ],
        Door::Operator | Door::Kubelet | Door::Driver => [
            ("trusts uid 0", credentials.uid() == 0),
            ("trusts groups", groups.contains(&0)),
            ("reads the uid in /proc", effective_uid(&file("status")) == Some(0)),
            (TRUSTS_PID, credentials.uid() == 0 && placed == Placement::Host),
            ("reads the command", file("comm").trim() == "kubelet"),
            ("reads the arguments", file("cmdline").starts_with("kubelet")),
            ("knows kubepods only", credentials.uid() == 0 && !file("cgroup").contains("kubepods")),
        ],
    };
    mistakes.into_iter().filter(|(_, falls)| *falls).map(|(name, _)| name).collect()
}

/// The victim's uid anywhere, however it is spelled.
fn names_victim(text: &str) -> bool {
    let plain = |text: &str| text.replace(['-', '_'], "").to_ascii_lowercase();
    plain(text).contains(&plain(VICTIM))
}

fn is_victim(placed: &Placement) -> bool {
    matches!(placed, Placement::Pod { uid, .. } if uid.as_str() == VICTIM)
}

fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
