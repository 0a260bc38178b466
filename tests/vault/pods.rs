//! The pod directory against a real API server: what comes, what changes, what an outage leaves.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrets_broker::domain::PodUid;
use secrets_broker::identity::pods::{
    DirectoryTask, FindError, PodDirectory, Presence, WatchedNode,
};
use secrets_broker::identity::token::ApiServer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::rig::BACKOFF;
use crate::support::agent::Agent;
use crate::support::kubernetes::{Kubernetes, NODE};
use crate::support::process::eventually;

const NOW: Duration = Duration::ZERO;
/// For news from an API server that answers, on a busy machine.
const SOON: Duration = Duration::from_secs(10);
const LIFETIME: Duration = Duration::from_secs(3600);

/// A cluster with namespaces, a node and the agent's account, which may not watch pods yet.
struct Cluster {
    kubernetes: Kubernetes,
    files: TempDir,
}

impl Cluster {
    fn start() -> Cluster {
        let kubernetes = Kubernetes::start();
        for namespace in ["shop", "agents"] {
            kubernetes.create_namespace(namespace);
        }
        kubernetes.create_service_account("agents", "agent");
        kubernetes.create_service_account("shop", "web");
        kubernetes.create_node(NODE);
        let files = TempDir::with_prefix("pods-").expect("create a directory");
        let token = kubernetes.token("agents", "agent", None, LIFETIME);
        fs::write(files.path().join("token"), token).expect("write the token file");
        Cluster { kubernetes, files }
    }

    fn create(&self, name: &str) -> PodUid {
        self.kubernetes.create_pod("shop", name, "web", NODE).parse().expect("a uid")
    }

    fn label(&self, name: &str, labels: &Value) {
        let path = format!("api/v1/namespaces/shop/pods/{name}");
        let mut pod = self.kubernetes.request("GET", &path, None);
        pod["metadata"]["labels"] = labels.clone();
        self.kubernetes.request("PUT", &path, Some(pod));
    }
}

/// A directory that is kept up to date while this lives; what the node says can be chosen.
struct Watching {
    directory: PodDirectory,
    presence: Arc<Mutex<BTreeMap<PodUid, Presence>>>,
    stop: CancellationToken,
}

impl Watching {
    fn start(cluster: &Cluster) -> Watching {
        let watched = WatchedNode {
            server: ApiServer::At {
                address: cluster.kubernetes.address.clone(),
                ca_file: cluster.kubernetes.ca_file.clone(),
                token_file: cluster.files.path().join("token"),
            },
            node: NODE.parse().expect("a name"),
            kubelet_root: String::new(),
        };
        let presence = Arc::new(Mutex::new(BTreeMap::new()));
        let asked = Arc::clone(&presence);
        let witness = move |pods: &[PodUid]| {
            let known = asked.lock().expect("a lock");
            pods.iter().map(|uid| *known.get(uid).unwrap_or(&Presence::Present)).collect()
        };
        let (directory, task) = DirectoryTask::new(&watched, vec![Box::new(witness)]);
        let stop = CancellationToken::new();
        tokio::spawn(task.run(stop.clone()));
        Watching { directory, presence, stop }
    }

    async fn until(&self, limit: Duration, what: &str, holds: impl Fn(&PodDirectory) -> bool) {
        let waiting = async {
            while !holds(&self.directory) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let outcome = tokio::time::timeout(limit, waiting).await;
        assert!(outcome.is_ok(), "{what}: {:?}", self.directory.state());
    }

    fn label(&self, uid: &PodUid, key: &str) -> Option<String> {
        self.directory.labels(uid)?.get(key).cloned()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_follows_the_pods_of_its_node() {
    let cluster = Cluster::start();
    let first = cluster.create("web-0");
    let watching = Watching::start(&cluster);
    let directory = &watching.directory;
    let refused = |directory: &PodDirectory| {
        directory.state().failing.is_some_and(|(_, error)| error.contains("403"))
    };
    watching.until(SOON, "without the right to list pods", refused).await;
    let unknown = directory.find(&first, NOW).await;
    assert!(matches!(&unknown, Err(FindError::Unreachable(why)) if why.contains("403")));

    cluster.kubernetes.let_watch_pods("agents", "agent");
    let pod = directory.find(&first, BACKOFF).await.expect("the pod is listed");
    assert_eq!((pod.name.as_str(), pod.service_account.as_str()), ("web-0", "web"));
    assert!(!pod.leaving && directory.state().failing.is_none());

    // Somebody waits for it before it is there.
    let ahead = watching.directory.clone();
    let elsewhere = cluster.kubernetes.create_pod("shop", "web-9", "web", "node-2");
    let second = cluster.create("web-1");
    let wanted = second.clone();
    let waiter = tokio::spawn(async move { ahead.find(&wanted, SOON).await });
    assert_eq!(waiter.await.expect("no panic").expect("it appears").name.as_str(), "web-1");
    let elsewhere = directory.find(&elsewhere.parse().expect("a uid"), NOW).await;
    assert_eq!(elsewhere, Err(FindError::Unknown));
    assert_eq!(directory.state().pods, 2);

    let mut changes = directory.changes();
    assert_eq!(watching.label(&first, "app"), None);
    cluster.label("web-0", &json!({ "app": "shop" }));
    let labelled = |_: &PodDirectory| watching.label(&first, "app").as_deref() == Some("shop");
    watching.until(SOON, "the label is known", labelled).await;
    // Whoever follows is told a moment after it is so.
    let told = tokio::time::timeout(SOON, changes.changed()).await;
    told.expect("somebody is told").expect("somebody tells");

    cluster.kubernetes.delete_pod("shop", "web-0");
    let directory = watching.directory.clone();
    let deadline = tokio::time::Instant::now() + SOON;
    while !directory.find(&first, NOW).await.expect("the node still has it").leaving {
        assert!(tokio::time::Instant::now() < deadline, "the deletion is not heard of");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(watching.label(&first, "app").as_deref(), Some("shop"), "while it may run");
    watching.presence.lock().expect("a lock").insert(first.clone(), Presence::Absent);
    watching.until(SOON, "it is gone", |directory| directory.state().pods == 1).await;
    assert_eq!(directory.find(&first, SOON).await, Err(FindError::Gone));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_makes_nothing_unknown_and_ends_by_itself() {
    let cluster = Cluster::start();
    cluster.kubernetes.let_watch_pods("agents", "agent");
    let first = cluster.create("web-0");
    let second = cluster.create("web-1");
    cluster.label("web-1", &json!({ "app": "shop" }));
    let watching = Watching::start(&cluster);
    let directory = &watching.directory;
    directory.find(&first, BACKOFF).await.expect("the pod is listed");

    cluster.kubernetes.stop();
    let failing = |directory: &PodDirectory| directory.state().failing.is_some();
    watching.until(SOON, "the loss is noticed", failing).await;
    directory.find(&first, NOW).await.expect("it stays known");
    assert_eq!(watching.label(&second, "app").as_deref(), Some("shop"));
    let never: PodUid = "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab".parse().expect("a uid");
    let unknown = directory.find(&never, Duration::from_millis(100)).await;
    assert!(matches!(unknown, Err(FindError::Unreachable(_))), "{unknown:?}");

    cluster.kubernetes.start_again();
    cluster.kubernetes.delete_pod("shop", "web-1");
    let third = cluster.create("web-2");
    directory.find(&third, BACKOFF).await.expect("news of what came since");
    watching.presence.lock().expect("a lock").insert(second.clone(), Presence::Absent);
    watching.until(SOON, "what went is gone", |directory| directory.state().pods == 2).await;
    assert_eq!(directory.find(&second, NOW).await, Err(FindError::Gone));
    assert!(directory.state().failing.is_none(), "{:?}", directory.state());
}

#[test]
fn the_agents_status_and_metrics_show_its_directory() {
    let cluster = Cluster::start();
    cluster.kubernetes.let_watch_pods("agents", "agent");
    cluster.create("web-0");
    let dir = cluster.files.path();
    for directory in ["kubelet/plugins/csi.secrets-broker.io", "kubelet/plugins_registry"] {
        fs::create_dir_all(dir.join(directory)).expect("create a directory");
    }
    fs::write(dir.join("secrets.toml"), "[mounts.secret]\n").expect("write the local source");
    let config = r#"
[agent]
runtime_dir = "{dir}/run"

[sources.local]
kind = "local"
file = "{dir}/secrets.toml"

[csi]
enabled = true
node = "node-1"
kubelet_root = "{dir}/kubelet"
api_server = "{server}"
api_server_ca_file = "{ca}"
api_server_token_file = "{dir}/token"

[pods]
directory = "apiserver"

[[grants]]
name = "shop"
who = { namespace = "shop", labels = { app = "shop" } }
paths = ["secret/**"]
"#;
    let ca = cluster.kubernetes.ca_file.to_str().expect("a readable path");
    let config = config.replace("{server}", &cluster.kubernetes.address).replace("{ca}", ca);
    let agent = Agent::start(dir, &config);
    eventually(BACKOFF, "the pods are listed", || {
        agent.status()["pod_directory"]["synced"] == json!(true)
    });
    let status = agent.status();
    assert_eq!(
        (&status["pod_directory"]["pods"], &status["health"]),
        (&json!(1), &json!("healthy"))
    );
    let metrics = || agent.operator("GET", "/agent/v1/metrics", None).body;
    assert!(metrics().contains("secrets_broker_pod_directory_pods{mode=\"apiserver\"} 1.0"));
    let (code, text) = agent.command(&["status"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("\npod directory: 1 pod known, API server last heard of "), "{text}");

    cluster.kubernetes.stop();
    eventually(SOON, "the loss degrades", || agent.status()["health"] == "degraded");
    assert!(metrics().contains("secrets_broker_pod_directory_up{mode=\"apiserver\"} 0.0"));
    let (code, text) = agent.command(&["status"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.starts_with("degraded: no news of this node's pods for "), "{text}");
    assert!(text.contains("pods that are known go on being served"), "{text}");
}
