//! Sockets in the file system: right owner and mode from the first instant, in place by one rename.
//!
//! A client never sees the path missing, half set up, or answered by nobody: the socket listens
//! under a temporary name in the same directory before it takes its place. A socket that another
//! process still answers is never taken over.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Connections the kernel queues before `connect` waits.
const BACKLOG: i32 = 1024;
/// What a socket address can hold.
const PATH_BYTES_MAX: usize = 107;

/// Where a socket goes and who may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its path.
    pub path: PathBuf,
    /// Its mode: connecting needs write permission.
    pub mode: u32,
    /// Its group, if not the process's own.
    pub gid: Option<u32>,
    /// Whether the directory must be closed to everybody else.
    pub private: bool,
}

/// Who may connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Its owner, if not the process's own user.
    pub uid: Option<u32>,
    /// Its group, if not the process's own.
    pub gid: Option<u32>,
    /// Its mode: connecting needs write permission.
    pub mode: u32,
}

/// Why a socket could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path has no directory or no name, or is too long for a socket address.
    #[error(
        "socket path '{}' must be absolute, name a file and have at most {PATH_BYTES_MAX} bytes",
        .0.display()
    )]
    Path(PathBuf),
    /// The directory is not one of ours.
    #[error("socket directory '{}' {problem}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// Another process answers there.
    #[error(
        "socket '{}' is answered by another process; stop that agent or configure another path",
        .0.display()
    )]
    Live(PathBuf),
    /// Something that is not a socket is in the way.
    #[error("'{}' exists and is not a socket; remove it or configure another path", .0.display())]
    InTheWay(PathBuf),
    /// A system call failed.
    #[error("cannot {action} '{}'", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A listening socket in its place; dropping it removes the path, if it is still this socket's.
#[derive(Debug)]
pub struct BoundSocket {
    listener: AsyncFd<OwnedFd>,
    path: PathBuf,
    inode: (u64, u64),
    /// The directory that `path` names by its descriptor.
    _directory: Option<OwnedFd>,
}

impl BoundSocket {
    /// Puts a socket in place. Must be called inside a tokio runtime.
    pub fn bind(place: &Place) -> Result<Self, BindError> {
        let path = &place.path;
        let usable = path.is_absolute()
            && path.file_name().is_some()
            && path.as_os_str().len() <= PATH_BYTES_MAX;
        let directory =
            path.parent().filter(|_| usable).ok_or_else(|| BindError::Path(path.clone()))?;
        prepare_directory(directory, place.private)?;
        check_vacant(path)?;

        Self::put(path, Ownership { uid: None, gid: place.gid, mode: place.mode }, None)
    }

    /// Puts a socket into a directory that is nobody else's, by its descriptor: no path that others
    /// could change is followed, and whatever has the name gives way. Must be called inside a tokio
    /// runtime; takes a mounted `/proc`.
    pub fn bind_within(
        directory: OwnedFd,
        name: &str,
        ownership: Ownership,
    ) -> Result<Self, BindError> {
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()));
        Self::put(&path, ownership, Some(directory))
    }

    fn put(
        path: &Path,
        ownership: Ownership,
        directory: Option<OwnedFd>,
    ) -> Result<Self, BindError> {
        let temporary = path.with_file_name(format!(".{:08x}", fastrand::u32(..)));
        let bound = Self::listen(path, &temporary, ownership, directory).and_then(|socket| {
            std::fs::rename(&temporary, path).map_err(failed("move into place", path))?;
            Ok(socket)
        });
        if bound.is_err() {
            // Best effort: whatever failed is reported, not that nothing was there to remove.
            let _ = std::fs::remove_file(&temporary);
        }
        bound
    }

    /// The next connection; it does not block, and nothing watches it yet. Cancel-safe.
    pub async fn accept(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |listener: &OwnedFd| Ok(rustix::net::accept_with(listener, flags)?);
        self.listener.async_io(Interest::READABLE, accept).await
    }

    fn listen(
        path: &Path,
        temporary: &Path,
        ownership: Ownership,
        directory: Option<OwnedFd>,
    ) -> Result<Self, BindError> {
        let Ownership { uid, gid, mode } = ownership;
        let fail = |action| failed(action, temporary);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|error| fail("make the socket for")(error.into()))?;
        let address =
            SocketAddrUnix::new(temporary).map_err(|_| BindError::Path(path.to_owned()))?;
        // The file is born with this mode less the umask, so it is never wider than asked.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))
            .map_err(|error| fail("set the mode of")(error.into()))?;
        rustix::net::bind(&socket, &address)
            .map_err(|error| fail("bind the socket")(error.into()))?;
        if uid.is_some() || gid.is_some() {
            rustix::fs::chown(temporary, uid.map(Uid::from_raw), gid.map(Gid::from_raw))
                .map_err(|error| fail("change the owner of")(error.into()))?;
        }
        // Before `listen`, nobody can connect whatever the mode is.
        std::fs::set_permissions(temporary, Permissions::from_mode(mode))
            .map_err(fail("set the mode of"))?;
        rustix::net::listen(&socket, BACKLOG).map_err(|error| fail("listen on")(error.into()))?;
        let metadata = std::fs::symlink_metadata(temporary).map_err(fail("look at"))?;
        let listener = sys::watch_owned(socket).map_err(fail("listen on"))?;
        let inode = (metadata.dev(), metadata.ino());
        Ok(Self { listener, path: path.to_owned(), inode, _directory: directory })
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // A successor may have put its own socket in our place; that one stays.
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindError {
    let path = path.to_owned();
    move |source| BindError::Io { action, path, source }
}

/// Makes the directory, or sees that nobody but us can exchange what is in it.
fn prepare_directory(directory: &Path, private: bool) -> Result<(), BindError> {
    if let Some(above) = directory.parent() {
        for missing in above.ancestors().collect::<Vec<_>>().into_iter().rev() {
            make_directory(missing, 0o755)?;
        }
    }
    make_directory(directory, if private { 0o700 } else { 0o755 })?;
    let metadata = std::fs::symlink_metadata(directory).map_err(failed("look at", directory))?;
    let problem = directory_problem(&metadata, private);
    problem
        .map_or(Ok(()), |problem| Err(BindError::Directory { path: directory.to_owned(), problem }))
}

/// Makes one directory with exactly this mode: the process's umask is for files of its own.
fn make_directory(directory: &Path, mode: u32) -> Result<(), BindError> {
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => std::fs::set_permissions(directory, Permissions::from_mode(mode))
            .map_err(failed("set the mode of", directory)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("make the directory", directory)(error)),
    }
}

fn directory_problem(metadata: &std::fs::Metadata, private: bool) -> Option<&'static str> {
    let mode = metadata.mode();
    let own = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() {
        return Some("is not a directory (a link to one is not followed)");
    }
    if private && metadata.uid() != own {
        return Some("belongs to another user; remove it and let the agent make it");
    }
    if private && mode & 0o077 != 0 {
        return Some("is open to other users; give it mode 0700");
    }
    let sticky = mode & 0o1000 != 0;
    if mode & 0o022 != 0 && !sticky {
        return Some("can be written by other users, who could exchange the socket; use mode 0755");
    }
    None
}

/// Nothing there, or a socket that nobody answers any more.
fn check_vacant(path: &Path) -> Result<(), BindError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed("look at", path))?,
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::InTheWay(path.to_owned()));
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| failed("probe", path)(error.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|_| BindError::Path(path.to_owned()))?;
    match rustix::net::connect(&probe, &address) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        // A full queue is somebody's queue.
        Ok(()) | Err(Errno::AGAIN) => Err(BindError::Live(path.to_owned())),
        Err(error) => Err(failed("probe", path)(error.into())),
    }
}
