//! The only unsafe code: the allocator, wiping and compact, and system calls that no library wraps,
//! with what is asked about the handles they give.

#![expect(unsafe_code, reason = "this file is where it is allowed, each use with its SAFETY")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The system's allocator, but every block is overwritten with zeroes before it is given back.
///
/// Our own secret types wipe themselves. This is for the copies that others make: HTTP and TLS
/// buffers, JSON values, vectors that grew. Growing wipes the old block too, since the provided
/// `realloc` allocates, copies and calls `dealloc`. `main.rs` declares it `#[global_allocator]`.
pub struct WipingAllocator;

// SAFETY: every call is passed on to `System` unchanged; wiping happens before a block is returned,
// while it still belongs to the caller who gave it up.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller gives up a live block of `layout.size()` bytes that came from
        // `System`; nobody else may touch it any more. Unlike `zeroize`, which stores byte by byte,
        // this wipes as fast as `memset`, and it is not optimised away either.
        unsafe {
            libc::explicit_bzero(block.cast(), layout.size());
            System.dealloc(block, layout);
        }
    }
}

/// Makes glibc keep one heap for all threads, and give what is freed back. To be called before the
/// first thread exists; other C libraries keep one heap anyway.
///
/// By default there is a heap per thread, and none but the first ever shrinks in a locked process:
/// their pages are given back with `MADV_DONTNEED`, which the kernel refuses for locked memory.
/// Threads rarely meet in the one heap, since each has a cache of small blocks in front of it.
pub fn keep_one_heap() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        // Stated because glibc otherwise moves both up with every large block that is freed.
        (libc::M_MMAP_THRESHOLD, 128 * 1024),
        (libc::M_TRIM_THRESHOLD, 128 * 1024),
    ] {
        // SAFETY: sets a number of the allocator's; one it does not know changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// A handle on the very process that connected to the other end (`SO_PEERPIDFD`, Linux 6.5).
///
/// Older kernels answer `ENOPROTOOPT`; a peer that was reaped before the call answers `ESRCH` or
/// `EINVAL`, depending on the kernel.
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut pidfd: RawFd = -1;
    let mut length = libc::socklen_t::try_from(size_of::<RawFd>()).unwrap_or_default();
    // SAFETY: the option is written into `pidfd`, whose size `length` tells the kernel.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut pidfd).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if pidfd < 0 {
        return Err(io::Error::other("the kernel gave no process handle"));
    }
    // SAFETY: the kernel has just installed this descriptor for us (close-on-exec) and nobody else
    // knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Whether the process of a pidfd has exited; it needs not be reaped. Never waits.
///
/// One that cannot be asked about counts as exited, since nobody can rely on it any more.
pub fn has_exited(pidfd: impl AsFd) -> bool {
    let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut watched, Some(&now)).map_or(true, |ready| ready > 0)
}

/// The supplementary groups the peer had when it connected (`SO_PEERGROUPS`, Linux 4.13).
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // The kernel's NGROUPS_MAX is 65536; nearly everybody has fewer than 64 groups.
    let (mut few, mut many) = ([0_u32; 64], Vec::new());
    loop {
        let groups = if many.is_empty() { &mut few[..] } else { &mut many[..] };
        let mut length = libc::socklen_t::try_from(size_of_val(groups))
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        // SAFETY: the kernel writes at most `length` bytes, the size of the buffer.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<u32>();
        if result == 0 {
            return Ok(groups[..count.min(groups.len())].to_vec());
        }
        let error = io::Error::last_os_error();
        // ERANGE comes with the length that would have been enough.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        many.resize(count, 0);
    }
}

/// Who connected to the other end of a Unix socket, at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Its process, as this one's pid namespace numbers it; 0 if it is not seen from there.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Who connected to the other end of a Unix socket (`SO_PEERCRED`).
///
/// Unlike safe wrappers this one copes with a peer in another pid namespace, whose pid reads as 0.
pub fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<PeerCredentials> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or_default();
    let expected = length;
    // SAFETY: the option is written into `credentials`, whose size `length` tells the kernel.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    let libc::ucred { pid, uid, gid } = credentials;
    match result {
        0 if length == expected => Ok(PeerCredentials { pid, uid, gid }),
        0 => Err(io::Error::other("the kernel gave no credentials")),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Adds attributes (`MOUNT_ATTR_*`) to the mount whose root is open, and takes it out of its peer
/// group (`mount_setattr`, Linux 5.12).
pub fn set_mount_attributes(mount: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    let change = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path is a terminated string and `change` is read only, for its own size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// SIGTERM and SIGINT, kept from their default action so that a thread can wait for them.
pub struct StopSignals(libc::sigset_t);

impl StopSignals {
    /// Blocks them for this thread and every thread it starts from now on.
    pub fn block() -> io::Result<Self> {
        // SAFETY: an all-zero set is valid memory for `sigemptyset` to fill.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: the calls write to `set` and to the calling thread's signal mask only.
        let error = unsafe {
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
        };
        if error == 0 { Ok(Self(set)) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// Waits until one of them arrives. Every thread of the process must have them blocked.
    pub fn wait(&self) -> io::Result<()> {
        let mut signal = 0;
        // SAFETY: the set was filled by `block`, and the signal's number is written to `signal`.
        match unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// As [`watch_readable`], for a descriptor that the watch owns from now on.
pub fn watch_owned(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open, and the same, until the result is dropped.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
        .map_err(|error| error.into_parts().1)
}

/// Watches a descriptor for becoming readable; must be called inside a tokio runtime.
pub fn watch_readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a borrowed descriptor is open for its whole lifetime, which the result cannot
    // outlive, and always names the same file description.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
        .map_err(|error| error.into_parts().1)
}

/// Takes a write lease: it is granted only while nobody else has the file open or mapped.
///
/// `EAGAIN` means somebody has. Needs `CAP_LEASE` for files of another owner. While it is held, an
/// open by somebody else sends us `SIGIO`, which kills a process that has not called
/// [`ignore_sigio`]; take, overwrite and release without awaiting.
pub fn take_write_lease(file: BorrowedFd<'_>) -> io::Result<()> {
    set_lease(file, libc::F_WRLCK)
}

/// Gives a write lease back, which lets a waiting open proceed.
pub fn release_lease(file: BorrowedFd<'_>) -> io::Result<()> {
    set_lease(file, libc::F_UNLCK)
}

fn set_lease(file: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: `F_SETLEASE` takes an integer and touches no memory of ours.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the process ignore `SIGIO`, whose default action is to kill it.
pub fn ignore_sigio() -> io::Result<()> {
    // SAFETY: `SIG_IGN` installs no handler, so nothing of ours runs in signal context.
    match unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_peer_of_a_socket_pair_is_this_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        match peer_pidfd(ours.as_fd()) {
            Ok(pidfd) => {
                let info = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
                let info = std::fs::read_to_string(info).unwrap();
                assert!(info.contains(&format!("\nPid:\t{}\n", std::process::id())), "{info}");
            }
            // Kernels before 6.5 know no such option; nothing else may fail here.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT)),
        }
        let file = tempfile::tempfile().unwrap();
        assert_eq!(peer_pidfd(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn a_write_lease_is_refused_while_somebody_has_the_file_open() {
        ignore_sigio().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = std::fs::File::open(file.path()).unwrap();
        let lease = take_write_lease(file.as_file().as_fd());
        assert_eq!(lease.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        drop(reader);
        take_write_lease(file.as_file().as_fd()).unwrap();
        release_lease(file.as_file().as_fd()).unwrap();
    }
}
