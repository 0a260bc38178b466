//! Takes revisions away: overwritten with zeros, then unlinked, when nobody reads them any more.
//!
//! A freed tmpfs page keeps its content until it is reused, so unlinking alone is not enough; but a
//! reader that still has the file open would read zeros. A write lease tells: the kernel grants it
//! only while nobody else has the file open or mapped. A bind mount is no open, so those are looked
//! up; mounts in other mount namespaces cannot be seen from here.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, chmod, chownat, fchmod, fstat, ftruncate, major, minor,
    statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::clock::BootInstant;
use crate::mountinfo;
use crate::sys;

use super::apply::{entries, open_beneath};
use super::mount::Root;
use super::name::RevisionName;

/// How long a reader is waited for, as a multiple of the grace it had anyway.
const DEADLINE_GRACES: u32 = 10;
/// The least that is waited for a reader.
const DEADLINE_MIN: Duration = Duration::from_secs(60);
/// How often a revision that is still read is looked at again.
const RETRY: Duration = Duration::from_secs(5);

/// Revisions that are no longer published, until they are gone.
#[derive(Default)]
pub struct Wiper {
    retired: Vec<Retired>,
    /// Revisions wiped although somebody still read them.
    pub forced: u64,
}

struct Retired {
    revision: RevisionName,
    due: BootInstant,
    deadline: BootInstant,
    complained: bool,
}

impl Wiper {
    /// Gives a revision its grace.
    pub fn retire(&mut self, revision: RevisionName, now: BootInstant, grace: Duration) {
        let due = now + grace;
        let deadline = due + (grace * DEADLINE_GRACES).max(DEADLINE_MIN);
        self.retired.push(Retired { revision, due, deadline, complained: false });
    }

    /// Wipes what is due and says when to come again.
    pub fn run(&mut self, root: &Root, now: BootInstant) -> Option<BootInstant> {
        if self.retired.iter().any(|one| one.due <= now) {
            let mounted = root.mounted_elsewhere();
            let dir = root.dir.as_fd();
            self.retired.retain_mut(|one| {
                one.due > now || !finish(one, dir, &mounted, now, &mut self.forced)
            });
        }
        self.retired.iter().map(|one| one.due).min()
    }
}

/// Whether the revision is gone; otherwise it is due again later.
fn finish(
    one: &mut Retired,
    root: BorrowedFd<'_>,
    mounted: &io::Result<Mounted>,
    now: BootInstant,
    forced: &mut u64,
) -> bool {
    let readers = if now >= one.deadline { Readers::Ignore } else { Readers::Respect };
    let left = match mounted {
        Ok(mounted) => wipe(root, &one.revision, mounted, readers),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    };
    let retry = now + RETRY;
    one.due = if now < one.deadline { retry.min(one.deadline) } else { retry };
    match left {
        Ok(left) => {
            if left.read > 0 && readers == Readers::Ignore {
                *forced += 1;
                tracing::warn!(revision = %one.revision, "wiped a revision that was still open");
            }
            left.nothing()
        }
        Err(error) => {
            if !std::mem::replace(&mut one.complained, true) {
                tracing::warn!(revision = %one.revision, %error, "cannot wipe a revision yet");
            }
            false
        }
    }
}

/// Wipes a revision that was never published.
pub fn wipe_unseen(root: BorrowedFd<'_>, revision: &RevisionName) -> io::Result<()> {
    match wipe(root, revision, &Mounted::default(), Readers::Ignore)?.kept {
        0 => Ok(()),
        kept => Err(io::Error::other(format!("{kept} files are held by leases"))),
    }
}

/// Whether files that somebody has open are spared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// They are.
    Respect,
    /// They have had time enough.
    Ignore,
}

/// What was found on the way.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Files that somebody had open.
    pub read: usize,
    /// Files and directories kept because they are mounted elsewhere, still read or leased.
    pub kept: usize,
}

impl Found {
    fn nothing(&self) -> bool {
        self.kept == 0
    }
}

/// Wipes one revision as far as it may; a revision that is not there is wiped.
pub fn wipe(
    root: BorrowedFd<'_>,
    revision: &RevisionName,
    mounted: &Mounted,
    readers: Readers,
) -> io::Result<Found> {
    let mut found = Found::default();
    wipe_directory(root, revision.as_str(), mounted, readers, &mut found)?;
    Ok(found)
}

fn wipe_directory(
    parent: BorrowedFd<'_>,
    name: &str,
    mounted: &Mounted,
    readers: Readers,
    found: &mut Found,
) -> io::Result<()> {
    let dir = match open_beneath(parent, name, OFlags::DIRECTORY | OFlags::RDONLY) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    if mounted.holds(fstat(&dir)?.st_ino) {
        found.kept += 1;
        return Ok(());
    }
    let before = found.kept;
    for entry in entries(dir.as_fd())? {
        let stat = statat(&dir, &entry, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => wipe_directory(dir.as_fd(), &entry, mounted, readers, found)?,
            FileType::RegularFile if mounted.holds(stat.st_ino) => found.kept += 1,
            // A later revision carried the very file: it is wiped with that one.
            FileType::RegularFile if stat.st_nlink > 1 => {
                unlinkat(&dir, &entry, AtFlags::empty())?;
            }
            FileType::RegularFile => wipe_file(dir.as_fd(), &entry, readers, found)?,
            _ => unlinkat(&dir, &entry, AtFlags::empty())?,
        }
    }
    if found.kept == before {
        unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Takes the lease, overwrites, unlinks and gives the lease back without pausing: whoever opens the
/// file meanwhile is held up by the kernel.
fn wipe_file(
    dir: BorrowedFd<'_>,
    name: &str,
    readers: Readers,
    found: &mut Found,
) -> io::Result<()> {
    let file = match open_writable(dir, name) {
        // Somebody holds a lease, which this has begun to end.
        Err(Errno::AGAIN) => {
            found.kept += 1;
            return Ok(());
        }
        opened => opened?,
    };
    let leased = match sys::take_write_lease(file.as_fd()) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            found.read += 1;
            false
        }
        // Not ours and no CAP_LEASE, or leases are off: nobody can tell, so only time decides.
        Err(_) => false,
    };
    if !leased && readers == Readers::Respect {
        found.kept += 1;
        return Ok(());
    }
    let wiped = overwrite(&file).and_then(|()| Ok(unlinkat(dir, name, AtFlags::empty())?));
    if leased {
        sys::release_lease(file.as_fd())?;
    }
    wiped
}

fn open_writable(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    match open_beneath(dir, name, OFlags::RDWR) {
        Err(Errno::ACCESS) => {
            // Our own read-only file, without root; or another owner's, without the right to read
            // whatever there is. Readers that have it open are not concerned.
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            if statat(dir, name, flags)?.st_uid != geteuid().as_raw() {
                chownat(dir, name, Some(geteuid()), None, flags)?;
            }
            make_writable(dir, name)?;
            open_beneath(dir, name, OFlags::RDWR)
        }
        opened => opened,
    }
}

/// Never by name: who may write to the volume could put a link to something else in its place.
fn make_writable(dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    match open_beneath(dir, name, OFlags::RDONLY) {
        Ok(file) => fchmod(file, mode),
        // Not even its owner may read it, and a handle on it is no file.
        Err(Errno::ACCESS) => {
            let file = open_beneath(dir, name, OFlags::PATH)?;
            chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)
        }
        Err(errno) => Err(errno),
    }
}

fn overwrite(file: &OwnedFd) -> io::Result<()> {
    zero(file)?;
    Ok(ftruncate(file, 0)?)
}

fn zero(file: &OwnedFd) -> io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let size = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
    let mut offset = 0;
    while offset < size {
        let chunk = usize::try_from(size - offset).unwrap_or(ZEROS.len()).min(ZEROS.len());
        let written = rustix::io::pwrite(file, &ZEROS[..chunk], offset)?;
        offset += u64::try_from(written).unwrap_or(0);
    }
    Ok(())
}

/// Files and directories of one file system that are bind-mounted somewhere, as `subPath` does.
#[derive(Default)]
pub struct Mounted(BTreeSet<u64>);

impl Mounted {
    /// These inodes.
    pub fn of(inodes: BTreeSet<u64>) -> Self {
        Self(inodes)
    }

    /// Looks them up for the file system that `root` lies on; `root` itself does not count.
    pub fn read(root: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = fstat(root)?;
        let device = (major(stat.st_dev), minor(stat.st_dev));
        let lines = mountinfo::read()?.into_iter().filter(|line| line.device == device);
        // A mount point that cannot be looked at is hidden below another mount.
        let inodes = lines.filter_map(|line| rustix::fs::stat(&line.mount_point).ok());
        let inodes = inodes.filter(|at| at.st_dev == stat.st_dev && at.st_ino != stat.st_ino);
        Ok(Self(inodes.map(|at| at.st_ino).collect()))
    }

    fn holds(&self, inode: u64) -> bool {
        self.0.contains(&inode)
    }
}

#[cfg(test)]
#[path = "wipe_tests.rs"]
mod tests;
