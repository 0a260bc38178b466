//! Turns every answer of Vault, and every lack of one, into an error class. Pure.
//!
//! Doubt is transient: only words that Vault is known to use end a token or a lease, and whatever
//! does not look like Vault's own answer is no answer at all.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use super::decode::{self, Defect};
use super::text::quotable;
use crate::domain::PathKind;
use crate::source::{ErrorClass, SourceError};

/// Longest `Retry-After` that is passed on: a broken proxy must not silence us for days.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// What was asked of Vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Login,
    RenewToken,
    LookupToken,
    EndSession,
    ProbeMount,
    Fetch(PathKind),
    RenewLease,
    RevokeLease,
}

/// One call as its errors name it.
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    subject: &'a str,
    hidden: &'a str,
}

impl<'a> Call<'a> {
    /// `subject` is what messages name: a path or an auth mount.
    pub(super) fn new(operation: Operation, subject: &'a str) -> Self {
        Self { operation, subject, hidden: "" }
    }

    /// Takes `secret` out of everything Vault may say about this call.
    pub(super) fn hiding(self, secret: &'a str) -> Self {
        Self { hidden: secret, ..self }
    }

    /// Whether the request makes something upstream that its answer alone tells us of.
    fn creates(&self) -> bool {
        self.operation == Operation::Fetch(PathKind::Minting)
    }

    fn error(&self, class: ErrorClass, what: impl fmt::Display) -> SourceError {
        SourceError::new(class, format!("{self}: {what}"))
    }
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = self.subject;
        match self.operation {
            Operation::Login => write!(f, "log in at {subject}"),
            Operation::RenewToken => f.write_str("renew the session (auth/token/renew-self)"),
            Operation::LookupToken => f.write_str("look up the session (auth/token/lookup-self)"),
            Operation::EndSession => f.write_str("end the session (auth/token/revoke-self)"),
            Operation::ProbeMount => {
                write!(f, "ask for the mount (sys/internal/ui/mounts) of {subject}")
            }
            Operation::Fetch(_) => write!(f, "read {subject}"),
            Operation::RenewLease => write!(f, "renew the lease (sys/leases/renew) of {subject}"),
            Operation::RevokeLease => {
                write!(f, "revoke the lease (sys/leases/revoke) of {subject}")
            }
        }
    }
}

/// An answer that is not a success.
pub(super) struct Rejection<'a> {
    pub(super) status: u16,
    pub(super) retry_after: Option<&'a str>,
    pub(super) body: &'a [u8],
    /// The token it was asked with, or empty.
    pub(super) token: &'a str,
}

/// Why no answer came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The request never left.
    Unsent(String),
    /// The request left, its answer did not come whole.
    Lost(String),
    /// A redirect that is not followed; the request was not carried out.
    Redirect(&'static str),
    /// The answer is larger than this many bytes.
    TooLarge(usize),
    /// Nothing whole within this time.
    Deadline(Duration),
}

/// What a rejection means.
pub(super) enum Verdict {
    /// Known by itself.
    Settled(SourceError),
    /// 403: either the token ended or it may not do this; [`settle`] with a lookup of the token.
    TokenInDoubt(SourceError),
}

#[derive(Deserialize)]
struct VaultErrors {
    errors: Vec<String>,
}

/// Classifies an answer that is not a success; `now` dates a `Retry-After` given as a date.
pub(super) fn reject(call: &Call<'_>, answer: &Rejection<'_>, now: jiff::Timestamp) -> Verdict {
    let status = answer.status;
    if let (404, Operation::Fetch(PathKind::Kv), Some((version, destroyed))) =
        (status, call.operation, decode::deleted_version(answer.body))
    {
        let what = if destroyed { "destroyed" } else { "deleted" };
        let message = format!("version {version} was {what}; write a new version, or undelete it");
        return Verdict::Settled(call.error(ErrorClass::NotFound, message));
    }
    let errors = serde_json::from_slice::<VaultErrors>(answer.body).ok().map(|body| body.errors);
    let text = errors.as_ref().map(|errors| quotable(errors, &[answer.token, call.hidden]));
    let Some(text) = text else {
        let what = match status {
            429 => "rate limited, not by Vault itself",
            _ => "not in Vault's words: is there a proxy in between, or another service?",
        };
        let mut error = call.error(ErrorClass::Unreachable, format!("answered {status}, {what}"));
        error.retry_after = retry_after(answer.retry_after, now);
        error.ambiguous = call.creates() && status != 429;
        return Verdict::Settled(error);
    };
    let class = class(call.operation, status, &text);
    let quoted = if text.is_empty() { "no reason given" } else { &text };
    let remedy = remedy(call.operation, status, class, &text);
    let message = format!("Vault answered {status}: {quoted}{remedy}");
    let mut error = call.error(class.unwrap_or(ErrorClass::Denied), message);
    error.retry_after = retry_after(answer.retry_after, now);
    error.ambiguous = call.creates() && status >= 500 && !refused_before_work(status, &text);
    match class {
        Some(_) => Verdict::Settled(error),
        None => Verdict::TokenInDoubt(error),
    }
}

/// Completes a 403 with what looking the same token up gave.
pub(super) fn settle(
    call: &Call<'_>,
    mut denied: SourceError,
    lookup: Result<(), SourceError>,
) -> SourceError {
    match lookup {
        Ok(()) => {
            denied.class = ErrorClass::Denied;
            denied.message.push_str(permission_remedy(call.operation));
        }
        Err(error) if error.class == ErrorClass::TokenEnded => {
            denied.class = ErrorClass::TokenEnded;
            denied.message.push_str(
                "; the session's token has ended (or may not look itself up: roles with \
                 token_no_default_policy need `read` on auth/token/lookup-self)",
            );
        }
        Err(error) => {
            denied.class = ErrorClass::Unreachable;
            denied.retry_after = error.retry_after;
            denied.message.push_str("; whether the token still lives is unknown: ");
            denied.message.push_str(&error.message);
        }
    }
    denied
}

/// The error of a call that got no answer.
pub(super) fn unanswered(call: &Call<'_>, failure: &Failure) -> SourceError {
    let class = match failure {
        Failure::TooLarge(_) => ErrorClass::InvalidRequest,
        _ => ErrorClass::Unreachable,
    };
    let mut error = match failure {
        Failure::Unsent(why) => call.error(class, format!("cannot connect to Vault: {why}")),
        Failure::Lost(why) => call.error(class, format!("no whole answer: {why}")),
        Failure::Redirect(what) => call.error(
            class,
            format!("foreign redirect {what} was not followed; set address to the active node's"),
        ),
        Failure::TooLarge(cap) => call.error(class, format!("answer is larger than {cap} bytes")),
        Failure::Deadline(after) => {
            call.error(class, format!("no whole answer within {} ms", after.as_millis()))
        }
    };
    error.ambiguous =
        call.creates() && !matches!(failure, Failure::Unsent(_) | Failure::Redirect(_));
    error
}

/// The error of a success whose content is of no use.
pub(super) fn unusable(call: &Call<'_>, defect: Defect) -> SourceError {
    let mut error = match defect {
        Defect::NotVault => call.error(
            ErrorClass::Unreachable,
            "the answer is not Vault's, or was cut short: is there a proxy in between?",
        ),
        Defect::NoData => call.error(
            ErrorClass::InvalidRequest,
            "Vault answered without data; is this the path of a readable secret?",
        ),
        Defect::Mfa => call.error(
            ErrorClass::InvalidRequest,
            "Vault wants a second factor; exempt this auth mount from login MFA",
        ),
        Defect::LimitedUses(uses) => call.error(
            ErrorClass::InvalidRequest,
            format!(
                "refused, the role's tokens end after {uses} uses; set token_num_uses=0 on the role"
            ),
        ),
    };
    error.ambiguous = call.creates();
    error
}

/// `None` is a 403 that only the token itself can explain.
fn class(operation: Operation, status: u16, text: &str) -> Option<ErrorClass> {
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    Some(match (status, operation) {
        (400, Operation::RenewLease | Operation::RevokeLease)
            if says(LEASE_ENDED) && !says(&["failed to"]) =>
        {
            ErrorClass::LeaseEnded
        }
        (403, Operation::Login) => ErrorClass::Denied,
        (403, Operation::LookupToken) => ErrorClass::TokenEnded,
        (403, _) if says(&["invalid token", "bad token"]) => ErrorClass::TokenEnded,
        (403, _) => return None,
        (404, Operation::Fetch(_)) => ErrorClass::NotFound,
        (412 | 429 | 472 | 473, _) => ErrorClass::Unreachable,
        (400..500, _) => ErrorClass::InvalidRequest,
        _ => ErrorClass::Unreachable,
    })
}

/// What `sys/leases/*` says of a lease that is gone; a failing back end says "failed to …".
const LEASE_ENDED: &[&str] =
    &["lease not found", "lease expired", "invalid lease", "lease is not renewable"];

/// Whether Vault refused before the engine was asked, so nothing can have been made.
fn refused_before_work(status: u16, text: &str) -> bool {
    let refusals = ["sealed", "standby", "not active", "active cluster node", "locked"];
    match status {
        501 => true,
        503 => refusals.iter().any(|word| text.contains(word)),
        _ => false,
    }
}

fn remedy(op: Operation, status: u16, class: Option<ErrorClass>, text: &str) -> &'static str {
    let login = op == Operation::Login;
    match status {
        400 if login => "; does this role exist on that auth mount?",
        403 if login && text.contains("audience") => {
            "; make the audience of the projected token the one that the role asks for"
        }
        403 if login && text.contains("expired") => {
            "; token_file holds an expired token: is it the kubelet's projected token?"
        }
        403 if login => {
            "; enable the Kubernetes auth method there (auth_mount), bind the service account's \
             name and namespace in this role, and let Vault use TokenReview"
        }
        404 if login => "; is the Kubernetes auth method enabled there? see auth_mount",
        503 if text.contains("sealed") => "; unseal Vault",
        _ if class == Some(ErrorClass::TokenEnded) => "; the session's token has ended",
        _ => "",
    }
}

fn permission_remedy(operation: Operation) -> &'static str {
    match operation {
        Operation::Fetch(_) => "; allow `read` on this path in a policy of the Vault role",
        Operation::ProbeMount => {
            "; allow any right below the mount, or set the mount's kind under `mounts`"
        }
        Operation::RenewLease => "; allow `update` on sys/leases/renew",
        Operation::RevokeLease => {
            "; allow `update` on sys/leases/revoke, or let replaced leases lapse"
        }
        Operation::RenewToken => "; allow `update` on auth/token/renew-self",
        Operation::EndSession => "; allow `update` on auth/token/revoke-self",
        Operation::Login | Operation::LookupToken => "",
    }
}

fn retry_after(header: Option<&str>, now: jiff::Timestamp) -> Option<Duration> {
    let header = header?.trim();
    let wait = match header.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(header).ok()?;
            Duration::try_from(date.duration_since(now)).unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let now: jiff::Timestamp = "1994-11-06T08:49:30Z".parse().unwrap();
        let wait = |header| retry_after(Some(header), now).map(|wait| wait.as_secs());
        assert_eq!(wait("7"), Some(7));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(7));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:00 GMT"), Some(0));
        assert_eq!(wait("99999999999"), Some(3_600));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-3"), None);
    }

    #[test]
    fn only_a_read_that_mints_can_be_ambiguous() {
        let lost = Failure::Lost("connection closed".into());
        for (operation, ambiguous) in [
            (Operation::Fetch(PathKind::Minting), true),
            (Operation::Fetch(PathKind::Kv), false),
            (Operation::Fetch(PathKind::Static), false),
            (Operation::Login, false),
            (Operation::RenewLease, false),
        ] {
            let call = Call::new(operation, "database/creds/shop");
            assert_eq!(unanswered(&call, &lost).ambiguous, ambiguous, "{operation:?}");
            let unsent = Failure::Unsent("refused".into());
            assert!(!unanswered(&call, &unsent).ambiguous);
            assert!(!unanswered(&call, &Failure::Redirect("to another host")).ambiguous);
        }
    }
}
