//! Secrets over Unix sockets: HTTP/1.1 in Vault's own format for reads, and the agent's own API.
//!
//! | file | what it is |
//! |---|---|
//! | [`bind`] | a socket file with the right owner and mode, in place by one rename |
//! | [`door`] | which kind of socket it is, and whom that lets in |
//! | [`node_door`], [`introduction`] | who a caller in any pod is, by its first request |
//! | [`transport`], [`admission`], [`activity`] | connections, their places and budgets, patience |
//! | [`let_in`] | who has a connection, with its place |
//! | [`stream`], [`refused`], [`in_turn`] | their bytes; who may not stay; whose turn it is |
//! | [`caps`] | what each caller and each request may have |
//! | [`request`] | pure: method, path, query, headers → route or refusal |
//! | [`routes`] | one connection's service: dispatch to the files below |
//! | [`secrets`], [`memos`] | policy, memoised; the hit path |
//! | [`served`] | what was served, for the audit log |
//! | [`decisions`] | permits of all connections |
//! | [`callers`] | what all connections of a caller share, and its next one finds again |
//! | [`local`], [`leases`] | what Vault's clients need of `sys/` and `auth/`, answered here |
//! | [`agent`], [`metrics`] | `/agent/v1/` |
//! | [`client`] | the other end, for the command line |

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::broker::Broker;
use crate::clock::BootInstant;
use crate::identity::self_test::NodeProof;
use crate::policy::Policy;
use crate::status::VolumeBoard;
use crate::telemetry::Metrics;

mod activity;
pub mod admission;
pub mod agent;
mod answer;
pub mod bind;
mod callers;
pub mod caps;
pub mod client;
mod decisions;
mod directory;
pub mod door;
mod gate;
mod in_turn;
mod introduction;
mod leases;
pub mod let_in;
mod local;
mod memos;
pub mod metrics;
mod node_door;
#[cfg(test)]
mod pod_tests;
mod refused;
pub mod request;
mod routes;
mod secrets;
mod served;
mod stream;
pub mod transport;

use admission::Admission;
pub use agent::{OperatorApi, Viewer, answers};
pub use bind::{BindError, BoundSocket, Ownership, Place};
use callers::Callers;
use caps::Caps;
use decisions::Decisions;
pub use directory::SourceDirectory;
pub use door::{Door, PodDoor};
use gate::Gated;
pub use node_door::{NodeDoor, ProofToken};
pub use request::Refusal;

/// Operators keep a way in when the host socket is full.
const OPERATOR_CONNECTIONS: usize = 64;

/// Pods that may have all the connections of a caller at once before the next one is refused.
const PODS_AT_THEIR_CAP: usize = 16;

/// Where the sockets are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// Everything except values, for root and the agent's own user.
    pub operator: OperatorSocket,
    /// Secrets for users of this host.
    pub host: HostSocket,
    /// Secrets for all pods of this node, if they are to have one socket.
    pub node: Option<NodeSocket>,
    /// Metrics and health over TCP, if anybody wants them there.
    pub metrics: Option<SocketAddr>,
}

/// The operator socket; its directory is made with mode 0700.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorSocket {
    /// An absolute path.
    pub path: PathBuf,
}

/// The host socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSocket {
    /// Whether there is one.
    pub enabled: bool,
    /// An absolute path.
    pub path: PathBuf,
    /// Who may connect: the socket's permission bits.
    pub mode: u32,
    /// The socket's group, if not the agent's own.
    pub gid: Option<u32>,
}

/// The node's socket for its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSocket {
    /// An absolute path, in a directory of its own that pods mount.
    pub path: PathBuf,
    /// The audience of the tokens that prove its callers.
    pub proof_audience: String,
    /// When they must show one.
    pub proof: ProofToken,
}

/// Caps of the sockets; each has a metric and a line in status, for times in
/// `connections_refused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections of the host socket.
    pub connections: usize,
    /// Connections of one user, or of one pod on its socket.
    pub connections_per_user: usize,
    /// Requests per second of one user or pod, with a burst of the same size.
    pub requests_per_second_per_user: u32,
    /// Size of a request line with its headers.
    pub header_bytes: usize,
    /// Size of a request body.
    pub body_bytes: usize,
    /// From the first byte of a request to the end of its headers, then the same for its body.
    pub header_timeout: Duration,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// How long a client may take to read a reply.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            connections_per_user: 128,
            requests_per_second_per_user: 5000,
            header_bytes: 16 * 1024,
            body_bytes: 64 * 1024,
            header_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(10),
        }
    }
}

/// What answers are made of.
pub struct Deps {
    /// Secrets and local leases.
    pub broker: Broker,
    /// Who may read what.
    pub policy: Policy,
    /// Where decisions are recorded.
    pub audit: Audit,
    /// Whether every single read is recorded, instead of a count per minute.
    pub audit_per_read: bool,
    /// Which source a path belongs to.
    pub sources: SourceDirectory,
    /// What the volumes say about themselves.
    pub volumes: VolumeBoard,
    /// What needs the rest of the agent.
    pub operators: Arc<dyn OperatorApi>,
    /// What is counted.
    pub metrics: Metrics,
}

/// The sockets, in place but not yet answering.
pub struct Sockets {
    operator: BoundSocket,
    host: Option<BoundSocket>,
    node: Option<BoundSocket>,
}

impl Sockets {
    /// Puts the sockets in place; clients that connect from here on wait for [`Sockets::serve`].
    /// Must be called inside a tokio runtime.
    pub fn bind(config: &SocketConfig) -> Result<Self, BindError> {
        let operator = BoundSocket::bind(&Place {
            path: config.operator.path.clone(),
            mode: 0o600,
            gid: None,
            private: true,
        })?;
        let host = config.host.enabled.then(|| {
            BoundSocket::bind(&Place {
                path: config.host.path.clone(),
                mode: config.host.mode,
                gid: config.host.gid,
                private: false,
            })
        });
        let node = config.node.as_ref().map(|node| {
            BoundSocket::bind(&Place {
                path: node.path.clone(),
                mode: 0o666,
                gid: None,
                private: false,
            })
        });
        Ok(Self { operator, host: host.transpose()?, node: node.transpose()? })
    }

    /// Serves the sockets until the server's intake is closed and the last running reply has been
    /// sent. `node_door` is the node socket's, if there is one.
    pub async fn serve(self, server: Server, node_door: Option<Arc<NodeDoor>>) {
        let until_intake = CancellationToken::new();
        let serve = async |door: Door, socket: Option<BoundSocket>| {
            if let Some(socket) = socket {
                server.run(door, socket, &until_intake).await;
            }
        };
        let node = async {
            if let Some(door) = node_door {
                let served = serve(Door::Node(Arc::clone(&door)), self.node);
                tokio::select! {
                    () = served => {}
                    never = door.release_gone(&server.deps.broker) => match never {},
                }
            }
        };
        // One door's callers do not have the others looked at.
        tokio::join!(
            Gated::new(serve(Door::Operator, Some(self.operator))),
            Gated::new(serve(Door::Host, self.host)),
            Gated::new(node),
            Gated::new(server.record_served())
        );
    }
}

/// What serves a socket, whichever door it is. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    caps: Arc<Caps>,
    /// What answers are made of.
    pub deps: Arc<Deps>,
    /// What this node can prove about its processes.
    pub proof: Arc<NodeProof>,
    intake: CancellationToken,
    decisions: Arc<Decisions>,
    callers: Arc<Callers>,
    /// The caps of all pods' sockets together.
    pods: Arc<Admission>,
}

impl Server {
    /// Serves until `intake` is cancelled.
    pub fn new(
        limits: Limits,
        deps: Deps,
        proof: Arc<NodeProof>,
        intake: CancellationToken,
    ) -> Self {
        let caps = Caps::new(limits, &deps.metrics);
        let connections = PODS_AT_THEIR_CAP * limits.connections_per_user;
        let pods = Admission::new("pod_connections", connections, &caps, &deps.metrics);
        let (decisions, callers) = (Arc::default(), Arc::default());
        Self { caps, deps: Arc::new(deps), proof, intake, decisions, callers, pods }
    }

    /// Records each minute what was served, until the intake is cancelled.
    async fn record_served(&self) {
        let each_minute = async {
            let mut ticks = tokio::time::interval(callers::WAIT);
            loop {
                ticks.tick().await;
                self.callers.settle(BootInstant::now()).await;
            }
        };
        let _cancelled: Option<()> = self.intake.run_until_cancelled(each_minute).await;
    }

    /// Serves one socket until `stop` or the intake is cancelled and the last running reply has
    /// been sent. Dropping the future drops the connections.
    pub async fn run(&self, door: Door, socket: BoundSocket, stop: &CancellationToken) {
        let closed = self.intake.child_token();
        let connections = |name, cap| Admission::new(name, cap, &self.caps, &self.deps.metrics);
        let admission = match door {
            Door::Operator => connections("operator_connections", OPERATOR_CONNECTIONS),
            Door::Host => connections("connections", self.caps.limits.connections),
            Door::Pod(_) | Door::Node(_) => Arc::clone(&self.pods),
        };
        let (proof, caps) = (Arc::clone(&self.proof), Arc::clone(&self.caps));
        let metrics = self.deps.metrics.clone();
        let transport = transport::Transport::new(door, proof, admission, caps, metrics);
        let (server, long_polls) = (self.clone(), closed.clone());
        let serving = transport.run(socket, closed.clone(), move |caller| {
            routes::ConnectionService::of(caller, server.clone(), long_polls.clone())
        });
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            () = stop.cancelled() => {
                closed.cancel();
                serving.await;
            }
            () = serving.as_mut() => {}
        }
    }
}
