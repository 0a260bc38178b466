//! The CSI driver's wiring: its mounter, its judge of tokens, its task.

use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::config::{CsiSettings, MounterPlace};
use crate::delivery::socket::Server;
use crate::delivery::{csi, files};
use crate::identity::pods::PodDirectory;
use crate::identity::token::Verifier;
use crate::mounter::Mounter;
use crate::mounter::client::MounterClient;
use crate::mounter::local::LocalMounter;
use crate::mounter::mounts::{Mounts, MountsConfig};

/// Serves the kubelet until `work` is cancelled.
pub(super) async fn run(
    settings: CsiSettings,
    files: files::Deps,
    server: Server,
    pods: PodDirectory,
    work: CancellationToken,
) -> anyhow::Result<()> {
    let CsiSettings { driver, expectations, verification, mounter } = settings;
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
    let verifier = Arc::new(Verifier::open(expectations, verification).await);
    csi::run(driver, csi::Deps { files, server, pods, mounter, verifier }, work).await
}
