//! Who was let in: a caller with its place, or somebody in a pod whom its first request names.

use std::sync::Arc;

use super::admission::Admitted;
use super::node_door::NodeDoor;
use crate::domain::PodUid;
use crate::identity::Identity;
use crate::identity::peer::Peer;

/// A caller whose connection was let in; it keeps the caller's place until it is dropped.
pub struct Caller {
    /// Who it is.
    pub identity: Identity,
    /// The process, for liveness.
    pub peer: Arc<Peer>,
    /// Its place and budget.
    pub admitted: Arc<Admitted>,
}

/// A caller of which the kernel said which pod it is in, and nobody yet which pod that is.
pub struct Placed {
    /// The pod's uid.
    pub pod: PodUid,
    /// The process, for liveness.
    pub peer: Arc<Peer>,
    /// Its place and budget.
    pub admitted: Arc<Admitted>,
}

/// Whoever may stay.
pub enum LetIn {
    /// A caller that is known.
    Named(Caller),
    /// A caller that its requests have to name, to this door.
    Placed(Placed, Arc<NodeDoor>),
}

impl LetIn {
    /// The process at the other end.
    pub(super) fn peer(&self) -> &Arc<Peer> {
        match self {
            Self::Named(caller) => &caller.peer,
            Self::Placed(placed, _) => &placed.peer,
        }
    }
}
