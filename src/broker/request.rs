//! What is asked of the broker task, who waits for the answer, and subscriptions that were dropped.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::event::{LocalOperation, SubscriptionId, Want};
use super::report::Report;
use super::{LocalLease, LocalLeaseError, ReadError, Reply, Subscription};
use crate::domain::{
    ConsumerId, LocalLeaseId, LoginIdentity, Mount, SecretPath, SecretRef, SourceName,
};
use crate::source::ConfiguredMount;

/// What a handle asks of the task.
pub(super) enum Request {
    Read {
        want: Want,
        reply: oneshot::Sender<Result<Reply, ReadError>>,
    },
    Subscribe {
        want: Want,
        reply: oneshot::Sender<Subscription>,
    },
    Resolve {
        source: SourceName,
        login: LoginIdentity,
        mount: ConfiguredMount,
        path: SecretPath,
        reply: oneshot::Sender<Result<Mount, ReadError>>,
    },
    Refresh {
        secret: SecretRef,
        login: Option<LoginIdentity>,
        reply: oneshot::Sender<usize>,
    },
    Gone {
        consumer: ConsumerId,
    },
    Local {
        consumer: ConsumerId,
        id: LocalLeaseId,
        operation: LocalOperation,
        reply: oneshot::Sender<Result<LocalLease, LocalLeaseError>>,
    },
    Report {
        reply: oneshot::Sender<Report>,
    },
}

/// Whom an answer goes to.
pub(super) enum Waiting {
    Read(oneshot::Sender<Result<Reply, ReadError>>),
    Resolve(oneshot::Sender<Result<Mount, ReadError>>),
    Refresh(oneshot::Sender<usize>),
    Local(oneshot::Sender<Result<LocalLease, LocalLeaseError>>),
}

/// Subscriptions that were dropped: a drop cannot wait, so it leaves a note.
#[derive(Default)]
pub(super) struct Released {
    ids: Mutex<Vec<SubscriptionId>>,
    noticed: Notify,
}

impl Released {
    /// Waits until something was released. Cancel-safe: a notice that was not awaited is kept.
    pub(super) async fn noticed(&self) {
        self.noticed.notified().await;
    }

    pub(super) fn take(&self) -> Vec<SubscriptionId> {
        std::mem::take(&mut *self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Ends a subscription when it is dropped.
pub(super) struct Release {
    pub(super) id: SubscriptionId,
    pub(super) released: Arc<Released>,
}

impl Drop for Release {
    fn drop(&mut self) {
        self.released.ids.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
        self.released.noticed.notify_one();
    }
}
