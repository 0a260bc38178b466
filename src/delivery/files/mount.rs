//! What a volume lies on: our own tmpfs, made or found again after a restart, or an existing one.
//!
//! Process exit never unmounts; only [`discard`] does, for whoever owns everything it made.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{DirBuilder, Permissions, set_permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, fstat, fstatfs, unlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::process::geteuid;

use crate::mountinfo::{self, MountLine};

use super::config::{Backing, DeclaredVolume};
use super::wipe::{self, Mounted};
use super::{apply, status_file};

/// The source our mounts carry in mountinfo, by which a successor knows them.
const SOURCE: &str = "secrets-broker";
/// `statfs` type of a tmpfs, from linux/magic.h.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Mode of directories made on the way.
const DIRECTORY_MODE: u32 = 0o755;

/// A volume's root, ready for revisions.
pub struct Root {
    /// The directory.
    pub dir: OwnedFd,
    /// What it lies on, for status.
    pub description: String,
    /// Where to ask what of it is mounted elsewhere.
    elsewhere: Elsewhere,
}

/// Who knows of bind mounts of single files, as `subPath` makes them.
enum Elsewhere {
    /// This process's own mount table.
    MountTable,
    /// Whoever mounted the volume.
    Asked(Box<dyn Fn() -> io::Result<BTreeSet<u64>> + Send>),
}

impl Root {
    /// The root of a volume that somebody else mounted. `mounted_below` tells the inodes of its
    /// files and directories that are mounted by themselves; it may block.
    pub fn handed_over(
        dir: OwnedFd,
        description: &str,
        mounted_below: impl Fn() -> io::Result<BTreeSet<u64>> + Send + 'static,
    ) -> Self {
        let elsewhere = Elsewhere::Asked(Box::new(mounted_below));
        Self { dir, description: description.to_owned(), elsewhere }
    }

    fn of_mount_table(dir: OwnedFd, description: &str) -> Self {
        Self { dir, description: description.to_owned(), elsewhere: Elsewhere::MountTable }
    }

    /// What must not be wiped although nobody has it open. May block.
    pub fn mounted_elsewhere(&self) -> io::Result<Mounted> {
        match &self.elsewhere {
            Elsewhere::MountTable => Mounted::read(self.dir.as_fd()),
            Elsewhere::Asked(ask) => ask().map(Mounted::of),
        }
    }
}

/// Why a volume has nothing to lie on.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Something else is mounted there.
    #[error("something else ({0}) is mounted at '{1}'; unmount it or choose another path")]
    Foreign(String, PathBuf),
    /// Mounting would hide files.
    #[error(
        "'{0}' is not empty and mounting would hide what is in it; choose an empty or absent one"
    )]
    NotEmpty(PathBuf),
    /// No right to mount.
    #[error(
        "no right to mount a tmpfs at '{0}'; run with CAP_SYS_ADMIN, or set `tmpfs = \"existing\"` \
         on a directory below /dev/shm or $XDG_RUNTIME_DIR"
    )]
    NotPermitted(PathBuf),
    /// A disk would keep secrets.
    #[error(
        "'{0}' is not on a tmpfs and secrets never touch a disk; \
         choose a directory below /dev/shm or $XDG_RUNTIME_DIR"
    )]
    NotTmpfs(PathBuf),
    /// Whoever made the directory could replace what is in it.
    #[error("'{path}' belongs to user {owner}, who could replace its files; give it to the agent")]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Anything else.
    #[error("cannot {what} '{path}'")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MountError {
    move |source| MountError::Io { what, path: path.to_owned(), source }
}

/// Makes the root ready, or finds it ready.
pub fn prepare(volume: &DeclaredVolume) -> Result<Root, MountError> {
    match volume.backing {
        Backing::OwnTmpfs { size_bytes, inodes, directory_mode } => {
            let options = format!("size={size_bytes},nr_inodes={inodes}");
            own(&volume.config.path, &options, directory_mode)
        }
        Backing::ExistingTmpfs => existing(&volume.config.path),
    }
}

/// Wipes everything of a volume, unmounts what we mounted and removes its directory.
pub fn discard(volume: &DeclaredVolume) -> Result<(), MountError> {
    let path = &volume.config.path;
    let root = open(path)?;
    clear(root.as_fd()).map_err(failed("clear", path))?;
    drop(root);
    if matches!(volume.backing, Backing::OwnTmpfs { .. }) && ours(path)?.is_some() {
        unmount(path, UnmountFlags::DETACH).map_err(|e| failed("unmount", path)(e.into()))?;
    }
    std::fs::remove_dir(path).map_err(failed("remove", path))
}

/// Wipes every revision and takes away every entry of ours, whoever still has them open.
pub fn clear(root: BorrowedFd<'_>) -> io::Result<()> {
    apply::link(root, &BTreeSet::new()).map_err(io::Error::other)?;
    // What is in the way of one does not spare the others.
    let mut wiped = Ok(());
    for revision in apply::revisions(root)? {
        wiped = wiped.and(wipe::wipe_unseen(root, &revision));
    }
    for entry in ["..data", "..data_tmp", status_file::NAME] {
        match unlinkat(root, entry, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    wiped
}

fn own(path: &Path, options: &str, directory_mode: u32) -> Result<Root, MountError> {
    make_directories(path)?;
    let noswap = match ours(path)? {
        Some(line) => {
            adjust(path, options, &line);
            line.has_noswap()
        }
        None => mount_new(path, options)?,
    };
    let dir = open(path)?;
    require_tmpfs(&dir, path)?;
    fchmod(&dir, Mode::from_raw_mode(directory_mode & 0o777))
        .map_err(|errno| failed("set the mode of", path)(errno.into()))?;
    let description = if noswap { "tmpfs noswap" } else { "tmpfs (no noswap: kernel before 6.4)" };
    Ok(Root::of_mount_table(dir, description))
}

/// Our mount at this path, if one is there; anything else that is mounted there is an error.
fn ours(path: &Path) -> Result<Option<MountLine>, MountError> {
    let real = path.canonicalize().map_err(failed("resolve", path))?;
    let lines = mountinfo::read().map_err(failed("look up mounts for", path))?;
    // The last line is the one on top.
    match lines.into_iter().rev().find(|line| line.mount_point == real) {
        None => Ok(None),
        Some(line) if line.fs_type == "tmpfs" && line.source == SOURCE => Ok(Some(line)),
        Some(line) => Err(MountError::Foreign(line.fs_type, path.to_owned())),
    }
}

/// Brings an adopted mount to the configured size; one that cannot shrink stays as it is. Some
/// kernels want `noswap` repeated, see [`crate::mounter`]'s tmpfs.
fn adjust(path: &Path, options: &str, line: &MountLine) {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let noswap = if line.has_noswap() { ",noswap" } else { "" };
    if let Err(error) = mount_remount(path, flags, format!("{options}{noswap}")) {
        let present = line.super_options.as_str();
        tracing::warn!(path = %path.display(), %error, present, "volume keeps its present size");
    }
}

/// Mounts; whether the kernel took `noswap`.
fn mount_new(path: &Path, options: &str) -> Result<bool, MountError> {
    let mut entries = std::fs::read_dir(path).map_err(failed("list", path))?;
    if entries.next().is_some() {
        return Err(MountError::NotEmpty(path.to_owned()));
    }
    // Closed until it is ours completely; `own` opens it.
    let with = |options: String| {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let data = CString::new(options).map_err(|_| Errno::INVAL)?;
        mount(SOURCE, path, "tmpfs", flags, data.as_c_str())
    };
    match with(format!("{options},mode=0700,noswap")) {
        Ok(()) => Ok(true),
        // A kernel before 6.4 does not know the option.
        Err(Errno::INVAL) => match with(format!("{options},mode=0700")) {
            Ok(()) => Ok(false),
            Err(errno) => Err(failed("mount a tmpfs at", path)(errno.into())),
        },
        Err(Errno::PERM | Errno::ACCESS) => Err(MountError::NotPermitted(path.to_owned())),
        Err(errno) => Err(failed("mount a tmpfs at", path)(errno.into())),
    }
}

fn existing(path: &Path) -> Result<Root, MountError> {
    // Asked before anything is made, so that nothing is left on a disk.
    let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    require_tmpfs(&open(there)?, path)?;
    make_directories(path)?;
    let dir = open(path)?;
    require_tmpfs(&dir, path)?;
    let owner = fstat(&dir).map_err(|errno| failed("look at", path)(errno.into()))?.st_uid;
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(MountError::NotOurs { path: path.to_owned(), owner });
    }
    Ok(Root::of_mount_table(dir, "existing tmpfs directory"))
}

/// Makes what is missing, enterable by everybody whatever the process's umask is: applications come
/// this way. What is there keeps its mode.
fn make_directories(path: &Path) -> Result<(), MountError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|above| !above.exists()).collect();
    for directory in missing.into_iter().rev() {
        match DirBuilder::new().create(directory) {
            Ok(()) => set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(failed("make", directory))?;
    }
    Ok(())
}

fn open(path: &Path) -> Result<OwnedFd, MountError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed("open", path)(errno.into()))
}

/// Whether `path` lies on a tmpfs.
pub fn is_tmpfs(path: &Path) -> std::io::Result<bool> {
    let magic = u64::try_from(rustix::fs::statfs(path)?.f_type);
    Ok(magic == Ok(TMPFS_MAGIC))
}

fn require_tmpfs(dir: &OwnedFd, path: &Path) -> Result<(), MountError> {
    let stat = fstatfs(dir).map_err(|errno| failed("look at", path)(errno.into()))?;
    match u64::try_from(stat.f_type) {
        Ok(TMPFS_MAGIC) => Ok(()),
        _ => Err(MountError::NotTmpfs(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::files::testing::volume;

    fn declared(place: impl FnOnce(&mut PathBuf)) -> DeclaredVolume {
        let mut config = volume(vec![]);
        place(&mut config.path);
        DeclaredVolume { config, backing: Backing::ExistingTmpfs }
    }

    #[test]
    fn a_directory_on_a_disk_is_refused_before_anything_is_made() {
        // On /proc nothing can be made, so trying first would be another error.
        let config = declared(|path| *path = "/proc/secrets-broker/a".into());
        let refused = prepare(&config).err().unwrap();
        assert!(matches!(refused, MountError::NotTmpfs(_)), "{refused}");
    }

    #[test]
    fn a_directory_on_a_tmpfs_is_made_and_discarded_again() {
        let parent = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = parent.path().join("a");
        let config = declared(|place| place.clone_from(&path));
        assert_eq!(prepare(&config).unwrap().description, "existing tmpfs directory");
        discard(&config).unwrap();
        assert!(!path.exists());
    }
}
