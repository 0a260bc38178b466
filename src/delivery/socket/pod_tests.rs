//! A pod on its own socket before it is known, while it is leaving, and after it has gone.

use std::path::PathBuf;

use serde_json::Value;
use tokio::io::AsyncReadExt;

use super::*;
use crate::delivery::testing::{Rig, get, listed, pod};
use crate::domain::ConsumerId;

/// Everything behind a pod's socket, and the socket.
fn start() -> (Rig, PathBuf) {
    let mut rig = Rig::start();
    let path = serve(&mut rig, "web");
    (rig, path)
}

/// The socket of one of the pod's volumes.
fn serve(rig: &mut Rig, volume: &str) -> PathBuf {
    let path = rig.dir.path().join(format!("{volume}.sock"));
    let place = Place { path: path.clone(), mode: 0o600, gid: None, private: false };
    let socket = BoundSocket::bind(&place).unwrap();
    let door = PodDoor { pod: Arc::new(pod()), volume: volume.parse().unwrap(), role: None };
    let (server, stop) = (rig.server.clone(), rig.stop.clone());
    rig.tasks.spawn(async move { server.run(Door::Pod(door), socket, &stop).await });
    path
}

fn error(body: &Value) -> &str {
    body["errors"][0].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_pods_first_request_waits_until_the_pod_is_known() {
    let (rig, socket) = start();
    let open = get(socket.clone(), "secret/data/open/web").await;
    assert_eq!(open.0, 200, "no label is asked for there: {open:?}");
    let waiting = tokio::spawn(get(socket, "secret/data/shop/web"));
    while rig.pods.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    rig.pods.tell(listed(false));
    let (status, body) = waiting.await.unwrap();
    assert_eq!((status, &body["data"]["data"]["token"]), (200, &"t".into()), "{body}");
}

#[tokio::test]
async fn a_pod_that_stays_unknown_may_ask_again_and_operators_read_why() {
    let (rig, socket) = start();
    let (status, body) = get(socket.clone(), "secret/data/shop/web").await;
    assert_eq!(
        (status, body["errors"][0].as_str()),
        (503, Some("the pod is not known yet: ask again"))
    );
    // A preflight is decided in the same way.
    let (status, body) = get(socket.clone(), "sys/internal/ui/mounts/secret/data/shop/web").await;
    assert_eq!(status, 503, "{body}");
    rig.pods.tell(listed(false));
    rig.pods.tell_gone(&pod().uid);
    let (status, body) = get(socket.clone(), "secret/data/shop/web").await;
    assert_eq!((status, error(&body)), (403, "permission denied"));
    let log = rig.stop().await;
    for reason in ["covered by by-label", "knows of no such pod", "the pod is gone"] {
        assert!(log.contains(reason), "{reason}: {log}");
    }
}

#[tokio::test]
async fn a_leaving_pod_reads_what_it_has_and_gets_no_new_credential() {
    let (rig, socket) = start();
    rig.pods.tell(listed(false));
    let (status, first) = get(socket.clone(), "database/creds/shop").await;
    assert_eq!(status, 200, "{first}");
    rig.pods.tell(listed(true));
    let (status, again) = get(socket.clone(), "database/creds/shop").await;
    assert_eq!((status, &again["data"]), (200, &first["data"]), "the same credential");
    let (status, kv) = get(socket.clone(), "secret/data/shop/web").await;
    assert_eq!(status, 200, "values that nothing is made for: {kv}");
    let (status, refused) = get(socket.clone(), "database/creds/other").await;
    assert!(status == 403 && error(&refused).contains("no new credential"), "{refused}");
    // Once it has let go of it, having it again would take a new one.
    rig.files.broker.consumer_gone(ConsumerId::volume(&"web".parse().unwrap())).await;
    let (status, _) = get(socket.clone(), "database/creds/shop").await;
    assert_eq!(status, 403);
}

/// Whoever it is that connects: other pods have their places meanwhile.
#[tokio::test]
async fn all_sockets_of_a_pod_together_take_no_more_places_than_it_may_have() {
    const SOCKETS: usize = 6;
    let mut rig = Rig::start();
    let paths: Vec<_> = (0..SOCKETS).map(|n| serve(&mut rig, &format!("v{n}"))).collect();
    let most = Limits::default().connections_per_user;
    let connect = |path: &PathBuf| std::os::unix::net::UnixStream::connect(path).unwrap();
    let _all: Vec<_> = paths.iter().flat_map(|path| (0..most).map(|_| connect(path))).collect();
    let metrics = rig.server.deps.metrics.clone();
    let used = || {
        let limits = metrics.limits();
        limits.iter().find(|limit| limit.name == "pod_connections").unwrap().used.unwrap()
    };
    let mut seen = Vec::new();
    for _ in 0..1000 {
        tokio::task::yield_now().await;
        seen.push(used());
    }
    assert_eq!(seen.iter().max(), Some(&(most as u64)));
    let again = connect(&paths[SOCKETS - 1]);
    again.set_nonblocking(true).unwrap();
    let mut again = tokio::net::UnixStream::from_std(again).unwrap();
    let mut told = String::new();
    again.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 429 "), "{told}");
}
