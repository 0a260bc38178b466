//! The operator view as plain data. Its JSON is an interface: fields are added, never renamed.
//!
//! No field can hold a secret value, a token or a full lease id.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::broker::Problem;
use crate::broker::report::Counters;
use crate::clock::{BootInstant, Human};

/// Everything about one agent at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// Whether everything does what it should.
    pub health: Health,
    /// Why it is degraded, the first cause in one line; what it serves when it is healthy.
    pub headline: String,
    /// Every cause, most important first; empty when healthy.
    pub causes: Vec<String>,
    /// What stops working when: only what is at risk, soonest first.
    pub deadlines: Vec<DeadlineView>,
    /// What holds during the trouble; absent when healthy.
    pub outlook: Option<Outlook>,
    /// The agent's version.
    pub version: String,
    /// This process's name in the audit log.
    pub instance: String,
    /// When the view was taken, RFC 3339.
    pub taken_at: String,
    /// How long the agent runs, in seconds.
    pub uptime_seconds: u64,
    /// The sources in name order.
    pub sources: Vec<SourceView>,
    /// The upstream sessions.
    pub sessions: Vec<SessionView>,
    /// The cached secrets.
    pub secrets: Vec<SecretView>,
    /// The volumes in name order.
    pub volumes: Vec<VolumeView>,
    /// The pod directory, where there is one.
    #[serde(default)]
    pub pod_directory: Option<PodDirectoryView>,
    /// Pods that the node socket is closed to, because they sent forged tokens.
    #[serde(default)]
    pub locked_out: Vec<LockedPodView>,
    /// Every bound and how far it is used.
    pub limits: Vec<LimitView>,
    /// Running counters since the start.
    pub counters: CountersView,
    /// Protections of this process that are in force or missing.
    pub hardening: Vec<String>,
    /// Anything else worth knowing.
    pub notes: Vec<String>,
}

/// Whether everything does what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It does.
    Healthy,
    /// Something is stale, refused, unreachable or alarmed.
    Degraded,
}

impl Health {
    /// `healthy` or `degraded`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
        }
    }
}

/// A point in time, absolute and as seen from when the view was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// RFC 3339, in UTC, by the wall clock.
    pub at: String,
    /// Seconds until then; negative when it has passed.
    pub in_seconds: i64,
}

impl Moment {
    /// `in 4m12s`, or `4m12s ago`.
    pub fn relative(&self) -> String {
        match self.in_seconds {
            0 => "now".to_owned(),
            1.. => format!("in {}", self.distance()),
            _ => format!("{} ago", self.distance()),
        }
    }

    /// `4m12s`, whichever side of now it is.
    pub fn distance(&self) -> String {
        match self.in_seconds.unsigned_abs() {
            0 => "0s".to_owned(),
            seconds => Human(Duration::from_secs(seconds)).to_string(),
        }
    }
}

/// A pod that the node socket is closed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedPodView {
    /// `namespace/name`.
    pub pod: String,
    /// Its uid.
    pub uid: String,
    /// Since when.
    pub since: Moment,
    /// Until when, unless an operator ends it.
    pub until: Moment,
}

/// The two clocks read together, to show one's instants in the other's terms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub(super) now: BootInstant,
    pub(super) wall_now: SystemTime,
}

impl Clocks {
    pub(super) fn moment(self, at: BootInstant) -> Moment {
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        let in_seconds =
            if at > self.now { seconds(self.now.until(at)) } else { -seconds(self.now.since(at)) };
        Moment { at: rfc3339(at.to_wall(self.now, self.wall_now)), in_seconds }
    }

    pub(super) fn trouble(self, problem: &Problem) -> TroubleView {
        TroubleView {
            class: problem.class.name().to_owned(),
            message: problem.message.clone(),
            since: self.moment(problem.since),
            attempts: problem.attempts,
        }
    }
}

/// RFC 3339 in whole seconds; a time no calendar holds becomes the epoch.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let timestamp = jiff::Timestamp::try_from(time).unwrap_or_default();
    format!("{timestamp:.0}")
}

/// Something that stops working at a known time unless the trouble ends before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadlineView {
    /// When.
    pub at: Moment,
    /// The secret or session.
    pub what: String,
    /// What happens then.
    pub effect: String,
    /// Whom it hits.
    pub consumers: Vec<String>,
}

/// What holds while something is wrong, one sentence per line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    /// What still works.
    pub works_now: Vec<String>,
    /// What a restart of the agent would lose now.
    pub restart_would_lose: Vec<String>,
    /// What happens by itself when the cause goes away.
    pub on_recovery: Vec<String>,
    /// What an operator can do.
    pub to_do: Vec<String>,
}

/// One source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceView {
    /// Its name.
    pub name: String,
    /// `vault` or `local`; empty if it is not known.
    pub kind: String,
    /// Vault's address or the local file.
    pub address: String,
    /// The Vault namespace.
    pub namespace: Option<String>,
    /// Credentials of this source are made up locally and honoured by no server.
    pub generated: bool,
    /// Whether the last call was answered.
    pub reachable: bool,
    /// Since when.
    pub since: Moment,
    /// The last failure.
    pub last_error: Option<String>,
    /// Failed calls in a row.
    pub failures: u32,
    /// When it is tried again.
    pub next_attempt: Option<Moment>,
    /// Calls running now.
    pub in_flight: usize,
}

/// One upstream session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// The source.
    pub source: String,
    /// `agent`, or `agent for volume:shop`.
    pub purpose: String,
    /// `none`, `logging-in`, `live`, `ended`.
    pub state: String,
    /// When its token ends.
    pub expires: Option<Moment>,
    /// When it is renewed or replaced.
    pub renews: Option<Moment>,
    /// Cache entries holding it.
    pub holders: usize,
    /// The last failure.
    pub last_error: Option<String>,
}

/// One cached secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretView {
    /// `source:path`, with `?version=` if one is pinned.
    pub secret: String,
    /// `kv`, `static`, `dynamic`; absent before the mount is known.
    pub kind: Option<String>,
    /// Whose dynamic credential it is.
    pub consumer: Option<String>,
    /// `fetching`, `fresh`, `stale`, `expired`, `denied`, `not-found`, `failed`.
    pub state: String,
    /// When the current value was requested.
    pub fetched: Option<Moment>,
    /// When it stops being fresh.
    pub fresh_until: Option<Moment>,
    /// When it stops working or being served.
    pub works_until: Option<Moment>,
    /// KV 2's version.
    pub version: Option<u64>,
    /// The lease, for leased secrets.
    pub lease: Option<LeaseView>,
    /// `renew`, `refresh`, `replace`, `retry` or `evict`.
    pub next: Option<String>,
    /// When that happens.
    pub next_at: Option<Moment>,
    /// What is wrong.
    pub problem: Option<TroubleView>,
    /// Who has a standing interest.
    pub consumers: Vec<String>,
    /// How many local leases there are on it.
    pub local_leases: usize,
    /// Replaced credentials inside their overlap: when each ends.
    pub retiring: Vec<Moment>,
}

/// The lease under a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// The first characters of its keyed MAC, as in the audit log.
    pub mac: String,
    /// When it was granted.
    pub issued: Moment,
    /// When the current grant ends.
    pub expires: Moment,
    /// The first grant, in seconds.
    pub first_duration_seconds: u64,
    /// Whether the source renews it.
    pub renewable: bool,
    /// Successful renewals so far.
    pub renewals: u32,
}

/// What is wrong with a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TroubleView {
    /// `unreachable`, `token-ended`, `denied`, `not-found`, `lease-ended`, `invalid-request`.
    pub class: String,
    /// The last failure.
    pub message: String,
    /// Since when.
    pub since: Moment,
    /// Attempts in a row.
    pub attempts: u32,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// Its name.
    pub name: String,
    /// Where applications find it.
    pub path: String,
    /// What it lies on.
    pub mount: String,
    /// The published revision.
    pub revision: Option<String>,
    /// When it was published.
    pub published: Option<Moment>,
    /// What is wrong with the volume as a whole.
    pub alarm: Option<String>,
    /// Its items.
    pub items: Vec<ItemView>,
}

/// One item of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemView {
    /// File name, or `*` for one file per key.
    pub file: String,
    /// The secret it shows.
    pub secret: String,
    /// `fresh`, `stale`, `expired`, `denied`, `gone`, `forbidden`, `waiting`.
    pub state: String,
    /// When the value in the file was requested.
    pub fetched: Option<Moment>,
    /// Until when it works or is served.
    pub works_until: Option<Moment>,
    /// KV 2's version.
    pub version: Option<u64>,
    /// What is wrong.
    pub problem: Option<TroubleView>,
}

/// What is known of this node's pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodDirectoryView {
    /// `apiserver`.
    pub mode: String,
    /// Whether the node's pods were listed at least once.
    pub synced: bool,
    /// How many pods are known.
    pub pods: usize,
    /// When the API server was last heard of.
    pub heard: Option<Moment>,
    /// Since when there is no news.
    pub failing_since: Option<Moment>,
    /// Why.
    pub last_error: Option<String>,
}

/// One bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitView {
    /// Its name: that of its setting, where it has one.
    pub name: String,
    /// How much is used; nothing for what every caller or request has for itself.
    pub used: Option<u64>,
    /// The cap.
    pub cap: u64,
    /// How often something was refused, left out or made to wait for it.
    pub hits: u64,
}

/// Running counters since the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersView {
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
    /// Upstream actions that failed.
    pub failures: u64,
    /// Entries evicted because they were idle.
    pub evictions: u64,
}

impl From<Counters> for CountersView {
    fn from(counters: Counters) -> Self {
        let Counters {
            logins,
            fetches,
            renewals,
            renewals_failed,
            replacements,
            ambiguous_creates,
            failures,
            evictions,
        } = counters;
        Self {
            logins,
            fetches,
            renewals,
            renewals_failed,
            replacements,
            ambiguous_creates,
            failures,
            evictions,
        }
    }
}
