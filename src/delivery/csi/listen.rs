//! The kubelet's two sockets: registration, found by the kubelet, and the driver's own.
//!
//! Both lie in directories that only root may enter. A caller must be root, too; whatever it is,
//! its calls are believed only through the pod's token in them.

use std::io;

use anyhow::Context;
use futures_util::Stream;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;

use crate::delivery::socket::{BoundSocket, Place};

use super::proto::csi::identity_server::IdentityServer;
use super::proto::csi::node_server::NodeServer;
use super::proto::registration::registration_server::RegistrationServer;
use super::services::Driver;

/// Calls of one connection that run at once; the kubelet has one per volume.
const CALLS_MAX: usize = 256;
/// Longest request: attributes are bounded by the API server, tokens by their number.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// Serves until `work` is cancelled; running calls are answered first.
pub(super) async fn serve(driver: Driver, work: CancellationToken) -> anyhow::Result<()> {
    let bind = |path: std::path::PathBuf| {
        let place = Place { path: path.clone(), mode: 0o600, gid: None, private: false };
        BoundSocket::bind(&place).with_context(|| format!("binding {}", path.display()))
    };
    let node = NodeServer::new(driver.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let services = builder().add_service(IdentityServer::new(driver.clone())).add_service(node);
    let registration = builder().add_service(RegistrationServer::new(driver.clone()));
    // The driver answers before the kubelet can find it.
    let socket = bind(driver.config.socket())?;
    let registry = bind(driver.config.registration_socket())?;
    tokio::try_join!(run(services, &socket, &work), run(registration, &registry, &work))?;
    Ok(())
}

fn builder() -> Server {
    Server::builder().concurrency_limit_per_connection(CALLS_MAX)
}

async fn run(router: Router, socket: &BoundSocket, work: &CancellationToken) -> anyhow::Result<()> {
    router
        .serve_with_incoming_shutdown(incoming(socket), work.clone().cancelled_owned())
        .await
        .context("serving the kubelet")
}

fn incoming(socket: &BoundSocket) -> impl Stream<Item = io::Result<UnixStream>> {
    futures_util::stream::unfold(socket, |socket| async move {
        loop {
            match socket.listener().accept().await {
                Ok((stream, _)) if is_root(&stream) => return Some((Ok(stream), socket)),
                Ok(_) => tracing::warn!("a caller of the CSI socket is not root; refused"),
                Err(error) => return Some((Err(error), socket)),
            }
        }
    })
}

fn is_root(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|credentials| credentials.uid() == 0)
}
