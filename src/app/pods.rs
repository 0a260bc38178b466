//! The pod directory's wiring: its task, and policy that follows it.

use std::convert::Infallible;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::PodUid;
use crate::identity::pods::{
    DirectoryTask, PodDirectory, WatchedNode, kubelet_directories, processes,
};
use crate::policy::Policy;
use crate::shutdown::{Stage, Stages, Supervisor};

/// The pause between two rounds of new decisions: whoever may label one pod can do so all the time,
/// and each change is everybody's.
const CHANGES_TOGETHER: Duration = Duration::from_secs(1);

/// The directory, with its task where there is one to run. An agent that sees the node's processes
/// is told as which pod.
pub(super) fn open(
    watched: Option<&WatchedNode>,
    placed_as: Option<&PodUid>,
) -> (PodDirectory, Option<DirectoryTask>) {
    let Some(watched) = watched else { return (PodDirectory::none(), None) };
    let mut witnesses = vec![kubelet_directories(&watched.kubelet_root)];
    witnesses.extend(placed_as.cloned().and_then(processes));
    let (directory, task) = DirectoryTask::new(watched, witnesses);
    (directory, Some(task))
}

/// Starts the directory's task, if there is one.
pub(super) fn spawn(
    task: Option<DirectoryTask>,
    directory: &PodDirectory,
    policy: &Policy,
    stages: &Stages,
    supervisor: &mut Supervisor,
) {
    let Some(task) = task else { return };
    let task = run(task, directory.clone(), policy.clone(), stages.work.clone());
    supervisor.spawn("pod directory", Stage::Work, task);
}

/// Keeps the directory until `stop` is cancelled, and has policy decide anew when pods change.
async fn run(
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

/// A change counts at once, one that follows it within [`CHANGES_TOGETHER`] with those after it.
async fn follow(directory: &PodDirectory, policy: &Policy) -> Infallible {
    let mut changes = directory.changes();
    // The directory lives as long as this borrow of it, so there is always somebody who tells.
    while changes.changed().await.is_ok() {
        policy.labels_changed();
        tokio::time::sleep(CHANGES_TOGETHER).await;
    }
    std::future::pending().await
}
