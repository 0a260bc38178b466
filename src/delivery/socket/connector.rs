//! The process that connected, and whether it still runs when it is to be answered: the descriptor
//! may have been passed on, and its new holder was never identified.

use std::sync::Arc;

use super::activity::Activity;
use crate::identity::peer::Peer;

/// The process that connected. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    peer: Arc<Peer>,
    activity: Arc<Activity>,
}

impl Connector {
    pub(super) fn new(peer: Peer) -> Self {
        Self { peer: Arc::new(peer), activity: Arc::default() }
    }

    /// Who it is.
    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What its connection is doing.
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Whether it ran when its request was sent; to be asked once per request, when that was read.
    ///
    /// That the connection ends with its connector is no substitute: a busy agent hears of an exit
    /// and of what was asked after it at the same time. But it hears of the exit first, so nothing
    /// has to be asked for a request whose bytes the runtime announced by themselves. Bytes that
    /// were read along with an earlier request, or without waiting, may have been sent after an
    /// exit that is still to be heard of: then the kernel is asked.
    pub(super) fn ran_at_request(&self) -> bool {
        match self.activity.take_was_woken() {
            true => !self.peer.exit_was_heard(),
            false => self.peer.still_alive(),
        }
    }

    /// Whether it runs now. One system call.
    pub(super) fn still_runs(&self) -> bool {
        self.peer.still_alive()
    }
}
