//! What a failed call leaves of a volume that a pod uses, and of one that no pod has seen.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use futures_util::FutureExt;
use tonic::{Code, Status};

use super::super::testing::{Fault, Rig, claims, pod, publish, record, target};
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

/// What is wrong with the volume that status has; then nothing is published.
fn alarm(rig: &Rig) -> Option<String> {
    let [line] = <[_; 1]>::try_from(rig.shared.files.board.all()).unwrap();
    assert_eq!(line.alarm.is_none(), line.revision.is_some(), "{:?}", line.alarm);
    line.alarm
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
    assert!(alarm(&rig).unwrap().starts_with("the volume is not kept, which is tried again: "));
    call(&mut volume).await.unwrap();
    assert!(answered(&rig).is_some());
    assert_eq!(alarm(&rig), None);
}

#[tokio::test]
async fn status_knows_that_a_volumes_task_ended_and_that_its_pod_is_gone() {
    let rig = Rig::new();
    let mut volume = volume(&rig);
    call(&mut volume).await.unwrap();
    assert_eq!(alarm(&rig), None);
    volume.close().await;
    assert!(alarm(&rig).unwrap().starts_with("its pod is gone"));
    call(&mut volume).await.unwrap();
    assert_eq!(alarm(&rig), None);

    volume.known.as_mut().unwrap().kept.as_mut().unwrap().abort();
    let (_sender, mut commands) = mpsc::channel(1);
    let mut changes = rig.shared.files.board.changes();
    let ended = async {
        changes.changed().await.unwrap();
        alarm(&rig)
    };
    let alarmed = tokio::select! {
        _ = volume.run(&mut commands) => None,
        alarmed = ended => alarmed,
    };
    assert!(alarmed.unwrap().starts_with("the volume is not kept"));
}

#[tokio::test]
async fn after_a_restart_status_has_a_volume_whose_record_is_not_understood() {
    for taken_up in [true, false] {
        let (rig, volumes) = restarted(true);
        let mut other = record();
        other.attributes.insert("deliver".to_owned(), "pigeon".to_owned());
        rig.shared.records.write(target().key(), &other).unwrap();
        volumes.adopt().await.unwrap();
        let alarm = alarm(&rig).unwrap();
        assert!(alarm.contains("kubelet's next call") && alarm.contains("pigeon"), "{alarm}");
        if taken_up {
            volumes.publish(publish(), claims(pod()), PATIENCE).await.unwrap();
            assert_eq!(self::alarm(&rig), None);
        }
        volumes.unpublish(target()).await.unwrap();
        assert!(is_gone(&rig));
    }
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

/// Whether no memory is counted.
fn nothing_is_reserved(rig: &Rig) -> bool {
    let Shared { budget, config, .. } = &*rig.shared;
    let size = config.volume_size;
    let all: Vec<_> = std::iter::from_fn(|| budget.reserve(size).ok()).collect();
    all.len() as u64 == config.volume_bytes_total / size.bytes()
}

#[tokio::test]
async fn a_new_volume_whose_binding_nobody_heard_of_is_unbound_and_taken_back() {
    let rig = Rig::new();
    let mut volume = volume(&rig);
    rig.mounter.fault("bind", Fault::Lost);
    let lost = call(&mut volume).await.unwrap_err();
    assert!(matches!(lost, CsiError::Mounter(_)), "{lost:?}");
    assert_eq!(Status::from(lost).code(), Code::Unavailable);
    assert!(is_gone(&rig) && rig.mounter.bound.lock().unwrap().is_empty());
    assert!(nothing_is_reserved(&rig));
}

#[tokio::test]
async fn what_cannot_be_taken_back_is_known_and_counted_until_it_can() {
    let rig = Rig::new();
    let mut volume = volume(&rig);
    let leave = async |volume: &mut Volume| {
        rig.mounter.fail("bind");
        rig.mounter.fail("discard");
        let left = call(volume).await.unwrap_err();
        assert!(matches!(left, CsiError::Left(_)), "{left:?}");
        // Else the kubelet would forget it.
        assert_eq!(Status::from(left).code(), Code::Unavailable);
        assert!(!is_gone(&rig) && !nothing_is_reserved(&rig));
    };
    leave(&mut volume).await;
    // The next call fails by itself, and that is final: then nothing is left.
    let mut forbidden = publish();
    forbidden.attributes.role = Some("admin".parse().unwrap());
    let refused = volume.publish(forbidden, &claims(pod()), PATIENCE).await;
    assert!(matches!(refused, Err(CsiError::Invalid(_))), "{refused:?}");
    assert!(is_gone(&rig) && nothing_is_reserved(&rig));

    leave(&mut volume).await;
    rig.mounter.fail("discard");
    let left = call(&mut volume).await;
    assert!(matches!(left, Err(CsiError::Left(_))), "{left:?}");
    call(&mut volume).await.unwrap();
    assert!(answered(&rig).is_some());
    volume.unpublish(&target()).await.unwrap();

    leave(&mut volume).await;
    volume.unpublish(&target()).await.unwrap();
    assert!(is_gone(&rig) && nothing_is_reserved(&rig));
}

#[tokio::test(start_paused = true)]
async fn what_was_left_behind_goes_without_a_call() {
    let rig = Rig::new();
    let volumes = Volumes::new(Arc::clone(&rig.shared));
    rig.mounter.fault("bind", Fault::Lost);
    rig.mounter.fail("discard");
    volumes.publish(publish(), claims(pod()), PATIENCE).await.unwrap_err();
    assert!(volumes.has(&publish().target.key().clone()));
    goes_by_itself(&rig).await;
    assert!(rig.mounter.bound.lock().unwrap().is_empty());
    ends(&volumes).await;

    // A predecessor's.
    let (rig, volumes) = restarted(true);
    rig.mounter.bound.lock().unwrap().clear();
    rig.mounter.fail("discard");
    volumes.adopt().await.unwrap();
    goes_by_itself(&rig).await;
    ends(&volumes).await;
}

/// A kubelet that went away in the middle may have a successor that unpublished before.
#[tokio::test(start_paused = true)]
async fn a_new_volume_that_nobody_heard_of_goes_and_one_that_a_pod_uses_stays() {
    let rig = Rig::new();
    let volumes = Volumes::new(Arc::clone(&rig.shared));
    let call = || volumes.publish(publish(), claims(pod()), PATIENCE);
    assert!(call().now_or_never().is_none(), "given up");
    ends(&volumes).await;
    assert!(is_gone(&rig) && nothing_is_reserved(&rig));
    call().await.unwrap();
    assert!(call().now_or_never().is_none(), "given up");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(answered(&rig).is_some());
}

/// The next call is again about a volume that nobody knows.
async fn ends(volumes: &Volumes) {
    tokio::time::timeout(Duration::from_secs(60), async {
        while volumes.has(&publish().target.key().clone()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("its task ends");
}

async fn goes_by_itself(rig: &Rig) {
    assert!(!is_gone(rig));
    tokio::time::timeout(Duration::from_secs(60), async {
        while !is_gone(rig) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("it is taken away");
}

#[tokio::test]
async fn a_pod_that_runs_is_not_refused_for_names_that_are_missing() {
    let rig = Rig::new();
    let mut volume = volume(&rig);
    call(&mut volume).await.unwrap();
    let board = &rig.shared.files.board;
    let mut status = board.get(&volume.known.as_ref().unwrap().name).unwrap();
    status.links_missing = true;
    board.publish(status);
    call(&mut volume).await.unwrap();
}

#[tokio::test]
async fn secrets_end_with_the_last_container_even_if_their_mount_does_not() {
    let rig = Rig::new();
    let mut volume = volume(&rig);
    call(&mut volume).await.unwrap();
    rig.mounter.fail("unbind");
    volume.unpublish(&target()).await.unwrap_err();
    assert!(rig.shared.files.broker.login_tokens().is_empty() && answered(&rig).is_none());
    assert!(!rig.socket().exists() && !nothing_is_reserved(&rig), "wiped, and still mounted");
    volume.unpublish(&target()).await.unwrap();
    assert!(is_gone(&rig) && nothing_is_reserved(&rig));
}

#[tokio::test]
async fn files_that_only_a_predecessor_kept_are_overwritten_too() {
    // Bound with a damaged record, never bound, and one that cannot be taken up.
    for (with_record, bound, failing) in
        [(false, true, None), (false, false, None), (true, true, Some("prepare"))]
    {
        let (rig, volumes) = restarted(with_record);
        let key = target().key().clone();
        let revision = rig.mounter.root(&key).join("..2026_01_01_00_00_00.00000001");
        std::fs::create_dir(&revision).unwrap();
        std::fs::write(revision.join("token"), "secret").unwrap();
        let mut reader = std::fs::File::open(revision.join("token")).unwrap();
        if !bound {
            rig.mounter.bound.lock().unwrap().clear();
        }
        failing.into_iter().for_each(|call| rig.mounter.fail(call));
        volumes.adopt().await.unwrap();
        volumes.unpublish(target()).await.unwrap();
        assert!(is_gone(&rig));
        let mut left = Vec::new();
        reader.read_to_end(&mut left).unwrap();
        assert!(left.is_empty(), "record {with_record}, bound {bound}: {left:?}");
    }
}

#[tokio::test]
async fn after_a_restart_a_volume_that_was_never_bound_is_taken_away() {
    for with_record in [true, false] {
        let (rig, volumes) = restarted(with_record);
        rig.mounter.bound.lock().unwrap().clear();
        volumes.adopt().await.unwrap();
        assert!(is_gone(&rig), "with a record: {with_record}");
        assert!(nothing_is_reserved(&rig));
        volumes.publish(publish(), claims(pod()), PATIENCE).await.unwrap();
        assert!(answered(&rig).is_some());
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
    let volumes = Volumes::new(Arc::clone(&rig.shared));
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
    rig.mounter.fail("prepare");
    volumes.adopt().await.unwrap();
    assert_eq!(answered(&rig), None);
    assert!(alarm(&rig).unwrap().starts_with("the volume is not kept, which is tried again: "));
    let mut changes = rig.shared.files.board.changes();
    changes.mark_unchanged();
    changes.changed().await.unwrap();
    assert!(answered(&rig).is_some());
    assert_eq!(alarm(&rig), None);
}
