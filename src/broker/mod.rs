//! The broker: one task is the only writer of cached secrets, sessions and leases.
//!
//! | part | what it is |
//! |---|---|
//! | [`state`] | the pure core: `step(now, Event) -> Vec<Effect>`; no IO, clock or secret byte |
//! | [`lease`], [`budget`] | pure rules it uses: 75 % and retries; caps, rate and breaker |
//! | `store` | the bytes, tokens and lease ids that the core's opaque ids stand for |
//! | `snapshot` | published entries: a hit is served from here without entering the task |
//! | [`task`] | the only task: runs effects, feeds outcomes back, publishes |
//!
//! Reads and subscriptions need an [`Authorized`](crate::policy::Authorized), which only `policy`
//! can construct.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::clock::BootInstant;
use crate::domain::{LocalLeaseId, PathKind, SecretBytes, SecretPath, SourceName};
use crate::source::ErrorClass;

pub mod budget;
mod calls;
pub mod event;
mod handle;
mod ids;
pub mod lease;
mod login_tokens;
pub mod report;
mod request;
pub mod settings;
mod snapshot;
pub mod state;
mod store;
pub mod task;

pub use handle::{Broker, Place};
pub use login_tokens::LoginTokens;

/// One published value: immutable, shared by readers, zeroized when the last one lets go.
pub struct Entry {
    /// The JSON object under `data` of Vault's reply, byte for byte.
    pub data: DataView,
    /// What kind of path it came from.
    pub kind: PathKind,
    /// When the request that fetched it left.
    pub fetched_at: BootInstant,
    /// Until when it is served without asking again.
    pub fresh_until: BootInstant,
    /// From when it must not be served at all; readers check this themselves.
    pub dead_at: BootInstant,
    /// KV 2's version.
    pub version: Option<u64>,
    /// A keyed fingerprint of `data`: equal fingerprints mean equal content within this process.
    pub fingerprint: u64,
    /// The local lease of the consumer this entry belongs to, for leased secrets.
    pub interest: Option<Arc<Interest>>,
}

/// A reply body with its `data` object marked: Vault's envelope, one allocation for both views.
pub struct DataView {
    envelope: Bytes,
    data: std::ops::Range<usize>,
}

impl DataView {
    /// Marks `data` inside `envelope`; the range must lie inside it.
    pub fn new(envelope: Bytes, data: std::ops::Range<usize>) -> Self {
        assert!(data.start <= data.end && data.end <= envelope.len(), "data lies inside");
        Self { envelope, data }
    }

    /// The JSON object under `data`.
    pub fn expose(&self) -> &[u8] {
        &self.envelope[self.data.clone()]
    }

    /// The complete reply body of a KV or static secret, sharing the zeroizing allocation; the last
    /// reference wipes it. Leased secrets need an envelope per local lease instead.
    pub fn body(&self) -> Bytes {
        self.envelope.clone()
    }
}

/// A reply body around a zeroizing allocation: clones share it, and the last one wipes it.
pub fn shared_bytes(bytes: SecretBytes) -> Bytes {
    struct Owner(SecretBytes);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.expose()
        }
    }
    Bytes::from_owner(Owner(bytes))
}

/// A socket caller's standing interest in a leased secret: the local lease.
pub struct Interest {
    /// The id the caller knows.
    pub id: LocalLeaseId,
    /// When it was opened.
    pub issued_at: BootInstant,
    /// Until when the caller was told it lives, in boot nanoseconds; a hit only moves it later.
    pub told_until: std::sync::atomic::AtomicU64,
}

/// How a read was answered, for `X-Cache`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// From the snapshot, fresh.
    Hit,
    /// Fetched for this read.
    Miss,
    /// From the cache past `ttl`, because the source cannot be reached.
    Stale,
}

/// What a reader gets.
pub struct Reply {
    /// The value.
    pub entry: Arc<Entry>,
    /// How it was come by.
    pub freshness: Freshness,
    /// The caller's local lease on a leased secret: id and remaining duration as told.
    pub local_lease: Option<LocalLease>,
}

/// A local lease as it is told to its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalLease {
    /// The opaque id.
    pub id: LocalLeaseId,
    /// The API path it is for.
    pub path: SecretPath,
    /// When it was first given.
    pub issued_at: BootInstant,
    /// What remains, never more than the real lease has.
    pub duration: Duration,
    /// Whether renewing it can gain anything: false once the credential has been replaced.
    pub renewable: bool,
}

/// Why a read or subscription got no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The source refused or could not be reached, and nothing servable is cached.
    #[error("{message}")]
    Source {
        /// Its class.
        class: ErrorClass,
        /// Safe to show: what failed.
        message: String,
        /// When asking again makes sense.
        retry_after: Option<Duration>,
    },
    /// No configured mount covers the path.
    #[error("no engine mount in the configuration of source '{source_name}' covers '{path}'")]
    NoMount {
        /// The source.
        source_name: SourceName,
        /// The path asked for.
        path: SecretPath,
    },
    /// The cache is at its bound and holds nothing idle.
    #[error(
        "the cache is full ({limit}) and nothing in it is idle; raise [limits] or use fewer secrets"
    )]
    Full {
        /// Which limit.
        limit: &'static str,
    },
    /// It would take a new credential, and whoever asks is ending.
    #[error(
        "no new credential is made for a pod that is being deleted or has ended; it keeps those it \
         has"
    )]
    Leaving,
    /// The broker's queue is full, or it is shutting down.
    #[error("the broker is busy or stopping; try again")]
    Busy,
    /// The audit log is down, so nothing new is served.
    #[error("audit log is not accepting records; no new secret is served until it does")]
    AuditDown,
}

/// Why a local lease operation was refused: Vault answers such ids with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LocalLeaseError {
    /// Not an id of ours, or not this caller's, or over.
    #[error("lease not found")]
    NotFound,
    /// The broker's queue is full, or it is shutting down.
    #[error("the broker is busy or stopping; try again")]
    Busy,
}

/// Where a subscribed secret stands. Levels, not edges: read the current one.
#[derive(Clone)]
pub struct Update {
    /// The value to have in files; the last good one stays here while `problem` is set,
    /// until the source says it is over and `Problem` says which.
    pub entry: Option<Arc<Entry>>,
    /// What is wrong with it now, if anything.
    pub problem: Option<Problem>,
    /// Increases with every change of this subscription's level.
    pub sequence: u64,
}

/// What is wrong with a subscribed secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The class of the last failure.
    pub class: ErrorClass,
    /// Safe to show.
    pub message: String,
    /// Since when.
    pub since: BootInstant,
    /// Attempts in a row.
    pub attempts: u32,
}

/// A standing interest in one secret; dropping it ends the interest.
pub struct Subscription {
    updates: watch::Receiver<Update>,
    _release: request::Release,
}

impl Subscription {
    /// The current level and its changes.
    pub fn updates(&mut self) -> &mut watch::Receiver<Update> {
        &mut self.updates
    }
}

/// Why a spelling could not be turned into a canonical reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The spelling itself.
    #[error(transparent)]
    Spelling(#[from] crate::domain::SpellingError),
    /// The mount could not be found or probed.
    #[error(transparent)]
    Read(#[from] ReadError),
}
