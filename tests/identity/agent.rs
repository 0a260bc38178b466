//! The agent's own server, on the socket in the victim's volume and on the node's: what a liar
//! hears there counts, not what a function says about it.
//!
//! It has one thread, which a test can hold: whatever happens meanwhile, the agent notices all of
//! it at once, and too late to be warned by one thing of another. A busy node does the same, only
//! not when a test needs it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use secrets_broker::audit::{Audit, AuditConfig, Output};
use secrets_broker::broker::settings::Settings;
use secrets_broker::broker::task::BrokerTask;
use secrets_broker::clock::BootInstant;
use secrets_broker::delivery::socket::{
    self, BoundSocket, Deps, Limits, NodeDoor, Ownership, PodDoor, ProofToken, Server,
    SourceDirectory,
};
use secrets_broker::domain::{Pod, VolumeName};
use secrets_broker::identity::ProofStrength;
use secrets_broker::identity::kubelet_cgroup::KubeletCgroup;
use secrets_broker::identity::pods::{DirectoryTask, WatchedNode};
use secrets_broker::identity::self_test::NodeProof;
use secrets_broker::identity::token::{Algorithm, Expectations, KeySource, Verification, Verifier};
use secrets_broker::policy::{
    CompiledPolicy, Effect, GrantConfig, GrantLogin, Policy, PolicyConfig, Share, Who,
};
use secrets_broker::source::SharedSource;
use secrets_broker::source::local::{LocalConfig, LocalSource};
use secrets_broker::status::VolumeBoard;
use secrets_broker::telemetry::Metrics;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::door::{AGENTS, Door};
use crate::nobody_asks::NobodyAsks;
use crate::place::{NODE, attacker, victim};
use crate::{api_server, cluster};

/// What only the victim may hear.
pub(crate) const SECRET: &str = "the-victims-own";

/// What asks for it, with a pod's token or without.
pub(crate) fn request(token: Option<&str>) -> String {
    let head = "GET /v1/secret/data/victim HTTP/1.1\r\nhost: localhost\r\n";
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n"));
    format!("{head}{}\r\n", token.unwrap_or_default())
}

/// One server with a socket for each of its doors.
pub(crate) struct Agent {
    /// Whoever holds its thread lets go when this is dropped.
    held: RefCell<Option<mpsc::SyncSender<()>>>,
    node: Arc<NodeDoor>,
    directory: PathBuf,
    runtime: Runtime,
}

impl Agent {
    pub(crate) fn start(directory: &Path, kubelet: &KubeletCgroup, volume: &VolumeName) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let inside = runtime.enter();
        let proof = NodeProof {
            strength: ProofStrength::PidFd,
            limit: None,
            kubelet: Some(kubelet.clone()),
        };
        // The number of connections is not what is tried here.
        let limits = Limits {
            connections_per_user: 10_000,
            requests_per_second_per_user: u32::MAX,
            ..Limits::default()
        };
        let stop = CancellationToken::new();
        let server = Server::new(limits, deps(directory, &runtime), Arc::new(proof), stop.clone());
        let node = Arc::new(node_door(directory, &runtime, &stop));
        for door in AGENTS {
            let root = std::fs::File::open(directory).unwrap().into();
            let everybody = Ownership { uid: None, gid: None, mode: 0o666 };
            let socket = BoundSocket::bind_within(root, name(*door), everybody).unwrap();
            let door = match door {
                Door::PodSocket => socket::Door::Pod(pod_door(volume)),
                Door::NodeSocket => socket::Door::Node(Arc::clone(&node)),
                _ => unreachable!("the agent has no such door"),
            };
            let (server, stop) = (server.clone(), stop.clone());
            runtime.spawn(async move { server.run(door, socket, &stop).await });
        }
        drop(inside);
        Self { held: RefCell::default(), node, directory: directory.to_owned(), runtime }
    }

    pub(crate) fn socket(&self, door: Door) -> PathBuf {
        self.directory.join(name(door))
    }

    /// Forgets the forged tokens that came from this pod.
    pub(crate) fn forgives(&self, pod: &Pod) {
        self.node.unlock(pod.uid.as_str(), BootInstant::now());
    }

    /// Keeps its thread busy until [`Agent::release`].
    pub(crate) fn hold(&self) {
        self.release();
        let (release, released) = mpsc::sync_channel::<()>(1);
        let (hold, held) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            // The test waits for the one and ends the other.
            let _ = hold.send(());
            let _ = released.recv();
        });
        held.recv().unwrap();
        self.held.replace(Some(release));
    }

    /// As [`Agent::hold`], but what `send` sends meanwhile is announced to the agent before it is
    /// held. In about half of all cases it has not read it by then.
    pub(crate) fn hold_once_announced(&self, send: impl FnOnce()) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (release, released) = mpsc::sync_channel::<()>(1);
        let (hold, held) = mpsc::sync_channel(1);
        let (wait, waits) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            ours.set_nonblocking(true).unwrap();
            let ours = tokio::net::UnixStream::from_std(ours).unwrap();
            let mut readable = std::pin::pin!(ours.readable());
            let _ = std::future::poll_fn(|cx| {
                let announced = readable.as_mut().poll(cx);
                // The test waits for this one, too.
                let _ = wait.try_send(());
                announced
            })
            .await;
            let _ = hold.send(());
            let _ = released.recv();
        });
        waits.recv().unwrap();
        self.hold();
        send();
        rustix::io::write(&theirs, b"now").unwrap();
        self.held.replace(Some(release));
        held.recv().unwrap();
    }

    pub(crate) fn release(&self) {
        self.held.replace(None);
    }
}

/// The file of a door's socket.
fn name(door: Door) -> &'static str {
    match door {
        Door::PodSocket => "pod.sock",
        Door::NodeSocket => "node.sock",
        Door::Victim | Door::Operator | Door::Kubelet | Door::Driver => {
            unreachable!("the agent has no such door")
        }
    }
}

/// The socket in the victim's volume.
fn pod_door(volume: &VolumeName) -> PodDoor {
    PodDoor { pod: victim(), volume: volume.clone(), role: None }
}

/// The node's socket: pods are named by an API server, and each has to show its token.
fn node_door(directory: &Path, runtime: &Runtime, stop: &CancellationToken) -> NodeDoor {
    let watched = WatchedNode {
        server: api_server::start(directory, &[victim(), attacker()]),
        node: NODE.parse().unwrap(),
        kubelet_root: "/nowhere".to_owned(),
    };
    let (pods, task) = DirectoryTask::new(&watched, Vec::new());
    runtime.spawn(task.run(stop.clone()));
    let keys = directory.join("keys.json");
    std::fs::write(&keys, cluster::key_set().to_string()).unwrap();
    std::fs::set_permissions(&keys, PermissionsExt::from_mode(0o600)).unwrap();
    let expectations = Expectations {
        issuers: vec![cluster::ISSUER.to_owned()],
        audience: cluster::AUDIENCE.to_owned(),
        algorithms: Algorithm::ALL.to_vec(),
        node: watched.node,
    };
    let verification = Verification::Keys(KeySource::File(keys));
    let verifier = runtime.block_on(Verifier::open(expectations, verification));
    NodeDoor::new(pods, verifier, ProofToken::Required, &Metrics::new())
}

/// A local source with one secret, and a rule that lets the victim's account read it.
fn deps(directory: &Path, runtime: &Runtime) -> Deps {
    let file = directory.join("secrets.toml");
    let text = format!("[mounts.secret.secrets]\n\"victim\" = {{ token = \"{SECRET}\" }}\n");
    std::fs::write(&file, text).unwrap();
    let source: SharedSource =
        Arc::new(LocalSource::open(LocalConfig { file, key: None }).unwrap());
    let sources = BTreeMap::from([("local".parse().unwrap(), source)]);
    let output = Output::File(directory.join("audit.log"));
    let (audit, writer) = Audit::open(AuditConfig { output, ..AuditConfig::default() }).unwrap();
    let (broker, task) =
        BrokerTask::new(Settings::default(), sources.clone(), audit.clone()).unwrap();
    runtime.spawn(writer.run(CancellationToken::new()));
    runtime.spawn(task.run(CancellationToken::new()));
    let grants = vec![GrantConfig {
        name: "victim".parse().unwrap(),
        effect: Effect::Permit,
        who: Who::Pods {
            namespace: victim().account.namespace.clone(),
            service_account: Some(victim().account.name.clone()),
            labels: BTreeMap::new(),
        },
        source: "local".parse().unwrap(),
        paths: vec!["secret/data/victim".parse().unwrap()],
        share: Share::Consumer,
        login: GrantLogin::Agent,
        min_proof: ProofStrength::PidFd,
        when: None,
    }];
    let config = PolicyConfig { grants, ..PolicyConfig::default() };
    Deps {
        broker,
        policy: Policy::new(CompiledPolicy::compile(&config).unwrap()),
        audit,
        audit_per_read: false,
        sources: SourceDirectory::new(&"local".parse().unwrap(), &sources),
        volumes: VolumeBoard::default(),
        operators: Arc::new(NobodyAsks),
        metrics: Metrics::new(),
    }
}
