//! The privileged half: one tmpfs per pod volume, mounted, bound to its target, and unmounted.
//!
//! Whoever fills volumes works on directory descriptors from a [`Mounter`] and needs no privilege
//! itself. [`client::MounterClient`] asks the process that `secrets-broker mounter` runs;
//! [`local::LocalMounter`] does the same in this process. Nothing here reads what lies on a volume.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

mod agent_process;
mod answer;
pub mod client;
mod exchange;
pub mod listener;
pub mod local;
pub mod mounts;
pub mod protocol;
pub mod sandbox;
mod selinux;
pub mod server;
mod size;
mod table;
pub mod target;
mod tmpfs;
mod tree;

pub use size::{TmpfsSize, TmpfsSizeError};
pub use target::{KubeletRoot, KubeletRootError, Target, TargetError, VolumeKey};

/// Makes and takes away the mounts of pods' volumes.
///
/// Every call may be repeated: what is done already is found and left as it is. A call that is
/// dropped while it waits may still take effect.
#[async_trait]
pub trait Mounter: Send + Sync {
    /// Makes the volume's private tmpfs, or finds it again and brings it to this size.
    async fn prepare(&self, key: &VolumeKey, size: TmpfsSize) -> Result<Prepared, MounterError>;

    /// Binds a prepared volume, read-only, onto its target, which is made if it is missing.
    async fn bind(&self, key: &VolumeKey, target: &Target) -> Result<(), MounterError>;

    /// Unmounts the target and removes its directory. The private tmpfs and its files stay.
    async fn unbind(&self, target: &Target) -> Result<(), MounterError>;

    /// Unmounts the private tmpfs and removes its directory; refused while the target is bound.
    /// The memory is given back once no descriptor is open any more.
    async fn discard(&self, key: &VolumeKey) -> Result<(), MounterError>;

    /// Every volume that is known, in order; for a successor.
    async fn list(&self) -> Result<Vec<Mounted>, MounterError>;

    /// Inodes of this volume's files and directories that are mounted somewhere by themselves, as
    /// `subPath` does. No descriptor shows that they are in use; they must not be wiped.
    ///
    /// Blocks: whoever wipes does that on the blocking pool, and a thread of the pool that waits
    /// for another one waits for ever once all of them do.
    fn mounted_below(&self, key: &VolumeKey) -> Result<BTreeSet<u64>, MounterError>;
}

/// A volume's tmpfs, ready for files.
#[derive(Debug)]
pub struct Prepared {
    /// Its root. Nothing outside of the tmpfs can be reached from it, by `..` neither.
    pub root: OwnedFd,
    /// What it lies on, for status.
    pub description: &'static str,
}

/// A volume that a mounter knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mounted {
    /// Which. Its tmpfs is gone if the node has restarted: prepare it anew, or discard it.
    pub key: VolumeKey,
    /// Whether it is bound onto its target.
    pub bound: bool,
}

/// Why a mounter did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MounterError {
    /// It refused, or the kernel did.
    #[error("cannot {request}")]
    Failed {
        /// What was asked, and of which volume.
        request: String,
        /// Why not.
        #[source]
        failure: Failure,
    },
    /// No mounter answered in time.
    #[error(
        "cannot {request}: no mounter answers on '{}'; is its container running?",
        socket.display()
    )]
    Unreachable {
        /// What was asked.
        request: String,
        /// Where.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// This process did not get to the end of it.
    #[error("cannot {request}: this process is stopping")]
    Interrupted {
        /// What was asked.
        request: String,
    },
    /// What answers on the socket is no mounter of this version.
    #[error(
        "cannot {request}: the mounter's answer is unusable; run the same version in both \
         containers"
    )]
    Answer {
        /// What was asked.
        request: String,
        /// What is wrong with it.
        #[source]
        source: protocol::ProtocolError,
    },
}

/// A reason that a mounter gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Failure {
    /// The target is no target.
    #[error(transparent)]
    Target(TargetError),
    /// Two different volumes were named.
    #[error("the target belongs to another volume")]
    OtherVolume,
    /// Something else is mounted there.
    #[error("something else ({0}) is mounted at {1}; unmount it there")]
    Foreign(String, String),
    /// There is no tmpfs yet.
    #[error("the volume has no tmpfs; prepare it first")]
    NotPrepared,
    /// The kubelet has not made the directory that the target lies in, or removed it.
    #[error("the kubelet has no directory for this volume; is --kubelet-root its --root-dir?")]
    NoPodDirectory,
    /// The private tmpfs is still bound.
    #[error("the volume is bound onto its target; unbind it first")]
    StillBound,
    /// More of its files are mounted elsewhere than one answer holds.
    #[error("more than {0} of its files are mounted elsewhere")]
    TooManyMounted(usize),
    /// The request was not understood.
    #[error("the mounter does not understand the request; run the same version in both containers")]
    Malformed,
    /// The kernel refused.
    #[error("cannot {what}: {}", reason(*errno))]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        errno: i32,
    },
}

fn reason(errno: i32) -> String {
    let refusal = io::Error::from_raw_os_error(errno);
    match errno {
        libc::ELOOP | libc::ENOTDIR => format!(
            "a symbolic link or a file stands in the way; remove it from the kubelet's directories \
             ({refusal})"
        ),
        _ => refusal.to_string(),
    }
}

/// Turns a refusal of the kernel into a [`Failure`].
fn failed(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Failure {
    move |errno| Failure::System { what: what.to_owned(), errno: errno.raw_os_error() }
}
