//! Batches changes, so that several revisions in a row are told once, one telling at a time.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::clock::BootInstant;

use super::on_change::OnChange;

/// How long a telling may take once the agent is stopping.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Tells about changes, one batch after the other.
pub struct Notifier {
    action: Option<OnChange>,
    batch: Duration,
    due: Option<BootInstant>,
    running: JoinSet<Result<(), String>>,
    failure: Option<String>,
}

impl Notifier {
    /// A notifier; without an action it does nothing.
    pub fn new(action: Option<OnChange>, batch: Duration) -> Self {
        Self { action, batch, due: None, running: JoinSet::new(), failure: None }
    }

    /// A revision replaced another.
    pub fn changed(&mut self, now: BootInstant) {
        if self.action.is_some() {
            // The first change of a batch sets the time, so a steady stream is told too.
            self.due.get_or_insert(now + self.batch);
        }
    }

    /// When [`Self::run_due`] has something to do; `None` while a telling runs.
    pub fn due(&self) -> Option<BootInstant> {
        self.due.filter(|_| self.running.is_empty())
    }

    /// Starts telling, if it is time.
    pub fn run_due(&mut self, now: BootInstant) {
        if self.due().is_some_and(|due| due <= now) {
            self.start();
        }
    }

    fn start(&mut self) {
        self.due = None;
        if let Some(action) = self.action.clone() {
            self.running.spawn(async move { action.tell().await.map_err(|error| chain(&error)) });
        }
    }

    /// Waits for a running telling to end; for ever if none runs. Cancel-safe.
    pub async fn finished(&mut self) {
        match self.running.join_next().await {
            None => std::future::pending().await,
            Some(Ok(Ok(()))) => self.failure = None,
            Some(Ok(Err(message))) => {
                tracing::warn!(error = message, "an application was not told of its new files");
                self.failure = Some(message);
            }
            Some(Err(panicked)) => self.failure = Some(panicked.to_string()),
        }
    }

    /// Why the last telling failed.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Tells what is still to be told, before the agent ends; gives up after 3 s.
    pub async fn finish(mut self) {
        let rest = async {
            while !self.running.is_empty() {
                self.finished().await;
            }
            if self.due.is_some() {
                self.start();
                self.finished().await;
            }
        };
        if tokio::time::timeout(STOP_LIMIT, rest).await.is_err() {
            tracing::warn!("stopping while an application is being told of its new files");
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::files::on_change::Argv;
    use crate::delivery::files::testing::at;

    fn notifier(program: &str) -> Notifier {
        let argv = Argv::try_from(vec![program.to_owned()]).unwrap();
        Notifier::new(Some(OnChange::Command(argv)), Duration::from_secs(5))
    }

    #[tokio::test]
    async fn changes_within_a_batch_are_told_once_and_later_ones_after_it() {
        let mut notifier = notifier("/bin/true");
        notifier.changed(at(10));
        notifier.changed(at(12));
        notifier.run_due(at(14));
        assert_eq!(notifier.due(), Some(at(15)));
        notifier.run_due(at(15));
        assert_eq!(notifier.due(), None);
        notifier.changed(at(16));
        assert_eq!(notifier.due(), None, "one telling at a time");
        notifier.finished().await;
        assert_eq!(notifier.due(), Some(at(21)));
    }

    #[tokio::test]
    async fn a_failure_stays_until_a_telling_succeeds_and_is_not_retried() {
        let mut failing = notifier("/bin/false");
        failing.changed(at(10));
        failing.run_due(at(15));
        failing.finished().await;
        assert!(failing.failure().unwrap().contains("/bin/false"));
        assert_eq!(failing.due(), None);
    }

    #[tokio::test]
    async fn nothing_is_due_without_an_action() {
        let mut notifier = Notifier::new(None, Duration::ZERO);
        notifier.changed(at(1));
        assert_eq!(notifier.due(), None);
    }
}
