//! The ground: a mount namespace, a kubelet's directories, a mounter and its client.

use std::future::Future;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketType, connect, recv, sendmsg, socket,
};
use secrets_broker::mounter::client::MounterClient;
use secrets_broker::mounter::{KubeletRoot, Mounter, Target, TmpfsSize, VolumeKey};
use secrets_broker::mountinfo::{self, MountLine};

use crate::process::Process;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const DRIVER: &str = "csi.secrets-broker.io";
const CHILD: &str = "MOUNTER_TEST_CHILD";
const BROKER: &str = env!("CARGO_BIN_EXE_secrets-broker");

/// Runs a test in a child with its own mount namespace; true in that child, false in its parent
/// once the child has passed. `test` is the test's path in this binary.
pub(crate) fn in_own_namespace(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT ROOT: {test} only checks that the mounter does not start");
        let directory = tempfile::tempdir().unwrap();
        let mut mounter = Command::new(BROKER);
        mounter.arg("mounter").arg("--kubelet-root").arg(directory.path());
        mounter.arg("--socket").arg(directory.path().join("run/mounter.sock"));
        assert_eq!(mounter.status().unwrap().code(), Some(1));
        return false;
    }
    let child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let output = [child.stdout, child.stderr].concat();
    let output = String::from_utf8_lossy(&output);
    assert!(child.status.success() && output.contains("1 passed"), "in its namespace:\n{output}");
    false
}

/// A kubelet's root with one mounter.
pub(crate) struct Rig {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) root: KubeletRoot,
    pub(crate) mounter: Process,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(more: &[&str]) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let kubelet = directory.path().join("kubelet");
        std::fs::create_dir_all(kubelet.join("pods")).unwrap();
        let root: KubeletRoot = kubelet.to_str().unwrap().parse().unwrap();
        let mounter = spawn(directory.path(), &root, more);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut rig = Self { directory, root, mounter, runtime };
        rig.wait_ready();
        rig
    }

    fn wait_ready(&mut self) {
        let client = self.client();
        let Self { mounter, runtime, .. } = self;
        let answers = || runtime.block_on(client.list()).is_ok();
        mounter.wait_until(PATIENCE, "the mounter answers", answers);
    }

    /// Starts a mounter anew, as a container's restart would.
    pub(crate) fn restart(&mut self) {
        self.mounter = spawn(self.directory.path(), &self.root, &[]);
        self.wait_ready();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(self.directory.path())
    }

    pub(crate) fn client(&self) -> MounterClient {
        MounterClient::new(self.socket())
    }

    pub(crate) fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub(crate) fn private(&self, key: &VolumeKey) -> PathBuf {
        let below = format!("plugins/{DRIVER}/volumes/{}", key.directory());
        Path::new(self.root.as_str()).join(below)
    }

    pub(crate) fn target(&self, key: &VolumeKey) -> Target {
        Target::of(&self.root, key)
    }

    /// What the kubelet makes before it calls the driver; the directory the target goes into.
    pub(crate) fn make_pod(&self, key: &VolumeKey) -> PathBuf {
        let parent = Path::new(self.root.as_str()).join(key.target_parent());
        std::fs::create_dir_all(&parent).unwrap();
        parent
    }

    /// A pod's volume, prepared, with one file, and bound; its root.
    pub(crate) fn publish(&self, key: &VolumeKey, content: &str) -> OwnedFd {
        self.make_pod(key);
        let client = self.client();
        let root = self.wait(client.prepare(key, size())).unwrap().root;
        write(root.as_fd(), "token", content);
        self.wait(client.bind(key, &self.target(key))).unwrap();
        root
    }
}

fn socket_in(directory: &Path) -> PathBuf {
    directory.join("run/mounter/mounter.sock")
}

fn spawn(directory: &Path, root: &KubeletRoot, more: &[&str]) -> Process {
    Process::spawn("mounter", &command(directory, root, more), directory)
}

/// The mounter's command line.
pub(crate) fn command(directory: &Path, root: &KubeletRoot, more: &[&str]) -> Command {
    let mut command = Command::new(BROKER);
    command.args(["mounter", "--kubelet-root", root.as_str(), "--socket"]);
    command.arg(socket_in(directory)).args(more);
    command
}

pub(crate) fn key(volume: &str) -> VolumeKey {
    format!("8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab~{volume}").parse().unwrap()
}

pub(crate) fn size() -> TmpfsSize {
    TmpfsSize::new(256 * 1024, 64).unwrap()
}

/// Opens below a directory, as the agent does.
pub(crate) fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let mode = Mode::from_raw_mode(if flags.contains(OFlags::CREATE) { 0o444 } else { 0 });
    openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve)
}

/// Writes a file below a directory, as the agent does.
pub(crate) fn write(root: BorrowedFd<'_>, name: &str, content: &str) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let mut file = std::fs::File::from(open(root, name, flags).unwrap());
    file.write_all(content.as_bytes()).unwrap();
}

/// The mounts of this driver, in the order they were made.
pub(crate) fn ours() -> Vec<MountLine> {
    let lines = mountinfo::read().unwrap();
    lines.into_iter().filter(|line| line.source == DRIVER).collect()
}

/// The mount on top at a path.
pub(crate) fn mount_at(path: &Path) -> Option<MountLine> {
    mountinfo::read().unwrap().into_iter().rfind(|line| line.mount_point == path)
}

/// Sends one packet, with descriptors, and returns the reply; empty if the other end just closes.
pub(crate) fn raw(path: &Path, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> Vec<u8> {
    let connection = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&connection, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    // Whoever is refused finds the connection closed, here or at the reply.
    let _ = sendmsg(&connection, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL);
    let mut reply = vec![0; 64 * 1024];
    let length = recv(&connection, reply.as_mut_slice(), RecvFlags::empty()).map_or(0, |(_, n)| n);
    reply.truncate(length);
    // Nothing more is answered on a connection.
    let _ = sendmsg(
        &connection,
        &[IoSlice::new(packet)],
        &mut SendAncillaryBuffer::default(),
        SendFlags::NOSIGNAL,
    );
    let again = recv(&connection, &mut [0; 16], RecvFlags::empty()).map_or(0, |(_, n)| n);
    assert_eq!(again, 0, "a second reply on one connection");
    reply
}
