//! The system calls that make, copy, attach and take away mounts, on descriptors only.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fstatfs};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, fspick, move_mount, open_tree, unmount,
};

use super::TmpfsSize;
use super::tree::open_beneath;
use crate::sys;

/// What lies on a volume is neither a program nor a device.
const HARMLESS: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
/// Pods enter a volume as any user; its files' own modes decide who reads them.
const ROOT_MODE: &str = "0755";

/// `statfs` type of a tmpfs, from linux/magic.h.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Whether an open file or directory lies on one.
pub(super) fn holds(file: &OwnedFd) -> bool {
    fstatfs(file).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(TMPFS_MAGIC))
}

/// Makes a tmpfs that is attached nowhere yet and belongs to `owner`; `label` is the SELinux
/// context of all that lies on it. Whether it stays out of swap comes with it: a kernel before 6.4
/// does not know `noswap` and makes one without it.
pub(super) fn create(
    source: &str,
    size: TmpfsSize,
    owner: u32,
    label: Option<&str>,
) -> Result<(OwnedFd, bool), Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    set_size(&context, size)?;
    fsconfig_set_string(&context, "mode", ROOT_MODE)?;
    fsconfig_set_string(&context, "uid", owner.to_string())?;
    if let Some(label) = label {
        fsconfig_set_string(&context, "context", label)?;
    }
    let noswap = match fsconfig_set_flag(&context, "noswap") {
        Ok(()) => true,
        Err(Errno::INVAL) => false,
        Err(errno) => return Err(errno),
    };
    fsconfig_create(&context)?;
    Ok((fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, HARMLESS)?, noswap))
}

/// Brings a tmpfs to another size. It cannot become smaller than what lies on it (`EINVAL`).
///
/// Kernels from 6.4 on that lack "shmem: fix tmpfs reconfiguration (remount) when noswap is set"
/// take a reconfiguration that does not repeat `noswap` for one that takes it away, and refuse it;
/// no kernel lets it be added.
pub(super) fn resize(mount: BorrowedFd<'_>, size: TmpfsSize, noswap: bool) -> Result<(), Errno> {
    let context = fspick(mount, "", FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC)?;
    set_size(&context, size)?;
    if noswap {
        fsconfig_set_flag(&context, "noswap")?;
    }
    fsconfig_reconfigure(&context)
}

fn set_size(context: &OwnedFd, size: TmpfsSize) -> Result<(), Errno> {
    fsconfig_set_string(context, "size", size.bytes().to_string())?;
    fsconfig_set_string(context, "nr_inodes", size.inodes().to_string())
}

/// The root of a copy of `mount` that is attached nowhere: from an attached one, `..` would lead
/// its holder into the host's file system.
pub(super) fn detached_root(mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open_beneath(copy(mount)?.as_fd(), ".", OFlags::RDONLY | OFlags::DIRECTORY)
}

/// A read-only copy of `mount`, attached nowhere yet. It is no peer of the original.
pub(super) fn read_only_copy(mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let copy = copy(mount)?;
    let attributes = HARMLESS.union(MountAttrFlags::MOUNT_ATTR_RDONLY);
    sys::set_mount_attributes(copy.as_fd(), attributes.bits().into())
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(copy)
}

fn copy(mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(mount, "", flags)
}

/// Attaches a mount to the very directory that is open, wherever its name may be by now.
pub(super) fn attach(mount: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", directory, "", flags)
}

/// Unmounts the mount whose root is open. Lazily: the descriptor itself keeps it busy.
pub(super) fn detach(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    // No system call unmounts a descriptor. This link is the kernel's own; what somebody who may
    // mount on the node put on top of the root meanwhile would go in its place.
    unmount(format!("/proc/self/fd/{}", mount.as_raw_fd()), UnmountFlags::DETACH)
}
