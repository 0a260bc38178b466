//! The broker: one task is the only writer of cached secrets, sessions and leases.
//!
//! | part | what it is |
//! |---|---|
//! | [`state`] | the pure core: `step(now, Event) -> Vec<Effect>`; no IO, clock, lock or secret byte |
//! | [`cache`], [`lease`], [`session`], [`local_lease`] | its pure rules, each on its own |
//! | [`store`] | the bytes, tokens and lease ids that the core's opaque ids stand for |
//! | [`snapshot`] | published entries: a hit is served from here without entering the task |
//! | [`task`] | the only task: runs effects, feeds outcomes back, publishes |
//!
//! Reads and subscriptions need an [`Authorized`], which only `policy` can construct.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::clock::BootInstant;
use crate::domain::{
    ConsumerId, LocalLeaseId, LoginIdentity, Mount, PathKind, SecretBytes, SecretPath, SecretRef,
    SourceName, Spelling,
};
use crate::policy::Authorized;
use crate::source::ErrorClass;

pub mod report;
pub mod settings;

/// One published value: immutable, shared by readers, zeroized when the last one lets go.
pub struct Entry {
    /// The JSON object under `data` of Vault's reply, byte for byte.
    pub data: SecretBytes,
    /// The complete reply body for a KV or static secret (Vault's envelope around `data`); empty
    /// for leased secrets, whose envelope differs per local lease.
    pub envelope: Arc<SecretBytes>,
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

/// A socket caller's standing interest in a leased secret: the local lease.
pub struct Interest {
    /// The id the caller knows.
    pub id: LocalLeaseId,
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
    #[error("the cache is full ({limit}) and nothing in it is idle; raise [limits] or use fewer secrets")]
    Full {
        /// Which limit.
        limit: &'static str,
    },
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
    _release: release::Release,
}

impl Subscription {
    /// The current level and its changes.
    pub fn updates(&mut self) -> &mut watch::Receiver<Update> {
        &mut self.updates
    }
}

mod release {
    /// placeholder
    pub struct Release;
}

/// Handle to the broker task. Cheap to clone.
#[derive(Clone)]
pub struct Broker {}

impl Broker {
    /// The hit path: the current entry for what was authorised, if it may be served as fresh now.
    /// Lock-free of the task; never waits. Extends the caller's local lease on a leased secret.
    pub fn lookup(&self, authorized: &Authorized, now: BootInstant) -> Option<Reply> {
        todo!()
    }

    /// Reads through the task: joins a running fetch or starts one. Dropping the future only
    /// gives up waiting; the fetch goes on for others.
    pub async fn read(&self, authorized: Authorized) -> Result<Reply, ReadError> {
        todo!()
    }

    /// Subscribes: the secret is kept fresh or renewed until the subscription is dropped.
    pub async fn subscribe(&self, authorized: Authorized) -> Result<Subscription, ReadError> {
        todo!()
    }

    /// Turns a spelling into the canonical reference, probing the mount if its kind is `auto`.
    pub async fn resolve(
        &self,
        source: &SourceName,
        login: &LoginIdentity,
        spelling: &Spelling,
    ) -> Result<SecretRef, ResolveError> {
        todo!()
    }

    /// The engine mount a path lies below, probing its kind if the configuration says `auto`.
    pub async fn mount(
        &self,
        source: &SourceName,
        login: &LoginIdentity,
        path: &SecretPath,
    ) -> Result<Mount, ReadError> {
        todo!()
    }

    /// Fetches every cached KV or static entry of this secret again now; leased secrets are
    /// renewed now. Returns how many entries that concerned.
    pub async fn refresh(&self, secret: SecretRef) -> Result<usize, ReadError> {
        todo!()
    }

    /// Looks a local lease of this consumer up.
    pub async fn lookup_local(
        &self,
        consumer: ConsumerId,
        id: LocalLeaseId,
    ) -> Result<LocalLease, LocalLeaseError> {
        todo!()
    }

    /// Renews a local lease: its holder's interest lasts as long as the real lease now does.
    /// Never causes an upstream call.
    pub async fn renew_local(
        &self,
        consumer: ConsumerId,
        id: LocalLeaseId,
    ) -> Result<LocalLease, LocalLeaseError> {
        todo!()
    }

    /// Ends a local lease and with it this consumer's interest.
    pub async fn revoke_local(
        &self,
        consumer: ConsumerId,
        id: LocalLeaseId,
    ) -> Result<(), LocalLeaseError> {
        todo!()
    }

    /// Everything operators may know, as plain data without a secret byte.
    pub async fn report(&self) -> Result<report::Report, ReadError> {
        todo!()
    }

    /// Changes that happened to entries, for the event stream: bumps with every published change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        todo!()
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

/// Reply bodies share the entry's zeroizing allocation; the last reference wipes it.
pub fn body_of(envelope: Arc<SecretBytes>) -> Bytes {
    struct Owner(Arc<SecretBytes>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.expose()
        }
    }
    Bytes::from_owner(Owner(envelope))
}
