//! New volumes that are being published: a stop waits until they are complete or taken back.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Counts them. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Begun(TaskTracker);

impl Begun {
    /// One that is being published until this is dropped.
    pub(super) fn one(&self) -> TaskTrackerToken {
        self.0.token()
    }

    /// Waits for the stop, and then until none is left. As a task of the stage `intake` it keeps
    /// everything at work that taking back needs, the broker above all. Cancel-safe.
    pub async fn settled(self, intake: CancellationToken) -> anyhow::Result<()> {
        intake.cancelled().await;
        self.0.close();
        self.0.wait().await;
        Ok(())
    }
}
