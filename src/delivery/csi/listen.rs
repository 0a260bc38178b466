//! The kubelet's two sockets: registration, found by the kubelet, and the driver's own.
//!
//! Both lie in directories that only root may enter. A caller must be root, too; whatever it is,
//! its calls are believed only through the pod's token in them.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures_util::Stream;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;

use crate::delivery::socket::{BindError, BoundSocket, Place};

use super::proto::csi::identity_server::IdentityServer;
use super::proto::csi::node_server::NodeServer;
use super::proto::registration::registration_server::RegistrationServer;
use super::services::Driver;

/// How often a socket that somebody else still answers is tried again.
const VACANT_RETRY: Duration = Duration::from_millis(250);
/// Calls of one connection that run at once; the kubelet has one per volume.
const CALLS_MAX: usize = 256;
/// Longest request: attributes are bounded by the API server, tokens by their number.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// Puts a socket in place as soon as no other agent answers there. Cancel-safe.
pub(super) async fn bind_when_vacant(path: &Path) -> anyhow::Result<BoundSocket> {
    let place = Place { path: path.to_owned(), mode: 0o600, gid: None, private: false };
    let mut told = false;
    loop {
        match BoundSocket::bind(&place) {
            Err(error @ BindError::Live(_)) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "waiting for a predecessor to end");
                }
                tokio::time::sleep(VACANT_RETRY).await;
            }
            bound => return bound.with_context(|| format!("binding {}", path.display())),
        }
    }
}

/// Serves until `work` is cancelled; running calls are answered first.
pub(super) async fn serve(
    driver: Driver,
    socket: BoundSocket,
    work: CancellationToken,
) -> anyhow::Result<()> {
    let node = NodeServer::new(driver.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let services = builder().add_service(IdentityServer::new(driver.clone())).add_service(node);
    let registration = builder().add_service(RegistrationServer::new(driver.clone()));
    // Last: what is registered answers.
    let registry = bind_when_vacant(&driver.config.registration_socket()).await?;
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
