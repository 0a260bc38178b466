//! Volumes that the kubelet publishes for pods: a CSI driver for ephemeral inline volumes.
//!
//! | part | what it is |
//! |---|---|
//! | [`attributes`], [`request`] | pure: what a manifest may say, and a publish call, read |
//! | [`roles`] | pure: which Vault roles a pod may choose |
//! | [`services`], [`listen`] | gRPC on the kubelet's two sockets |
//! | [`volumes`], [`volume`], [`command`] | one task per volume: publish, keep, unpublish |
//! | [`known`] | what is known of a volume that is published or being published |
//! | [`kept`] | what runs for a volume: its files' task, or its socket's |
//! | [`pod_socket`] | a volume that holds a socket for its pod |
//! | [`first_fill`], [`error`] | when a new volume is complete, and why it will not be |
//! | [`begun`] | what a stop waits for |
//! | [`records`] | what a successor finds |
//! | [`state`] | whether the kubelet is served |
//!
//! The call is believed only through the pod's token in it. Mounting is the mounter's; the files
//! are those of [`files`](super::files).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::delivery::files::{self, FileOwnership, OnProblem, VolumeConfig};
use crate::delivery::socket::Server;
use crate::domain::{CsiDriverName, NodeName, SourceName};
use crate::identity::pods::PodDirectory;
use crate::identity::token::Verifier;
use crate::mounter::{KubeletRoot, Mounter, MounterError, TmpfsSize};
use crate::shutdown::Stages;
use crate::telemetry::Chain;

pub mod attributes;
mod begun;
mod command;
#[cfg(test)]
mod door_tests;
mod error;
mod first_fill;
mod kept;
mod known;
mod listen;
mod pod_socket;
mod records;
mod request;
mod roles;
mod services;
mod state;
#[cfg(test)]
mod testing;
mod volume;
mod volumes;

/// The messages and services of the kubelet's protocols.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from src/delivery/csi/proto"
)]
mod proto {
    pub(crate) mod csi {
        tonic::include_proto!("csi.v1");
    }
    pub(crate) mod registration {
        tonic::include_proto!("pluginregistration");
    }
}

pub use begun::Begun;
pub use request::WRITABLE;
pub use roles::{TenantRole, TenantRoleError, check_role};
pub use state::DriverState;

use error::CsiError;
use records::Records;
use services::Driver;
use volumes::{Budget, Shared, Volumes};

/// How often a mounter that does not answer yet is asked again.
const MOUNTER_RETRY: Duration = Duration::from_millis(500);

/// `[csi]`, validated.
#[derive(Debug, Clone)]
pub struct CsiConfig {
    /// The driver's name, as in the CSIDriver object.
    pub driver: CsiDriverName,
    /// The kubelet's root directory.
    pub kubelet_root: KubeletRoot,
    /// The node this agent runs on.
    pub node: NodeName,
    /// The source that items read from.
    pub source: SourceName,
    /// The audience of the pods' tokens, as in the CSIDriver's `tokenRequests`.
    pub audience: String,
    /// The Vault roles that pods may choose.
    pub tenant_roles: Vec<TenantRole>,
    /// Where records of volumes are kept.
    pub state_dir: PathBuf,
    /// The bounds of one volume.
    pub volume_size: TmpfsSize,
    /// What all volumes together may use.
    pub volume_bytes_total: u64,
    /// How long a publish waits for its secrets.
    pub publish_timeout: Duration,
    /// How long a file stays after local policy began to forbid its secret.
    pub forbid_grace: Duration,
    /// How long a replaced revision stays before it is overwritten.
    pub retire_grace: Duration,
}

impl CsiConfig {
    /// The driver's own socket.
    pub fn socket(&self) -> PathBuf {
        [self.kubelet_root.as_str(), "plugins", self.driver.as_str(), "csi.sock"].iter().collect()
    }

    /// The socket that the kubelet finds the driver by.
    ///
    /// The kubelet's gRPC client sends this path, percent-encoded, as `:authority`, which HTTP/2
    /// servers refuse (kubernetes#109081, hyperium/h2#487). Percent signs are allowed before an
    /// `@`, and the client leaves that as it is: with it in the name, the authority is one.
    pub fn registration_socket(&self) -> PathBuf {
        let name = format!("{}@reg.sock", self.driver);
        [self.kubelet_root.as_str(), "plugins_registry", &name].iter().collect()
    }

    /// What is the same for all pods' volumes; name, path and items are each volume's own.
    fn volume_defaults(&self) -> VolumeConfig {
        VolumeConfig {
            name: "pod".parse().expect("a name of three letters"),
            path: PathBuf::new(),
            defaults: FileOwnership { uid: 0, gid: 0, mode: 0o444 },
            items: Vec::new(),
            on_stale: OnProblem::Keep,
            on_denied: OnProblem::Keep,
            on_gone: OnProblem::Keep,
            forbid_grace: self.forbid_grace,
            retire_grace: self.retire_grace,
            on_change: None,
            on_change_batch: Duration::ZERO,
        }
    }
}

/// What the driver works with.
pub struct Deps {
    /// Keeps volumes' files.
    pub files: files::Deps,
    /// Answers on volumes' sockets.
    pub server: Server,
    /// Is told what the kubelet says about pods, and tells which are gone.
    pub pods: PodDirectory,
    /// Mounts and unmounts.
    pub mounter: Arc<dyn Mounter>,
    /// Judges pods' tokens.
    pub verifier: Verifier,
    /// Counts new volumes for whoever stops the agent.
    pub begun: Begun,
    /// Is told what the driver waits for.
    pub state: DriverState,
}

/// Takes up what a predecessor published, then serves the kubelet until `work` is cancelled; once
/// `intake` is, no volume is begun. Files and mounts stay behind.
///
/// # Errors
/// The state directory or a socket cannot be used, or the mounter refuses: the process should end
/// and be started again.
pub async fn run(config: CsiConfig, deps: Deps, stages: Stages) -> anyhow::Result<()> {
    let Deps { files, server, pods, mounter, verifier, begun, state } = deps;
    let records = Records::open(&config.state_dir)
        .with_context(|| format!("opening the state directory {}", config.state_dir.display()))?;
    let budget = Budget::new(config.volume_bytes_total, &server.deps.metrics);
    let work = stages.work.clone();
    let (proof, metrics) = (Arc::clone(&server.proof), server.deps.metrics.clone());
    let audit = server.deps.audit.clone();
    let shared = Shared {
        config: config.clone(),
        files,
        server,
        pods,
        mounter,
        records,
        budget,
        begun,
        stages,
    };
    let volumes = Volumes::new(Arc::new(shared));
    // Whoever has the driver's socket has the volumes: a predecessor may still be ending.
    let prepared = async {
        let socket = listen::bind_when_vacant(&config.socket(), &state).await?;
        adopt(&volumes, &state).await.context("taking up the volumes of a predecessor")?;
        anyhow::Ok(socket)
    };
    let socket = tokio::select! {
        () = work.cancelled() => return Ok(()),
        prepared = prepared => prepared?,
    };
    let driver = Driver {
        config: Arc::new(config),
        volumes: volumes.clone(),
        verifier: verifier.clone(),
        metrics,
        audit,
        state,
    };
    tokio::select! {
        served = listen::serve(driver, socket, &proof, work.clone()) => served?,
        // Never ends by itself.
        () = verifier.keep_fresh() => {}
    }
    volumes.finished().await;
    Ok(())
}

/// Takes up what a predecessor published, as soon as the mounter answers: both containers of a pod
/// start at once.
async fn adopt(volumes: &Volumes, state: &DriverState) -> Result<(), CsiError> {
    loop {
        match volumes.adopt().await {
            // Nothing was begun: a mounter is asked first.
            Err(CsiError::Mounter(error @ MounterError::Unreachable { .. })) => {
                if state.wait_for(format!("the mounter: {}", Chain(&error))) {
                    tracing::warn!(%error, "waiting for the mounter");
                }
                tokio::time::sleep(MOUNTER_RETRY).await;
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_registration_sockets_path_is_an_authority_as_the_kubelet_encodes_it() {
        let parses = |text: &str| text.parse::<http::uri::Authority>().is_ok();
        let registry = "%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2F";
        assert!(parses(&format!("{registry}csi.secrets-broker.io@reg.sock")));
        assert!(!parses(&format!("{registry}csi.secrets-broker.io-reg.sock")));
    }
}
