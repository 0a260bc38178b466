//! Why a call of the kubelet's was not carried out, and what the pod's events say of it.

use std::error::Error;

use tonic::{Code, Status};

use crate::delivery::files::mount::MountError;
use crate::delivery::socket::BindError;
use crate::identity::token::TokenRefused;
use crate::mounter::MounterError;
use crate::source::ErrorClass;

/// Problems that a message names.
const PROBLEMS_MAX: usize = 16;
/// Characters of each.
const PROBLEM_CHARS_MAX: usize = 512;

/// A call that changed nothing, or whose changes were taken back; or else [`CsiError::Left`].
#[derive(Debug, thiserror::Error)]
pub enum CsiError {
    /// The call itself is wrong.
    #[error("{}", named(.0))]
    Invalid(Vec<String>),
    /// The token proves something else than the call says, or nothing.
    #[error("the pod's token is not believed")]
    Token(#[from] TokenRefused),
    /// The volume is published with other contents.
    #[error("the volume is published already, for another pod or with other attributes")]
    Different,
    /// The node-wide budget is used up.
    #[error(
        "the volumes of this node use their {limit} bytes of memory; raise [csi] volume_bytes_total"
    )]
    Full {
        /// The budget.
        limit: u64,
    },
    /// The pod has all the volumes that it may have.
    #[error(
        "the pod has {limit} volumes of this driver already; put several secrets into one volume, \
         as items"
    )]
    TooManyOfPod {
        /// The cap.
        limit: usize,
    },
    /// The mounter did not do it.
    #[error("the volume cannot be mounted")]
    Mounter(#[from] MounterError),
    /// The tmpfs cannot be used.
    #[error("the volume's tmpfs cannot be used")]
    Root(#[from] MountError),
    /// The pod's socket could not be put into the volume.
    #[error("the volume's socket cannot be made")]
    Socket(#[from] BindError),
    /// A secret will not be had as things are.
    #[error("{message}")]
    Secret {
        /// The class of the failure.
        class: ErrorClass,
        /// Which file, which secret, why.
        message: String,
    },
    /// Nothing final, but the call's time is over.
    #[error("not all secrets could be had in time: {0}")]
    Late(String),
    /// The record could not be written or removed.
    #[error(
        "the volume's record cannot be written or removed; is the state directory's disk full?"
    )]
    Record(#[source] std::io::Error),
    /// It failed, and what it began is still there.
    #[error("the volume was begun and cannot be taken back yet; that is tried again")]
    Left(#[source] Box<CsiError>),
    /// It failed, and is about a volume that is there.
    #[error("the volume is on the node already")]
    Kept(#[source] Box<CsiError>),
    /// The agent stops.
    #[error("the agent is stopping; its successor will be asked again")]
    Stopping,
}

impl CsiError {
    /// The same, of a call whose changes could not be taken back.
    pub(super) fn left(self) -> Self {
        Self::Left(Box::new(self))
    }

    /// The same, of a call about a volume of which something is on the node.
    pub(super) fn of_one_that_is_there(self) -> Self {
        if self.is_final() { Self::Kept(Box::new(self)) } else { self }
    }

    fn is_final(&self) -> bool {
        !matches!(self.code(), Code::Unavailable | Code::ResourceExhausted)
    }

    /// The kubelet takes most codes as final: nothing is mounted, and if the pod goes there is
    /// nothing to unpublish. `Unavailable` and `ResourceExhausted` tell it that something may be.
    fn code(&self) -> Code {
        match self {
            Self::Mounter(MounterError::Unreachable { .. } | MounterError::Interrupted { .. }) => {
                Code::Unavailable
            }
            Self::Invalid(_) | Self::Different => Code::InvalidArgument,
            Self::Token(_) => Code::Unauthenticated,
            Self::Full { .. } | Self::TooManyOfPod { .. } => Code::ResourceExhausted,
            Self::Mounter(_) | Self::Root(_) | Self::Socket(_) | Self::Record(_) => Code::Internal,
            Self::Secret { class: ErrorClass::Denied, .. } => Code::PermissionDenied,
            Self::Secret { class: ErrorClass::NotFound, .. } => Code::NotFound,
            Self::Secret { .. } => Code::FailedPrecondition,
            Self::Late(_) | Self::Left(_) | Self::Kept(_) | Self::Stopping => Code::Unavailable,
        }
    }
}

/// Of what is wrong with a call, as much as a person reads: a tenant wrote what it quotes, and it
/// goes into the log and the pod's events.
fn named(problems: &[String]) -> String {
    let mut named: Vec<String> = problems.iter().take(PROBLEMS_MAX).map(|all| cut(all)).collect();
    if let Some(more @ 1..) = problems.len().checked_sub(PROBLEMS_MAX) {
        named.push(format!("and {more} problems more"));
    }
    named.join("; ")
}

fn cut(problem: &str) -> String {
    match problem.char_indices().nth(PROBLEM_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &problem[..end]),
        None => problem.to_owned(),
    }
}

/// A code as gRPC spells it, of those that a publish is answered with.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Unavailable => "UNAVAILABLE",
        _ => "INTERNAL",
    }
}

impl From<CsiError> for Status {
    fn from(error: CsiError) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Status::new(error.code(), message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tenant_wrote_makes_no_long_message() {
        let problems = vec!["ä".repeat(10_000); 100];
        let message = CsiError::Invalid(problems).to_string();
        assert!(message.len() < 32 * 1024, "{}", message.len());
        assert!(message.ends_with("…; and 84 problems more"));
        let few = CsiError::Invalid(vec!["one".to_owned(), "two".to_owned()]);
        assert_eq!(few.to_string(), "one; two");
    }

    #[test]
    fn no_code_is_final_while_something_of_the_volume_is_there() {
        let refused = CsiError::Different.of_one_that_is_there();
        assert_eq!(Status::from(refused).code(), Code::Unavailable);
        let full = CsiError::Full { limit: 1 }.of_one_that_is_there();
        assert_eq!(Status::from(full).code(), Code::ResourceExhausted);
    }
}
