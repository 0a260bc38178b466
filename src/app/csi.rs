//! The CSI driver's wiring: its mounter, its judge of tokens, its task.

use std::sync::Arc;

use anyhow::Context;

use crate::config::{CsiSettings, MounterPlace};
use crate::delivery::csi::{self, Begun, DriverState};
use crate::delivery::files;
use crate::delivery::socket::Server;
use crate::identity::pods::PodDirectory;
use crate::identity::token::Verifier;
use crate::mounter::Mounter;
use crate::mounter::client::MounterClient;
use crate::mounter::local::LocalMounter;
use crate::mounter::mounts::{Mounts, MountsConfig};
use crate::shutdown::{Stage, Stages, Supervisor};

/// The judge of pods' tokens, where there are any. Reads the kept keys; asks nobody yet.
pub(super) async fn verifier(settings: Option<&CsiSettings>) -> Option<Verifier> {
    let CsiSettings { expectations, verification, .. } = settings?;
    Some(Verifier::open(expectations.clone(), verification.clone()).await)
}

/// What the driver shares with the rest of the agent.
pub(super) struct Parts {
    pub(super) files: files::Deps,
    pub(super) server: Server,
    pub(super) pods: PodDirectory,
    pub(super) verifier: Verifier,
    pub(super) state: DriverState,
}

/// Has the kubelet served; a stop waits for volumes that are being published.
pub(super) fn spawn(
    settings: CsiSettings,
    parts: Parts,
    stages: &Stages,
    supervisor: &mut Supervisor,
) {
    let begun = Begun::default();
    let settled = begun.clone().settled(stages.intake.clone());
    supervisor.spawn("new volumes", Stage::Intake, settled);
    supervisor.spawn("csi", Stage::Work, run(settings, parts, begun, stages.clone()));
}

async fn run(
    settings: CsiSettings,
    parts: Parts,
    begun: Begun,
    stages: Stages,
) -> anyhow::Result<()> {
    let Parts { files, server, pods, verifier, state } = parts;
    let CsiSettings { driver, mounter, .. } = settings;
    let mounter: Arc<dyn Mounter> = match mounter {
        MounterPlace::Socket(socket) => Arc::new(MounterClient::new(socket)),
        MounterPlace::InProcess => {
            let mounts = Mounts::open(MountsConfig {
                kubelet_root: driver.kubelet_root.clone(),
                driver: driver.driver.clone(),
                agent_uid: rustix::process::geteuid().as_raw(),
            });
            let mounts = mounts.context("opening the kubelet's root directory")?;
            Arc::new(LocalMounter::new(mounts))
        }
    };
    let deps = csi::Deps { files, server, pods, mounter, verifier, begun, state };
    csi::run(driver, deps, stages).await
}
