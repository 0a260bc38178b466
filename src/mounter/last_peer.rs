//! The process whose request was served last: the agent, which may need more of the mounter when
//! both are told to stop.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use crate::sys;

/// A handle on that process; none before the first request and on kernels before Linux 6.5.
#[derive(Debug, Default)]
pub(super) struct LastPeer(Mutex<Option<OwnedFd>>);

impl LastPeer {
    /// Whoever connected is the last one from now on.
    pub(super) fn remember(&self, connection: BorrowedFd<'_>) {
        // A process that was reaped already needs no handle either.
        let handle = sys::peer_pidfd(connection).ok();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = handle;
    }

    /// Whether it is known and has not exited.
    pub(super) fn is_running(&self) -> bool {
        let handle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        handle.as_ref().is_some_and(|pidfd| !sys::has_exited(pidfd))
    }
}
