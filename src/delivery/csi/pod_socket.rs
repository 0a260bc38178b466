//! A volume that holds a socket: a door for its one pod, in the pod's own directory.

use std::os::fd::OwnedFd;

use tokio_util::sync::CancellationToken;

use crate::clock::BootInstant;
use crate::delivery::files::{FileOwnership, VolumeConfig};
use crate::delivery::socket::{BindError, BoundSocket, Door, Ownership, PodDoor, Server};
use crate::status::VolumeStatus;

/// The socket's name in the volume.
const NAME: &str = "broker.sock";

/// Puts the socket into the volume, in place of a predecessor's. Must be called inside a tokio
/// runtime.
pub(super) fn bind(root: OwnedFd, owner: FileOwnership) -> Result<BoundSocket, BindError> {
    let FileOwnership { uid, gid, mode } = owner;
    BoundSocket::bind_within(root, NAME, Ownership { uid: Some(uid), gid: Some(gid), mode })
}

/// The volume's line in status. What is in it is complete from the start, and never changes.
pub(super) fn status(config: &VolumeConfig, mount: &str) -> VolumeStatus {
    VolumeStatus {
        name: config.name.clone(),
        path: config.path.join(NAME),
        mount: mount.to_owned(),
        revision: Some("socket".to_owned()),
        published_at: Some(BootInstant::now()),
        links_missing: false,
        alarm: None,
        items: Vec::new(),
    }
}

/// The same while there is no socket, and why.
pub(super) fn absent(config: &VolumeConfig, alarm: String) -> VolumeStatus {
    VolumeStatus {
        revision: None,
        published_at: None,
        links_missing: false,
        alarm: Some(alarm),
        ..status(config, "none")
    }
}

/// Answers the pod until `stop`. When the agent takes no more requests the socket is gone, and this
/// waits on: the volume is there until it is taken away.
pub(super) async fn keep(
    server: Server,
    socket: BoundSocket,
    door: PodDoor,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    server.run(Door::Pod(door), socket, &stop).await;
    stop.cancelled().await;
    Ok(())
}
