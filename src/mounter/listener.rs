//! The mounter's socket: in a directory of its own, in place by one rename, never taken over.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections the kernel queues before `connect` waits.
const BACKLOG: i32 = 16;
/// What the directory's parents are made with.
const PARENT_MODE: u32 = 0o755;
/// The socket's own mode: its owner may connect.
const SOCKET_MODE: u32 = 0o600;

/// Why the socket could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Not a path for a socket.
    #[error(
        "socket path '{}' must be absolute, in a directory, and have at most 107 bytes",
        .0.display()
    )]
    Path(PathBuf),
    /// Others could exchange the socket.
    #[error(
        "socket directory '{}' must belong to root and nobody else may write to it; remove it and \
         let the mounter make it",
        .0.display()
    )]
    Directory(PathBuf),
    /// Another mounter answers there.
    #[error("socket '{}' is answered by another process; stop that mounter", .0.display())]
    Live(PathBuf),
    /// Something that is not a socket is in the way.
    #[error("'{}' exists and is not a socket; remove it or give another --socket", .0.display())]
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

fn failed<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> ListenError {
    let path = path.to_owned();
    move |error| ListenError::Io { action, path, source: error.into() }
}

/// Listens at `path`, for root or for a user with another id. The path outlives the listener: it
/// belongs to the node's one mounter, and a successor replaces it.
pub fn listen(path: &Path, agent_uid: u32) -> Result<OwnedFd, ListenError> {
    let misplaced = || ListenError::Path(path.to_owned());
    let directory = path.parent().filter(|_| path.is_absolute()).ok_or_else(misplaced)?;
    let name = path.file_name().ok_or_else(misplaced)?;
    prepare_directory(directory, agent_uid)?;
    check_vacant(path)?;

    let mut temporary = directory.join(name).into_os_string();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &temporary)(error));
        }
        _ => {}
    }
    let socket = socket().map_err(failed("make the socket for", path))?;
    let address = SocketAddrUnix::new(&temporary).map_err(|_| misplaced())?;
    // The file is born with this mode less the umask, so it is never wider than asked.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))
        .map_err(failed("set the mode of", &temporary))?;
    rustix::net::bind(&socket, &address).map_err(failed("bind", &temporary))?;
    rustix::fs::chown(&temporary, Some(Uid::from_raw(agent_uid)), None::<Gid>)
        .map_err(failed("give the agent", &temporary))?;
    rustix::net::listen(&socket, BACKLOG).map_err(failed("listen on", &temporary))?;
    std::fs::rename(&temporary, path).map_err(failed("move into place", path))?;
    Ok(socket)
}

/// A socket of the kind that both ends use.
pub(super) fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Root's alone; an agent of another user comes through, and the socket's own mode lets it in.
fn prepare_directory(directory: &Path, agent_uid: u32) -> Result<(), ListenError> {
    let mode = if agent_uid == 0 { 0o700 } else { 0o711 };
    let missing: Vec<&Path> = directory.ancestors().take_while(|above| !above.exists()).collect();
    for missing in missing.into_iter().rev() {
        let mode = if missing == directory { mode } else { PARENT_MODE };
        match DirBuilder::new().mode(0o700).create(missing) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => std::fs::set_permissions(missing, Permissions::from_mode(mode)),
        }
        .map_err(failed("make", missing))?;
    }
    let metadata = std::fs::symlink_metadata(directory).map_err(failed("look at", directory))?;
    let root_only = metadata.uid() == rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || !root_only || metadata.mode() & 0o777 & !mode != 0 {
        return Err(ListenError::Directory(directory.to_owned()));
    }
    Ok(())
}

/// Nothing there, or a socket that nobody answers any more.
fn check_vacant(path: &Path) -> Result<(), ListenError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed("look at", path))?,
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::InTheWay(path.to_owned()));
    }
    let probe = socket().map_err(failed("probe", path))?;
    rustix::io::ioctl_fionbio(&probe, true).map_err(failed("probe", path))?;
    let address = SocketAddrUnix::new(path).map_err(|_| ListenError::Path(path.to_owned()))?;
    match rustix::net::connect(&probe, &address) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        // A full queue is somebody's queue.
        Ok(()) | Err(Errno::AGAIN) => Err(ListenError::Live(path.to_owned())),
        Err(errno) => Err(failed("probe", path)(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn a_socket_is_put_in_place_replaced_when_stale_and_never_taken_over() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("mounter/mounter.sock");
        let first = listen(&path, own()).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o077, 0);
        assert!(matches!(listen(&path, own()), Err(ListenError::Live(_))));
        drop(first);
        let second = listen(&path, own()).unwrap();
        assert_eq!(path.parent().unwrap().read_dir().unwrap().count(), 1);
        drop(second);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(listen(&path, own()), Err(ListenError::InTheWay(_))));
    }

    #[test]
    fn a_directory_that_others_can_enter_or_that_is_a_link_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("mounter");
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        let refused = listen(&directory.join("mounter.sock"), own());
        assert!(matches!(refused, Err(ListenError::Directory(_))));
        std::fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&directory, &link).unwrap();
        let refused = listen(&link.join("mounter.sock"), own());
        assert!(matches!(refused, Err(ListenError::Directory(_))));
        assert!(matches!(listen(Path::new("mounter.sock"), own()), Err(ListenError::Path(_))));
    }
}
