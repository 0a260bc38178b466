//! The pod directory's wiring: its task, and policy that follows it.

use std::convert::Infallible;

use tokio_util::sync::CancellationToken;

use crate::identity::pods::{DirectoryTask, PodDirectory, WatchedNode, kubelet_presence};
use crate::policy::Policy;

/// The directory, with its task where there is one to run.
pub(super) fn open(watched: Option<&WatchedNode>) -> (PodDirectory, Option<DirectoryTask>) {
    match watched {
        Some(watched) => {
            let presence = kubelet_presence(&watched.kubelet_root);
            let (directory, task) = DirectoryTask::new(watched, presence);
            (directory, Some(task))
        }
        None => (PodDirectory::none(), None),
    }
}

/// Keeps the directory until `stop` is cancelled, and has policy decide anew when pods change.
pub(super) async fn run(
    task: DirectoryTask,
    directory: PodDirectory,
    policy: Policy,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        ended = task.run(stop) => ended,
        never = follow(&directory, &policy) => match never {},
    }
}

async fn follow(directory: &PodDirectory, policy: &Policy) -> Infallible {
    let mut changes = directory.changes();
    // The directory lives as long as this borrow of it, so there is always somebody who tells.
    while changes.changed().await.is_ok() {
        policy.labels_changed();
    }
    std::future::pending().await
}
