//! Answers that no mounter would give: the descriptors in them are closed and the call fails.

use std::os::fd::BorrowedFd;
use std::thread;

use rustix::net::{SendAncillaryMessage, SocketFlags, accept_with, recv};

use super::*;
use crate::mounter::listener::listen;
use crate::mounter::{Mounter, TmpfsSize, VolumeKey};

/// Answers one request with these bytes and descriptors.
fn server(socket: &Path, packet: Vec<u8>, descriptors: usize, of: &'static Path) {
    let listener = listen(socket, rustix::process::geteuid().as_raw()).unwrap();
    thread::spawn(move || {
        let connection = accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
        recv(&connection, &mut [0; 4096], RecvFlags::empty()).unwrap();
        let opened: Vec<std::fs::File> =
            (0..descriptors).map(|_| std::fs::File::open(of).unwrap()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = opened.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        }
        sendmsg(&connection, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL).unwrap();
    });
}

/// Descriptors of this process that lead to `path`.
fn open_descriptors(path: &Path) -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    fds.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to == path))
        .count()
}

#[tokio::test]
async fn answers_with_the_wrong_descriptors_fail_and_leave_none_open() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT ROOT: a client believes nobody but root; checking that instead");
    }
    let directory = tempfile::tempdir().unwrap();
    let key: VolumeKey = "8e3a~secrets".parse().unwrap();
    let size = TmpfsSize::new(1 << 20, 64).unwrap();
    let prepared = Reply::Prepared { noswap: true }.encode();
    // Nothing else opens these here.
    let (proc, shm) = (Path::new("/proc/tty"), Path::new("/dev/shm"));
    for (number, (packet, descriptors, of)) in [
        (prepared.clone(), 0, proc),
        (prepared.clone(), 1, proc),
        (prepared.clone(), 2, shm),
        (prepared.clone(), 7, proc),
        (Reply::Done.encode(), 1, proc),
        (b"\x01{".to_vec(), 1, proc),
        (b"\x02{}".to_vec(), 0, proc),
        (vec![1; REPLY_BYTES_MAX + 1], 1, proc),
    ]
    .into_iter()
    .enumerate()
    {
        let socket = directory.path().join(format!("{number}/mounter.sock"));
        server(&socket, packet, descriptors, of);
        let refused = MounterClient::new(socket).prepare(&key, size).await.unwrap_err();
        let root = rustix::process::geteuid().is_root();
        assert_eq!(matches!(refused, MounterError::Answer { .. }), root, "{number}: {refused:?}");
    }
    // The other ends close theirs with their threads; a leak of ours would stay.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while open_descriptors(Path::new("/proc/tty")) > 0 {
        assert!(std::time::Instant::now() < deadline, "descriptors stay open");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_mounter_that_is_not_there_is_named_with_its_socket() {
    let client = MounterClient::new("/nonexistent/mounter.sock".into());
    let error = client.list().await.unwrap_err();
    assert!(matches!(error, MounterError::Unreachable { .. }));
    assert!(error.to_string().contains("/nonexistent/mounter.sock"), "{error}");
}
