//! Targets, peers and packets that mean harm.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;
use secrets_broker::mounter::protocol::{Reply, Request};
use secrets_broker::mounter::{Failure, KubeletRoot, Mounter, MounterError, Target, TargetError};

use crate::rig::{Rig, in_own_namespace, key, mount_at, ours, raw, size};
use crate::volumes::failure;

#[test]
fn a_target_that_is_not_exactly_the_volumes_own_is_refused() {
    if !in_own_namespace("hostile::a_target_that_is_not_exactly_the_volumes_own_is_refused") {
        return;
    }
    let rig = Rig::start();
    let (key, client) = (key("secrets"), rig.client());
    rig.make_pod(&key);
    rig.wait(client.prepare(&key, size())).unwrap();
    // The client cannot even spell these; a compromised agent can.
    let root = rig.root.as_str();
    let own = rig.target(&key).as_str().to_owned();
    let csi = format!("{root}/pods/{}/volumes/kubernetes.io~csi", key.pod);
    for (path, why) in [
        ("/etc".to_owned(), Failure::Target(TargetError::OtherRoot)),
        (format!("{root}/../{}", &own[root.len()..]), Failure::Target(TargetError::Shape)),
        (
            format!("{root}/pods/../pods/x/volumes/kubernetes.io~csi/secrets/mount"),
            Failure::Target(TargetError::Shape),
        ),
        (format!("{csi}/../../x/mount"), Failure::Target(TargetError::Shape)),
        (format!("{csi}/secrets/mount/.."), Failure::Target(TargetError::Shape)),
        (format!("{csi}/../mount"), Failure::Target(TargetError::VolumeName)),
        (
            own.replace("kubernetes.io~csi", "kubernetes.io~empty-dir"),
            Failure::Target(TargetError::Shape),
        ),
        (own.replace("/secrets/", "/other/"), Failure::OtherVolume),
        (own.replace(key.pod.as_str(), "0123456789abcdef0123456789abcdef"), Failure::OtherVolume),
    ] {
        let request = Request::Bind { key: key.clone(), target: path.clone() };
        let reply = Reply::decode(&raw(&rig.socket(), &request.encode(), &[])).unwrap();
        assert_eq!(reply, Reply::Failed(why), "{path}");
    }
    // The agent's idea of the kubelet's root is another.
    let elsewhere: KubeletRoot = "/srv/kubelet".parse().unwrap();
    let refused = rig.wait(client.bind(&key, &Target::of(&elsewhere, &key)));
    assert_eq!(failure(refused), Failure::Target(TargetError::OtherRoot));
    assert_eq!(ours().len(), 1);
}

#[test]
fn a_link_anywhere_in_a_target_is_not_followed() {
    if !in_own_namespace("hostile::a_link_anywhere_in_a_target_is_not_followed") {
        return;
    }
    let rig = Rig::start();
    let (key, client) = (key("secrets"), rig.client());
    rig.wait(client.prepare(&key, size())).unwrap();
    let (target, root) = (rig.target(&key), PathBuf::from(rig.root.as_str()));
    assert_eq!(failure(rig.wait(client.bind(&key, &target))), Failure::NoPodDirectory);

    let outside = rig.directory.path().join("outside");
    let csi = format!("pods/{}/volumes/kubernetes.io~csi", key.pod);
    // The link's place, and what must be behind it for the rest of the path to exist.
    let mount = format!("{csi}/secrets/mount");
    let links = ["pods", "pods/8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab", csi.as_str(), mount.as_str()];
    for link in links {
        std::fs::remove_dir_all(root.join("pods")).unwrap();
        let place = root.join(link);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::create_dir_all(outside.join(mount.strip_prefix(link).unwrap().trim_matches('/')))
            .unwrap();
        symlink(&outside, &place).unwrap();
        assert_eq!(errno(rig.wait(client.bind(&key, &target))), libc::ELOOP, "{link}");
        // Nothing of it can be behind a link, so nothing is to be done there.
        rig.wait(client.unbind(&target)).unwrap();
        std::fs::remove_file(&place).unwrap();
        std::fs::create_dir_all(root.join("pods")).unwrap();
    }
    assert_eq!(ours().len(), 1, "{:?}", ours());

    // Unless it was bound before somebody moved the directory away.
    std::fs::remove_dir_all(root.join("pods")).unwrap();
    rig.make_pod(&key);
    rig.wait(client.bind(&key, &target)).unwrap();
    let moved = rig.directory.path().join("moved");
    std::fs::rename(root.join("pods"), &moved).unwrap();
    symlink(&moved, root.join("pods")).unwrap();
    assert_eq!(errno(rig.wait(client.unbind(&target))), libc::ELOOP);
    assert_eq!(ours().len(), 2, "{:?}", ours());
    std::fs::remove_file(root.join("pods")).unwrap();
    std::fs::rename(&moved, root.join("pods")).unwrap();
    rig.wait(client.unbind(&target)).unwrap();
    rig.wait(client.discard(&key)).unwrap();
    assert_eq!(ours().len(), 0, "{:?}", ours());
}

#[test]
fn what_stands_in_one_volumes_way_hides_no_other() {
    if !in_own_namespace("hostile::what_stands_in_one_volumes_way_hides_no_other") {
        return;
    }
    let rig = Rig::start();
    let (blocked, moved, whole, client) = (key("a"), key("b"), key("c"), rig.client());
    let volumes = rig.make_pod(&blocked).parent().unwrap().to_owned();
    for key in [&blocked, &moved, &whole] {
        rig.make_pod(key);
        rig.wait(client.prepare(key, size())).unwrap();
    }
    rig.wait(client.bind(&moved, &rig.target(&moved))).unwrap();
    std::fs::remove_dir_all(volumes.join("a")).unwrap();
    std::fs::write(volumes.join("a"), "").unwrap();
    std::fs::rename(volumes.join("b"), volumes.join("elsewhere")).unwrap();
    symlink(volumes.join("elsewhere"), volumes.join("b")).unwrap();
    let listed = rig.wait(client.list()).unwrap();
    let listed: Vec<_> = listed.into_iter().map(|one| (one.key, one.bound)).collect();
    // A pod may still have the one that was moved away.
    assert_eq!(listed, [(blocked.clone(), false), (moved.clone(), true), (whole.clone(), false)]);
    assert_eq!(errno(rig.wait(client.bind(&blocked, &rig.target(&blocked)))), libc::ENOTDIR);
    for key in [&blocked, &whole] {
        rig.wait(client.unbind(&rig.target(key))).unwrap();
        rig.wait(client.discard(key)).unwrap();
    }
    std::fs::remove_file(volumes.join("b")).unwrap();
    std::fs::rename(volumes.join("elsewhere"), volumes.join("b")).unwrap();
    rig.wait(client.unbind(&rig.target(&moved))).unwrap();
    rig.wait(client.discard(&moved)).unwrap();
    assert_eq!(ours().len(), 0, "{:?}", ours());
}

/// The number of a system call's failure.
fn errno(result: Result<(), MounterError>) -> i32 {
    match failure(result) {
        Failure::System { errno, .. } => errno,
        other => panic!("{other}"),
    }
}

#[test]
fn what_somebody_else_mounted_is_left_alone() {
    if !in_own_namespace("hostile::what_somebody_else_mounted_is_left_alone") {
        return;
    }
    let rig = Rig::start();
    let (key, client) = (key("secrets"), rig.client());
    let target = rig.target(&key);
    let path = rig.make_pod(&key).join("mount");
    std::fs::create_dir(&path).unwrap();
    let other = rig.directory.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("precious"), "x").unwrap();
    let foreign = |failure| assert!(matches!(failure, Failure::Foreign(..)), "{failure}");

    mount_bind(&other, &path).unwrap();
    rig.wait(client.prepare(&key, size())).unwrap();
    foreign(failure(rig.wait(client.bind(&key, &target))));
    foreign(failure(rig.wait(client.unbind(&target))));
    assert!(path.join("precious").exists());
    unmount(&path, UnmountFlags::empty()).unwrap();
    rig.wait(client.bind(&key, &target)).unwrap();

    // A directory of ours is not our volume, nor is another volume.
    let second = crate::rig::key("second");
    let root = rig.publish(&second, "t1");
    rustix::fs::mkdirat(&root, "dir", rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    rig.wait(client.unbind(&target)).unwrap();
    for source in [rig.private(&second).join("dir"), rig.private(&second)] {
        std::fs::create_dir_all(&path).unwrap();
        mount_bind(&source, &path).unwrap();
        foreign(failure(rig.wait(client.bind(&key, &target))));
        unmount(&path, UnmountFlags::empty()).unwrap();
    }

    rig.wait(client.discard(&key)).unwrap();
    std::fs::create_dir(rig.private(&key)).unwrap();
    mount_bind(&other, rig.private(&key)).unwrap();
    foreign(failure(rig.wait(client.prepare(&key, size())).map(drop)));
    // What lies at the rig's other places is a tmpfs, too.
    mount_bind("/proc", rig.private(&key)).unwrap();
    foreign(failure(rig.wait(client.bind(&key, &target))));
    unmount(rig.private(&key), UnmountFlags::empty()).unwrap();
    foreign(failure(rig.wait(client.discard(&key))));
    assert!(other.join("precious").exists());
}

#[test]
fn a_target_with_something_in_it_is_not_removed_with_it() {
    if !in_own_namespace("hostile::a_target_with_something_in_it_is_not_removed_with_it") {
        return;
    }
    let rig = Rig::start();
    let (key, client) = (key("secrets"), rig.client());
    let path = rig.make_pod(&key).join("mount");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("precious"), "x").unwrap();
    let refused = failure(rig.wait(client.unbind(&rig.target(&key))));
    assert!(refused.to_string().contains("remove the directory"), "{refused}");
    assert!(path.join("precious").exists());
}

/// Swaps names for links until dropped.
struct Swapper<'a>(&'a AtomicBool);

impl Drop for Swapper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// While a thread swaps the target, and the directory it lies in, for links to `outside`, runs
/// rounds until one says stop.
fn while_swapping(parent: &Path, outside: &Path, rounds: usize, mut round: impl FnMut() -> bool) {
    let (link, deeper) = (parent.with_file_name("link"), parent.join("link"));
    let _ = std::fs::create_dir_all(outside.join("mount"));
    symlink(outside, &link).unwrap();
    symlink(outside, &deeper).unwrap();
    let over = AtomicBool::new(false);
    let exchange = |one: &Path, other: &Path| {
        let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                exchange(&parent.join("mount"), &deeper);
                exchange(&parent.join("mount"), &deeper);
                exchange(parent, &link);
                exchange(parent, &link);
            }
        });
        let _swapper = Swapper(&over);
        for _ in 0..rounds {
            if round() {
                break;
            }
        }
    });
}

/// Rounds in which a mount must not land outside, and at most as many until a naive one does.
const ROUNDS: usize = 2000;

#[test]
fn links_that_are_swapped_in_during_a_call_lead_no_mount_outside() {
    let name = "hostile::links_that_are_swapped_in_during_a_call_lead_no_mount_outside";
    if !in_own_namespace(name) {
        return;
    }
    let rig = Rig::start();
    let (key, client) = (key("secrets"), rig.client());
    let target = rig.target(&key);
    let parent = rig.make_pod(&key);
    rig.wait(client.prepare(&key, size())).unwrap();
    let outside = rig.directory.path().join("outside");
    let strays = || {
        let lines = ours().into_iter();
        lines.filter(|line| !line.mount_point.starts_with(rig.root.as_str())).count()
    };
    let (mut bound, mut refused) = (0, 0);
    while_swapping(&parent, &outside, ROUNDS, || {
        match rig.wait(client.bind(&key, &target)) {
            Ok(()) => bound += 1,
            Err(_) => refused += 1,
        }
        assert_eq!(strays(), 0, "{:?}", ours());
        // Fails as often; what stays is found by the next round.
        let _ = rig.wait(client.unbind(&target));
        false
    });
    eprintln!("{bound} bound, {refused} refused, {} mounts left", ours().len());
    assert!(bound > 0 && refused > 0, "{bound} bound, {refused} refused: no race");
    assert!(outside.join("mount").exists(), "a directory outside was removed");

    // The same race against mounting by path, after looking for links: it does land outside.
    // In a place of its own: a name that is busy is not exchanged, so who is what above is open.
    let parent = Path::new(rig.root.as_str()).join("pods/weak/volume");
    let path = parent.join("mount");
    let is_directory =
        |path: &Path| path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    std::fs::create_dir_all(&path).unwrap();
    while_swapping(&parent, &outside, ROUNDS * 100, || {
        if is_directory(&parent) && is_directory(&path) {
            let _ = mount_bind(rig.private(&key), &path);
        }
        let landed = strays() > 0;
        while !landed && unmount(&path, UnmountFlags::DETACH).is_ok() {}
        landed
    });
    assert!(strays() > 0, "the weak variant was never caught: the race proves nothing");
}

#[test]
fn a_peer_that_is_neither_root_nor_the_agent_gets_no_answer() {
    if !in_own_namespace("hostile::a_peer_that_is_neither_root_nor_the_agent_gets_no_answer") {
        return;
    }
    let rig = Rig::start_with(&["--agent-uid", "4242"]);
    // Only the kernel's word about the peer is left to refuse it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(rig.socket(), open).unwrap();
    let request = Request::List { after: None }.encode();
    let as_user = |uid: u32| {
        let (socket, request) = (rig.socket(), &request);
        thread::scope(|scope| {
            let ask = move || {
                let uid = Uid::from_raw(uid);
                set_thread_res_uid(uid, uid, uid).unwrap();
                raw(&socket, request, &[])
            };
            scope.spawn(ask).join().unwrap()
        })
    };
    assert_eq!(as_user(1000), b"");
    assert!(Reply::decode(&as_user(4242)).is_ok());
    assert!(Reply::decode(&as_user(0)).is_ok());
    assert!(rig.mounter.stderr().contains("neither root nor the agent"));
}

#[test]
fn packets_that_are_no_requests_are_answered_and_cost_their_connection_only() {
    let name = "hostile::packets_that_are_no_requests_are_answered_and_cost_their_connection_only";
    if !in_own_namespace(name) {
        return;
    }
    let mut rig = Rig::start();
    let files: Vec<std::fs::File> =
        (0..8).map(|_| std::fs::File::open("/proc/self/status").unwrap()).collect();
    let descriptors: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let count = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = count(rig.mounter.pid());
    let malformed = Reply::Failed(Failure::Malformed);
    for packet in
        [b"\x01{}".to_vec(), b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![1; 5000], vec![0; 60_000]]
    {
        let reply = raw(&rig.socket(), &packet, &descriptors);
        assert_eq!(Reply::decode(&reply).unwrap(), malformed);
    }
    // Descriptors that come along with a good request are not taken either.
    let list = Request::List { after: None }.encode();
    assert!(Reply::decode(&raw(&rig.socket(), &list, &descriptors)).is_ok());
    assert_eq!(raw(&rig.socket(), b"", &[]), b"");
    let pid = rig.mounter.pid();
    let settled = || count(pid) <= before;
    rig.mounter.wait_until(crate::rig::PATIENCE, "its descriptors are closed", settled);
    assert!(mount_at(Path::new(rig.root.as_str())).is_none());
}
