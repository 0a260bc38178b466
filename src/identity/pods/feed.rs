//! The API server's pods of one node: a list, then a watch from where the list ended.
//!
//! Not kube's own watcher: it hides bookmarks and the success of a reconnect, and without these
//! nobody could tell a quiet node from a lost API server.

use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use http::{HeaderValue, Request, header};
use kube::api::{ListParams, VersionMatch, WatchEvent, WatchParams};

use super::wire::{WireList, WirePod};
use crate::clock::BootInstant;
use crate::domain::NodeName;
use crate::identity::token::{ApiServer, ApiServerError, USER_AGENT};

const PODS: &str = "/api/v1/pods";
/// For a whole list. A node's pods are seldom more than a megabyte.
const LIST_WITHIN: Duration = Duration::from_secs(30);
/// Until a watch is accepted.
const WATCH_WITHIN: Duration = Duration::from_secs(10);
/// The API server ends a watch after this time, in seconds; spread, so that nodes do not come back
/// together.
const WATCH_SECONDS: std::ops::Range<u32> = 240..300;
/// A watch that ends sooner is a failure, which is paused after.
const WATCH_MIN: Duration = Duration::from_secs(1);
/// Bookmarks come about once a minute. Without any sign for so long, the connection is dead.
const QUIET_MAX: Duration = Duration::from_secs(150);
/// The position is too old to continue from.
const GONE: u16 = 410;
/// The position is newer than what this API server has yet.
const TIMEOUT: u16 = 504;

/// What the API server says.
pub(super) enum News {
    /// These are all pods of the node.
    List(Vec<WirePod>),
    /// One was added or changed.
    Changed(WirePod),
    /// One is no longer there.
    Deleted(WirePod),
    /// Nothing happened, up to now.
    Quiet,
}

/// Why there is no news.
#[derive(Debug, thiserror::Error)]
pub(super) enum FeedError {
    #[error(transparent)]
    Setup(#[from] ApiServerError),
    #[error(
        "API server refuses the node's pods with {status}: {message}; 401 and 403 mean that the \
         agent lacks the right to list and watch pods"
    )]
    Refused { status: u16, message: String },
    #[error("API server does not keep history back to where this node was")]
    Expired,
    #[error("API server ended the watch as soon as it began")]
    Ended,
    #[error("API server cannot be reached")]
    Unreachable(#[source] Box<kube::Error>),
    #[error("API server's answer is no list of pods")]
    Answer(#[source] serde_json::Error),
    #[error("API server did not answer within {}s", .0.as_secs())]
    Deadline(Duration),
}

type Events = BoxStream<'static, kube::Result<WatchEvent<WirePod>>>;

/// Where this node is in the history of its pods.
pub(super) struct Feed {
    server: ApiServer,
    client: Option<kube::Client>,
    selector: String,
    /// The newest version seen.
    position: Option<String>,
    /// Whether everything up to the position was told, so that a watch may continue there.
    is_whole: bool,
    /// Whether only the store itself will do: the caches answered that they cannot.
    from_store: bool,
    events: Option<Events>,
    watching_since: BootInstant,
}

impl Feed {
    pub(super) fn new(server: ApiServer, node: &NodeName) -> Self {
        Self {
            server,
            client: None,
            selector: format!("spec.nodeName={node}"),
            position: None,
            is_whole: false,
            from_store: false,
            events: None,
            watching_since: BootInstant::default(),
        }
    }

    /// What comes next; waits for it. After an error the next call tries again, and the caller
    /// decides when that is. Dropped while it waits, nothing is lost.
    pub(super) async fn next(&mut self) -> Result<News, FeedError> {
        if !self.is_whole {
            return self.list().await;
        }
        let Some(events) = &mut self.events else { return self.watch().await };
        match tokio::time::timeout(QUIET_MAX, events.try_next()).await {
            Ok(Ok(Some(event))) => self.read(event),
            Ok(Err(error)) => Err(self.broken(error)),
            // It ended in its time, or the connection is dead: continue from the same position.
            Ok(Ok(None)) | Err(_) => {
                self.events = None;
                match BootInstant::now().since(self.watching_since) < WATCH_MIN {
                    true => Err(FeedError::Ended),
                    false => self.watch().await,
                }
            }
        }
    }

    async fn list(&mut self) -> Result<News, FeedError> {
        let params = ListParams::default().fields(&self.selector);
        // Any cache will do at first, later none that is behind: nodes that start or come back
        // together would otherwise have the store read all pods of the cluster for each of them.
        let params = match &self.position {
            _ if self.from_store => params,
            None => params.match_any(),
            Some(seen) => params.at(seen).matching(VersionMatch::NotOlderThan),
        };
        let request = kube::core::Request::new(PODS).list(&params);
        let request = request.map_err(|error| unreachable(kube::Error::BuildRequest(error)))?;
        let client = self.client()?;
        let text = client.request_text(named(request));
        let text = within(LIST_WITHIN, text).await.inspect_err(|error| {
            let outdated = matches!(error, FeedError::Expired)
                || matches!(error, FeedError::Refused { status: TIMEOUT, .. });
            self.from_store |= outdated;
        })?;
        let list: WireList = serde_json::from_str(&text).map_err(FeedError::Answer)?;
        self.position = Some(list.metadata.resource_version);
        (self.is_whole, self.from_store) = (true, false);
        Ok(News::List(list.items))
    }

    async fn watch(&mut self) -> Result<News, FeedError> {
        let params = WatchParams::default().fields(&self.selector);
        let params = params.timeout(fastrand::u32(WATCH_SECONDS));
        let position = self.position.as_deref().unwrap_or_default();
        let request = kube::core::Request::new(PODS).watch(&params, position);
        let request = request.map_err(|error| unreachable(kube::Error::BuildRequest(error)))?;
        let client = self.client()?;
        let events = client.request_events::<WirePod>(named(request));
        match within(WATCH_WITHIN, events).await {
            Ok(events) => {
                self.events = Some(StreamExt::boxed(events));
                self.watching_since = BootInstant::now();
                Ok(News::Quiet)
            }
            Err(error) => {
                self.is_whole = !matches!(error, FeedError::Expired);
                Err(error)
            }
        }
    }

    fn read(&mut self, event: WatchEvent<WirePod>) -> Result<News, FeedError> {
        let (version, news) = match event {
            WatchEvent::Bookmark(mark) => (mark.metadata.resource_version, News::Quiet),
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                (pod.resource_version().to_owned(), News::Changed(pod))
            }
            WatchEvent::Deleted(pod) => (pod.resource_version().to_owned(), News::Deleted(pod)),
            WatchEvent::Error(status) => return Err(self.broken(kube::Error::Api(status))),
        };
        self.position = Some(version);
        Ok(news)
    }

    /// Ends the watch. What it did not tell is asked for from the same position, or in a new list.
    fn broken(&mut self, error: kube::Error) -> FeedError {
        let error = classified(error);
        self.events = None;
        // Undecodable news would come again and again from the same position.
        self.is_whole = !matches!(error, FeedError::Expired | FeedError::Answer(_));
        error
    }

    fn client(&mut self) -> Result<kube::Client, FeedError> {
        if self.client.is_none() {
            self.client = Some(self.server.client()?);
        }
        self.client.clone().ok_or(FeedError::Expired)
    }
}

fn named(mut request: Request<Vec<u8>>) -> Request<Vec<u8>> {
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    request
}

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = kube::Result<T>>,
) -> Result<T, FeedError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer.map_err(classified),
        Err(_) => Err(FeedError::Deadline(limit)),
    }
}

fn classified(error: kube::Error) -> FeedError {
    match error {
        kube::Error::Api(status) if status.code == GONE => FeedError::Expired,
        kube::Error::Api(status) => {
            FeedError::Refused { status: status.code, message: status.message }
        }
        kube::Error::SerdeError(error) => FeedError::Answer(error),
        error => unreachable(error),
    }
}

fn unreachable(error: kube::Error) -> FeedError {
    FeedError::Unreachable(Box::new(error))
}
