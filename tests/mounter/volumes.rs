//! The life of a volume: prepared, filled, bound, found again after a restart, taken away.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::Signal;
use secrets_broker::mounter::local::LocalMounter;
use secrets_broker::mounter::mounts::{Mounts, MountsConfig};
use secrets_broker::mounter::{Failure, Mounted, Mounter, MounterError, TmpfsSize};

use crate::process::eventually;
use crate::rig::{self, DRIVER, PATIENCE, Rig, in_own_namespace, key, mount_at, ours, size, write};

pub(crate) fn failure(result: Result<impl Sized, MounterError>) -> Failure {
    match result.err().expect("the mounter refuses") {
        MounterError::Failed { failure, .. } => failure,
        other => panic!("not a refusal: {other:?}"),
    }
}

#[test]
fn a_volume_is_prepared_filled_bound_read_only_and_taken_away() {
    let name = "volumes::a_volume_is_prepared_filled_bound_read_only_and_taken_away";
    if !in_own_namespace(name) {
        return;
    }
    let rig = Rig::start();
    live_through(&rig, &rig.client());
    // The same code in this process, as on a plain host.
    let config = MountsConfig {
        kubelet_root: rig.root.clone(),
        driver: DRIVER.parse().unwrap(),
        agent_uid: 0,
    };
    live_through(&rig, &LocalMounter::new(Mounts::open(config).unwrap()));
}

fn live_through(rig: &Rig, mounter: &dyn Mounter) {
    let key = key("secrets");
    let target = rig.target(&key);
    let path = Path::new(target.as_str());
    let parent = rig.make_pod(&key);

    let prepared = rig.wait(mounter.prepare(&key, size())).unwrap();
    let private = mount_at(&rig.private(&key)).unwrap();
    let noswap = private.super_options.contains("noswap");
    assert_eq!(prepared.description == "tmpfs noswap", noswap, "{private:?}");
    assert!(private.super_options.contains("size=256k,nr_inodes=64"), "{private:?}");
    assert_eq!(private.options, "rw,nosuid,nodev,noexec,relatime");
    assert_eq!(rig.private(&key).parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
    write(prepared.root.as_fd(), "token", "t1");

    assert!(!path.exists());
    rig.wait(mounter.bind(&key, &target)).unwrap();
    let bound = mount_at(path).unwrap();
    assert_eq!(
        (bound.options.as_str(), bound.device),
        ("ro,nosuid,nodev,noexec,relatime", private.device)
    );
    assert_eq!(std::fs::read_to_string(path.join("token")).unwrap(), "t1");
    let refused = std::fs::write(path.join("token"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    // Later changes show.
    write(prepared.root.as_fd(), "later", "t2");
    assert_eq!(std::fs::read_to_string(path.join("later")).unwrap(), "t2");

    // Once more changes nothing.
    let again = rig.wait(mounter.prepare(&key, size())).unwrap();
    assert_eq!(fstat(&again.root).unwrap().st_dev, fstat(&prepared.root).unwrap().st_dev);
    rig.wait(mounter.bind(&key, &target)).unwrap();
    assert_eq!(ours().len(), 2);
    let listed = rig.wait(mounter.list()).unwrap();
    assert_eq!(listed, [Mounted { key: key.clone(), bound: true }]);

    assert_eq!(failure(rig.wait(mounter.discard(&key))), Failure::StillBound);
    for _ in 0..2 {
        rig.wait(mounter.unbind(&target)).unwrap();
        assert!(!path.exists() && parent.exists());
    }
    let listed = rig.wait(mounter.list()).unwrap();
    assert_eq!(listed, [Mounted { key: key.clone(), bound: false }]);
    for _ in 0..2 {
        rig.wait(mounter.discard(&key)).unwrap();
        assert!(!rig.private(&key).exists() && ours().is_empty());
    }
    assert_eq!(failure(rig.wait(mounter.bind(&key, &target))), Failure::NotPrepared);
    assert_eq!(rig.wait(mounter.list()).unwrap(), []);
    // The kubelet may have removed the pod's directory already.
    std::fs::remove_dir_all(
        Path::new(rig.root.as_str()).join("pods/8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab"),
    )
    .unwrap();
    rig.wait(mounter.unbind(&target)).unwrap();
}

#[test]
fn a_mounter_that_was_killed_finds_its_mounts_again() {
    if !in_own_namespace("volumes::a_mounter_that_was_killed_finds_its_mounts_again") {
        return;
    }
    let mut rig = Rig::start();
    let (bound, prepared) = (key("bound"), key("prepared"));
    let root = rig.publish(&bound, "t1");
    rig.wait(rig.client().prepare(&prepared, size())).unwrap();
    let client = rig.client();
    rig.mounter.kill();
    let gone = rig.wait(client.list()).unwrap_err();
    assert!(matches!(gone, MounterError::Unreachable { .. }), "{gone:?}");
    // The agent goes on writing without it.
    write(root.as_fd(), "token", "t2");

    rig.restart();
    let expected = [
        Mounted { key: bound.clone(), bound: true },
        Mounted { key: prepared.clone(), bound: false },
    ];
    assert_eq!(rig.wait(client.list()).unwrap(), expected);
    let again = rig.wait(client.prepare(&bound, size())).unwrap().root;
    assert_eq!(fstat(&again).unwrap().st_dev, fstat(&root).unwrap().st_dev);
    rig.wait(client.bind(&bound, &rig.target(&bound))).unwrap();
    assert_eq!(ours().len(), 3);
    let token = Path::new(rig.target(&bound).as_str()).join("token");
    assert_eq!(std::fs::read_to_string(&token).unwrap(), "t2");

    // Told to stop, it serves its agent until that one has ended too: here it is this process.
    rig.mounter.signal(Signal::TERM);
    let mounter = &rig.mounter;
    eventually(PATIENCE, "it was told", || mounter.stderr().contains("stopping after the agent"));
    assert_eq!(rig.wait(client.list()).unwrap(), expected);
    // A second time it ends in order, and unmounts nothing either.
    assert_eq!(rig.mounter.stop(PATIENCE).code(), Some(0));
    assert_eq!((ours().len(), std::fs::read_to_string(&token).unwrap()), (3, "t2".to_owned()));
}

#[test]
fn after_the_node_restarts_volumes_are_listed_and_made_anew() {
    if !in_own_namespace("volumes::after_the_node_restarts_volumes_are_listed_and_made_anew") {
        return;
    }
    let rig = Rig::start();
    let (key, client) = (key("secrets"), rig.client());
    drop(rig.publish(&key, "t1"));
    for path in [PathBuf::from(rig.target(&key).as_str()), rig.private(&key)] {
        unmount(&path, UnmountFlags::DETACH).unwrap();
    }
    assert_eq!(rig.wait(client.list()).unwrap(), [Mounted { key: key.clone(), bound: false }]);
    assert_eq!(failure(rig.wait(client.bind(&key, &rig.target(&key)))), Failure::NotPrepared);
    assert_eq!(failure(client.mounted_below(&key)), Failure::NotPrepared);
    drop(rig.publish(&key, "t2"));
    let token = Path::new(rig.target(&key).as_str()).join("token");
    assert_eq!(std::fs::read_to_string(token).unwrap(), "t2");
}

#[test]
fn files_that_are_mounted_by_themselves_are_reported() {
    if !in_own_namespace("volumes::files_that_are_mounted_by_themselves_are_reported") {
        return;
    }
    let rig = Rig::start();
    let (key, other, client) = (key("secrets"), key("other"), rig.client());
    let root = rig.publish(&key, "t1");
    rig.publish(&other, "t1");
    // The bind onto the target is the whole volume, and does not count.
    assert!(client.mounted_below(&key).unwrap().is_empty());

    let target = PathBuf::from(rig.target(&key).as_str());
    rustix::fs::mkdirat(&root, "dir with space", Mode::from_raw_mode(0o755)).unwrap();
    write(root.as_fd(), "deleted", "t1");
    let places = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut inodes = std::collections::BTreeSet::new();
    for (number, name) in ["token", "dir with space", "deleted"].into_iter().enumerate() {
        let (from, to) = (target.join(name), places.path().join(number.to_string()));
        if from.is_dir() {
            std::fs::create_dir(&to).unwrap();
        } else {
            std::fs::write(&to, "").unwrap();
        }
        mount_bind(&from, &to).unwrap();
        inodes.insert(from.metadata().unwrap().ino());
    }
    assert_eq!(client.mounted_below(&key).unwrap(), inodes);
    // Nobody can wipe a file without a name.
    inodes.remove(&target.join("deleted").metadata().unwrap().ino());
    rustix::fs::unlinkat(&root, "deleted", rustix::fs::AtFlags::empty()).unwrap();
    assert_eq!(client.mounted_below(&key).unwrap(), inodes);
    // Nor is another file of that name the one that is mounted.
    write(root.as_fd(), "deleted", "t2");
    assert_eq!(client.mounted_below(&key).unwrap(), inodes);
    assert!(client.mounted_below(&other).unwrap().is_empty());
    for number in 0..3 {
        unmount(places.path().join(number.to_string()), UnmountFlags::empty()).unwrap();
    }
    assert!(client.mounted_below(&key).unwrap().is_empty());
}

/// Who wipes asks from a thread of the blocking pool, as many volumes at once as it has threads.
#[test]
fn what_is_mounted_is_told_on_the_last_thread_of_the_blocking_pool() {
    if !in_own_namespace("volumes::what_is_mounted_is_told_on_the_last_thread_of_the_blocking_pool")
    {
        return;
    }
    let rig = Rig::start();
    let (key, client) = (key("secrets"), rig.client());
    rig.publish(&key, "t1");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let told = runtime.block_on(async move {
        let asking = tokio::task::spawn_blocking(move || client.mounted_below(&key));
        tokio::time::timeout(Duration::from_secs(20), asking).await
    });
    runtime.shutdown_background();
    assert!(told.expect("an answer").unwrap().unwrap().is_empty());
}

#[test]
fn a_volume_keeps_its_bounds_and_takes_new_ones() {
    if !in_own_namespace("volumes::a_volume_keeps_its_bounds_and_takes_new_ones") {
        return;
    }
    let rig = Rig::start();
    let (key, client) = (key("secrets"), rig.client());
    let root = rig.wait(client.prepare(&key, size())).unwrap().root;
    let fill = |bytes: usize| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let file = rig::open(root.as_fd(), "large", flags).unwrap();
        rustix::io::write(&file, &vec![1; bytes]).map(|written| written == bytes)
    };
    assert_ne!(fill(300 * 1024), Ok(true));
    let larger = TmpfsSize::new(512 * 1024, 128).unwrap();
    rig.wait(client.prepare(&key, larger)).unwrap();
    assert_eq!(fill(300 * 1024), Ok(true));
    let options = mount_at(&rig.private(&key)).unwrap().super_options;
    assert!(options.contains("size=512k,nr_inodes=128"), "{options}");
    // What lies there is more than this; the volume stays as it is.
    rig.wait(client.prepare(&key, size())).unwrap();
    let options = mount_at(&rig.private(&key)).unwrap().super_options;
    assert!(options.contains("size=512k"), "{options}");
}

#[test]
fn an_agent_of_another_user_owns_the_root_and_may_connect() {
    if !in_own_namespace("volumes::an_agent_of_another_user_owns_the_root_and_may_connect") {
        return;
    }
    let rig = Rig::start_with(&["--agent-uid", "4242"]);
    let root = rig.wait(rig.client().prepare(&key("secrets"), size())).unwrap().root;
    let stat = fstat(&root).unwrap();
    assert_eq!((stat.st_uid, stat.st_gid, stat.st_mode & 0o7777), (4242, 0, 0o755));
    let socket = rig.socket().metadata().unwrap();
    assert_eq!((socket.uid(), socket.mode() & 0o777), (4242, 0o600));
    assert_eq!(rig.socket().parent().unwrap().metadata().unwrap().mode() & 0o777, 0o711);
}

#[test]
fn the_root_that_is_handed_over_leads_nowhere_else() {
    if !in_own_namespace("volumes::the_root_that_is_handed_over_leads_nowhere_else") {
        return;
    }
    let rig = Rig::start();
    let key = key("secrets");
    let root = rig.publish(&key, "t1");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let up = |from| {
        let above = openat(from, "../../../..", flags, Mode::empty()).unwrap();
        openat(&above, "pods", flags, Mode::empty()).map(drop)
    };
    assert_eq!(up(root.as_fd()), Err(Errno::NOENT));
    let absolute = openat(&root, "..", flags, Mode::empty()).unwrap();
    assert_eq!(fstat(&absolute).unwrap().st_ino, fstat(&root).unwrap().st_ino);
    // The mount itself, had it been handed over, leads to every pod of the node.
    let attached = rustix::fs::open(rig.private(&key), flags, Mode::empty()).unwrap();
    assert_eq!(up(attached.as_fd()), Ok(()));
}

#[test]
fn a_second_mounter_does_not_take_the_socket() {
    if !in_own_namespace("volumes::a_second_mounter_does_not_take_the_socket") {
        return;
    }
    let rig = Rig::start();
    let mut second: Command = rig::command(rig.directory.path(), &rig.root, &[]);
    let output = second.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        (output.status.code(), text.contains("answered by another process")),
        (Some(1), true),
        "{text}"
    );
    rig.wait(rig.client().list()).unwrap();
}
