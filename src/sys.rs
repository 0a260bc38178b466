//! The only unsafe code: system calls that no safe wrapper offers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Takes a write lease on an open file: succeeds only while nobody else has it open or mapped,
/// otherwise fails with `WouldBlock`. Needs to own the file or `CAP_LEASE`.
pub fn take_write_lease(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_lease(fd, libc::F_WRLCK)
}

/// Gives a lease back, so that whoever waits in `open` goes on.
pub fn release_lease(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_lease(fd, libc::F_UNLCK)
}

fn set_lease(fd: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed, so open for the whole call; F_SETLEASE takes an int.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, kind) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ignores `SIGIO`, whose default action ends the process when a lease of ours is broken.
pub fn ignore_sigio() -> io::Result<()> {
    // SAFETY: SIG_IGN installs no handler of ours, so nothing runs in signal context.
    let previous = unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    if previous == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}
