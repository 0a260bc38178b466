//! When a new volume is complete, hopeless, or out of time.

use super::*;
use crate::broker::Problem;
use crate::clock::BootInstant;
use crate::status::ItemStatus;

const PATIENCE: Duration = Duration::from_secs(3600);

fn name() -> VolumeName {
    "shop".parse().unwrap()
}

fn status(revision: Option<&str>, problem: Option<ErrorClass>) -> VolumeStatus {
    let problem = problem.map(|class| Problem {
        class,
        message: "as the test wants".to_owned(),
        since: BootInstant::default(),
        attempts: 1,
    });
    let item = ItemStatus {
        file: "token".to_owned(),
        secret: crate::domain::SecretRef {
            source: "vault".parse().unwrap(),
            path: "kv/a".parse().unwrap(),
            version: None,
        },
        state: if revision.is_some() { "fresh" } else { "waiting" },
        fetched_at: None,
        works_until: None,
        version: None,
        problem,
    };
    VolumeStatus {
        name: name(),
        path: "/x".into(),
        mount: "tmpfs".to_owned(),
        revision: revision.map(str::to_owned),
        published_at: None,
        links_missing: false,
        alarm: None,
        items: vec![item],
    }
}

#[tokio::test]
async fn a_revision_ends_the_wait_whenever_it_comes() {
    let board = VolumeBoard::default();
    let later = board.clone();
    let (name, wait) = (name(), async {
        tokio::task::yield_now().await;
        later.publish(status(None, Some(ErrorClass::Unreachable)));
        tokio::task::yield_now().await;
        later.publish(status(Some("r1"), None));
    });
    let (filled, ()) = tokio::join!(first_fill(&board, &name, PATIENCE), wait);
    assert!(filled.is_ok());
}

/// A tmpfs that has room for the files and not for the names of all of them.
#[tokio::test(start_paused = true)]
async fn files_that_nothing_leads_to_are_none() {
    let (board, name) = (VolumeBoard::default(), name());
    let mut status = VolumeStatus { links_missing: true, ..status(Some("r1"), None) };
    board.publish(status.clone());
    let waiting = first_fill(&board, &name, PATIENCE).await;
    assert!(matches!(waiting, Err(CsiError::Late(_))), "{waiting:?}");
    status.alarm = Some("cannot link: no space left".to_owned());
    board.publish(status);
    let refused = first_fill(&board, &name, PATIENCE).await.unwrap_err();
    let CsiError::Secret { message, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(message, "cannot link: no space left");
}

#[tokio::test(start_paused = true)]
async fn what_waiting_cannot_change_fails_at_once_and_an_outage_at_the_deadline() {
    for class in [ErrorClass::Denied, ErrorClass::NotFound, ErrorClass::InvalidRequest] {
        let board = VolumeBoard::default();
        board.publish(status(None, Some(class)));
        let failed = first_fill(&board, &name(), PATIENCE).await.unwrap_err();
        assert!(matches!(&failed, CsiError::Secret { class: c, .. } if *c == class), "{failed}");
        assert!(failed.to_string().contains("token of 'vault:kv/a'"), "{failed}");
    }
    let board = VolumeBoard::default();
    board.publish(status(None, Some(ErrorClass::Unreachable)));
    let late = first_fill(&board, &name(), Duration::from_secs(1)).await.unwrap_err();
    assert!(late.to_string().contains("as the test wants"), "{late}");
}

#[tokio::test]
async fn secrets_that_fit_no_file_fail_the_volume() {
    let board = VolumeBoard::default();
    let mut broken = status(None, None);
    broken.items[0].state = "fresh";
    broken.alarm = Some("the secret has no key 'token'".to_owned());
    board.publish(broken);
    let failed = first_fill(&board, &name(), PATIENCE).await.unwrap_err();
    assert!(failed.to_string().contains("no key 'token'"), "{failed}");
}
