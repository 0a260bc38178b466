//! Waits for a new volume's first revision: complete, or a reason why it will not come.

use std::time::Duration;

use crate::delivery::csi::error::CsiError;
use crate::domain::VolumeName;
use crate::source::ErrorClass;
use crate::status::{VolumeBoard, VolumeStatus};

/// Waits until the volume has a revision, cannot get one, or `patience` is over. Cancel-safe.
pub(super) async fn first_fill(
    board: &VolumeBoard,
    name: &VolumeName,
    patience: Duration,
) -> Result<(), CsiError> {
    let mut changes = board.changes();
    let filled = async {
        loop {
            changes.mark_unchanged();
            match board.get(name).map_or(Progress::Waiting, |status| progress(&status)) {
                Progress::Filled => return Ok(()),
                Progress::Hopeless(class, message) => {
                    return Err(CsiError::Secret { class, message });
                }
                Progress::Waiting => {}
            }
            if changes.changed().await.is_err() {
                return Err(CsiError::Stopping);
            }
        }
    };
    match tokio::time::timeout(patience, filled).await {
        Ok(outcome) => outcome,
        Err(_) => Err(CsiError::Late(board.get(name).map_or_else(
            || "the volume has no status yet".to_owned(),
            |status| obstacles(&status),
        ))),
    }
}

enum Progress {
    Filled,
    Waiting,
    Hopeless(ErrorClass, String),
}

/// A denial, an absent secret or a wrong request will not change by waiting; an outage may.
fn progress(status: &VolumeStatus) -> Progress {
    if status.is_filled() {
        return Progress::Filled;
    }
    let hopeless = status.items.iter().find_map(|item| {
        let problem = item.problem.as_ref()?;
        match problem.class {
            ErrorClass::Denied | ErrorClass::NotFound | ErrorClass::InvalidRequest => {
                let message = format!("{} of '{}': {}", item.file, item.secret, problem.message);
                Some((problem.class, message))
            }
            ErrorClass::Unreachable | ErrorClass::TokenEnded | ErrorClass::LeaseEnded => None,
        }
    });
    match (hopeless, &status.alarm) {
        (Some((class, message)), _) => Progress::Hopeless(class, message),
        // Every secret is there and still not every file: a key is missing, or the tmpfs too small.
        (None, Some(alarm)) if status.items.iter().all(|item| item.state == "fresh") => {
            Progress::Hopeless(ErrorClass::InvalidRequest, alarm.clone())
        }
        (None, _) => Progress::Waiting,
    }
}

fn obstacles(status: &VolumeStatus) -> String {
    let mut all: Vec<String> = Vec::new();
    for item in &status.items {
        let why = item.problem.as_ref().map_or("still waiting", |problem| &problem.message);
        all.push(format!("{} of '{}': {why}", item.file, item.secret));
    }
    all.join("; ")
}

#[cfg(test)]
#[path = "first_fill_tests.rs"]
mod tests;
