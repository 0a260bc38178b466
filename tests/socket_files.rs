//! Sockets as files: owners and modes, whose path it is, and what is in its way.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use secrets_broker::delivery::socket::{BindError, BoundSocket, Ownership, Place};
use tokio::net::UnixStream;

fn place(path: &Path) -> Place {
    Place { path: path.to_owned(), mode: 0o666, gid: None, private: false }
}

#[tokio::test]
async fn a_socket_is_put_into_an_open_directory_wherever_that_has_gone() {
    let above = tempfile::tempdir().unwrap();
    let (before, after) = (above.path().join("before"), above.path().join("after"));
    std::fs::create_dir(&before).unwrap();
    let open = || std::fs::File::open(&before).unwrap().into();
    let ownership = Ownership { uid: None, gid: None, mode: 0o660 };
    let predecessor = BoundSocket::bind_within(open(), "broker.sock", ownership).unwrap();
    // A successor takes its place while it still listens, and its end leaves the successor's.
    let directory = open();
    std::fs::rename(&before, &after).unwrap();
    let socket = BoundSocket::bind_within(directory, "broker.sock", ownership).unwrap();
    drop(predecessor);
    let path = after.join("broker.sock");
    let metadata = std::fs::symlink_metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket() && metadata.mode() & 0o777 == 0o660);
    let connected = UnixStream::connect(&path);
    let (connected, accepted) = tokio::join!(connected, socket.accept());
    assert!(connected.is_ok() && accepted.is_ok());
    assert_eq!(std::fs::read_dir(&after).unwrap().count(), 1);
    drop(socket);
    assert_eq!(std::fs::read_dir(&after).unwrap().count(), 0);
}

#[tokio::test]
async fn a_socket_has_its_mode_and_leaves_nothing_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    for mode in [0o666, 0o660, 0o600, 0o777] {
        let path = directory.path().join("broker.sock");
        let socket = BoundSocket::bind(&Place { mode, ..place(&path) }).unwrap();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.mode() & 0o7777, mode);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        drop(socket);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_private_directory_is_made_closed_and_an_open_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/operator/operator.sock");
    let private = Place { private: true, mode: 0o600, ..place(&path) };
    drop(BoundSocket::bind(&private).unwrap());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    let parent = path.parent().unwrap();
    assert_eq!(mode(parent), 0o700);
    assert_ne!(mode(parent.parent().unwrap()) & 0o005, 0);

    std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o750)).unwrap();
    let error = BoundSocket::bind(&private).unwrap_err();
    assert!(matches!(error, BindError::Directory { .. }), "{error}");
    assert!(error.to_string().contains("0700"), "{error}");

    let shared = directory.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = BoundSocket::bind(&place(&shared.join("broker.sock"))).unwrap_err();
    assert!(error.to_string().contains("other users"), "{error}");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker.sock");
    let live = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let inode = std::fs::symlink_metadata(&path).unwrap().ino();
    let error = BoundSocket::bind(&place(&path)).unwrap_err();
    assert!(matches!(error, BindError::Live(_)), "{error}");
    assert_eq!(std::fs::symlink_metadata(&path).unwrap().ino(), inode);

    drop(live);
    drop(BoundSocket::bind(&place(&path)).unwrap());
    std::fs::write(&path, "precious").unwrap();
    let error = BoundSocket::bind(&place(&path)).unwrap_err();
    assert!(matches!(error, BindError::InTheWay(_)), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_successors_socket_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker.sock");
    let ours = BoundSocket::bind(&place(&path)).unwrap();
    let other = directory.path().join("other.sock");
    let _successor = std::os::unix::net::UnixListener::bind(&other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    drop(ours);
    assert!(path.exists());
}

#[tokio::test]
async fn paths_that_cannot_be_a_socket_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("x".repeat(120)).join("broker.sock");
    for path in [Path::new("relative.sock"), Path::new("/"), &long] {
        let error = BoundSocket::bind(&place(path)).unwrap_err();
        assert!(matches!(error, BindError::Path(_)), "{}: {error}", path.display());
    }
}
