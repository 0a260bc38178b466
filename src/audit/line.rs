//! One line of the log: the closed set of fields that `docs/audit.md` documents.

use jiff::Timestamp;
use serde::Serialize;

use super::AuditEvent;
use super::chain::{self, Head};
use crate::domain::SecretRef;
use crate::identity::Identity;

/// Encodes the line after `head`, line end included, and makes it the head.
pub(super) fn encode(at: Timestamp, instance: &str, head: &mut Head, body: Body<'_>) -> Vec<u8> {
    head.seq += 1;
    let prev = head.hash.to_string();
    let line = Line { time: time(at), seq: head.seq, instance, body, prev };
    let mut bytes = serde_json::to_vec(&line).expect("strings, numbers and booleans always encode");
    head.hash = chain::seal(&mut bytes);
    bytes
}

/// RFC 3339, UTC, always as long: times compare as text.
pub(super) fn time(at: Timestamp) -> String {
    format!("{at:.6}")
}

#[derive(Serialize)]
struct Line<'a> {
    /// First, because a line is found by its beginning when another one was cut off before it.
    time: String,
    seq: u64,
    instance: &'a str,
    #[serde(flatten)]
    body: Body<'a>,
    /// Hash of the line before; the line's own hash follows when it is sealed.
    prev: String,
}

/// What is said about one event. The first six are for [`AuditEvent`]s, the others are what the
/// log says about itself.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum Body<'a> {
    Decision {
        #[serde(flatten)]
        caller: Caller,
        #[serde(flatten)]
        secret: Secret<'a>,
        allowed: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
    },
    Upstream {
        action: &'a str,
        source: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
        outcome: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        subject_mac: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<&'a str>,
    },
    Served {
        #[serde(flatten)]
        caller: Caller,
        #[serde(flatten)]
        secret: Secret<'a>,
        served: u64,
    },
    Proof {
        #[serde(flatten)]
        caller: Caller,
        reason: &'a str,
        locked_out: bool,
    },
    Volume {
        volume: &'a str,
        action: &'a str,
        revision: &'a str,
    },
    Lifecycle {
        message: &'a str,
    },
    Coalesced {
        identity: &'a str,
        #[serde(flatten)]
        left_out: LeftOut,
    },
    Lost {
        lost: u64,
    },
}

/// What one caller did beyond its budget, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct LeftOut {
    pub(super) denied: u64,
    /// Permissions like one that has a line within the same second.
    pub(super) repeated: u64,
    pub(super) served: u64,
    /// Permissions that were not used, because they could not be recorded.
    pub(super) refused: u64,
}

#[derive(Serialize)]
pub(super) struct Caller {
    identity: String,
    listener: String,
    proof: String,
}

#[derive(Serialize)]
pub(super) struct Secret<'a> {
    source: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
}

impl<'a> From<&'a AuditEvent> for Body<'a> {
    fn from(event: &'a AuditEvent) -> Self {
        match event {
            AuditEvent::Decision { identity, secret, allowed, rule, reason } => Self::Decision {
                caller: identity.into(),
                secret: secret.into(),
                allowed: *allowed,
                rule: rule.as_ref().map(|rule| rule.as_str()),
                reason: reason.as_deref(),
            },
            AuditEvent::Upstream { action, source, secret, outcome, subject_mac, request_id } => {
                let secret = secret.as_ref().map(Secret::from);
                Self::Upstream {
                    action,
                    source: source.as_str(),
                    path: secret.as_ref().map(|secret| secret.path),
                    version: secret.as_ref().and_then(|secret| secret.version),
                    outcome,
                    subject_mac: subject_mac.as_deref(),
                    request_id: request_id.as_deref(),
                }
            }
            AuditEvent::Served { identity, secret, count } => {
                Self::Served { caller: identity.into(), secret: secret.into(), served: *count }
            }
            AuditEvent::Proof { identity, reason, locked_out } => {
                Self::Proof { caller: identity.into(), reason, locked_out: *locked_out }
            }
            AuditEvent::Volume { volume, action, revision } => {
                Self::Volume { volume: volume.as_str(), action, revision }
            }
            AuditEvent::Lifecycle { message } => Self::Lifecycle { message },
        }
    }
}

impl From<&Identity> for Caller {
    fn from(identity: &Identity) -> Self {
        Self {
            identity: identity.to_string(),
            listener: identity.listener().to_string(),
            proof: identity.strength().to_string(),
        }
    }
}

impl<'a> From<&'a SecretRef> for Secret<'a> {
    fn from(secret: &'a SecretRef) -> Self {
        Self {
            source: secret.source.as_str(),
            path: secret.path.as_str(),
            version: secret.version.map(std::num::NonZeroU64::get),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// One line of each kind with every field set.
    fn samples() -> Vec<Vec<u8>> {
        let mut head = Head::start("i");
        let events = events();
        let left_out = LeftOut::default();
        let own = [Body::Coalesced { identity: "uid:1", left_out }, Body::Lost { lost: 1 }];
        let bodies = events.iter().map(Body::from).chain(own);
        bodies.map(|body| encode(Timestamp::UNIX_EPOCH, "i", &mut head, body)).collect()
    }

    fn events() -> Vec<AuditEvent> {
        let identity = Identity::declared_volume("shop".parse().unwrap());
        let secret = SecretRef {
            source: "vault".parse().unwrap(),
            path: "secret/data/a".parse().unwrap(),
            version: std::num::NonZeroU64::new(3),
        };
        vec![
            AuditEvent::Decision {
                identity: identity.clone(),
                secret: secret.clone(),
                allowed: false,
                rule: Some("shop".parse().unwrap()),
                reason: Some("two\nlines".to_owned()),
            },
            AuditEvent::Upstream {
                action: "fetch",
                source: "vault".parse().unwrap(),
                secret: Some(secret.clone()),
                outcome: "ok".to_owned(),
                subject_mac: Some("ab".to_owned()),
                request_id: Some("r".to_owned()),
            },
            AuditEvent::Proof { identity: identity.clone(), reason: "no".into(), locked_out: true },
            AuditEvent::Served { identity, secret, count: 7 },
            AuditEvent::Volume {
                volume: "shop".parse().unwrap(),
                action: "published",
                revision: "..2026".to_owned(),
            },
            AuditEvent::Lifecycle { message: "started".to_owned() },
        ]
    }

    #[test]
    fn every_field_is_in_the_documented_table_and_the_table_has_no_other() {
        let mut in_code = BTreeSet::new();
        for line in samples() {
            let line: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(&line).unwrap();
            let kind = line["event"].as_str().unwrap().to_owned();
            in_code.extend(line.keys().map(|field| (kind.clone(), field.clone())));
        }
        let kinds: BTreeSet<String> = in_code.iter().map(|(kind, _)| kind.clone()).collect();
        let mut documented = BTreeSet::new();
        let page = include_str!("../../docs/audit.md").lines();
        let table = page.skip_while(|line| !line.starts_with("| field |"));
        let rows = table.take_while(|line| line.starts_with('|')).skip(2);
        for row in rows {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let field = cells[1].trim_matches('`');
            let of: Vec<&str> = match cells[2] {
                "all" => kinds.iter().map(String::as_str).collect(),
                some => some.split(", ").collect(),
            };
            documented.extend(of.into_iter().map(|kind| (kind.to_owned(), field.to_owned())));
        }
        assert_eq!(in_code, documented);
    }

    #[test]
    fn a_line_is_one_line_whatever_the_text_in_it() {
        for line in samples() {
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert!(line.starts_with(br#"{"time":""#) && line.ends_with(b"}\n"));
        }
    }

    #[test]
    fn each_line_names_the_hash_of_the_line_before() {
        let mut before = chain::LineHash::genesis("i");
        for (index, line) in samples().iter().enumerate() {
            let fields: serde_json::Value = serde_json::from_slice(line).unwrap();
            assert_eq!(fields["seq"], index + 1);
            assert_eq!(fields["prev"], before.to_string());
            before = chain::unseal(line.trim_ascii_end()).unwrap();
        }
    }
}
