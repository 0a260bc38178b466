//! One connection's service: budget, hit path, then dispatch by route.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use tokio_util::sync::CancellationToken;

use super::callers::{Callers, SharedMemos};
use super::introduction::Introduction;
use super::let_in::{Caller, LetIn};
use super::request::{self, Refusal, Route};
use super::transport::Answer;
use super::{Caps, Decisions, Deps, Server, answer, local};
use crate::clock::BootInstant;

/// How long the rest of a request is waited for that nobody wants.
const BODY_PATIENCE: Duration = Duration::from_secs(1);
/// How long a request over the budget waits for its refusal.
const REFUSAL_PAUSE: Duration = Duration::from_millis(50);

/// A connection's own state and what it answers from.
pub(super) struct Connection {
    pub(super) caller: Caller,
    pub(super) caps: Arc<Caps>,
    pub(super) deps: Arc<Deps>,
    pub(super) decisions: Arc<Decisions>,
    pub(super) stop: CancellationToken,
    pub(super) memos: SharedMemos,
    callers: Arc<Callers>,
}

impl Connection {
    /// The connection of a caller that was named; `stop` ends its long polls.
    pub(super) fn new(caller: Caller, server: Server, stop: CancellationToken) -> Arc<Self> {
        let Server { caps, deps, decisions, callers, .. } = server;
        let memos = callers.join(&caller.identity);
        Arc::new(Self { caller, caps, deps, decisions, stop, memos, callers })
    }

    /// Answers one request: a hit at once, everything else later.
    // Inlined: a request is some hundred bytes, and would be copied from call to call.
    #[inline]
    pub(super) fn call(self: &Arc<Self>, mut request: Request<Incoming>) -> Answering {
        let now = BootInstant::now();
        if let Err(wait) = self.caller.admitted.budget().take_request(now) {
            self.deps.metrics.limited.inc();
            return Answering::over_budget(wait, request.into_body(), self.caps.limits.body_bytes);
        }
        // Its exit ends the connection too, but a busy agent may hear of it after the next request.
        if let Err(refusal) = self.check_alive() {
            return Answering::Now(Some(answer::refusal(&refusal)));
        }
        if request.body().is_end_stream()
            && let Some(answer) = self.hit(&mut request, now)
        {
            return Answering::Now(Some(answer));
        }
        let (parts, body) = request.into_parts();
        Answering::Later(Box::pin(Arc::clone(self).answer(parts, body)))
    }

    /// Answers one request that is no hit, or may be none.
    pub(super) async fn answer(self: Arc<Self>, parts: Parts, mut body: Incoming) -> Answer {
        let route = request::parse(&parts.method, &parts.uri, &parts.headers);
        let wants_body = matches!(route, Ok(Route::Lease(..) | Route::Agent(_)));
        if !wants_body {
            self.discard(&mut body).await;
        }
        let route = match route {
            Ok(route) => route,
            Err(refusal) => return self.count("refused", "none", Err(refusal)),
        };
        let label = route.label();
        let result = match route {
            Route::Secret { path, version } => {
                match self.secret(path, version, &parts.headers).await {
                    Ok((answer, cache)) => return self.count(label, cache, Ok(answer)),
                    Err(refusal) => Err(refusal),
                }
            }
            Route::Health => Ok(local::health()),
            Route::SealStatus => Ok(local::seal_status()),
            Route::Leader => Ok(local::leader()),
            Route::Initialized => Ok(local::initialized()),
            Route::MountInfo(path) => self.mount_info(path, &parts.headers).await,
            Route::TokenLookup => Ok(local::token_lookup(&self.caller.identity)),
            Route::TokenRenew => Ok(local::token_renew()),
            Route::Lease(action, id) => self.lease(action, id, &mut body).await,
            Route::Agent(route) => self.agent(route, &mut body).await,
        };
        if wants_body {
            // What is left of it: some are refused before it was read, or because of it.
            self.discard(&mut body).await;
        }
        self.count(label, "none", result)
    }

    fn count(
        &self,
        route: &'static str,
        cache: &'static str,
        result: Result<Answer, Refusal>,
    ) -> Answer {
        let answer = result.unwrap_or_else(|refusal| answer::refusal(&refusal));
        self.deps.metrics.count(route, answer.status().as_u16(), cache);
        answer
    }

    /// A whole request body within its size and time.
    pub(super) async fn body(&self, body: &mut Incoming) -> Result<Bytes, Refusal> {
        let limits = &self.caps.limits;
        let collected = Limited::new(body, limits.body_bytes).collect();
        match tokio::time::timeout(limits.header_timeout, collected).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                self.caps.bodies.count();
                Err(Refusal::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the request body is longer than {} bytes", limits.body_bytes),
                ))
            }
            Ok(Err(_)) => Err(Refusal::bad_request("the request body cannot be read")),
            Err(_) => Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                "the request body did not arrive in time",
            )),
        }
    }

    async fn discard(&self, body: &mut Incoming) {
        discard(body, self.caps.limits.body_bytes, BODY_PATIENCE).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.callers.leave(&self.caller.identity, &self.memos, BootInstant::now());
    }
}

/// The budget of a caller is spent until then.
pub(super) fn over_budget(wait: Duration) -> Refusal {
    let status = StatusCode::TOO_MANY_REQUESTS;
    let retry_after = Some(wait.as_secs() + 1);
    Refusal { retry_after, ..Refusal::new(status, "request rate of this caller exceeded") }
}

/// Lets a caller that asks too much wait for its answer: refusals at its own pace would cost others
/// more than what it may ask for.
async fn slowed(answer: Answer, mut body: Incoming, body_bytes: usize) -> Answer {
    let pause = tokio::time::sleep(REFUSAL_PAUSE);
    tokio::join!(pause, discard(&mut body, body_bytes, REFUSAL_PAUSE));
    answer
}

/// Reads a body away that nobody wants, up to `most` bytes and for as long as `patience` lasts:
/// what is left of it ends the connection, which the client takes for one that goes on.
async fn discard(body: &mut Incoming, most: usize, patience: Duration) {
    if body.is_end_stream() {
        return;
    }
    let mut body = Limited::new(body, most);
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    // Best effort: the request is answered either way.
    let _ = tokio::time::timeout(patience, all).await;
}

/// A connection as hyper's service.
pub(super) enum ConnectionService {
    /// Of a caller that is known.
    Named(Arc<Connection>),
    /// Of a caller that its requests have to name.
    Placed(Arc<Introduction>),
}

impl ConnectionService {
    /// The service of a caller that was let in; `stop` ends its long polls.
    pub(super) fn of(caller: LetIn, server: Server, stop: CancellationToken) -> Self {
        match caller {
            LetIn::Named(caller) => Self::Named(Connection::new(caller, server, stop)),
            LetIn::Placed(placed, door) => {
                Self::Placed(Arc::new(Introduction::new(placed, door, server, stop)))
            }
        }
    }
}

impl Service<Request<Incoming>> for ConnectionService {
    type Response = Answer;
    type Error = Infallible;
    type Future = Answering;

    #[inline]
    fn call(&self, request: Request<Incoming>) -> Answering {
        match self {
            Self::Named(connection) => connection.call(request),
            Self::Placed(introduction) => introduction.call(request),
        }
    }
}

/// A hit is ready at once and costs no boxed future.
pub(super) enum Answering {
    /// Ready; taken by the first poll.
    Now(Option<Answer>),
    /// Still to come.
    Later(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

impl Answering {
    /// A refusal, after a pause, in which `body` is read away.
    pub(super) fn over_budget(wait: Duration, body: Incoming, body_bytes: usize) -> Self {
        Self::Later(Box::pin(slowed(answer::refusal(&over_budget(wait)), body, body_bytes)))
    }
}

impl Future for Answering {
    type Output = Result<Answer, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Now(answer) => {
                // Whoever asks without waiting for replies gives way to others now and then.
                let progress = ready!(tokio::task::coop::poll_proceed(cx));
                progress.made_progress();
                Poll::Ready(Ok(answer.take().unwrap_or_default()))
            }
            Self::Later(future) => future.as_mut().poll(cx).map(Ok),
        }
    }
}
