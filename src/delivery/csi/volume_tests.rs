//! What a failed call leaves of a volume that a pod uses, and of one that no pod has seen.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use super::super::testing::{Rig, claims, pod, publish, record, target};
use super::super::volumes::Volumes;
use super::*;

const PATIENCE: Duration = Duration::from_secs(1);

fn volume(rig: &Rig) -> Volume {
    Volume::new(Arc::clone(&rig.shared), target().key().clone())
}

async fn call(volume: &mut Volume) -> Result<(), CsiError> {
    volume.publish(publish(), &claims(pod()), PATIENCE).await
}

/// The socket that answers, if one does.
fn answered(rig: &Rig) -> Option<u64> {
    UnixStream::connect(rig.socket()).ok()?;
    Some(rig.socket().metadata().ok()?.ino())
}

/// Nothing of the volume is left anywhere.
fn is_gone(rig: &Rig) -> bool {
    let Shared { files, records, .. } = &*rig.shared;
    files.broker.login_tokens().is_empty()
        && files.board.all().is_empty()
        && records.all().unwrap().is_empty()
        && !rig.mounter.root(target().key()).exists()
}

/// As after a panic: nothing answers any more.
async fn break_down(volume: &mut Volume) {
    let known = volume.known.as_mut().unwrap();
    known.kept.as_mut().unwrap().stop().await;
    assert!(!known.is_kept());
}

#[tokio::test]
async fn a_socket_that_a_pod_uses_outlives_every_failed_call() {
    let rig = Rig::new();
    let mut volume = volume(&rig);
    call(&mut volume).await.unwrap();
    let socket = answered(&rig);
    assert!(socket.is_some());

    let mut account = pod();
    account.account.uid = "0b".parse().unwrap();
    let replaced = volume.publish(publish(), &claims(account), PATIENCE).await;
    assert!(matches!(replaced, Err(CsiError::Token(_))), "{replaced:?}");
    let mut other = publish();
    other.fs_group = Some(2000);
    let different = volume.publish(other, &claims(pod()), PATIENCE).await;
    assert!(matches!(different, Err(CsiError::Different)), "{different:?}");
    let mut forbidden = publish();
    forbidden.attributes.role = Some("admin".parse().unwrap());
    let forbidden = volume.publish(forbidden, &claims(pod()), PATIENCE).await;
    assert!(matches!(forbidden, Err(CsiError::Invalid(_))), "{forbidden:?}");
    rig.mounter.fail("bind");
    let unbound = call(&mut volume).await;
    assert!(matches!(unbound, Err(CsiError::Mounter(_))), "{unbound:?}");

    assert_eq!(answered(&rig), socket, "a failed call made away with the socket");
    assert!(rig.shared.records.all().unwrap().contains_key(target().key()));
    call(&mut volume).await.unwrap();
    assert_eq!(answered(&rig), socket);
}

#[tokio::test]
async fn a_volume_that_cannot_be_kept_again_goes_without_a_trace_when_its_pod_does() {
    let rig = Rig::new();
    let mut volume = volume(&rig);
    call(&mut volume).await.unwrap();
    break_down(&mut volume).await;
    rig.mounter.fail("prepare");
    let failed = call(&mut volume).await;
    assert!(matches!(failed, Err(CsiError::Mounter(_))), "{failed:?}");
    assert!(!is_gone(&rig), "the pod runs");
    volume.unpublish(&target()).await.unwrap();
    assert!(is_gone(&rig));
}

#[tokio::test]
async fn a_volume_that_broke_down_is_kept_again_by_the_next_call() {
    let rig = Rig::new();
    let mut volume = volume(&rig);
    call(&mut volume).await.unwrap();
    break_down(&mut volume).await;
    assert_eq!(answered(&rig), None);
    rig.mounter.fail("prepare");
    call(&mut volume).await.unwrap_err();
    call(&mut volume).await.unwrap();
    assert!(answered(&rig).is_some());
}

#[tokio::test]
async fn a_new_volume_whose_publish_fails_is_taken_back() {
    for failing in ["prepare", "bind"] {
        let rig = Rig::new();
        let mut volume = volume(&rig);
        rig.mounter.fail(failing);
        call(&mut volume).await.unwrap_err();
        assert!(is_gone(&rig), "{failing}");
        call(&mut volume).await.unwrap();
        assert!(answered(&rig).is_some(), "{failing}");
    }
}

/// A predecessor published it and has ended.
fn restarted(with_record: bool) -> (Rig, Volumes) {
    let rig = Rig::new();
    let key = target().key().clone();
    std::fs::create_dir_all(rig.mounter.root(&key)).unwrap();
    rig.mounter.bound.lock().unwrap().insert(key.clone());
    if with_record {
        rig.shared.records.write(&key, &record()).unwrap();
    }
    let volumes = Volumes::new(Arc::clone(&rig.shared), CancellationToken::new());
    (rig, volumes)
}

#[tokio::test]
async fn after_a_restart_a_failed_call_costs_the_pod_nothing() {
    // The successor finds its record, or none that can be read.
    for with_record in [true, false] {
        let (rig, volumes) = restarted(with_record);
        rig.mounter.fail("prepare");
        volumes.adopt().await.unwrap();
        rig.mounter.failing.lock().unwrap().clear();
        rig.mounter.fail("bind");
        volumes.publish(publish(), claims(pod()), PATIENCE).await.unwrap_err();
        let socket = answered(&rig);
        assert!(socket.is_some(), "with a record: {with_record}");
        volumes.publish(publish(), claims(pod()), PATIENCE).await.unwrap();
        assert_eq!(answered(&rig), socket, "with a record: {with_record}");
        assert!(rig.shared.records.all().unwrap().contains_key(target().key()));
        volumes.unpublish(target()).await.unwrap();
        assert!(is_gone(&rig), "with a record: {with_record}");
    }
}

#[tokio::test]
async fn after_a_restart_with_less_memory_a_pods_socket_is_kept_and_nothing_new_let_in() {
    let (rig, volumes) = restarted(true);
    let (budget, size) = (&rig.shared.budget, rig.shared.config.volume_size);
    let mut others: Vec<_> = std::iter::from_fn(|| budget.reserve(size).ok()).collect();
    volumes.adopt().await.unwrap();
    assert!(answered(&rig).is_some());
    drop(others.pop());
    assert!(budget.reserve(size).is_err());
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_socket_that_cannot_be_bound_at_once_comes_without_a_call() {
    let (rig, volumes) = restarted(true);
    let mut changes = rig.shared.files.board.changes();
    changes.mark_unchanged();
    rig.mounter.fail("prepare");
    volumes.adopt().await.unwrap();
    assert_eq!(answered(&rig), None);
    changes.changed().await.unwrap();
    assert!(answered(&rig).is_some());
}
