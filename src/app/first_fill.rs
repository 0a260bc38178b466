//! When the start is over: every declared volume has files, or enough time has passed.

use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::domain::VolumeName;
use crate::service_manager::ServiceManager;
use crate::status::VolumeBoard;

/// How long whatever is ordered after the agent waits for its files.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells the service manager that the start is over, then waits for `intake` to stop. Files that a
/// predecessor left count: they are complete.
pub(super) async fn announce(
    manager: ServiceManager,
    board: VolumeBoard,
    volumes: Vec<VolumeName>,
    intake: CancellationToken,
) -> anyhow::Result<()> {
    let missing = tokio::select! {
        () = intake.cancelled() => return Ok(()),
        () = filled(&board, &volumes) => 0,
        slept = clock::sleep(PATIENCE) => {
            slept.context("cannot make a timer")?;
            without_files(&board, &volumes)
        }
    };
    match missing {
        0 => manager.ready("serving"),
        missing => {
            tracing::warn!(missing, "volumes have no files yet; the start does not wait longer");
            manager.ready(&format!(
                "serving; {missing} of {} volumes have no files yet",
                volumes.len()
            ));
        }
    }
    intake.cancelled().await;
    manager.stopping();
    Ok(())
}

/// Cancel-safe.
async fn filled(board: &VolumeBoard, volumes: &[VolumeName]) {
    let mut changes = board.changes();
    loop {
        changes.mark_unchanged();
        if without_files(board, volumes) == 0 {
            return;
        }
        if changes.changed().await.is_err() {
            // The board lives as long as the agent.
            return std::future::pending().await;
        }
    }
}

fn without_files(board: &VolumeBoard, volumes: &[VolumeName]) -> usize {
    let has_files = |name: &&VolumeName| board.get(name).is_some_and(|status| status.is_filled());
    volumes.len() - volumes.iter().filter(has_files).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::VolumeStatus;

    fn status(name: &VolumeName, revision: Option<&str>) -> VolumeStatus {
        VolumeStatus {
            name: name.clone(),
            path: "/run/v".into(),
            mount: "tmpfs".to_owned(),
            revision: revision.map(str::to_owned),
            published_at: None,
            links_missing: false,
            alarm: None,
            items: Vec::new(),
        }
    }

    #[tokio::test]
    async fn the_start_is_over_when_the_last_volume_has_files() {
        let board = VolumeBoard::default();
        let names: Vec<VolumeName> = ["a", "b"].map(|name| name.parse().unwrap()).into();
        let mut filled = std::pin::pin!(filled(&board, &names));
        assert!(futures_util::poll!(&mut filled).is_pending());
        board.publish(status(&names[0], Some("..1")));
        board.publish(status(&names[1], None));
        assert!(futures_util::poll!(&mut filled).is_pending());
        assert_eq!(without_files(&board, &names), 1);
        board.publish(status(&names[1], Some("..2")));
        filled.await;
    }
}
