//! Connections: accepted under caps, identified by the kernel, answered by hyper, watched for
//! clients that stall, ended with the process that connected.

use std::convert::Infallible;
use std::future::poll_fn;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::activity::{Activity, Noted, Patience, Phase, Watchdog, Watched};
use super::admission::{Admission, Admitted, Budget};
use super::bind::BoundSocket;
use super::caps::Caps;
use super::door::{Door, Found, Nobody};
use super::gate::Gated;
use super::in_turn::InTurn;
use super::let_in::{Caller, LetIn, Placed};
use super::refused::{self, Refused, drain};
use super::stream::{Stream, Waiting};
use crate::clock::BootInstant;
use crate::identity::peer::Peer;
use crate::identity::self_test::NodeProof;
use crate::telemetry::{Chain, Metrics};

/// Hyper's least buffer; a smaller header limit is enforced by its own setting.
const BUFFER_BYTES_MIN: usize = 8192;
/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Pause after a connection of a flood was refused.
const FLOOD_PAUSE: Duration = Duration::from_millis(5);

/// Why a connection's own future is interrupted.
enum Notice {
    /// The agent stops: the running reply is the last.
    Stop,
    /// The connection ends at once, for the reason named in the metric.
    Drop(&'static str),
}

/// What every reply of this server is.
pub type Answer = Response<Full<Bytes>>;

/// One socket's server.
pub struct Transport {
    door: Door,
    proof: Arc<NodeProof>,
    admission: Arc<Admission>,
    caps: Arc<Caps>,
    metrics: Metrics,
    open: Gauge,
}

impl Transport {
    /// The server of a socket that lets in whom `door` does, by what this node can prove about its
    /// processes. Pods' sockets share their `admission`.
    pub fn new(
        door: Door,
        proof: Arc<NodeProof>,
        admission: Arc<Admission>,
        caps: Arc<Caps>,
        metrics: Metrics,
    ) -> Self {
        let label = ("socket", door.listener().as_str());
        let open = metrics.connections.get_or_create(&[label]).clone();
        // From the start, because the first refusal must be an increase.
        drop(metrics.refused.get_or_create(&[label, ("reason", refused::NOBODY)]));
        Self { door, proof, admission, caps, metrics, open }
    }

    /// Accepts until `stop`; then lets running replies finish and returns. `make` builds the
    /// service of one connection. Dropping the future drops the connections.
    pub async fn run<S, F>(self, socket: BoundSocket, stop: CancellationToken, make: F)
    where
        F: Fn(LetIn) -> S + Send + Sync + 'static,
        S: Service<Request<Incoming>, Response = Answer, Error = Infallible> + Send + 'static,
        S::Future: Send,
    {
        let mut connections = JoinSet::new();
        let shared = Arc::new((self, make));
        let mut in_turn = matches!(shared.0.door, Door::Node(_)).then(InTurn::default);
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    shared.0.ended(ended);
                    continue;
                }
                accepted = socket.accept() => accepted,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(socket = shared.0.label(), %error, "cannot accept a connection");
                    shared.0.count_refused("accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let owner = match shared.0.admit_owner() {
                Ok(owner) => owner,
                Err(refused) => {
                    shared.0.refuse(stream.as_fd(), &refused);
                    tokio::time::sleep(FLOOD_PAUSE).await;
                    continue;
                }
            };
            let Some(slot) = shared.0.admission.connection() else {
                shared.0.refuse(stream.as_fd(), &Refused::TooMany);
                continue;
            };
            let found = match &mut in_turn {
                Some(in_turn) => match in_turn.look(&shared.0, stream.as_fd()).await {
                    None => continue,
                    found => found,
                },
                None => None,
            };
            let (shared, stop) = (shared.clone(), stop.clone());
            connections.spawn(async move {
                let (transport, make) = &*shared;
                let found = found.unwrap_or_else(|| transport.let_in(stream.as_fd(), owner));
                // Boxed: a task's future is copied whenever the task begins or ends.
                Box::pin(transport.connection(stream, slot, found, make, stop)).await;
            });
        }
        // The path disappears first, so that nobody new waits for a server that is going away.
        drop(socket);
        while let Some(ended) = connections.join_next().await {
            shared.0.ended(ended);
        }
    }

    /// A place of the caller whose socket this is, if it is one's, before anybody is looked at: all
    /// sockets of a pod together take no more than it may have. What comes then waits.
    fn admit_owner(&self) -> Result<Option<Admitted>, Refused> {
        let admit = |owner| self.admission.admit(owner, BootInstant::now());
        self.door.owner().map(|owner| admit(owner).ok_or(Refused::TooManyOfCaller)).transpose()
    }

    async fn connection<S, F>(
        &self,
        stream: OwnedFd,
        slot: OwnedSemaphorePermit,
        found: Result<LetIn, Refused>,
        make: &F,
        stop: CancellationToken,
    ) where
        F: Fn(LetIn) -> S,
        S: Service<Request<Incoming>, Response = Answer, Error = Infallible>,
    {
        match found {
            Ok(caller) => {
                self.open.inc();
                let peer = Arc::clone(caller.peer());
                self.serve(stream, &peer, make(caller), stop).await;
                self.open.dec();
            }
            Err(refused) => {
                // Its place is for those who are let in; of the refused only some get time to read.
                drop(slot);
                self.refuse(stream.as_fd(), &refused);
                if let Some(_few) = self.admission.refusal() {
                    drain(stream).await;
                }
            }
        }
    }

    /// Callers without an identity here touch no user's budget: they have one with their cgroup.
    /// `owner` is a place for the socket's own.
    pub(super) fn let_in(
        &self,
        stream: BorrowedFd<'_>,
        owner: Option<Admitted>,
    ) -> Result<LetIn, Refused> {
        let now = BootInstant::now();
        let (found, peer) = match self.door.find(stream, &self.proof) {
            Ok(found) => found,
            Err(Nobody { why, payer }) => {
                self.charge_look(&self.admission.budget(payer, now), now)?;
                return Err(Refused::Nobody(Chain(&why).to_string()));
            }
        };
        let admitted = owner.or_else(|| self.admission.admit(found.payer(), now));
        let admitted = admitted.ok_or(Refused::TooManyOfCaller)?;
        // One door is everybody's: who connects for nothing pays for it all the same.
        if let Found::Pod(..) = found {
            self.charge_look(admitted.budget(), now)?;
        }
        let (peer, admitted) = (Arc::new(peer), Arc::new(admitted));
        Ok(match found {
            Found::Caller(identity) => LetIn::Named(Caller { identity, peer, admitted }),
            Found::Pod(pod, door) => LetIn::Placed(Placed { pod, peer, admitted }, door),
        })
    }

    /// Has the caller pay for having been looked at.
    fn charge_look(&self, budget: &Budget, now: BootInstant) -> Result<(), Refused> {
        budget.take_request(now).map_err(|_| {
            self.metrics.limited.inc();
            Refused::TooOften
        })
    }

    async fn serve<S>(&self, stream: OwnedFd, peer: &Peer, service: S, stop: CancellationToken)
    where
        S: Service<Request<Incoming>, Response = Answer, Error = Infallible>,
    {
        let activity = Arc::new(Activity::default());
        // The first request is due at once: a client that connects and says nothing is slow.
        activity.enter(Phase::Head);
        let waiting = Waiting::default();
        let stream = TokioIo::new(Stream::new(stream, waiting.clone()));
        let io = Watched::new(stream, activity.clone());
        let noted = Noted::new(service, activity.clone());
        // Boxed: the allocator has two small blocks at hand sooner than a large one.
        let mut connection = Box::pin(
            http1::Builder::new()
                .header_read_timeout(None)
                .max_header_size(self.caps.limits.header_bytes)
                .max_buf_size(self.caps.limits.header_bytes.max(BUFFER_BYTES_MIN))
                .serve_connection(io, noted),
        );
        // Most end here: what else may end them is not looked for before they have to wait.
        if let Poll::Ready(ended) = poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx))).await {
            return self.finished(ended);
        }
        waiting.begin();
        let notice = |stop| self.notice(peer, &activity, stop);
        let mut gated = Gated::new(notice(Some(&stop)));
        loop {
            // Both arms are cancel-safe: the futures are polled on.
            tokio::select! {
                biased;
                ended = connection.as_mut() => return self.finished(ended),
                given = &mut gated => match given {
                    Notice::Stop => {
                        connection.as_mut().graceful_shutdown();
                        gated = Gated::new(notice(None));
                    }
                    Notice::Drop(reason) => return self.count_dropped(reason),
                },
            }
        }
    }

    fn finished(&self, ended: hyper::Result<()>) {
        let Err(error) = ended else { return };
        if error.is_parse_too_large() {
            self.caps.headers.count();
        }
        let error = Chain(&error);
        tracing::debug!(socket = self.label(), %error, "connection");
    }

    /// Watches what may end a connection beside its client: the exit of the process that connected,
    /// a client that stalls, and, while `stop` is given, the stop.
    async fn notice(
        &self,
        peer: &Peer,
        activity: &Activity,
        stop: Option<&CancellationToken>,
    ) -> Notice {
        let stopped = async {
            match stop {
                Some(stop) => stop.cancelled().await,
                None => std::future::pending().await,
            }
        };
        // Every arm is cancel-safe: they wait for a state, or look again later.
        tokio::select! {
            biased;
            () = peer.exited() => Notice::Drop("peer_exited"),
            () = stopped => Notice::Stop,
            phase = self.stalled(activity) => Notice::Drop(match phase {
                Phase::Idle => "idle",
                Phase::Head => "slow_request",
                Phase::Serving | Phase::Writing => "slow_reader",
            }),
        }
    }

    /// Waits until a phase has lasted longer than there is patience for.
    async fn stalled(&self, activity: &Activity) -> Phase {
        let patience = self.patience();
        let mut watchdog = Watchdog::new(activity);
        let first_look = tokio::time::Instant::now() + patience.interval();
        let mut ticks = tokio::time::interval_at(first_look, patience.interval());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(phase) = watchdog.look(activity, ticks.period(), &patience) {
                return phase;
            }
        }
    }

    /// A panic ends its own connection only; it is a defect all the same.
    fn ended(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            self.log_panic(&error.to_string());
        }
    }

    pub(super) fn log_panic(&self, error: &str) {
        tracing::error!(socket = self.label(), error, "a connection's task panicked");
        self.count_refused("panic");
    }

    fn patience(&self) -> Patience {
        let limits = &self.caps.limits;
        Patience {
            head: limits.header_timeout,
            idle: limits.idle_timeout,
            write: limits.write_timeout,
        }
    }

    fn count_dropped(&self, reason: &'static str) {
        tracing::debug!(socket = self.label(), reason, "connection dropped");
        if reason != "idle" {
            self.count_refused(reason);
        }
    }

    /// Refuses whoever has or asks too much without a look at who it is, counted as what the caps
    /// would say.
    pub(super) fn refuse_unseen(&self, stream: BorrowedFd<'_>, refused: &Refused) {
        match refused {
            Refused::TooOften => {
                self.caps.requests.count();
                self.metrics.limited.inc();
            }
            _ => self.caps.connections.count(),
        }
        self.refuse(stream, refused);
    }

    fn refuse(&self, stream: BorrowedFd<'_>, refused: &Refused) {
        self.count_refused(refused.reason());
        // Who has too much is counted; a line each would cost more than the connection.
        if let Refused::Nobody(why) = refused {
            tracing::debug!(socket = self.label(), why, "connection refused");
        }
        refused.tell(stream);
    }

    fn count_refused(&self, reason: &'static str) {
        let labels = [("socket", self.label()), ("reason", reason)];
        self.metrics.refused.get_or_create(&labels).inc();
    }

    fn label(&self) -> &'static str {
        self.door.listener().as_str()
    }
}
