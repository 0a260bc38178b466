//! Who read what and what we did upstream: one JSON line per decision and per upstream action.
//!
//! Identities and paths in clear; tokens and lease ids only as keyed HMAC-SHA256; values never.
//! No audit means no *new* secret: callers check the result of [`Audit::record`] before serving.
//! Renewals, ends and wipes are never blocked by it. Each line holds the hash of the one before,
//! and checkpoints go to a second place; [`verify`] checks both. One caller's flood is counted
//! instead of written. The fields are listed in `docs/audit.md`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::Sha256;
use tokio::sync::{Notify, mpsc};
use zeroize::Zeroizing;

use crate::clock::BootInstant;
use crate::domain::{LeaseId, RuleName, SecretRef, Token};
use crate::identity::Identity;

use budget::{Admission, Budgets, Place};

mod anchor;
mod budget;
mod chain;
mod limits;
mod line;
mod sink;
#[cfg(test)]
mod tests;
pub mod verify;
mod writer;

pub use writer::AuditWriter;

/// Records waiting for the writer. Decisions are per caller and secret, not per read, so this is
/// seconds of a busy node; when it is full, new secrets wait.
const QUEUE_RECORDS_MAX: usize = 1024;

/// Where the log goes.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// Where lines are written.
    pub output: Output,
    /// Whether deliveries record every single read instead of summaries.
    pub per_read: bool,
    /// Where checkpoints go beside the log: an append-only file, best on another device.
    pub anchor: Option<PathBuf>,
    /// The longest time for which a line is not covered by a checkpoint.
    pub anchor_interval: Duration,
    /// Lines one caller may make in a second; what is beyond is counted.
    pub lines_per_second_per_caller: u32,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            output: Output::Stdout,
            per_read: false,
            anchor: None,
            anchor_interval: Duration::from_secs(60),
            lines_per_second_per_caller: 200,
        }
    }
}

/// Where lines are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output, for a container's log collection.
    Stdout,
    /// A file, created with mode 0600; a symbolic link in its place is refused.
    File(PathBuf),
}

/// The log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file could not be opened for appending.
    #[error(
        "cannot append to the audit file '{}'; create its directory, or correct [audit]",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A device, socket or pipe.
    #[error(
        "the audit file '{}' is not a regular file; name one, or none, in [audit]",
        path.display()
    )]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Standard output is closed.
    #[error("cannot use standard output for the audit log")]
    Stdout(#[source] std::io::Error),
    /// A checkpoint could not be appended.
    #[error("cannot append to the audit anchor '{}'", path.display())]
    Anchor {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is in the log may not be on disk yet.
    #[error("cannot sync the audit log")]
    Sync(#[source] std::io::Error),
    /// The kernel gave no random bytes.
    #[error("cannot draw a key for the audit log: {0}")]
    Random(getrandom::Error),
}

/// A record was not taken, so what it is about must not happen if it serves something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRecorded {
    /// Full queue or failed writer: nobody is served anything new.
    #[error("audit log is not accepting records; no new secret is served until it does")]
    Down,
    /// This caller has used its share up; others have theirs.
    #[error("this caller makes more audit records than it may; ask for less, or a second later")]
    OverBudget,
}

/// What happened. Closed on purpose: a new kind is a reviewed change.
#[derive(Debug, Clone)]
pub enum AuditEvent {
    /// Policy decided about a caller.
    Decision {
        /// Who asked.
        identity: Identity,
        /// What for.
        secret: SecretRef,
        /// Whether it was allowed.
        allowed: bool,
        /// The deciding rule, `None` for default deny.
        rule: Option<RuleName>,
        /// Why it was denied, for operators.
        reason: Option<String>,
    },
    /// We did something upstream: login, fetch, renew-lease, revoke-lease, renew-token,
    /// end-session.
    Upstream {
        /// The action's name.
        action: &'static str,
        /// The source.
        source: crate::domain::SourceName,
        /// The secret, when one was concerned.
        secret: Option<SecretRef>,
        /// `ok`, or the error class.
        outcome: String,
        /// Keyed HMAC of the lease id or token concerned.
        subject_mac: Option<String>,
        /// Vault's request id.
        request_id: Option<String>,
    },
    /// Hits served from the snapshot since the last summary, per identity and secret.
    Served {
        /// Who.
        identity: Identity,
        /// What.
        secret: SecretRef,
        /// How often.
        count: u64,
    },
    /// A caller's token proved nothing.
    Proof {
        /// Who sent it, as placed by the kernel; of a volume's, the pod that the kubelet named.
        identity: Identity,
        /// What was wrong with it, for operators.
        reason: String,
        /// The pod is locked out from here on.
        locked_out: bool,
    },
    /// A volume published a revision or removed its files.
    Volume {
        /// The volume.
        volume: crate::domain::VolumeName,
        /// `published`, `removed`.
        action: &'static str,
        /// The revision's name.
        revision: String,
    },
    /// Start, stop, configuration reload.
    Lifecycle {
        /// What happened.
        message: String,
    },
}

/// Handle to the audit writer. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    queue: mpsc::Sender<Record>,
    shared: Arc<Shared>,
}

/// An event and when it happened; numbers are given where lines are written.
struct Record {
    at: Timestamp,
    event: AuditEvent,
    /// Held while the record waits; `None` for what no caller did.
    _place: Option<Place>,
}

/// What the handles and the writer both see.
struct Shared {
    /// Names this process in every line.
    instance: String,
    key: Zeroizing<[u8; 32]>,
    per_read: bool,
    /// The last write failed.
    failed: AtomicBool,
    /// Records that did not fit into the queue since the last line that said so.
    lost: AtomicU64,
    budgets: Budgets,
    reopen: Notify,
}

impl Audit {
    /// Opens the output. The writer must be run, or records are only taken until the queue is full.
    pub fn open(config: AuditConfig) -> Result<(Self, AuditWriter), AuditError> {
        Self::with_sink(sink::Sink::open(&config.output)?, config)
    }

    fn with_sink(sink: sink::Sink, config: AuditConfig) -> Result<(Self, AuditWriter), AuditError> {
        let anchor = config.anchor.map(anchor::AnchorFile::open).transpose()?;
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(key.as_mut_slice()).map_err(AuditError::Random)?;
        let instance = format!("{:016x}", getrandom::u64().map_err(AuditError::Random)?);
        let (queue, records) = mpsc::channel(QUEUE_RECORDS_MAX);
        let shared = Arc::new(Shared {
            instance,
            key,
            per_read: config.per_read,
            failed: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            budgets: Budgets::new(config.lines_per_second_per_caller, config.per_read),
            reopen: Notify::new(),
        });
        let schedule = anchor::Schedule::new(config.anchor_interval);
        let writer = AuditWriter::new(records, Arc::clone(&shared), sink, anchor, schedule);
        Ok((Self { queue, shared }, writer))
    }

    /// Queues a record, or counts it when its caller is over its budget; an error means that
    /// nothing new may be served.
    ///
    /// Never waits. While the output fails, records are still kept as long as they fit.
    pub fn record(&self, event: AuditEvent) -> Result<(), NotRecorded> {
        let free = self.queue.capacity();
        let place = match self.shared.budgets.admit(&event, free, BootInstant::now()) {
            None => None,
            Some(Admission::Line(place)) => Some(place),
            Some(Admission::Counted) => return self.unless_down(),
            Some(Admission::Refused) if free == 0 => return Err(NotRecorded::Down),
            Some(Admission::Refused) => return Err(NotRecorded::OverBudget),
        };
        let record = Record { at: Timestamp::now(), event, _place: place };
        if let Err(error) = self.queue.try_send(record) {
            self.shared.budgets.reached.queue.count_full(&error);
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return Err(NotRecorded::Down);
        }
        self.unless_down()
    }

    /// Counts a denial that is to have no line of its own; the count gets one after a second.
    pub fn count_denial(&self, identity: &Identity) {
        self.shared.budgets.count_denial(identity, BootInstant::now());
    }

    fn unless_down(&self) -> Result<(), NotRecorded> {
        let failed = self.shared.failed.load(Ordering::Relaxed) || self.queue.is_closed();
        if failed { Err(NotRecorded::Down) } else { Ok(()) }
    }

    /// Whether records are being taken right now.
    pub fn is_healthy(&self) -> bool {
        let failed = self.shared.failed.load(Ordering::Relaxed);
        !failed && !self.queue.is_closed() && self.queue.capacity() > 0
    }

    /// This process's name in the audit log: random, new at each start.
    pub fn instance(&self) -> &str {
        &self.shared.instance
    }

    /// Whether each read is to be recorded as [`AuditEvent::Served`] with a count of one.
    pub fn per_read(&self) -> bool {
        self.shared.per_read
    }

    /// Opens the file anew, after it was renamed for rotation. Lines go to the old file until the
    /// new one is open; without a file this does nothing.
    pub fn reopen(&self) {
        self.shared.reopen.notify_one();
    }

    /// Keyed HMAC of a lease id, hex. Equal ids have equal MACs within this process only.
    pub fn mac_lease(&self, lease: &LeaseId) -> String {
        self.shared.mac(lease.expose())
    }

    /// Keyed HMAC of a token, hex. Equal tokens have equal MACs within this process only.
    pub fn mac_token(&self, token: &Token) -> String {
        self.shared.mac(token.expose())
    }
}

impl Shared {
    fn mac(&self, text: &str) -> String {
        let key = self.key.as_slice();
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().iter().fold(String::new(), |mut hex, byte| {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}
