//! The process that asks: the agent, which may need more of the mounter when both are told to stop.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use crate::sys;

/// A handle on that process; none before the first request and on kernels before Linux 6.5.
#[derive(Debug, Default)]
pub(super) struct AgentProcess(Mutex<Option<OwnedFd>>);

impl AgentProcess {
    /// Whoever asks now is the agent, unless another one was and still runs.
    pub(super) fn asks(&self, connection: BorrowedFd<'_>) {
        let mut handle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !handle.as_ref().is_some_and(runs) {
            // A process that was reaped already needs no handle either.
            *handle = sys::peer_pidfd(connection).ok();
        }
    }

    /// Whether it is known and has not exited.
    pub(super) fn is_running(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(runs)
    }
}

fn runs(pidfd: &OwnedFd) -> bool {
    !sys::has_exited(pidfd)
}
