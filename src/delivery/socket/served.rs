//! How often a secret was served on a connection, for the audit log: a count per minute, or a
//! record per read.

use std::time::Duration;

use crate::audit::{Audit, AuditEvent, NotRecorded};
use crate::clock::BootInstant;
use crate::domain::SecretRef;
use crate::identity::Identity;

/// How long reads are counted before they are recorded; the idle timeout bounds it for connections
/// that fall silent, because the rest is recorded when the connection ends.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(60);

/// Reads not yet recorded, of one secret by one caller on one connection.
pub(super) struct Served {
    audit: Audit,
    per_read: bool,
    identity: Identity,
    secret: SecretRef,
    count: u64,
    since: BootInstant,
}

impl Served {
    /// Starts counting.
    pub(super) fn new(
        audit: Audit,
        per_read: bool,
        identity: Identity,
        secret: SecretRef,
        now: BootInstant,
    ) -> Self {
        Self { audit, per_read, identity, secret, count: 0, since: now }
    }

    /// Notes one read. Fails only if every read must be recorded and this one could not be; a
    /// summary that cannot be recorded now is kept for later.
    pub(super) fn note(&mut self, now: BootInstant) -> Result<(), NotRecorded> {
        self.count += 1;
        if self.per_read {
            return self.record().inspect_err(|_| self.count -= 1);
        }
        if now.since(self.since) >= SUMMARY_INTERVAL && self.record().is_ok() {
            self.since = now;
        }
        Ok(())
    }

    fn record(&mut self) -> Result<(), NotRecorded> {
        self.audit.record(AuditEvent::Served {
            identity: self.identity.clone(),
            secret: self.secret.clone(),
            count: self.count,
        })?;
        self.count = 0;
        Ok(())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.count > 0 && self.record().is_err() {
            tracing::warn!(
                identity = %self.identity, secret = %self.secret, count = self.count,
                "audit log is not accepting records: a summary of served reads is lost"
            );
        }
    }
}
