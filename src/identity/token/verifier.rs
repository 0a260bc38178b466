//! The door of this folder: a token in, the pod it proves out.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::api_server::Connection;
use super::keys::Keys;
use super::{ApiServer, Expectations, KeySource, PodClaims, TokenRefused, review};
use crate::clock::BootInstant;
use crate::domain::Token;

/// Who judges a token's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verification {
    /// This agent, by the cluster's public keys. Works while the API server is away; a token counts
    /// until it ends, also after its pod or account was deleted.
    Keys(KeySource),
    /// The API server, for each token. Sees deletions at once and needs the right to create
    /// `tokenreviews`; no token is believed while it is away.
    TokenReview(ApiServer),
}

/// How long a TokenReview is believed on a connection that goes on.
const REVIEW_HOLDS_FOR: Duration = Duration::from_secs(60);

/// Judges tokens. Shared by all who receive any; cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    expectations: Expectations,
    way: Arc<Way>,
}

enum Way {
    Keys(Keys),
    Review(Connection),
}

impl Verifier {
    /// Reads the kept keys; asks nobody yet.
    pub async fn open(expectations: Expectations, verification: Verification) -> Self {
        let way = match verification {
            Verification::Keys(source) => {
                Way::Keys(Keys::open(source, expectations.issuers.is_empty()).await)
            }
            Verification::TokenReview(server) => Way::Review(Connection::new(server)),
        };
        Self { expectations, way: Arc::new(way) }
    }

    /// The same judge, with the same keys, for tokens meant for somebody else.
    pub fn for_audience(&self, audience: String) -> Self {
        let expectations = Expectations { audience, ..self.expectations.clone() };
        Self { expectations, way: Arc::clone(&self.way) }
    }

    /// The audience it asks for.
    pub fn audience(&self) -> &str {
        &self.expectations.audience
    }

    /// Judges one token at `now` of the wall clock. Asks the API server when the key is unknown, at
    /// most once in 30 s for all callers together, and for every TokenReview; each within 5 s.
    /// Dropped, nothing is lost.
    pub async fn verify(&self, token: &Token, now: SystemTime) -> Result<PodClaims, TokenRefused> {
        let keys = match &*self.way {
            Way::Review(connection) => {
                return review::verify(connection, &self.expectations, token, now).await;
            }
            Way::Keys(keys) => keys,
        };
        let seen = keys.current();
        match self.expectations.verify(&seen, token, now) {
            Err(TokenRefused::UnknownKey | TokenRefused::IssuerUnknown) => {}
            judged => return judged,
        }
        let asked_at = BootInstant::now();
        keys.newer_than(&seen, asked_at).await.map_err(TokenRefused::Keys)?;
        let now = now + BootInstant::now().since(asked_at);
        self.expectations.verify(&keys.current(), token, now)
    }

    /// How long a verdict holds at most, beside the token's own life: the API server takes its word
    /// back when the pod or its account is deleted, keys do not.
    pub fn holds_for(&self) -> Option<Duration> {
        match &*self.way {
            Way::Keys(_) => None,
            Way::Review(_) => Some(REVIEW_HOLDS_FOR),
        }
    }

    /// Keeps keys fresh until dropped; for TokenReview there is nothing to do and it never ends.
    pub async fn keep_fresh(&self) {
        match &*self.way {
            Way::Keys(keys) => keys.keep_fresh().await,
            Way::Review(_) => std::future::pending().await,
        }
    }
}
