//! Puts a revision in place, and nothing else: kubelet's AtomicWriter layout, every step relative
//! to the volume's directory descriptor.
//!
//! A revision is written into a directory nobody can enter, with content, owner and mode complete;
//! then `..data` is swapped by one rename. The names applications use are symbolic links through
//! `..data`, made after the swap so that none ever dangles. No fsync: there is no disk below.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, linkat,
    mkdirat, openat2, readlinkat, renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::config::FileOwnership;
use super::name::{FileName, RevisionName};
use super::plan::PlannedFile;
use super::wipe;

/// The link that names the published revision.
const DATA: &str = "..data";
/// Its successor, for the moment before the rename.
const DATA_TMP: &str = "..data_tmp";
/// Complete revisions can be entered by all; the files' own modes decide who reads them.
const DIRECTORY_MODE: u32 = 0o755;

/// Why a revision could not be put in place. The one before it is untouched.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Bytes or inodes ran out.
    #[error("the volume is full; raise its `size` or `inodes` (the files stay as they are)")]
    Full,
    /// A name an item needs is taken by something that is not ours.
    #[error("'{0}' is in the way and not ours; move it away or give the item another path")]
    InTheWay(String),
    /// Ownership needs a privilege.
    #[error(
        "'{name}' cannot be given to {uid}:{gid}; run as root or configure the agent's own user"
    )]
    Owner {
        /// The file.
        name: FileName,
        /// Wanted owner.
        uid: u32,
        /// Wanted group.
        gid: u32,
    },
    /// Anything else.
    #[error("cannot {0}")]
    Io(&'static str, #[source] io::Error),
}

fn failed(what: &'static str) -> impl FnOnce(Errno) -> ApplyError {
    move |errno| match errno {
        Errno::NOSPC | Errno::DQUOT => ApplyError::Full,
        other => ApplyError::Io(what, other.into()),
    }
}

/// Opens below a directory, never through a link and never out of it.
///
/// Never waits either: whoever owns a file of a volume may hold a lease on it (`F_SETLEASE`), and
/// an open that breaks the lease would take 45 s, each time. It answers `EAGAIN` in place of that.
pub fn open_beneath(dir: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
    // A handle waits for nothing, and takes no such flag.
    let wait = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK };
    openat2(dir, path, flags | OFlags::CLOEXEC | wait, mode, resolve)
}

/// Publishes a revision: all of it, or nothing has changed.
pub fn publish(
    root: BorrowedFd<'_>,
    revision: &RevisionName,
    files: &[PlannedFile],
    present: Option<&RevisionName>,
) -> Result<(), ApplyError> {
    for top in tops(files) {
        check_free(root, top)?;
    }
    let swapped =
        write_revision(root, revision, files, present).and_then(|()| swap(root, revision));
    if swapped.is_err() {
        // Nobody has seen it, so nobody reads it; what cannot be wiped now is found as a leftover.
        let _ = wipe::wipe_unseen(root, revision);
    }
    swapped
}

/// Makes the names applications use, and takes away those of files that are gone.
pub fn link(root: BorrowedFd<'_>, names: &BTreeSet<&FileName>) -> Result<(), ApplyError> {
    let tops: BTreeSet<&str> = names.iter().map(|name| name.top()).collect();
    for top in &tops {
        match symlinkat(format!("{DATA}/{top}"), root, *top) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("make a link in the volume")(errno)),
        }
    }
    for entry in entries(root).map_err(failed("list the volume"))? {
        let stays = entry.starts_with("..") || tops.contains(entry.as_str());
        if !stays && is_visible_link(root, &entry) {
            unlinkat(root, &entry, AtFlags::empty()).map_err(failed("remove a link"))?;
        }
    }
    Ok(())
}

/// The published revision, if there is one.
pub fn present(root: BorrowedFd<'_>) -> io::Result<Option<RevisionName>> {
    match readlinkat(root, DATA, Vec::new()) {
        Ok(target) => Ok(target.to_str().ok().and_then(RevisionName::recognise)),
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// All revisions that lie on the volume, published or not.
pub fn revisions(root: BorrowedFd<'_>) -> io::Result<Vec<RevisionName>> {
    Ok(entries(root)?.iter().filter_map(|entry| RevisionName::recognise(entry)).collect())
}

/// When a revision was written, on the wall clock.
pub fn written_at(root: BorrowedFd<'_>, revision: &RevisionName) -> io::Result<SystemTime> {
    let stat = rustix::fs::statat(root, revision.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// A file as it lies on the volume.
pub struct FileOnVolume {
    /// What is in it.
    pub content: Zeroizing<Vec<u8>>,
    /// Who may read it.
    pub ownership: FileOwnership,
}

/// The names of a revision's files. Names we could not have written are passed over.
pub fn list(root: BorrowedFd<'_>, revision: &RevisionName) -> io::Result<Vec<FileName>> {
    let top = open_beneath(root, revision.as_str(), OFlags::DIRECTORY | OFlags::RDONLY)?;
    let mut names = Vec::new();
    let mut open = vec![(String::new(), top)];
    while let Some((prefix, dir)) = open.pop() {
        for entry in entries(dir.as_fd())? {
            let stat = rustix::fs::statat(&dir, &entry, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let below = open_beneath(dir.as_fd(), &entry, OFlags::DIRECTORY)?;
                    open.push((format!("{prefix}{entry}/"), below));
                }
                FileType::RegularFile => names.extend(format!("{prefix}{entry}").parse().ok()),
                _ => {}
            }
        }
    }
    Ok(names)
}

/// Reads one file of a revision.
pub fn read(
    root: BorrowedFd<'_>,
    revision: &RevisionName,
    name: &FileName,
) -> io::Result<FileOnVolume> {
    let file = open_beneath(root, &format!("{revision}/{name}"), OFlags::RDONLY)?;
    let stat = fstat(&file)?;
    let size = usize::try_from(stat.st_size).unwrap_or(0);
    let mut content = Zeroizing::new(vec![0; size]);
    let mut filled = 0;
    while filled < size {
        match rustix::io::read(&file, &mut content[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    content.truncate(filled);
    let ownership =
        FileOwnership { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 };
    Ok(FileOnVolume { content, ownership })
}

/// Whether a file could not be read because it is its owner's alone, or under a lease of its own.
pub fn is_kept_from_us(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::WouldBlock)
}

/// Names in a directory, without `.` and `..`; names that are not UTF-8 are not ours.
pub fn entries(dir: BorrowedFd<'_>) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_str();
        names.extend(name.ok().filter(|name| !matches!(*name, "." | "..")).map(str::to_owned));
    }
    Ok(names)
}

fn tops(files: &[PlannedFile]) -> BTreeSet<&str> {
    files.iter().map(|file| file.name().top()).collect()
}

/// Whether an entry of the root is a link of ours through `..data`.
fn is_visible_link(root: BorrowedFd<'_>, entry: &str) -> bool {
    let target = readlinkat(root, entry, Vec::new());
    target.is_ok_and(|target| target.to_str() == Ok(format!("{DATA}/{entry}").as_str()))
}

fn check_free(root: BorrowedFd<'_>, top: &str) -> Result<(), ApplyError> {
    match rustix::fs::statat(root, top, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Ok(_) if is_visible_link(root, top) => Ok(()),
        Ok(_) => Err(ApplyError::InTheWay(top.to_owned())),
        Err(errno) => Err(failed("look at the volume")(errno)),
    }
}

fn write_revision(
    root: BorrowedFd<'_>,
    revision: &RevisionName,
    files: &[PlannedFile],
    present: Option<&RevisionName>,
) -> Result<(), ApplyError> {
    mkdirat(root, revision.as_str(), Mode::RWXU).map_err(failed("make a revision"))?;
    let dir = open_beneath(root, revision.as_str(), OFlags::DIRECTORY | OFlags::RDONLY)
        .map_err(failed("open a revision"))?;
    for file in files {
        match file {
            PlannedFile::Write(file) => {
                write_file(dir.as_fd(), &file.name, &file.content, file.ownership)?;
            }
            PlannedFile::Carry(name) => {
                let missing = || ApplyError::Io("carry a file", Errno::NOENT.into());
                carry(root, present.ok_or_else(missing)?, dir.as_fd(), name)?;
            }
        }
    }
    fchmod(&dir, Mode::from_raw_mode(DIRECTORY_MODE))
        .map_err(failed("open the revision to readers"))
}

/// Takes a file over as it is: copied, or linked where only its owner may read it and we are
/// neither that nor allowed everything. A linked file is wiped with the last revision that has it.
fn carry(
    root: BorrowedFd<'_>,
    old: &RevisionName,
    revision: BorrowedFd<'_>,
    name: &FileName,
) -> Result<(), ApplyError> {
    match read(root, old, name) {
        Ok(file) => write_file(revision, name, &file.content, file.ownership),
        Err(error) if is_kept_from_us(&error) => {
            let parent = make_parent(revision, name)?;
            let parent = parent.as_ref().map_or(revision, AsFd::as_fd);
            let from = format!("{old}/{name}");
            linkat(root, from, parent, name.split().1, AtFlags::empty())
                .map_err(failed("carry a file"))
        }
        Err(error) => Err(ApplyError::Io("read the present revision", error)),
    }
}

/// The directory a file goes into, made with what is above it; `None` is the revision itself.
fn make_parent(revision: BorrowedFd<'_>, name: &FileName) -> Result<Option<OwnedFd>, ApplyError> {
    let mut parent: Option<OwnedFd> = None;
    for directory in name.split().0 {
        let above = parent.as_ref().map_or(revision, AsFd::as_fd);
        parent = Some(make_directory(above, directory)?);
    }
    Ok(parent)
}

fn write_file(
    revision: BorrowedFd<'_>,
    name: &FileName,
    content: &[u8],
    ownership: FileOwnership,
) -> Result<(), ApplyError> {
    let parent = make_parent(revision, name)?;
    let parent = parent.as_ref().map_or(revision, AsFd::as_fd);
    let last = name.split().1;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    let file = open_beneath(parent, last, flags).map_err(failed("make a file"))?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest).map_err(failed("write a file"))?;
        rest = &rest[written..];
    }
    let FileOwnership { uid, gid, mode } = ownership;
    let stat = fstat(&file).map_err(failed("look at a file"))?;
    if (stat.st_uid, stat.st_gid) != (uid, gid) {
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(|errno| {
            match errno {
                Errno::PERM => ApplyError::Owner { name: name.clone(), uid, gid },
                other => failed("give a file its owner")(other),
            }
        })?;
    }
    // After the owner: chown clears bits.
    fchmod(&file, Mode::from_raw_mode(mode & 0o777)).map_err(failed("give a file its mode"))
}

fn make_directory(above: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, ApplyError> {
    match mkdirat(above, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed("make a directory")(errno)),
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY;
    let dir = open_beneath(above, name, flags).map_err(failed("open a directory"))?;
    // Whatever the umask is.
    fchmod(&dir, Mode::from_raw_mode(DIRECTORY_MODE))
        .map_err(failed("open a directory to readers"))?;
    Ok(dir)
}

fn swap(root: BorrowedFd<'_>, revision: &RevisionName) -> Result<(), ApplyError> {
    match unlinkat(root, DATA_TMP, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed("remove an unfinished swap")(errno)),
    }
    symlinkat(revision.as_str(), root, DATA_TMP).map_err(failed("prepare the swap"))?;
    renameat(root, DATA_TMP, root, DATA).map_err(failed("swap the revision"))
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
