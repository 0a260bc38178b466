//! Stages and supervision: long-lived tasks in one set, stopped in the order of the data.
//!
//! not ready → `intake` cancelled: listeners stop accepting, replies finish → `work` cancelled:
//! the broker takes no new effects, running renewals and file swaps finish → audit flushed.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;
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
    tasks: JoinSet<anyhow::Result<()>>,
    running: HashMap<Id, Running>,
}

struct Running {
    name: &'static str,
    stage: Stage,
    abort: AbortHandle,
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
    Panicked(#[source] JoinError),
}

impl Supervisor {
    /// Starts a long-lived task that ends when its stage's token is cancelled.
    pub fn spawn(
        &mut self,
        name: &'static str,
        stage: Stage,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let abort = self.tasks.spawn(task);
        self.running.insert(abort.id(), Running { name, stage, abort });
    }

    /// Waits until a task ends by itself. Cancel-safe.
    pub async fn first_failure(&mut self) -> TaskFailure {
        match self.next_end().await {
            None => std::future::pending().await,
            Some((_, Err(panic))) => TaskFailure::Panicked(panic),
            Some((name, Ok(Ok(())))) => TaskFailure::Ended(name),
            Some((name, Ok(Err(error)))) => TaskFailure::Failed(name, error),
        }
    }

    /// Stops everything stage by stage. A stage is over when its last task has ended; tasks that
    /// have not ended by then are aborted, so that a later stage never waits for an earlier one.
    /// Intake gets half of `grace`, work half of what is then left, evidence the rest.
    pub async fn stop(mut self, stages: &Stages, grace: Duration) {
        let deadline = Instant::now() + grace;
        for (token, stage) in [
            (&stages.intake, Stage::Intake),
            (&stages.work, Stage::Work),
            (&stages.evidence, Stage::Evidence),
        ] {
            token.cancel();
            tracing::debug!(?stage, tasks = self.left(stage), "stopping");
            let left = deadline.saturating_duration_since(Instant::now());
            let share = if stage == Stage::Evidence { left } else { left / 2 };
            if tokio::time::timeout(share, self.drain(stage)).await.is_err() {
                self.abort(stage).await;
            }
        }
    }

    /// Waits for the last task of a stage; tasks of later stages may end meanwhile. Cancel-safe.
    async fn drain(&mut self, stage: Stage) {
        while self.left(stage) > 0 {
            match self.next_end().await {
                None => return,
                Some((_, Ok(Ok(())))) => {}
                Some((task, Ok(Err(error)))) => {
                    tracing::warn!(
                        task,
                        error = format!("{error:#}"),
                        "task failed while stopping"
                    );
                }
                Some((task, Err(error))) if error.is_cancelled() => {
                    tracing::warn!(task, "task did not stop in time and was aborted");
                }
                Some((task, Err(_))) => tracing::error!(task, "task panicked while stopping"),
            }
        }
    }

    async fn abort(&mut self, stage: Stage) {
        for task in self.running.values().filter(|task| task.stage == stage) {
            task.abort.abort();
        }
        // An aborted task ends at its next await; one that blocks its thread is left behind.
        if tokio::time::timeout(Duration::from_secs(1), self.drain(stage)).await.is_err() {
            tracing::error!(?stage, "tasks that never yield are left behind");
        }
    }

    async fn next_end(&mut self) -> Option<(&'static str, Result<anyhow::Result<()>, JoinError>)> {
        let ended = self.tasks.join_next_with_id().await?;
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let name = self.running.remove(&id).map_or("unknown", |task| task.name);
        Some((name, ended.map(|(_, result)| result)))
    }

    fn left(&self, stage: Stage) -> usize {
        self.running.values().filter(|task| task.stage == stage).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const GRACE: Duration = Duration::from_secs(8);

    /// A task that writes its name down a while after its token was cancelled.
    fn slow_end(
        log: &Arc<Mutex<Vec<&'static str>>>,
        name: &'static str,
        token: &CancellationToken,
        takes: Duration,
    ) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (log, token) = (log.clone(), token.clone());
        async move {
            token.cancelled().await;
            tokio::time::sleep(takes).await;
            log.lock().unwrap().push(name);
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_cancelled_only_after_the_last_intake_task_has_finished() {
        let (stages, log) = (Stages::default(), Arc::default());
        let mut supervisor = Supervisor::default();
        let mut add = |name, stage, token: &CancellationToken, seconds| {
            let takes = Duration::from_secs(seconds);
            supervisor.spawn(name, stage, slow_end(&log, name, token, takes));
        };
        add("audit", Stage::Evidence, &stages.evidence, 0);
        add("broker", Stage::Work, &stages.work, 0);
        add("sockets", Stage::Intake, &stages.intake, 3);
        supervisor.stop(&stages, GRACE).await;
        assert_eq!(*log.lock().unwrap(), ["sockets", "broker", "audit"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stage_that_does_not_end_is_aborted_and_the_next_ones_still_have_time() {
        let (stages, log) = (Stages::default(), Arc::default());
        let mut supervisor = Supervisor::default();
        supervisor.spawn("stuck", Stage::Intake, std::future::pending());
        let work = slow_end(&log, "broker", &stages.work, Duration::from_secs(1));
        supervisor.spawn("broker", Stage::Work, work);
        let start = Instant::now();
        supervisor.stop(&stages, GRACE).await;
        assert_eq!(*log.lock().unwrap(), ["broker"]);
        assert_eq!(start.elapsed(), GRACE / 2 + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_to_stop_takes_no_time_and_every_signal_is_given() {
        let stages = Stages::default();
        let start = Instant::now();
        Supervisor::default().stop(&stages, GRACE).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        let all = [&stages.intake, &stages.work, &stages.evidence];
        assert!(all.iter().all(|token| token.is_cancelled()));
    }

    #[tokio::test]
    async fn the_first_end_of_a_task_names_it() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("forever", Stage::Work, std::future::pending());
        supervisor.spawn("short", Stage::Work, async { Ok(()) });
        let ended = supervisor.first_failure().await.to_string();
        assert_eq!(ended, "task 'short' ended unexpectedly");
        supervisor.spawn("panics", Stage::Work, async { panic!("on purpose") });
        assert!(matches!(supervisor.first_failure().await, TaskFailure::Panicked(_)));
    }
}
