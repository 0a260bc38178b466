//! What the handle promises to those who ask.

use super::wire::Listed;
use super::*;
use crate::telemetry::Limit;

/// The uid of the pod of this number.
pub(super) fn uid(number: u8) -> PodUid {
    format!("8e3a1f0c-6f2b-4c1d-9a7e-0123456789{number:02x}").parse().unwrap()
}

pub(super) fn pod(number: u8, labels: &[(&str, &str)]) -> DirectoryPod {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    DirectoryPod {
        uid: uid(number),
        name: format!("web-{number}").parse().unwrap(),
        namespace: "shop".parse().unwrap(),
        service_account: "web".parse().unwrap(),
        labels: Arc::new(labels.collect()),
        leaving: false,
    }
}

const LONG: Duration = Duration::from_secs(600);
const NOT: Duration = Duration::ZERO;

fn directory() -> PodDirectory {
    PodDirectory::of(DirectoryMode::ApiServer)
}

fn synced() -> PodDirectory {
    let directory = directory();
    directory.update(|known| known.list(Vec::new(), BootInstant::default()));
    directory
}

fn appear(directory: &PodDirectory, number: u8) {
    directory.update(|known| known.apply(Listed::Pod(pod(number, &[]))));
}

#[tokio::test]
async fn without_a_directory_nothing_is_found_and_nobody_waits() {
    let directory = PodDirectory::none();
    assert_eq!(directory.find(&uid(0), LONG).await, Err(FindError::Off));
    assert_eq!(directory.labels(&uid(0)), None);
    assert_eq!(directory.state().mode, DirectoryMode::None);
}

#[tokio::test]
async fn a_known_pod_is_found_at_once_also_in_an_outage() {
    let directory = synced();
    appear(&directory, 0);
    directory.failed("connection refused".to_owned(), BootInstant::now());
    assert_eq!(directory.find(&uid(0), NOT).await.unwrap().name.as_str(), "web-0");
}

#[tokio::test(start_paused = true)]
async fn many_wait_for_one_pod_and_all_get_it_when_it_appears() {
    let (directory, metrics) = (synced(), Metrics::new());
    directory.watch_limits(&metrics);
    let wait = |directory: PodDirectory| async move { directory.find(&uid(0), LONG).await };
    let mut waiting: Vec<_> =
        (0..WAITERS_MAX).map(|_| tokio::spawn(wait(directory.clone()))).collect();
    while directory.0.waiters.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(directory.find(&uid(0), LONG).await, Err(FindError::Busy));
    let waiting_now = Limit::shared("pod_waiters", WAITERS_MAX, WAITERS_MAX, 1);
    assert_eq!(metrics.limits(), [waiting_now]);
    appear(&directory, 1);
    appear(&directory, 0);
    for waiter in waiting.drain(..) {
        assert_eq!(waiter.await.unwrap().unwrap().uid, uid(0));
    }
    assert_eq!(directory.0.waiters.available_permits(), WAITERS_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_why_the_pod_is_not_known() {
    let unlisted = directory().find(&uid(0), LONG).await;
    assert!(matches!(unlisted, Err(FindError::Unreachable(_))), "{unlisted:?}");
    let directory = synced();
    assert_eq!(directory.find(&uid(0), LONG).await, Err(FindError::Unknown));
    let now = BootInstant::now();
    directory.failed("connection refused".to_owned(), now - Duration::from_secs(70));
    directory.failed("no route to host".to_owned(), now);
    let lost = directory.find(&uid(0), NOT).await.unwrap_err().to_string();
    assert!(lost.ends_with("no route to host, for 1m10s"), "{lost}");
    directory.heard(now);
    assert_eq!(directory.find(&uid(0), NOT).await, Err(FindError::Unknown));
}

#[tokio::test]
async fn a_gone_pod_is_said_to_be_gone_without_a_wait() {
    let directory = synced();
    appear(&directory, 0);
    directory.update(|known| known.delete(&uid(0), BootInstant::default()));
    assert!(directory.find(&uid(0), LONG).await.unwrap().leaving);
    directory.update(|known| known.confirm(&|_| Presence::Absent, BootInstant::default()));
    assert_eq!(directory.find(&uid(0), LONG).await, Err(FindError::Gone));
}

#[test]
fn followers_hear_of_what_differs_and_of_nothing_else() {
    let directory = synced();
    let mut changes = directory.changes();
    appear(&directory, 0);
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    appear(&directory, 0);
    assert!(!changes.has_changed().unwrap());
    directory.update(|known| known.apply(Listed::Pod(pod(0, &[("app", "shop")]))));
    assert!(changes.has_changed().unwrap());
}
