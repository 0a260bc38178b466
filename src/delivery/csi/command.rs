//! What is asked of a volume's task, and how that ends.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::identity::token::PodClaims;
use crate::mounter::Target;

use super::error::CsiError;
use super::request::Publish;

/// What is asked of a volume's task.
pub(super) enum Command {
    Publish { publish: Box<Publish>, claims: PodClaims, patience: Duration, reply: Reply },
    Unpublish { target: Target, reply: Reply },
}

/// Where the caller waits.
pub(super) type Reply = oneshot::Sender<Result<(), CsiError>>;

/// How a volume's task ended.
pub(super) enum End {
    /// The agent stops, and everything stays.
    Stopped,
    /// Nothing of the volume is left. Who is to hear of the command that did it, and what.
    Nothing(Option<(Reply, Result<(), CsiError>)>),
}
