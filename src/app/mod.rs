//! Wiring: builds every part from the configuration, supervises them, and stops them in order.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::audit::Audit;
use crate::broker::Broker;
use crate::broker::settings::Settings;
use crate::broker::task::BrokerTask;
use crate::clock::BootInstant;
use crate::config::Config;
use crate::delivery::csi::DriverState;
use crate::delivery::files::{self, DeclaredVolume};
use crate::delivery::metrics_port::{self, MetricsPort};
use crate::delivery::socket::{self, NodeDoor, Server, SocketConfig, Sockets, SourceDirectory};
use crate::domain::VolumeName;
use crate::hardening::Hardened;
use crate::identity::pods::PodDirectory;
use crate::policy::{CompiledPolicy, Policy, PolicyConfig, PolicyError};
use crate::service_manager::ServiceManager;
use crate::shutdown::{Stage, Stages, Supervisor};
use crate::status::VolumeBoard;
use crate::telemetry::Metrics;

mod csi;
mod first_fill;
mod impact;
mod loss;
mod node_socket;
mod operators;
mod placement;
mod pods;
mod reload;
mod sources;
mod suppose;

use operators::Operators;
use reload::Reloader;
use sources::Sources;
use suppose::Doors;

pub use sources::open_local;

/// A built agent whose sockets are bound; [`App::run`] consumes it.
pub struct App {
    supervisor: Supervisor,
    stages: Stages,
    stop_grace: std::time::Duration,
    audit: Audit,
}

impl App {
    /// Builds everything: reads keys and local sources, compiles policy, binds sockets and starts
    /// the tasks. Nothing is contacted yet; Vault being away stops nothing.
    ///
    /// # Errors
    /// What the operator has to change: a source, the policy, a socket or the audit file.
    pub async fn start(
        config: Config,
        file: Option<PathBuf>,
        hardened: &Hardened,
        manager: ServiceManager,
    ) -> anyhow::Result<Self> {
        let (mut supervisor, stages) = (Supervisor::default(), Stages::default());
        let (started_at, fingerprint) = (BootInstant::now(), reload::fingerprint(&config));
        let (audit, writer) = Audit::open(config.audit).context("opening the audit log")?;
        supervisor.spawn("audit", Stage::Evidence, writer.run(stages.evidence.clone()));
        let proof = Arc::new(placement::prove(config.placement.as_ref(), config.csi.is_some()));
        let seen_as = placement::seen_as(config.placement.as_ref(), &proof);
        let (directory, watching) = pods::open(config.pods.as_ref(), seen_as);
        let policy = Policy::new(compile(&config.policy)?).with_directory(directory.clone());
        pods::spawn(watching, &directory, &policy, &stages, &mut supervisor);
        let sources = Sources::open(config.sources)?;
        sources.spawn(&mut supervisor, &stages);
        let shared = sources.shared();
        let broker = broker(config.broker, &shared, &audit, &stages, &mut supervisor)?;
        let (board, metrics) = (VolumeBoard::default(), Metrics::new());
        watch_limits(&metrics, &audit, &directory, &broker);
        let volume_names = names(&config.volumes);
        let reloading = reload::Deps {
            policy: policy.clone(),
            audit: audit.clone(),
            board: board.clone(),
            sources: shared.clone(),
            metrics: metrics.clone(),
            manager: manager.clone(),
        };
        let reloader = Reloader::new(file, fingerprint, config.policy, reloading);
        let verifier = csi::verifier(config.csi.as_ref()).await;
        let node = config.sockets.node.as_ref();
        let node_door = node_socket::door(node, &directory, verifier.as_ref(), &proof, &metrics);
        let state = DriverState::new(config.csi.is_some(), metrics.csi_waiting.clone());
        let operators = Arc::new(Operators {
            broker: broker.clone(),
            policy: policy.clone(),
            audit: audit.clone(),
            board: board.clone(),
            sources: shared.clone(),
            local: sources.local(),
            directory: directory.clone(),
            csi: state.clone(),
            node_door: node_door.clone(),
            doors: Doors::new(proof.strength, node_door.is_some()),
            metrics: metrics.clone(),
            default_source: config.default_source.clone(),
            volumes: volume_names.clone(),
            started_at,
            protections: placement::protections(hardened, &proof, config.csi.is_some()),
            reload: reloader.state(),
            reloads: reloader.handle(),
        });
        supervisor.spawn("reload", Stage::Intake, reloader.run(stages.intake.clone()));
        let volumes = files::Deps { broker, policy, audit: audit.clone(), board: board.clone() };
        let sources = SourceDirectory::new(&config.default_source, &shared);
        let deps = answered_from(&volumes, sources, operators, metrics);
        let server = Server::new(config.socket_limits, deps, proof, stages.intake.clone());
        serve(&config.sockets, &server, node_door, &stages, &mut supervisor)?;
        let intake = stages.intake.clone();
        let start = first_fill::announce(manager, board, volume_names, intake);
        supervisor.spawn("start", Stage::Intake, start);
        files::spawn_volumes(config.volumes, &volumes, &stages, &mut supervisor);
        if let (Some(settings), Some(verifier)) = (config.csi, verifier) {
            let parts = csi::Parts { files: volumes, server, pods: directory, verifier, state };
            csi::spawn(settings, parts, &stages, &mut supervisor);
        }
        Ok(Self { supervisor, stages, stop_grace: config.agent.stop_grace, audit })
    }

    /// Runs until `stop` resolves or a task fails, then stops in the order of the data.
    ///
    /// # Errors
    /// The task that ended by itself: the process should exit non-zero and be restarted.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let failure = tokio::select! {
            () = stop => None,
            failure = self.supervisor.first_failure() => Some(failure),
        };
        if let Some(failure) = &failure {
            tracing::error!(error = %crate::telemetry::Chain(failure), "a task ended by itself");
        }
        lifecycle(&self.audit, "stopping");
        self.supervisor.stop(&self.stages, self.stop_grace).await;
        failure.map_or(Ok(()), |failure| Err(failure.into()))
    }
}

fn names(volumes: &[DeclaredVolume]) -> Vec<VolumeName> {
    volumes.iter().map(|volume| volume.config.name.clone()).collect()
}

/// What is bounded outside of the sockets.
fn watch_limits(metrics: &Metrics, audit: &Audit, directory: &PodDirectory, broker: &Broker) {
    audit.watch_limits(metrics);
    directory.watch_limits(metrics);
    broker.watch_limits(metrics);
}

fn broker(
    settings: Settings,
    sources: &SharedSources,
    audit: &Audit,
    stages: &Stages,
    supervisor: &mut Supervisor,
) -> anyhow::Result<Broker> {
    let (broker, task) = BrokerTask::new(settings, sources.clone(), audit.clone())
        .context("creating the broker's timer")?;
    supervisor.spawn("broker", Stage::Work, task.run(stages.work.clone()));
    Ok(broker)
}

/// What answers on sockets are made of: what volumes are made of, and what is told about them.
fn answered_from(
    volumes: &files::Deps,
    sources: SourceDirectory,
    operators: Arc<Operators>,
    metrics: Metrics,
) -> socket::Deps {
    let files::Deps { broker, policy, audit, board } = volumes.clone();
    let audit_per_read = audit.per_read();
    let volumes = board;
    socket::Deps { broker, policy, audit, audit_per_read, sources, volumes, operators, metrics }
}

/// Binds the sockets and the port for metrics, records the start, and starts answering on them.
fn serve(
    config: &SocketConfig,
    server: &Server,
    node_door: Option<Arc<NodeDoor>>,
    stages: &Stages,
    supervisor: &mut Supervisor,
) -> anyhow::Result<()> {
    let sockets = Sockets::bind(config).context("binding the sockets")?;
    let port = config.metrics.map(MetricsPort::bind).transpose();
    let port = port.context("binding [sockets.metrics]")?;
    // Before the first request: what it asks for comes after the start in the log.
    lifecycle(&server.deps.audit, "started");
    if let Some(port) = port {
        let deps = &server.deps;
        let deps = metrics_port::Deps {
            broker: deps.broker.clone(),
            volumes: deps.volumes.clone(),
            operators: Arc::clone(&deps.operators),
            metrics: deps.metrics.clone(),
        };
        let intake = stages.intake.clone();
        supervisor.spawn("metrics port", Stage::Intake, async move {
            port.serve(deps, intake).await;
            Ok(())
        });
    }
    let server = server.clone();
    supervisor.spawn("sockets", Stage::Intake, async move {
        sockets.serve(server, node_door).await;
        Ok(())
    });
    Ok(())
}

/// The service manager that started this process, as `$NOTIFY_SOCKET` says.
///
/// # Errors
/// The variable holds something else than a socket's address.
pub fn service_manager() -> anyhow::Result<ServiceManager> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(address) if !address.is_empty() => Ok(ServiceManager::at(&address)?),
        _ => Ok(ServiceManager::none()),
    }
}

/// What only opening things shows: rules that do not compile, keys that do not fit, bad CA bundles
/// and local files. Contacts nothing and changes nothing.
pub fn check(config: Config) -> Vec<String> {
    let policy = CompiledPolicy::compile(&config.policy).err().unwrap_or_default();
    let policy = policy.iter().map(|problem| format!("policy: {problem}"));
    let sources = config.sources.into_iter().filter_map(|(name, source)| {
        let error = Sources::open(BTreeMap::from([(name, source)])).err()?;
        Some(format!("{error:#}"))
    });
    policy.chain(sources).collect()
}

/// Resolves on SIGTERM or SIGINT.
pub async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Wipes, unmounts and removes volumes: `dev` owns everything it made. Call after [`App::run`].
pub fn discard_volumes(volumes: &[DeclaredVolume]) -> anyhow::Result<()> {
    for volume in volumes {
        files::mount::discard(volume)
            .with_context(|| format!("removing volume '{}'", volume.config.name))?;
    }
    Ok(())
}

/// Compiles the configured policy; the error lists every problem, one per line.
pub fn compile(config: &PolicyConfig) -> anyhow::Result<CompiledPolicy> {
    CompiledPolicy::compile(config).map_err(|problems| anyhow::anyhow!(listed(&problems)))
}

fn listed(problems: &[PolicyError]) -> String {
    let lines: Vec<String> = problems.iter().map(|problem| format!("policy: {problem}")).collect();
    lines.join("\n")
}

fn lifecycle(audit: &Audit, message: &str) {
    let message = format!("{message} {}", env!("CARGO_PKG_VERSION"));
    if audit.record(crate::audit::AuditEvent::Lifecycle { message }).is_err() {
        tracing::warn!("the audit log does not take records");
    }
}

/// Both clocks at one moment, for views.
fn clocks() -> (BootInstant, SystemTime) {
    (BootInstant::now(), SystemTime::now())
}

/// Sources by name as everybody shares them.
type SharedSources = BTreeMap<crate::domain::SourceName, crate::source::SharedSource>;
