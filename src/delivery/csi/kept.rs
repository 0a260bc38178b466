//! What runs for a published volume: its open tmpfs, and the task that keeps its files current or
//! answers on its socket.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::delivery::files::mount::{MountError, Root};
use crate::delivery::files::publisher::{self, Publisher};
use crate::delivery::files::status_file::Now;
use crate::delivery::files::{self, VolumeConfig};
use crate::delivery::socket::PodDoor;
use crate::domain::VolumeName;
use crate::mounter::{Prepared, Target, VolumeKey};
use crate::status::VolumeStatus;

use super::attributes::Deliver;
use super::error::CsiError;
use super::known::Known;
use super::pod_socket;
use super::volumes::Shared;

/// A volume that is being kept, or was until its task ended.
pub(super) struct Kept {
    /// Keeps the tmpfs within reach for the wipe at its end.
    root: Arc<OwnedFd>,
    stop: CancellationToken,
    task: JoinSet<anyhow::Result<()>>,
}

impl Kept {
    /// Has the tmpfs made or found and starts to keep its files, or to answer on its socket.
    pub(super) async fn begin(
        shared: &Arc<Shared>,
        key: &VolumeKey,
        known: &Known,
    ) -> Result<Self, CsiError> {
        let prepared = shared.mounter.prepare(key, shared.config.volume_size).await?;
        let config = volume_config(shared, key, known);
        let root = prepared.root.try_clone().map_err(|source| MountError::Io {
            what: "keep open",
            path: config.path.clone(),
            source,
        })?;
        let (stop, mut task) = (CancellationToken::new(), JoinSet::new());
        match known.attributes.deliver {
            Deliver::Files(_) => {
                let publisher = publisher(shared, key, prepared, config).await?;
                let (identity, deps) = (known.identity(), shared.files.clone());
                task.spawn(files::keep(publisher, identity, deps, stop.clone()));
            }
            Deliver::Socket => {
                let owner = known.attributes.socket_ownership(known.record.fs_group);
                let socket = pod_socket::bind(prepared.root, owner)?;
                let status = pod_socket::status(&config, prepared.description);
                shared.files.board.publish(status);
                let (pod, volume) = (Arc::new(known.record.pod.clone()), known.name.clone());
                let door = PodDoor { pod, volume, role: known.attributes.role.clone() };
                task.spawn(pod_socket::keep(shared.server.clone(), socket, door, stop.clone()));
            }
        }
        Ok(Self { root: Arc::new(root), stop, task })
    }

    /// Whether its task has not ended.
    pub(super) fn is_running(&self) -> bool {
        !self.task.is_empty()
    }

    /// Waits until the task ends by itself, which it never should, and says how. Cancel-safe.
    pub(super) async fn ended(kept: Option<&mut Self>) -> Option<String> {
        let ended = match kept {
            Some(kept) if kept.is_running() => kept.task.join_next().await?,
            _ => std::future::pending().await,
        };
        Some(match ended {
            Ok(Ok(())) => "its task ended".to_owned(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(error) => error.to_string(),
        })
    }

    /// Ends the task in order; the files stay. May be repeated.
    pub(super) async fn stop(&mut self) {
        self.stop.cancel();
        while self.task.join_next().await.is_some() {}
    }

    /// Its task ends as after a panic.
    #[cfg(test)]
    pub(super) fn abort(&mut self) {
        self.task.abort_all();
    }

    /// The root of the tmpfs.
    pub(super) fn root(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.root)
    }
}

/// Opens the volume's files, with what a predecessor left of them.
async fn publisher(
    shared: &Arc<Shared>,
    key: &VolumeKey,
    prepared: Prepared,
    config: VolumeConfig,
) -> Result<Publisher, CsiError> {
    let (mounter, key) = (Arc::clone(&shared.mounter), key.clone());
    let root = Root::handed_over(prepared.root, prepared.description, move || {
        mounter.mounted_below(&key).map_err(std::io::Error::other)
    });
    let opening = move || Publisher::on(root, Arc::new(config), Now::read());
    Ok(tokio::task::spawn_blocking(opening).await.map_err(|_| CsiError::Stopping)??)
}

/// Says in status that nothing keeps the volume; its pod has the files that it had.
pub(super) fn not_kept(shared: &Shared, key: &VolumeKey, known: &Known, alarm: String) {
    let config = volume_config(shared, key, known);
    let board = &shared.files.board;
    board.publish(match known.attributes.deliver {
        Deliver::Socket => pod_socket::absent(&config, alarm),
        Deliver::Files(_) => {
            let status = publisher::unopened(&config, alarm);
            match board.get(&known.name) {
                Some(VolumeStatus { mount, revision, published_at, links_missing, .. }) => {
                    VolumeStatus { mount, revision, published_at, links_missing, ..status }
                }
                None => status,
            }
        }
    });
}

/// The same of a volume whose attributes are not known.
pub(super) fn not_understood(shared: &Shared, key: &VolumeKey, name: &VolumeName, alarm: String) {
    let config = bare_config(shared, key, name);
    shared.files.board.publish(publisher::unopened(&config, alarm));
}

fn volume_config(shared: &Shared, key: &VolumeKey, known: &Known) -> VolumeConfig {
    let items = known.attributes.items(&shared.config.source, known.record.fs_group);
    VolumeConfig { items, ..bare_config(shared, key, &known.name) }
}

fn bare_config(shared: &Shared, key: &VolumeKey, name: &VolumeName) -> VolumeConfig {
    let config = &shared.config;
    VolumeConfig {
        name: name.clone(),
        path: Target::of(&config.kubelet_root, key).as_str().into(),
        ..config.volume_defaults()
    }
}
