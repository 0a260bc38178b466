//! The kubelet's two sockets: registration, found by the kubelet, and the driver's own.
//!
//! Both lie in directories that only root may enter. A caller must be root, too, and outside of
//! every pod, where this node can tell; whatever it is, its calls are believed only through the
//! pod's token in them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures_util::Stream;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;

use crate::delivery::socket::{BindError, BoundSocket, Place};
use crate::identity::peer::{Peer, PeerError};
use crate::identity::self_test::NodeProof;
use crate::sys;

use super::proto::csi::identity_server::IdentityServer;
use super::proto::csi::node_server::NodeServer;
use super::proto::registration::registration_server::RegistrationServer;
use super::services::Driver;
use super::state::DriverState;

/// How often a socket that somebody else still answers is tried again.
const VACANT_RETRY: Duration = Duration::from_millis(250);
/// Calls of one connection that run at once; the kubelet has one per volume.
const CALLS_MAX: usize = 256;
/// Longest request: attributes are bounded by the API server, tokens by their number.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// Puts a socket in place as soon as no other agent answers there. Cancel-safe.
pub(super) async fn bind_when_vacant(
    path: &Path,
    state: &DriverState,
) -> anyhow::Result<BoundSocket> {
    let place = Place { path: path.to_owned(), mode: 0o600, gid: None, private: false };
    loop {
        match BoundSocket::bind(&place) {
            Err(error @ BindError::Live(_)) => {
                if state.wait_for(format!("the end of a predecessor: {error}")) {
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
    proof: &NodeProof,
    work: CancellationToken,
) -> anyhow::Result<()> {
    let node = NodeServer::new(driver.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let services = builder().add_service(IdentityServer::new(driver.clone())).add_service(node);
    let registration = builder().add_service(RegistrationServer::new(driver.clone()));
    // Last: what is registered answers.
    let registry = bind_when_vacant(&driver.config.registration_socket(), &driver.state).await?;
    driver.state.serves();
    tokio::try_join!(
        run(services, incoming(&socket, proof), &work),
        run(registration, incoming(&registry, proof), &work)
    )?;
    Ok(())
}

fn builder() -> Server {
    Server::builder().concurrency_limit_per_connection(CALLS_MAX)
}

async fn run(
    router: Router,
    calls: impl Stream<Item = io::Result<UnixStream>>,
    work: &CancellationToken,
) -> anyhow::Result<()> {
    router
        .serve_with_incoming_shutdown(calls, work.clone().cancelled_owned())
        .await
        .context("serving the kubelet")
}

fn incoming(socket: &BoundSocket, proof: &NodeProof) -> impl Stream<Item = io::Result<UnixStream>> {
    futures_util::stream::unfold((socket, proof), |(socket, proof)| async move {
        loop {
            match socket.accept().await {
                Ok(stream) => match check_root(stream.as_fd(), proof) {
                    Ok(()) => {
                        let stream = UnixStream::from_std(net::UnixStream::from(stream));
                        return Some((stream, (socket, proof)));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a caller of the CSI socket is not the kubelet");
                    }
                },
                Err(error) => return Some((Err(error), (socket, proof))),
            }
        }
    })
}

/// Where peers cannot be placed the kubelet has no process id here, and its user is all there is.
fn check_root(stream: BorrowedFd<'_>, proof: &NodeProof) -> Result<(), PeerError> {
    match &proof.kubelet {
        Some(kubelet) => Peer::of(stream, Some(kubelet))?.host_root(),
        None => match sys::peer_credentials(stream).map_err(PeerError::Credentials)?.uid {
            0 => Ok(()),
            other => Err(PeerError::NotRoot(other)),
        },
    }
}
