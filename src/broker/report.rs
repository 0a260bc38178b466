//! What the broker tells operators: plain data, ids and times; no secret byte, no full lease id.

use std::time::Duration;

use crate::broker::Problem;
use crate::clock::BootInstant;
use crate::domain::{ConsumerId, PathKind, SecretRef, SourceName};
use crate::telemetry::Limit;

/// A consistent picture of the broker at one instant.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// When it was taken.
    pub taken_at: BootInstant,
    /// Per source, in name order.
    pub sources: Vec<SourceReport>,
    /// Per session, in key order.
    pub sessions: Vec<SessionReport>,
    /// Per cache entry, in key order.
    pub secrets: Vec<SecretReport>,
    /// Running counters.
    pub counters: Counters,
    /// The core's own caps; those of every other part are watched by [`Metrics`].
    ///
    /// [`Metrics`]: crate::telemetry::Metrics
    pub limits: Vec<Limit>,
}

/// How a source is doing.
#[derive(Debug, Clone)]
pub struct SourceReport {
    /// Its name.
    pub name: SourceName,
    /// Whether the last call was answered.
    pub reachable: bool,
    /// Since when it is (un)reachable.
    pub since: BootInstant,
    /// The last failure's message.
    pub last_error: Option<String>,
    /// Failed calls in a row.
    pub failures: u32,
    /// When it is tried again, while it is unreachable.
    pub next_attempt: Option<BootInstant>,
    /// Calls running now.
    pub in_flight: usize,
}

/// One upstream session.
#[derive(Debug, Clone)]
pub struct SessionReport {
    /// The source.
    pub source: SourceName,
    /// `agent`, or `agent for volume:shop`.
    pub purpose: String,
    /// `none`, `logging-in`, `live`, `ended`.
    pub state: &'static str,
    /// When its token ends; `None` if it does not expire or there is none.
    pub expires_at: Option<BootInstant>,
    /// When it is renewed or replaced.
    pub renew_at: Option<BootInstant>,
    /// Cache entries holding it.
    pub holders: usize,
    /// The last failure's message.
    pub last_error: Option<String>,
}

/// One cached secret.
#[derive(Debug, Clone)]
pub struct SecretReport {
    /// Which secret.
    pub secret: SecretRef,
    /// Its kind; `None` before the mount is known.
    pub kind: Option<PathKind>,
    /// Whose dynamic credential it is.
    pub consumer: Option<ConsumerId>,
    /// `fetching`, `fresh`, `stale`, `expired`, `denied`, `not-found`, `failed`.
    pub state: &'static str,
    /// When the current value was requested.
    pub fetched_at: Option<BootInstant>,
    /// When it stops being fresh.
    pub fresh_until: Option<BootInstant>,
    /// When it stops being served.
    pub dead_at: Option<BootInstant>,
    /// KV 2's version.
    pub version: Option<u64>,
    /// The lease, for leased secrets.
    pub lease: Option<LeaseReport>,
    /// The next thing that will happen: `renew`, `refresh`, `replace`, `retry`, `evict`, and when.
    pub next: Option<(&'static str, BootInstant)>,
    /// What is wrong, if anything.
    pub problem: Option<Problem>,
    /// Who has a standing interest.
    pub consumers: Vec<ConsumerId>,
    /// How many local leases are open on it.
    pub local_leases: usize,
    /// Replaced credentials still inside their overlap: when each ends.
    pub retiring: Vec<RetiringReport>,
}

/// The lease under a secret.
#[derive(Debug, Clone)]
pub struct LeaseReport {
    /// The first characters of its keyed MAC: enough to correlate with the audit log.
    pub mac: String,
    /// When it was first granted.
    pub issued_at: BootInstant,
    /// The first grant's duration.
    pub first_duration: Duration,
    /// When the current grant ends.
    pub expires_at: BootInstant,
    /// Whether the source says it can be renewed.
    pub renewable: bool,
    /// Successful renewals so far.
    pub renewals: u32,
}

/// A replaced credential inside its overlap.
#[derive(Debug, Clone)]
pub struct RetiringReport {
    /// Its keyed MAC's first characters.
    pub mac: String,
    /// When it is revoked.
    pub ends_at: BootInstant,
    /// Set when revoking was not permitted: it lapses by itself at this time.
    pub lapses_at: Option<BootInstant>,
}

/// Running counters since start, also exported as metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Logins that worked.
    pub logins: u64,
    /// Upstream reads.
    pub fetches: u64,
    /// Lease renewals that worked.
    pub renewals: u64,
    /// Lease renewals that failed.
    pub renewals_failed: u64,
    /// Credentials replaced with overlap.
    pub replacements: u64,
    /// Reads of minting paths whose outcome is unknown.
    pub ambiguous_creates: u64,
    /// Effects that failed, of any kind.
    pub failures: u64,
    /// Entries evicted because they were idle.
    pub evictions: u64,
}
