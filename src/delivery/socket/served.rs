//! How often a secret was served to a caller, for the audit log: a count per minute, or a record
//! per read.

use std::time::Duration;

use crate::audit::{Audit, AuditEvent, NotRecorded};
use crate::clock::BootInstant;
use crate::policy::Authorized;

/// How long reads are counted before they are recorded.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(60);

/// Reads not yet recorded, of one secret by one caller, and the decision that allows them.
pub(super) struct Served {
    count: u64,
    since: BootInstant,
    per_read: bool,
    authorized: Authorized,
    audit: Audit,
}

impl Served {
    /// Starts counting.
    pub(super) fn new(
        audit: Audit,
        per_read: bool,
        authorized: Authorized,
        now: BootInstant,
    ) -> Self {
        Self { count: 0, since: now, per_read, authorized, audit }
    }

    /// The newest decision.
    #[inline]
    pub(super) fn authorized(&self) -> &Authorized {
        &self.authorized
    }

    /// Goes on under a new decision about the same caller and secret.
    pub(super) fn renew(&mut self, authorized: Authorized) {
        self.authorized = authorized;
    }

    /// Notes one read. Fails only if every read must be recorded and this one could not be; a
    /// summary that cannot be recorded now is kept for later.
    pub(super) fn note(&mut self, now: BootInstant) -> Result<(), NotRecorded> {
        self.count += 1;
        if self.per_read {
            return self.record().inspect_err(|_| self.count -= 1);
        }
        self.record_due(now);
        Ok(())
    }

    /// Records what was counted for long enough; whether that made a line. While the log takes
    /// no records it is counted on: what is kept for the log in an outage would be counted twice.
    pub(super) fn record_due(&mut self, now: BootInstant) -> bool {
        let is_due = self.count > 0 && now.since(self.since) >= SUMMARY_INTERVAL;
        let is_recorded = is_due && self.audit.is_healthy() && self.record().is_ok();
        if is_recorded {
            self.since = now;
        }
        is_recorded
    }

    /// Reads that no line says yet.
    #[cfg(test)]
    pub(super) fn unrecorded(&self) -> u64 {
        self.count
    }

    fn record(&mut self) -> Result<(), NotRecorded> {
        self.audit.record(AuditEvent::Served {
            identity: self.authorized.identity().clone(),
            secret: self.authorized.secret().clone(),
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
                identity = %self.authorized.identity(), secret = %self.authorized.secret(),
                count = self.count,
                "audit log is not accepting records: a summary of served reads is lost"
            );
        }
    }
}
