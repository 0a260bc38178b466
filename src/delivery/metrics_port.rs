//! Metrics and health over TCP, for Prometheus and the kubelet's probes, which speak nothing else.
//!
//! Whoever reaches the port may ask, so nothing here names a secret, a caller or a pod, and asking
//! often costs the broker nothing: answers are made at most once a second.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::socket::{OperatorApi, answers, metrics};
use crate::broker::Broker;
use crate::clock::BootInstant;
use crate::status::VolumeBoard;
use crate::telemetry::{Chain, Hits, Metrics};

/// Connections at once; a scraper and the kubelet need one each.
const CONNECTIONS_MAX: usize = 16;
/// A connection carries one request and lives no longer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer is given again.
const ANSWER_LIFETIME: Duration = Duration::from_secs(1);
/// Hyper's least.
const HEADER_BYTES_MAX: usize = 8192;
/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const TEXT: &str = "text/plain; charset=utf-8";

/// Why the port is not there.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; is the port free, and the address this host's?")]
pub struct PortError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// What answers are made of.
pub struct Deps {
    /// Whether it lives, and its report.
    pub broker: Broker,
    /// What volumes say about themselves.
    pub volumes: VolumeBoard,
    /// Whether the agent can serve.
    pub operators: Arc<dyn OperatorApi>,
    /// What is counted.
    pub metrics: Metrics,
}

/// A listening port that does not answer yet.
#[derive(Debug)]
pub struct MetricsPort(TcpListener);

struct Answers {
    deps: Deps,
    metrics: Recent<Option<Bytes>>,
    alive: Recent<bool>,
}

impl MetricsPort {
    /// Listens. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The address is in use or not this host's.
    pub fn bind(address: SocketAddr) -> Result<Self, PortError> {
        let listen = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        listen().map(Self).map_err(|source| PortError { address, source })
    }

    /// Answers until `stop`; running answers are finished.
    pub async fn serve(self, deps: Deps, stop: CancellationToken) {
        let answers =
            Arc::new(Answers { deps, metrics: Recent::default(), alive: Recent::default() });
        let places = Places::watched_by(&answers.deps.metrics);
        let mut connections = JoinSet::new();
        loop {
            let room = places.free.available_permits() > 0;
            // Every arm is cancel-safe: a connection that was not accepted stays in the queue.
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a connection's task for metrics panicked");
                    }
                }
                accepted = self.0.accept(), if room => match accepted {
                    Ok((stream, _)) => {
                        let (place, answers) = (places.take(), Arc::clone(&answers));
                        connections.spawn(async move {
                            connection(stream, answers).await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection for metrics");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(self.0);
        while connections.join_next().await.is_some() {}
    }
}

/// Places for connections; whoever comes when none is free waits to be accepted.
struct Places {
    free: Arc<Semaphore>,
    full: Hits,
}

impl Places {
    /// All of them, shown in status and metrics.
    fn watched_by(metrics: &Metrics) -> Self {
        let (free, full) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Hits::default());
        metrics.watch_places("metrics_connections", CONNECTIONS_MAX, &free, &full);
        Self { free, full }
    }

    /// One that is free. Taking the last one counts: who waits behind it is not seen.
    fn take(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.free).try_acquire_owned().ok();
        if self.free.available_permits() == 0 {
            self.full.count();
        }
        place
    }
}

async fn connection(stream: TcpStream, answers: Arc<Answers>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answers = Arc::clone(&answers);
        async move { Ok::<_, Infallible>(answers.answer(&request).await) }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .header_read_timeout(None)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
        tracing::debug!(error = %Chain(&error), "metrics connection");
    }
}

impl Answers {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (route, answer) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/agent/v1/metrics") => ("metrics", self.metrics().await),
            (&Method::GET, "/agent/v1/health/live") => ("health", self.live().await),
            (&Method::GET, "/agent/v1/health/ready") => ("health", self.ready()),
            _ => ("refused", text(StatusCode::NOT_FOUND, "metrics and health only\n")),
        };
        self.deps.metrics.count(route, answer.status().as_u16(), "none");
        answer
    }

    async fn metrics(&self) -> Response<Full<Bytes>> {
        let Deps { broker, volumes, metrics: counted, operators } = &self.deps;
        let render = async {
            let report = broker.report().await.ok()?;
            let pods = operators.pod_directory();
            Some(Bytes::from(metrics::render(counted, &report, &volumes.all(), &pods)))
        };
        match self.metrics.get(render).await {
            Some(body) => with_type(StatusCode::OK, metrics::CONTENT_TYPE, body),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "the broker does not answer\n"),
        }
    }

    async fn live(&self) -> Response<Full<Bytes>> {
        match self.alive.get(answers(&self.deps.broker)).await {
            true => text(StatusCode::OK, "live\n"),
            false => text(StatusCode::SERVICE_UNAVAILABLE, "the broker does not answer\n"),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        match self.deps.operators.ready() {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(waiting) => text(StatusCode::SERVICE_UNAVAILABLE, waiting),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    with_type(status, TEXT, body)
}

fn with_type(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// One answer for everybody who asks within [`ANSWER_LIFETIME`]; it is made by one at a time.
struct Recent<T> {
    flight: Semaphore,
    last: Mutex<Option<(BootInstant, T)>>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { flight: Semaphore::new(1), last: Mutex::new(None) }
    }
}

impl<T: Clone> Recent<T> {
    /// The last answer, or a new one from `make`. Cancel-safe.
    async fn get(&self, make: impl Future<Output = T>) -> T {
        let _flight = self.flight.acquire().await.expect("the semaphore is never closed");
        if let Some(answer) = self.last() {
            return answer;
        }
        let answer = make.await;
        let made = (BootInstant::now(), answer.clone());
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        answer
    }

    fn last(&self) -> Option<T> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, answer) = last.as_ref()?;
        (BootInstant::now().since(*at) < ANSWER_LIFETIME).then(|| answer.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Limit;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn taking_the_last_place_counts_and_giving_it_back_frees_it() {
        let metrics = Metrics::new();
        let places = Places::watched_by(&metrics);
        let taken: Vec<_> = (0..CONNECTIONS_MAX).map(|_| places.take()).collect();
        let shown = |used, hits| Limit::shared("metrics_connections", used, CONNECTIONS_MAX, hits);
        assert_eq!(metrics.limits(), [shown(CONNECTIONS_MAX, 1)]);
        drop(taken);
        assert_eq!(metrics.limits(), [shown(0, 1)]);
    }

    #[tokio::test]
    async fn many_who_ask_at_once_get_one_answer() {
        let (recent, made) = (Recent::default(), AtomicUsize::new(0));
        let ask = || recent.get(async { made.fetch_add(1, Ordering::Relaxed) });
        let answers = futures_util::future::join_all((0..50).map(|_| ask())).await;
        assert!(answers.iter().all(|answer| *answer == 0), "{answers:?}");
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }
}
