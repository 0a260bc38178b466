//! Where the cluster's keys come from, how they stay fresh, and what is left of them in an outage.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Deserialize;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::api_server::Connection;
use super::cluster_keys::{ClusterKeys, Document};
use super::jwks::JWKS_BYTES_MAX;
use super::{ApiServer, ApiServerError, JwksError, KeysFileError, keys_file};
use crate::clock::{self, BootInstant, Human};
use crate::telemetry::Chain;

const JWKS: &str = "/openid/v1/jwks";
const DISCOVERY: &str = "/.well-known/openid-configuration";
const DISCOVERY_BYTES_MAX: usize = 64 * 1024;
/// Least time between two requests for keys, whoever sends tokens with unknown ones.
const PAUSE: Duration = Duration::from_secs(30);
/// How long a key that was withdrawn is still believed, while the API server answers. A quarter of
/// it is jitter, so that the nodes of a cluster do not ask together.
const FRESH_FOR: Duration = Duration::from_secs(10 * 60);
/// Time between two tries of an outage.
const RETRY: Duration = Duration::from_secs(60);

/// Where the cluster's public keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// `/openid/v1/jwks` of the API server, with a copy on disk for its outages.
    ApiServer {
        /// Which one.
        server: ApiServer,
        /// For the copy; made with mode 0700 if missing. Nobody else may write there.
        directory: PathBuf,
    },
    /// A file with the same content, kept up to date by somebody else.
    File(PathBuf),
}

/// Why there are no newer keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Asked a moment ago.
    #[error("keys were asked for {} ago; the next request is after {}", Human(*.0), Human(PAUSE))]
    Paused(Duration),
    /// The API server.
    #[error(transparent)]
    ApiServer(#[from] ApiServerError),
    /// The discovery document.
    #[error("{DISCOVERY} of the API server names no issuer; configure the issuer")]
    Discovery,
    /// A review that is none.
    #[error("answer of the API server to a TokenReview is none")]
    Review,
    /// What came.
    #[error("key set {0}")]
    Jwks(#[from] JwksError),
    /// The file.
    #[error(transparent)]
    File(#[from] KeysFileError),
    /// The process ends.
    #[error("reading was interrupted")]
    Interrupted,
}

/// The keys in force, for many readers; requests for newer ones go out one at a time.
pub(super) struct Keys {
    shared: Arc<Shared>,
    /// One permit: whoever holds it asks, the others wait for what comes.
    flight: Arc<Semaphore>,
    asked: Mutex<Option<BootInstant>>,
    /// The request under way. It goes on when its caller gives up: otherwise a pod that asks and
    /// goes away would use everybody's turn up.
    request: Mutex<JoinSet<()>>,
}

struct Shared {
    source: Source,
    discover_issuer: bool,
    current: ArcSwap<ClusterKeys>,
}

enum Source {
    ApiServer { connection: Box<Connection>, directory: PathBuf },
    File(PathBuf),
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
}

impl Keys {
    /// Reads the copy on disk, if there is a good one. Nothing is asked yet.
    pub(super) async fn open(source: KeySource, discover_issuer: bool) -> Self {
        let kept = match &source {
            KeySource::ApiServer { directory, .. } => kept(directory.clone()).await,
            KeySource::File(_) => Ok(None),
        };
        let kept = kept.unwrap_or_else(|error| {
            let error = Chain(&error);
            tracing::warn!(%error, "the kept copy of the cluster's keys is unusable");
            None
        });
        let source = match source {
            KeySource::ApiServer { server, directory } => {
                Source::ApiServer { connection: Box::new(Connection::new(server)), directory }
            }
            KeySource::File(file) => Source::File(file),
        };
        let current = ArcSwap::from_pointee(kept.unwrap_or_default());
        let shared = Arc::new(Shared { source, discover_issuer, current });
        let (asked, request) = Default::default();
        Self { shared, flight: Arc::new(Semaphore::new(1)), asked, request }
    }

    /// The keys in force; none at all before the first success.
    pub(super) fn current(&self) -> Arc<ClusterKeys> {
        self.shared.current.load_full()
    }

    /// Gets newer keys than `seen`, unless somebody just did or asked less than [`PAUSE`] ago.
    /// Dropped while it asks, the request goes on for others.
    pub(super) async fn newer_than(
        &self,
        seen: &Arc<ClusterKeys>,
        now: BootInstant,
    ) -> Result<(), KeysError> {
        let flight = Arc::clone(&self.flight).acquire_owned().await;
        let flight = flight.map_err(|_| KeysError::Interrupted)?;
        if !Arc::ptr_eq(&self.current(), seen) {
            return Ok(());
        }
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(ago) = asked.map(|at| now.since(at)).filter(|ago| *ago < PAUSE) {
                return Err(KeysError::Paused(ago));
            }
            *asked = Some(now);
        }
        let (reply, answer) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        {
            let mut request = self.request.lock().unwrap_or_else(PoisonError::into_inner);
            while request.try_join_next().is_some() {}
            request.spawn(async move {
                let outcome = shared.renew().await;
                drop(flight);
                // Whoever asked may be gone.
                let _ = reply.send(outcome);
            });
        }
        answer.await.map_err(|_| KeysError::Interrupted)?
    }

    /// Keeps the keys fresh for ever; dropped, it stops.
    pub(super) async fn keep_fresh(&self) {
        loop {
            let pause = match self.newer_than(&self.current(), BootInstant::now()).await {
                Ok(()) => FRESH_FOR.mul_f64(0.75 + fastrand::f64() / 4.0),
                Err(KeysError::Paused(ago)) => PAUSE.saturating_sub(ago),
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "cannot refresh the cluster's keys");
                    RETRY
                }
            };
            if clock::sleep(pause).await.is_err() {
                // Without timers nothing in this process goes on; the supervisor sees the end.
                return;
            }
        }
    }
}

impl Shared {
    async fn renew(&self) -> Result<(), KeysError> {
        let keys = self.fetch().await?;
        tracing::info!(keys = keys.keys().len(), "read the cluster's token keys");
        self.current.store(Arc::new(keys));
        Ok(())
    }

    async fn fetch(&self) -> Result<ClusterKeys, KeysError> {
        match &self.source {
            Source::File(file) => {
                let file = file.clone();
                let jwks = blocking(move || keys_file::read_given(&file)).await?;
                Ok(ClusterKeys::new(None, &jwks)?)
            }
            Source::ApiServer { connection, directory } => {
                let issuer = match self.discover_issuer {
                    true => Some(discover(connection).await?),
                    false => None,
                };
                let jwks = connection.get(JWKS, JWKS_BYTES_MAX).await?;
                let keys = ClusterKeys::new(issuer.clone(), &jwks)?;
                let (copy, directory) =
                    (Document::new(issuer, &jwks)?.to_json()?, directory.clone());
                let kept = blocking(move || keys_file::save_copy(&directory, &copy)).await;
                if let Err(error) = kept {
                    let error = Chain(&error);
                    tracing::warn!(%error, "keys are not kept for an outage of the API server");
                }
                Ok(keys)
            }
        }
    }
}

async fn discover(connection: &Connection) -> Result<String, KeysError> {
    let document = connection.get(DISCOVERY, DISCOVERY_BYTES_MAX).await?;
    let found: Discovery = serde_json::from_slice(&document).map_err(|_| KeysError::Discovery)?;
    if found.issuer.is_empty() { Err(KeysError::Discovery) } else { Ok(found.issuer) }
}

async fn kept(directory: PathBuf) -> Result<Option<ClusterKeys>, KeysError> {
    match blocking(move || keys_file::load_copy(&directory)).await? {
        Some(json) => Ok(Some(Document::parse(&json)?.keys()?)),
        None => Ok(None),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KeysFileError> + Send + 'static,
) -> Result<T, KeysError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| KeysError::Interrupted)?.map_err(KeysError::File)
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
