//! Finds directories below one that is open, and the mounts they lie on.
//!
//! No path is resolved through a link or out of the directory it starts from, so whoever can swap
//! names in the tree can make a call fail and cannot lead it elsewhere.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, mkdirat, openat2, statx,
    unlinkat,
};
use rustix::io::Errno;

/// Opens a directory to work from, without reading it.
pub(super) fn open_directory(from: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    open_beneath(from, path, OFlags::PATH | OFlags::DIRECTORY)
}

/// Opens whatever a path below `from` leads to.
pub(super) fn open_beneath(
    from: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(from, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Makes a directory with `mode` less the umask; one that is there is left as it is.
pub(super) fn make_directory(parent: BorrowedFd<'_>, name: &str, mode: u32) -> Result<(), Errno> {
    match mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

/// Removes an empty directory; one that is gone is fine.
pub(super) fn remove_directory(parent: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}

/// `None` where the directory does not exist.
pub(super) fn if_there<T>(found: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Where an open directory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The id of the mount.
    pub(super) mount: u64,
    /// Whether the directory is that mount's root.
    pub(super) is_root: bool,
    /// The file system; a tmpfs as the mount table has it.
    pub(super) device: (u32, u32),
}

/// Asks where an open directory lies.
pub(super) fn place_of(directory: &OwnedFd) -> Result<Place, Errno> {
    let stat = statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let is_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    let device = (stat.stx_dev_major, stat.stx_dev_minor);
    Ok(Place { mount: stat.stx_mnt_id, is_root, device })
}

/// The names in a directory.
pub(super) fn names(directory: &OwnedFd) -> Result<Vec<String>, Errno> {
    let readable = open_beneath(directory.as_fd(), ".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(readable)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}
