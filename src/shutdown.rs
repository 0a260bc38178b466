//! Stages and supervision: long-lived tasks in one supervised set, stopped in the order of the data.
//!
//! not ready → `intake` cancelled: listeners stop accepting, replies finish → `work` cancelled:
//! the broker takes no new effects, running renewals and file swaps finish → audit flushed.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The stop signals, in the order they are given.
#[derive(Clone, Default)]
pub struct Stages {
    /// Stop accepting; finish what is being answered.
    pub intake: CancellationToken,
    /// Take no new work; finish what runs.
    pub work: CancellationToken,
    /// Flush the audit log, then telemetry.
    pub evidence: CancellationToken,
}

/// Owns every long-lived task. The first exit or panic before a stop was asked for is fatal.
#[derive(Default)]
pub struct Supervisor {
    tasks: JoinSet<(&'static str, Stage, anyhow::Result<()>)>,
}

/// Which stop signal ends a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Ends when `intake` is cancelled.
    Intake,
    /// Ends when `work` is cancelled.
    Work,
    /// Ends when `evidence` is cancelled.
    Evidence,
}

/// A supervised task ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum TaskFailure {
    /// It returned.
    #[error("task '{0}' ended unexpectedly")]
    Ended(&'static str),
    /// It failed.
    #[error("task '{0}' failed")]
    Failed(&'static str, #[source] anyhow::Error),
    /// It panicked.
    #[error("a task panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

impl Supervisor {
    /// Starts a long-lived task that ends when its stage's token is cancelled.
    pub fn spawn(
        &mut self,
        name: &'static str,
        stage: Stage,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.tasks.spawn(async move { (name, stage, task.await) });
    }

    /// Waits until a task ends by itself. Cancel-safe.
    pub async fn first_failure(&mut self) -> TaskFailure {
        match self.tasks.join_next().await {
            None => std::future::pending().await,
            Some(Err(panic)) => TaskFailure::Panicked(panic),
            Some(Ok((name, _, Ok(())))) => TaskFailure::Ended(name),
            Some(Ok((name, _, Err(error)))) => TaskFailure::Failed(name, error),
        }
    }

    /// Stops everything stage by stage; each stage gets `grace` before its tasks are aborted.
    pub async fn stop(mut self, stages: &Stages, grace: Duration) {
        for (token, stage) in [
            (&stages.intake, Stage::Intake),
            (&stages.work, Stage::Work),
            (&stages.evidence, Stage::Evidence),
        ] {
            token.cancel();
            tracing::debug!(?stage, "stopping");
            let all_of_stage = async {
                // Tasks of later stages keep running; only an empty set ends the loop early.
                while let Some(ended) = self.tasks.join_next().await {
                    if let Ok((name, _, Err(error))) = ended {
                        tracing::warn!(task = name, error = format!("{error:#}"), "failed to stop");
                    }
                }
            };
            let wait = if stage == Stage::Evidence { grace } else { grace / 4 };
            if tokio::time::timeout(wait, all_of_stage).await.is_ok() {
                break;
            }
        }
        stages.work.cancel();
        stages.evidence.cancel();
        self.tasks.shutdown().await;
    }
}
