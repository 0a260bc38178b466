//! The start-up self-test: can this agent tell which pod a process is in, here, now?
//!
//! The agent attests itself, the way it attests others: it must find itself in its own pod, whose
//! uid it knows from the downward API or its token, and the node's first process outside of every
//! pod.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::ProofStrength;
use super::cgroup::{Placement, placement};
use super::kubelet_cgroup::{KubeletCgroup, KubeletCgroupError};
use super::peer::{Peer, PeerError};
use crate::domain::PodUid;

/// Longest `/proc` file read here.
const PROC_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Something this node cannot do, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Limit {
    /// The agent was not told which pod it runs in.
    #[error("peers are not placed; set [placement] pod_uid and hostPID: true")]
    NotAsked,
    /// The agent does not see the processes of its peers.
    #[error(
        "the agent has a pid namespace of its own, so peers cannot be placed; set hostPID: true"
    )]
    OwnPidNamespace,
    /// The kubelet's cgroup root is not known.
    #[error("peers cannot be placed: {0}")]
    Root(#[from] KubeletCgroupError),
    /// A file of `/proc` cannot be read.
    #[error("peers cannot be placed: /proc/{0}/cgroup cannot be read; is /proc hidden?")]
    Unreadable(&'static str),
    /// The agent did not find itself where it is.
    #[error(
        "peers cannot be placed: the agent finds itself {found}, not in its pod {pod}; set \
         cgroup_root to the kubelet's"
    )]
    NotFound {
        /// Where it found itself.
        found: Placed,
        /// Where it is.
        pod: PodUid,
    },
    /// The node's first process is not outside of every pod.
    #[error("peers cannot be placed: process 1 is {0}, not outside of every pod")]
    Init(Placed),
    /// Attesting itself failed.
    #[error("peers cannot be placed: the agent cannot attest itself: {0}")]
    Peer(#[from] PeerError),
    /// The kernel has no handle on peers.
    #[error("a peer's pid may have been reused when it is looked at; Linux 6.5 has SO_PEERPIDFD")]
    NoPidFd,
}

/// A placement, in words.
#[derive(Debug)]
pub struct Placed(Placement);

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Placement::Host => f.write_str("outside of every pod"),
            Placement::Pod { uid, .. } => write!(f, "in pod {uid}"),
            Placement::Container { reason } => write!(f, "in {reason}"),
        }
    }
}

/// What this node can prove about processes in pods.
#[derive(Debug)]
pub struct NodeProof {
    /// The strongest proof that a caller in a pod can have here.
    pub strength: ProofStrength,
    /// Why it is not a stronger one; `None` at the best there is.
    pub limit: Option<Limit>,
    /// The kubelet's root, where peers can be placed.
    pub kubelet: Option<KubeletCgroup>,
}

impl NodeProof {
    /// For an agent that was not told which pod it runs in: whatever runs in a pod is then merely
    /// in a container.
    pub fn not_asked() -> Self {
        let limit = Some(Limit::NotAsked);
        Self { strength: ProofStrength::SocketOnly, limit, kubelet: None }
    }
}

impl fmt::Display for NodeProof {
    /// A line of status.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "callers in pods proved by {}", self.strength)?;
        self.limit.as_ref().map_or(Ok(()), |limit| write!(f, " ({limit})"))
    }
}

/// Attests the agent itself, which runs in `own_pod`. `cgroup_root` is the kubelet's, if
/// configured; otherwise it is learned. Reads `/proc`.
pub fn attest_self(own_pod: &PodUid, cgroup_root: Option<&str>) -> NodeProof {
    match place_self(own_pod, cgroup_root) {
        Ok((kubelet, strength)) => NodeProof {
            strength,
            limit: (strength < ProofStrength::PidFd).then_some(Limit::NoPidFd),
            kubelet: Some(kubelet),
        },
        Err(limit) => {
            NodeProof { strength: ProofStrength::SocketOnly, limit: Some(limit), kubelet: None }
        }
    }
}

fn place_self(
    own_pod: &PodUid,
    cgroup_root: Option<&str>,
) -> Result<(KubeletCgroup, ProofStrength), Limit> {
    let own = read("self").ok_or(Limit::Unreadable("self"))?;
    let init = read("1").ok_or(Limit::Unreadable("1"))?;
    let kubelet = judge(&own, &init, own_pod, cgroup_root)?;
    let (ours, _theirs) = UnixStream::pair().map_err(PeerError::Credentials)?;
    let strength = Peer::of(ours.as_fd(), Some(&kubelet))?.strength();
    Ok((kubelet, strength))
}

/// The kubelet's root, if with it the agent is found in its own pod and process 1 in none.
fn judge(
    own: &str,
    init: &str,
    own_pod: &PodUid,
    cgroup_root: Option<&str>,
) -> Result<KubeletCgroup, Limit> {
    // Without hostPID process 1 is our own, or our pod's sandbox: in our cgroup or beside it.
    let steps = |text: &str| text.matches("/..").count();
    if own == init || (steps(init) == 1 && init.lines().count() == 1) {
        return Err(Limit::OwnPidNamespace);
    }
    let kubelet = match cgroup_root {
        Some(root) => KubeletCgroup::configured(root)?,
        None => KubeletCgroup::learned(own, own_pod)?,
    };
    let kubelet = kubelet.seen_from(init, own_pod.clone());
    match placement(init, Some(&kubelet)) {
        Placement::Host => {}
        Placement::Pod { uid, .. } if uid == *own_pod => return Err(Limit::OwnPidNamespace),
        elsewhere => return Err(Limit::Init(Placed(elsewhere))),
    }
    match placement(own, Some(&kubelet)) {
        Placement::Pod { uid, .. } if uid == *own_pod => Ok(kubelet),
        found => Err(Limit::NotFound { found: Placed(found), pod: own_pod.clone() }),
    }
}

fn read(process: &str) -> Option<String> {
    let file = std::fs::File::open(format!("/proc/{process}/cgroup")).ok()?;
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, PROC_FILE_BYTES_MAX), &mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "7d2c5a0e-3f1b-4c8d-9e6f-0a1b2c3d4e5f";
    const ID: &str = "4f3c0e6c2f7b8d9e0a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef";

    fn own() -> PodUid {
        OWN.parse().unwrap()
    }

    fn judged(own_text: &str, init: &str, root: Option<&str>) -> Result<KubeletCgroup, String> {
        judge(own_text, init, &own(), root).map_err(|limit| limit.to_string())
    }

    #[test]
    fn an_agent_that_finds_itself_in_its_pod_can_place_others() {
        let text = format!("4:pids:/kubepods/burstable/pod{OWN}/{ID}\n0::/\n");
        let init = "4:pids:/\n0::/init.scope\n";
        assert!(judged(&text, init, None).is_ok());
        assert!(judged(&text, init, Some("/kubepods")).is_ok());
        assert!(
            judged(&text, init, Some("/kubelet/kubepods")).unwrap_err().contains("cgroup_root")
        );
        let relative = judged("0::/\n", "0::/../../../../init.scope\n", Some("/kubepods.slice"));
        assert!(relative.is_ok());
    }

    #[test]
    fn what_a_node_cannot_do_comes_with_its_remedy() {
        let text = format!("0::/kubepods/pod{OWN}/{ID}\n");
        let sandbox = format!("0::/kubepods/pod{OWN}/{}\n", ID.replace('4', "5"));
        for (own, init, remedy) in [
            (text.as_str(), text.as_str(), "hostPID"),
            (text.as_str(), sandbox.as_str(), "hostPID"),
            ("0::/\n", "0::/\n", "hostPID"),
            ("0::/\n", "0::/../sandbox\n", "hostPID"),
            ("0::/\n", "0::/../../../../init.scope\n", "cgroup_root"),
            ("0::/system.slice/agent.service\n", "0::/init.scope\n", "cgroup_root"),
            (text.as_str(), "0::/docker/x\n", "docker"),
        ] {
            let limit = judged(own, init, None).unwrap_err();
            assert!(limit.contains(remedy), "{own} {init} {limit}");
        }
    }

    #[tokio::test]
    async fn a_process_in_no_pod_proves_nothing_stronger_than_the_socket() {
        let proof = attest_self(&own(), None);
        assert_eq!(proof.strength, ProofStrength::SocketOnly);
        assert!(proof.kubelet.is_none() && proof.limit.is_some());
    }
}
