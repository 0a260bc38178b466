//! The pod directory: which pods this node has, with their labels, as the API server says.
//!
//! | part | what it is |
//! |---|---|
//! | `wire` | what is read of a pod |
//! | `known` | what is known, and when a pod is gone; pure |
//! | `feed` | the API server's list and watch |
//! | `presence` | what the node itself still has of a pod, by several witnesses |
//! | `task` | puts them together |
//!
//! It proves nothing about a caller: that is done by tokens and cgroups. Losing the API server
//! makes nothing unknown that was known.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use crate::clock::{BootInstant, Human};
use crate::domain::{Namespace, PodName, PodUid, ServiceAccountName};
use crate::telemetry::{Hits, Metrics};

mod feed;
mod known;
mod presence;
mod task;
mod wire;

pub use presence::{Presence, Witness, kubelet_directories, processes};
pub use task::{DirectoryTask, WatchedNode};

use known::{Found, Known};

/// How many callers may wait for pods that are not yet known. More are refused at once.
const WAITERS_MAX: usize = 256;

/// A pod's labels.
pub type Labels = BTreeMap<String, String>;

/// What the API server says of one pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryPod {
    /// What identifies it.
    pub uid: PodUid,
    /// Its name.
    pub name: PodName,
    /// Its namespace.
    pub namespace: Namespace,
    /// The account it runs as, by name: only its token proves which one of that name.
    pub service_account: ServiceAccountName,
    /// Its labels now.
    pub labels: Arc<Labels>,
    /// It is being deleted, was deleted or has ended: it keeps what it has and gets nothing new.
    pub leaving: bool,
}

/// Why a pod cannot be named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// `[pods] directory = "none"`.
    #[error("there is no pod directory; set [pods] directory = \"apiserver\"")]
    Off,
    /// Deleted, and nothing of it is left on the node.
    #[error("the pod is gone")]
    Gone,
    /// It has no service account.
    #[error("the pod is a static pod, which has no service account")]
    Static,
    /// The API server answers and knows of no such pod on this node.
    #[error("the API server knows of no such pod on this node")]
    Unknown,
    /// The pod may be newer than the last answer of the API server.
    #[error("the pod is not known yet and the API server gives no news of it: {0}")]
    Unreachable(String),
    /// Too many callers wait already.
    #[error("too many callers wait for pods that are not known yet")]
    Busy,
}

impl FindError {
    /// Whether asking again later may find the pod.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unknown | Self::Unreachable(_) | Self::Busy => true,
            Self::Off | Self::Gone | Self::Static => false,
        }
    }
}

/// Where the directory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryMode {
    /// Nothing is known and nobody is asked.
    None,
    /// Lists and watches the pods of this node.
    ApiServer,
}

/// How the directory is, for status and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryState {
    /// Where it comes from.
    pub mode: DirectoryMode,
    /// Whether the pods of the node were listed at least once.
    pub synced: bool,
    /// How many pods are known, static ones included.
    pub pods: usize,
    /// When the API server was last heard of; while it is quiet, about once a minute.
    pub heard_at: Option<BootInstant>,
    /// What is wrong now, and since when.
    pub failing: Option<(BootInstant, String)>,
}

/// What is known of this node's pods, for everybody who asks. Cheap to clone.
#[derive(Clone)]
pub struct PodDirectory(Arc<Shared>);

struct Shared {
    mode: DirectoryMode,
    known: RwLock<Known>,
    link: RwLock<Link>,
    changes: watch::Sender<u64>,
    waiters: Arc<Semaphore>,
    refused: Hits,
}

/// How the connection to the API server is.
#[derive(Default)]
struct Link {
    heard_at: Option<BootInstant>,
    failing: Option<(BootInstant, String)>,
}

impl PodDirectory {
    /// The directory that knows nothing.
    pub fn none() -> Self {
        Self::of(DirectoryMode::None)
    }

    fn of(mode: DirectoryMode) -> Self {
        Self(Arc::new(Shared {
            mode,
            known: RwLock::default(),
            link: RwLock::default(),
            changes: watch::Sender::new(0),
            waiters: Arc::new(Semaphore::new(WAITERS_MAX)),
            refused: Hits::default(),
        }))
    }

    /// Has its cap shown in status and metrics, where there is a directory; call once per process.
    pub fn watch_limits(&self, metrics: &Metrics) {
        if self.0.mode == DirectoryMode::None {
            return;
        }
        metrics.watch_places("pod_waiters", WAITERS_MAX, &self.0.waiters, &self.0.refused);
    }

    /// The pod of this uid: at once if it is known, else as soon as it is, at the latest after
    /// `wait`. Dropped, nothing is lost.
    ///
    /// # Errors
    /// Why it cannot be named. [`FindError::Unknown`] and [`FindError::Unreachable`] may pass.
    pub async fn find(&self, uid: &PodUid, wait: Duration) -> Result<Arc<DirectoryPod>, FindError> {
        if self.0.mode == DirectoryMode::None {
            return Err(FindError::Off);
        }
        // Before the first look, so that nothing that comes in between is missed.
        let mut changes = self.changes();
        if let Some(found) = self.look(uid) {
            return found;
        }
        let place = self.0.waiters.try_acquire().inspect_err(|_| self.0.refused.count());
        let _place = place.map_err(|_| FindError::Busy)?;
        let appears = async {
            while changes.changed().await.is_ok() {
                if let Some(found) = self.look(uid) {
                    return found;
                }
            }
            Err(self.not_known())
        };
        tokio::time::timeout(wait, appears).await.unwrap_or_else(|_| Err(self.not_known()))
    }

    /// Why the pod of this uid is not known now; `None` if it is.
    pub fn why_unknown(&self, uid: &PodUid) -> Option<FindError> {
        match self.look(uid) {
            _ if self.0.mode == DirectoryMode::None => Some(FindError::Off),
            Some(found) => found.err(),
            None => Some(self.not_known()),
        }
    }

    /// Whether the pod is known to be ending or to have ended, so that it gets nothing new.
    pub fn is_leaving(&self, uid: &PodUid) -> bool {
        match self.look(uid) {
            Some(Ok(pod)) => pod.leaving,
            Some(Err(error)) => error == FindError::Gone,
            None => false,
        }
    }

    /// Waits until the pod is gone. Cancel-safe: it waits for a state.
    pub async fn gone(&self, uid: &PodUid) {
        let mut changes = self.changes();
        while self.look(uid) != Some(Err(FindError::Gone)) {
            if changes.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// The kubelet published this volume of the pod: it is there, whatever was thought of it.
    pub fn volume_published(&self, pod: &PodUid, volume: &str) {
        if self.0.mode == DirectoryMode::ApiServer {
            self.update(|known| known.published(pod, volume));
        }
    }

    /// The kubelet took this volume of the pod away. After a pod's last one its containers are
    /// gone.
    pub fn volume_unpublished(&self, pod: &PodUid, volume: &str) {
        if self.0.mode == DirectoryMode::ApiServer {
            self.update(|known| {
                known.unpublished(pod, volume);
                false
            });
        }
    }

    /// The labels of a pod that is known; `None` is no statement about its labels.
    pub fn labels(&self, uid: &PodUid) -> Option<Arc<Labels>> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).labels(uid)
    }

    /// The pods of an account, by its name.
    pub fn of_account(
        &self,
        namespace: &Namespace,
        account: &ServiceAccountName,
    ) -> Vec<Arc<DirectoryPod>> {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        let is_meant = |pod: &&Arc<DirectoryPod>| {
            pod.namespace == *namespace && pod.service_account == *account
        };
        known.pods().filter(is_meant).cloned().collect()
    }

    /// Follows a number that grows whenever a pod comes, goes, begins to leave or changes labels.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// How it is.
    pub fn state(&self) -> DirectoryState {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        let link = self.0.link.read().unwrap_or_else(PoisonError::into_inner);
        DirectoryState {
            mode: self.0.mode,
            synced: known.is_synced(),
            pods: known.count(),
            heard_at: link.heard_at,
            failing: link.failing.clone(),
        }
    }

    fn look(&self, uid: &PodUid) -> Option<Result<Arc<DirectoryPod>, FindError>> {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        Some(match known.find(uid)? {
            Found::Pod(pod) => Ok(pod),
            Found::Static => Err(FindError::Static),
            Found::Gone => Err(FindError::Gone),
        })
    }

    fn not_known(&self) -> FindError {
        let state = self.state();
        match state.failing {
            Some((since, error)) => {
                let since = Human(BootInstant::now().since(since));
                FindError::Unreachable(format!("{error}, for {since}"))
            }
            None if !state.synced => FindError::Unreachable("pods are being listed".to_owned()),
            None => FindError::Unknown,
        }
    }

    /// Changes what is known and tells whoever follows, if that makes a difference to them.
    fn update(&self, change: impl FnOnce(&mut Known) -> bool) {
        let changed = change(&mut self.0.known.write().unwrap_or_else(PoisonError::into_inner));
        if changed {
            self.0.changes.send_modify(|number| *number += 1);
        }
    }

    fn doubtful(&self) -> Vec<PodUid> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).doubtful()
    }

    fn heard(&self, now: BootInstant) {
        let mut link = self.0.link.write().unwrap_or_else(PoisonError::into_inner);
        *link = Link { heard_at: Some(now), failing: None };
    }

    fn failed(&self, error: String, now: BootInstant) {
        let mut link = self.0.link.write().unwrap_or_else(PoisonError::into_inner);
        let since = link.failing.as_ref().map_or(now, |(since, _)| *since);
        link.failing = Some((since, error));
    }
}

impl fmt::Debug for PodDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PodDirectory").field(&self.0.mode).finish()
    }
}

#[cfg(test)]
impl PodDirectory {
    /// One that follows no API server but is told of pods.
    pub(crate) fn told() -> Self {
        let directory = Self::of(DirectoryMode::ApiServer);
        directory.update(|known| known.list(Vec::new(), BootInstant::default()));
        directory
    }

    /// How many callers wait for a pod.
    pub(crate) fn waiting(&self) -> usize {
        WAITERS_MAX - self.0.waiters.available_permits()
    }

    /// Tells it of a pod.
    pub(crate) fn tell(&self, pod: DirectoryPod) {
        self.update(|known| known.apply(wire::Listed::Pod(pod)));
    }

    /// Tells it that a pod was deleted, and what the node has of whatever is in doubt.
    pub(crate) fn tell_deleted(&self, uid: &PodUid, presence: Presence) {
        self.update(|known| known.delete(uid, BootInstant::now()));
        self.update(|known| known.confirm(&|_| presence, BootInstant::now()));
    }

    /// The same for a pod of which nothing is left.
    pub(crate) fn tell_gone(&self, uid: &PodUid) {
        self.tell_deleted(uid, Presence::Absent);
    }
}

#[cfg(test)]
mod tests;
