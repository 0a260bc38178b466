//! Peers: what an identity takes at each door, and when a process counts as gone.

use std::os::unix::net::UnixStream;

use super::*;
use crate::domain::ServiceAccount;
use crate::identity::Subject;

fn peer(uid: u32, placement: Placement, own_user_namespace: bool) -> Peer {
    let own = rustix::process::getpid().as_raw_pid();
    let handle = Handle::ProcDirectory(open_process(own).unwrap(), own);
    let (groups, cgroup) = (vec![9, 8, 7], String::new());
    Peer { uid, gid: 7, groups, placement, own_user_namespace, cgroup, handle }
}

/// A process with its number and a handle on it.
fn sleeper() -> (std::process::Child, i32, OwnedFd) {
    let child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let raw = rustix::process::Pid::from_raw(pid).unwrap();
    let flags = rustix::process::PidfdFlags::empty();
    (child, pid, rustix::process::pidfd_open(raw, flags).unwrap())
}

#[test]
fn a_uid_is_an_identity_only_outside_containers_and_other_namespaces() {
    let identity = peer(4242, Placement::Host, true).identify(Listener::Host).unwrap();
    assert_eq!(identity.consumer().as_str(), "uid:4242");
    assert_eq!(identity.strength(), ProofStrength::PeerCred);

    let inside = Placement::Container { reason: "a test" };
    let refused = |peer: Peer, listener| peer.identify(listener).unwrap_err().to_string();
    assert!(refused(peer(0, inside.clone(), true), Listener::Host).contains("a test"));
    assert!(refused(peer(0, inside, true), Listener::Operator).contains("a test"));
    assert!(refused(peer(0, Placement::Host, false), Listener::Host).contains("namespace"));
}

#[test]
fn in_the_agents_own_container_root_is_an_operator_and_nobody_is_a_host_user() {
    let inside = Placement::Container { reason: "a test" };
    let cgroup = Process::own().cgroup().unwrap();
    let beside = format!("{cgroup}/beside");
    let refused = Peer { cgroup: beside, ..peer(0, inside.clone(), false) };
    assert!(refused.identify(Listener::Operator).is_err());
    let at_home = |uid| Peer { cgroup: cgroup.clone(), ..peer(uid, inside.clone(), false) };
    assert!(at_home(0).identify(Listener::Operator).is_ok());
    assert!(at_home(0).identify(Listener::Host).is_err());
    let other = rustix::process::geteuid().as_raw() + 4242;
    assert!(at_home(other).identify(Listener::Operator).is_err());
}

#[test]
fn only_root_and_the_agents_own_user_are_operators() {
    let own = rustix::process::geteuid().as_raw();
    for (uid, allowed) in [(0, true), (own, true), (own + 4242, false)] {
        let identified = peer(uid, Placement::Host, true).identify(Listener::Operator);
        assert_eq!(identified.is_ok(), allowed, "{uid}");
    }
}

#[tokio::test]
async fn a_socket_pair_of_this_process_names_this_process() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let peer = Peer::of(ours.as_fd(), None).unwrap();
    assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
    assert_eq!(peer.gid, rustix::process::getegid().as_raw());
    assert!(peer.own_user_namespace);
    assert!(peer.still_alive());
}

#[tokio::test]
async fn a_peer_that_cannot_be_placed_is_nobody_but_the_one_at_the_other_end() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let peer = Peer::unplaced(ours.as_fd()).unwrap();
    assert!(peer.still_alive());
    for listener in [Listener::Operator, Listener::Host] {
        assert!(peer.identify(listener).is_err());
    }
    assert!(peer.host_root().is_err());
}

#[tokio::test]
async fn the_exit_of_a_process_is_seen_through_both_kinds_of_handle() {
    let (mut child, pid, pidfd) = sleeper();
    let with = |handle| Peer { handle, ..peer(0, Placement::Host, true) };
    let modern = with(Handle::pid_fd(pidfd));
    let older = with(Handle::ProcDirectory(open_process(pid).unwrap(), pid));
    assert!(modern.still_alive() && older.still_alive());
    child.kill().unwrap();
    modern.exited().await;
    older.exited().await;
    assert!(!modern.still_alive() && !older.still_alive());
    child.wait().unwrap();
    assert!(!older.still_alive());
}

#[test]
fn an_exit_is_seen_however_often_it_was_asked_for() {
    for questions in 0..3 * ASKED_OFTEN {
        let (mut child, _, pidfd) = sleeper();
        let peer = Peer { handle: Handle::pid_fd(pidfd), ..peer(0, Placement::Host, true) };
        assert!((0..questions).all(|_| peer.still_alive()));
        let Handle::PidFd(process) = &peer.handle else { unreachable!() };
        assert_eq!(process.epoll.get().is_some(), questions > ASKED_OFTEN);
        child.kill().unwrap();
        child.wait().unwrap();
        // Each time, not only the first.
        assert!((0..3).all(|_| !peer.still_alive()));
    }
}

#[test]
fn a_peer_in_a_pod_is_that_pod_or_nothing_whatever_its_uid_is() {
    let uid = "7d2c5a0e-3f1b-4c8d-9e6f-0a1b2c3d4e5f";
    let placed = |uid: &str| Placement::Pod { uid: uid.parse().unwrap(), container: None };
    let pod = |uid: &str| {
        let account = ServiceAccount {
            namespace: "shop".parse().unwrap(),
            name: "web".parse().unwrap(),
            uid: "1".parse().unwrap(),
        };
        Arc::new(Pod { uid: uid.parse().unwrap(), name: "web-0".parse().unwrap(), account })
    };
    let volume: VolumeName = "v".parse().unwrap();
    let inside = peer(0, placed(uid), false);
    let identity = inside.identify_in_pod(&pod(uid), &volume, None).unwrap();
    assert_eq!(
        (identity.listener(), identity.strength()),
        (Listener::PodSocket, ProofStrength::PeerCred)
    );
    assert!(matches!(identity.subject(), Subject::Pod(pod) if pod.uid.as_str() == uid));
    for listener in [Listener::Host, Listener::Operator] {
        assert!(matches!(inside.identify(listener), Err(PeerError::InContainer(_))));
    }

    let other = pod("00000000-3f1b-4c8d-9e6f-0a1b2c3d4e5f");
    let refused =
        |placement| peer(0, placement, true).identify_in_pod(&other, &volume, None).unwrap_err();
    assert!(matches!(refused(placed(uid)), PeerError::OtherPod));
    assert!(matches!(refused(Placement::Host), PeerError::OutsidePods));
    let doubtful = Placement::Container { reason: "a test" };
    assert!(matches!(refused(doubtful), PeerError::InContainer("a test")));
}
