//! A node's agent in a process of its own: many pods with a socket each, and a cache that is full.
//!
//! The parts are the agent's and are put together as it does it, but the sockets are bound here: a
//! kubelet would ask a CSI driver for each.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs, io};

use secrets_broker::audit::{Audit, AuditConfig, Output};
use secrets_broker::broker::settings::Settings;
use secrets_broker::broker::task::BrokerTask;
use secrets_broker::broker::{Broker, ReadError};
use secrets_broker::clock::BootInstant;
use secrets_broker::delivery::socket::{
    BoundSocket, Deps, Door, Limits, Ownership, Place, PodDoor, Server, SourceDirectory,
};
use secrets_broker::domain::{Pod, SecretRef, ServiceAccount, SourceName};
use secrets_broker::identity::kubelet_cgroup::KubeletCgroup;
use secrets_broker::identity::self_test::NodeProof;
use secrets_broker::identity::{Identity, ProofStrength};
use secrets_broker::policy::{
    CompiledPolicy, Effect, GrantConfig, GrantLogin, Policy, PolicyConfig, Share, Who,
};
use secrets_broker::source::SharedSource;
use secrets_broker::source::local::{LocalConfig, LocalSource};
use secrets_broker::status::VolumeBoard;
use secrets_broker::telemetry::Metrics;
use tokio_util::sync::CancellationToken;

use crate::nobody_asks::NobodyAsks;
use crate::support::process::Process;

pub const PODS: usize = 500;
pub const SECRETS: usize = 10_000;
const SECRETS_OF_A_POD: usize = SECRETS / PODS;
const ROLE: &str = "--node";
const READY: &str = "ready";
const SOURCE: &str = "local";
/// What fills the cache; it has a right of its own.
const FILLER: &str = "filler";
const PATIENCE: Duration = Duration::from_secs(120);
const AUDIT_PAUSE: Duration = Duration::from_millis(10);

/// What a pod reads, as request targets.
pub fn targets(pod: usize) -> Vec<String> {
    (0..SECRETS_OF_A_POD).map(|number| format!("/v1/{}", path(pod, number))).collect()
}

/// The pod's uid.
pub fn uid(pod: usize) -> String {
    format!("{pod:08x}-3f1b-4c8d-9e6f-0a1b2c3d4e5f")
}

/// The pod's own socket.
pub fn pod_socket(dir: &Path, pod: usize) -> PathBuf {
    dir.join(format!("pod-{pod}/broker.sock"))
}

/// The socket for users of the host.
pub fn host_socket(dir: &Path) -> PathBuf {
    dir.join("host.sock")
}

/// Starts this same program again as an agent whose kubelet keeps its pods below `root`, and waits
/// until all secrets are cached.
pub fn start(dir: &Path, root: &str) -> Process {
    let mut command = Command::new(env::current_exe().expect("this program has a path"));
    command.arg(ROLE).arg(dir).arg(root);
    let mut process = Process::spawn("node", &command, dir);
    process.wait_until(PATIENCE, "the cache is full", || dir.join(READY).exists());
    process
}

/// Serves and never returns, if this process was started as the agent.
pub fn serve_if_asked() -> io::Result<()> {
    let arguments: Vec<_> = env::args_os().collect();
    let [_, role, dir, root] = &arguments[..] else { return Ok(()) };
    if role.as_os_str() != ROLE {
        return Ok(());
    }
    let root = root.to_str().ok_or_else(|| io::Error::other("no text"))?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // As the agent's own runtime.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(1, 4))
        .max_blocking_threads(16)
        .enable_all()
        .build()?;
    runtime.block_on(serve(Path::new(dir), root))
}

async fn serve(dir: &Path, root: &str) -> io::Result<()> {
    let output = Output::File(dir.join("audit/log"));
    fs::create_dir(dir.join("audit"))?;
    // The host's user reads for all pods, which takes more decisions than one caller may record.
    let lines_per_second_per_caller = 1_000_000;
    let config = AuditConfig { output, lines_per_second_per_caller, ..AuditConfig::default() };
    let (audit, writer) = Audit::open(config).map_err(io::Error::other)?;
    let sources = sources(dir)?;
    let mut settings = Settings::default();
    settings.defaults.ttl = Duration::from_secs(3600);
    settings.limits.upstream_per_second = 1_000_000;
    let (broker, task) = BrokerTask::new(settings, sources.clone(), audit.clone())?;
    let policy = Policy::new(policy());
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(writer.run(stop.clone()));
    tasks.spawn(task.run(stop.clone()));
    fill(&broker, &policy).await?;
    let deps = Deps {
        broker,
        policy,
        audit,
        audit_per_read: false,
        sources: SourceDirectory::new(&source_name(), &sources),
        volumes: VolumeBoard::default(),
        operators: Arc::new(NobodyAsks),
        metrics: Metrics::new(),
    };
    let kubelet = Some(KubeletCgroup::configured(root).map_err(io::Error::other)?);
    let proof = NodeProof { strength: ProofStrength::PidFd, limit: None, kubelet };
    let limits = Limits { requests_per_second_per_user: 100_000_000, ..Limits::default() };
    let server = Server::new(limits, deps, Arc::new(proof), stop.clone());
    for (door, socket) in sockets(dir)? {
        let (server, stop) = (server.clone(), stop.clone());
        tasks.spawn(async move {
            server.run(door, socket, &stop).await;
            Ok(())
        });
    }
    fs::write(dir.join(READY), "")?;
    while let Some(ended) = tasks.join_next().await {
        ended?.map_err(io::Error::other)?;
    }
    Ok(())
}

fn sockets(dir: &Path) -> io::Result<Vec<(Door, BoundSocket)>> {
    let place = Place { path: host_socket(dir), mode: 0o666, gid: None, private: false };
    let mut sockets = vec![(Door::Host, BoundSocket::bind(&place).map_err(io::Error::other)?)];
    for number in 0..PODS {
        let socket = pod_socket(dir, number);
        let directory = socket.parent().unwrap_or(dir);
        fs::create_dir(directory)?;
        let directory: OwnedFd = fs::File::open(directory)?.into();
        let ownership = Ownership { uid: None, gid: None, mode: 0o666 };
        let socket = BoundSocket::bind_within(directory, "broker.sock", ownership);
        let volume = format!("pod-{number}").parse().expect("a name");
        let door = PodDoor { pod: Arc::new(pod(number)), volume, role: None };
        sockets.push((Door::Pod(door), socket.map_err(io::Error::other)?));
    }
    Ok(sockets)
}

fn pod(number: usize) -> Pod {
    let name = format!("app-{number}");
    let account = ServiceAccount {
        namespace: "shop".parse().expect("a name"),
        name: name.parse().expect("a name"),
        uid: uid(PODS + number).parse().expect("a uid"),
    };
    let uid = uid(number).parse().expect("a uid");
    Pod { uid, name: name.parse().expect("a name"), account }
}

fn path(pod: usize, number: usize) -> String {
    format!("secret/data/app-{pod}/{number}")
}

fn source_name() -> SourceName {
    SOURCE.parse().expect("a name")
}

fn sources(dir: &Path) -> io::Result<BTreeMap<SourceName, SharedSource>> {
    let mut text = "[mounts.secret.secrets]\n".to_owned();
    for (pod, number) in (0..PODS).flat_map(|pod| (0..SECRETS_OF_A_POD).map(move |n| (pod, n))) {
        let (name, password) = (format!("app-{pod}/{number}"), format!("{pod:0>32}"));
        let line =
            writeln!(text, "\"{name}\" = {{ username = \"app\", password = \"{password}\" }}");
        line.expect("a string takes every line");
    }
    fs::create_dir(dir.join("source"))?;
    let file = dir.join("source/secrets.toml");
    fs::write(&file, text)?;
    let source = LocalSource::open(LocalConfig { file, key: None }).map_err(io::Error::other)?;
    let source: SharedSource = Arc::new(source);
    Ok(BTreeMap::from([(source_name(), source)]))
}

/// One rule for each pod, one for users of the host, one for whatever fills the cache.
fn policy() -> CompiledPolicy {
    let grant = |name: &str, who: Who, path: &str| GrantConfig {
        name: name.parse().expect("a name"),
        effect: Effect::Permit,
        who,
        source: source_name(),
        paths: vec![path.parse().expect("a pattern")],
        share: Share::Consumer,
        login: GrantLogin::Agent,
        min_proof: ProofStrength::PidFd,
        when: None,
    };
    let everything = "secret/data/**";
    let filler = Who::Volume(FILLER.parse().expect("a name"));
    let mut grants =
        vec![grant("host", Who::AnyHostUser, everything), grant("filler", filler, everything)];
    for number in 0..PODS {
        let ServiceAccount { namespace, name, .. } = pod(number).account;
        let who = Who::Pods { namespace, service_account: Some(name), labels: BTreeMap::new() };
        grants.push(grant(&format!("app-{number}"), who, &format!("secret/data/app-{number}/*")));
    }
    let config = PolicyConfig { grants, ..PolicyConfig::default() };
    CompiledPolicy::compile(&config).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// Has the broker read every secret once.
async fn fill(broker: &Broker, policy: &Policy) -> io::Result<()> {
    let filler = Identity::declared_volume(FILLER.parse().expect("a name"));
    for (pod, number) in (0..PODS).flat_map(|pod| (0..SECRETS_OF_A_POD).map(move |n| (pod, n))) {
        let path = path(pod, number).parse().expect("a path");
        let secret = SecretRef { source: source_name(), path, version: None };
        let authorized = policy.authorize(&filler, &secret, BootInstant::now());
        let authorized = authorized.map_err(io::Error::other)?;
        // 503: the audit log is behind, on a disk that others keep busy.
        while let Err(error) = broker.read(authorized.clone()).await {
            if !matches!(error, ReadError::AuditDown) {
                return Err(io::Error::other(error));
            }
            tokio::time::sleep(AUDIT_PAUSE).await;
        }
    }
    Ok(())
}
