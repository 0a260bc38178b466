//! Where secrets come from. A source logs in, fetches, renews and revokes; it knows no pods,
//! no callers and no retries: deadlines and retries belong to the broker's state machine.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::{
    EngineKind, LeaseId, LoginIdentity, Mount, PathKind, SecretBytes, SecretPath, SecretRef, Token,
};

pub mod local;
pub mod vault;

/// A place secrets come from. One value per configured source, shared by all effects.
///
/// Every call is bounded by the source's own deadlines (connect 2 s, request 10 s for Vault), and
/// may be dropped at any await: a dropped `fetch` of a minting path has an unknown outcome.
#[async_trait]
pub trait Source: Send + Sync {
    /// What to call it in status: kind and address, never a credential.
    fn description(&self) -> SourceDescription;

    /// The mount that `path` lies below, if the configuration names one; its kind may need a probe.
    fn mount_of(&self, path: &SecretPath) -> Option<ConfiguredMount>;

    /// Logs in anew. `account_token` proves a pod's service account; the agent's own token is read
    /// afresh by the source itself.
    async fn login(
        &self,
        identity: &LoginIdentity,
        account_token: Option<&Token>,
    ) -> Result<Login, SourceError>;

    /// Renews a session's token; `increment` is the first grant's duration.
    async fn renew_token(
        &self,
        token: &Token,
        increment: Duration,
    ) -> Result<TokenGrant, SourceError>;

    /// Ends a session with all leases made under it (`revoke-self`).
    async fn end_session(&self, token: &Token) -> Result<(), SourceError>;

    /// Asks what kind of engine is mounted where `path` lies (`sys/internal/ui/mounts`).
    async fn probe_mount(&self, token: &Token, path: &SecretPath) -> Result<Mount, SourceError>;

    /// Reads a secret once. For [`PathKind::Minting`] this creates something upstream.
    async fn fetch(
        &self,
        token: &Token,
        secret: &SecretRef,
        kind: PathKind,
    ) -> Result<Fetched, SourceError>;

    /// Renews a lease, asking for `increment`.
    async fn renew_lease(
        &self,
        token: &Token,
        lease: &LeaseId,
        increment: Duration,
    ) -> Result<LeaseTerms, SourceError>;

    /// Ends one lease. Not in Vault's default policy, so [`ErrorClass::Denied`] is ordinary.
    async fn revoke_lease(&self, token: &Token, lease: &LeaseId) -> Result<(), SourceError>;

    /// Changes the source noticed by itself (a local file was edited); bumps on every change.
    /// Sources that are only ever asked return `None`.
    fn changes(&self) -> Option<tokio::sync::watch::Receiver<u64>> {
        None
    }
}

/// Sources by name are shared like this.
pub type SharedSource = Arc<dyn Source>;

/// What status prints about a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceDescription {
    /// `vault` or `local`.
    pub kind: &'static str,
    /// Vault's address or the local file.
    pub address: String,
    /// The Vault namespace, if one is configured.
    pub namespace: Option<String>,
    /// Credentials of this source are made up locally and honoured by no server.
    pub generated: bool,
}

/// A mount as the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredMount {
    /// Where it is mounted.
    pub path: SecretPath,
    /// Its kind, or `None` for `auto`: ask the source before the first read.
    pub kind: Option<EngineKind>,
}

/// Service (renewable, revocable) or batch (neither).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// An ordinary token.
    Service,
    /// A batch token: not renewable, not revocable one by one.
    Batch,
}

/// A fresh session as the source granted it.
pub struct Login {
    /// The session's token.
    pub token: Token,
    /// Its lifetime.
    pub terms: TokenGrant,
    /// What kind of token it is.
    pub kind: TokenKind,
}

/// How long a token lives from the moment the request left. Zero means it does not expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenGrant {
    /// Remaining lifetime; zero = never expires.
    pub ttl: Duration,
    /// Whether it can be renewed.
    pub renewable: bool,
}

/// How long a lease lives from the moment the request left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTerms {
    /// Remaining lifetime.
    pub duration: Duration,
    /// Whether it can be renewed.
    pub renewable: bool,
}

/// One secret as it was read.
pub struct Fetched {
    /// The JSON object under `data` of the reply, byte for byte.
    pub data: SecretBytes,
    /// A lease, when the reply carried one.
    pub lease: Option<(LeaseId, LeaseTerms)>,
    /// `lease_duration` of a reply without a lease: KV 1's hint, passed on to clients, in seconds.
    pub lease_duration_hint: u64,
    /// `ttl` of a static credential: the time until its next rotation.
    pub rotates_in: Option<Duration>,
    /// KV 2's `metadata.version`.
    pub version: Option<u64>,
    /// Vault's `request_id`, for correlation with its audit log.
    pub request_id: String,
}

/// Every upstream answer falls into one of these; upper layers match nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorClass {
    /// No usable answer: timeout, refused, 5xx, sealed, 429, 412, foreign redirect, garbage.
    Unreachable,
    /// The token is dead, and every lease made with it.
    TokenEnded,
    /// The token is alive and may not do this.
    Denied,
    /// Nothing there, or deleted.
    NotFound,
    /// The lease is gone or cannot be renewed any more.
    LeaseEnded,
    /// Vault answered and refused the request itself, or its back end failed.
    InvalidRequest,
}

impl ErrorClass {
    /// Its name in status, files and the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::TokenEnded => "token-ended",
            Self::Denied => "denied",
            Self::NotFound => "not-found",
            Self::LeaseEnded => "lease-ended",
            Self::InvalidRequest => "invalid-request",
        }
    }
}

/// A failed call: class, a message that is safe to show, and what is known about side effects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// What upper layers act on.
    pub class: ErrorClass,
    /// For people: what failed and what to do; never a value, token or lease id.
    pub message: String,
    /// `Retry-After`, when the server sent one.
    pub retry_after: Option<Duration>,
    /// The request left and its outcome is unknown: something may have been created.
    pub ambiguous: bool,
    /// Whether the source was asked at all. An error without that says nothing of its health.
    pub asked: bool,
}

impl SourceError {
    /// An error whose request certainly had no effect upstream.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { class, message, retry_after: None, ambiguous: false, asked: true }
    }

    /// An error for which no request was made.
    pub fn unsent(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { asked: false, ..Self::new(class, message) }
    }
}
