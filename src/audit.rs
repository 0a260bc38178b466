//! Who read what and what we did upstream: one JSON line per decision and per upstream action.
//!
//! Identities and paths in clear; tokens and lease ids only as keyed HMAC-SHA256; values never.
//! No audit means no *new* secret: callers check the result of [`Audit::record`] before serving one.
//! Renewals, ends and wipes are never blocked by it.

use crate::domain::{LeaseId, RuleName, SecretRef, Token};
use crate::identity::Identity;

/// The audit log cannot take records: full queue or failed writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("audit log is not accepting records; no new secret is served until it does")]
pub struct AuditDown;

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
    /// We did something upstream: login, fetch, renew-lease, revoke-lease, renew-token, end-session.
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
pub struct Audit {}

impl Audit {
    /// Queues a record; an error means nothing new may be served.
    pub fn record(&self, event: AuditEvent) -> Result<(), AuditDown> {
        todo!()
    }

    /// Whether records are being taken right now.
    pub fn is_healthy(&self) -> bool {
        todo!()
    }

    /// Keyed HMAC of a lease id, hex.
    pub fn mac_lease(&self, lease: &LeaseId) -> String {
        todo!()
    }

    /// Keyed HMAC of a token, hex.
    pub fn mac_token(&self, token: &Token) -> String {
        todo!()
    }
}
