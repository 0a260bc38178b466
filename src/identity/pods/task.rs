//! Keeps the directory: hears the API server, asks the node, paces both.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::feed::{Feed, FeedError, News};
use super::presence::{self, Presence, Witness};
use super::wire::{Listed, WirePod};
use super::{DirectoryMode, PodDirectory};
use crate::clock::{self, BootInstant};
use crate::domain::NodeName;
use crate::identity::token::ApiServer;
use crate::telemetry::Chain;

/// Longest pause before a next try, which doubles from [`PAUSE_MIN`]; taken with full jitter.
const PAUSE_MAX: Duration = Duration::from_secs(30);
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Watches that lost their history at the same moment come back as lists spread over this time.
const RELIST_SPREAD: Duration = Duration::from_secs(5);
/// How often the node is asked about pods that the API server no longer has.
const CONFIRM_EVERY: Duration = Duration::from_secs(5);

/// Whose pods are watched, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedNode {
    /// The API server.
    pub server: ApiServer,
    /// This node.
    pub node: NodeName,
    /// The kubelet's root directory, for [`super::kubelet_directories`].
    pub kubelet_root: String,
}

/// What keeps a directory up to date while it runs.
pub struct DirectoryTask {
    directory: PodDirectory,
    node: NodeName,
    feed: Feed,
    witnesses: Arc<[Witness]>,
    doubts: Notify,
}

impl DirectoryTask {
    /// A directory and its task. Nothing is contacted yet. The `witnesses` are the second source,
    /// which has to agree before a pod is gone; they are asked on the blocking pool.
    pub fn new(watched: &WatchedNode, witnesses: Vec<Witness>) -> (PodDirectory, Self) {
        let directory = PodDirectory::of(DirectoryMode::ApiServer);
        let task = Self {
            directory: directory.clone(),
            node: watched.node.clone(),
            feed: Feed::new(watched.server.clone(), &watched.node),
            witnesses: witnesses.into(),
            doubts: Notify::new(),
        };
        (directory, task)
    }

    /// Runs until `stop` is cancelled. The directory keeps what it knows.
    ///
    /// # Errors
    /// Only if there are no timers any more.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { directory, node, mut feed, witnesses, doubts } = self;
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = hear(&directory, &node, &mut feed, &doubts) => ended.map_err(Into::into),
            ended = confirm(&directory, &witnesses, &doubts) => ended.map_err(Into::into),
        }
    }
}

/// Takes in what the API server says. Returns only without timers.
async fn hear(
    directory: &PodDirectory,
    node: &NodeName,
    feed: &mut Feed,
    doubts: &Notify,
) -> std::io::Result<()> {
    let mut failures = 0;
    loop {
        match feed.next().await {
            Ok(news) => {
                failures = 0;
                // First, so that nobody finds a pod in a directory that is still said to fail.
                directory.heard(BootInstant::now());
                take_in(directory, node, news);
                doubts.notify_one();
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(error = %Chain(&error), "no news of this node's pods");
                }
                directory.failed(Chain(&error).to_string(), BootInstant::now());
                clock::sleep(pause(&error, failures)).await?;
                failures += 1;
            }
        }
    }
}

fn take_in(directory: &PodDirectory, node: &NodeName, news: News) {
    let now = BootInstant::now();
    match news {
        News::Quiet => {}
        News::List(pods) => {
            let listed: Vec<Listed> = pods.into_iter().filter_map(|pod| read(pod, node)).collect();
            tracing::debug!(pods = listed.len(), "listed this node's pods");
            directory.update(|known| known.list(listed, now));
        }
        News::Changed(pod) => {
            if let Some(pod) = read(pod, node) {
                directory.update(|known| known.apply(pod));
            }
        }
        News::Deleted(pod) => {
            if let Some(pod) = read(pod, node) {
                directory.update(|known| known.delete(pod.uid(), now));
            }
        }
    }
}

fn read(pod: WirePod, node: &NodeName) -> Option<Listed> {
    let parsed = pod.listed(node)?;
    parsed.inspect_err(|error| tracing::warn!(%error, "a pod's name is none; it is left out")).ok()
}

/// With jitter, so that the nodes of a cluster do not come back together.
fn pause(error: &FeedError, failures: u32) -> Duration {
    if matches!(error, FeedError::Expired) && failures == 0 {
        return RELIST_SPREAD.mul_f64(fastrand::f64());
    }
    let longest = PAUSE_MIN.saturating_mul(1 << failures.min(10)).min(PAUSE_MAX);
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Asks the node about pods in doubt; sleeps while there are none. Returns only without timers.
async fn confirm(
    directory: &PodDirectory,
    witnesses: &Arc<[Witness]>,
    doubts: &Notify,
) -> std::io::Result<()> {
    loop {
        let doubtful = directory.doubtful();
        if doubtful.is_empty() {
            doubts.notified().await;
            continue;
        }
        let witnesses = Arc::clone(witnesses);
        let asked = tokio::task::spawn_blocking(move || presence::ask(&witnesses, &doubtful));
        // A witness that panics knows nothing, and is asked again.
        let answers = asked.await.unwrap_or_default();
        let presence = |uid: &_| answers.get(uid).copied().unwrap_or(Presence::Unknown);
        directory.update(|known| known.confirm(&presence, BootInstant::now()));
        clock::sleep(CONFIRM_EVERY).await?;
    }
}
