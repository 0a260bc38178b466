//! Why an agent is degraded: every cause with what to do about it, the root ones first.

use crate::broker::report::{Report, SecretReport, SessionReport, SourceReport};
use crate::clock::{BootInstant, Human};
use crate::domain::SourceName;
use crate::source::ErrorClass;
use crate::status::{Facts, VolumeStatus};

/// One reason.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cause {
    /// In one line.
    pub(super) message: String,
    /// What to do, if there is something to do.
    pub(super) to_do: Option<String>,
}

impl Cause {
    fn new(message: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self { message: message.into(), to_do: Some(to_do.into()) }
    }
}

/// Root causes first: what stops everything, then what explains the rest, then the rest.
pub(super) fn causes(report: &Report, volumes: &[VolumeStatus], facts: &Facts) -> Vec<Cause> {
    let mut causes = Vec::new();
    if !facts.audit_healthy {
        causes.push(Cause::new(
            "the audit log takes no records, so no new secret is served",
            "make the audit output writable again: free space, or restart what reads it",
        ));
    }
    if let Some(what) = &facts.csi_waits_for {
        causes.push(Cause::new(
            format!("pods get no volumes, waiting for {what}"),
            "look at the logs of the mounter and of the agent; volumes that are mounted stay",
        ));
    }
    let sources = report.sources.iter().filter(|source| !source.reachable);
    causes.extend(sources.map(|source| unreachable(source, facts.now)));
    let explained = |name: &SourceName| {
        report.sources.iter().any(|source| source.name == *name && !source.reachable)
    };
    let sessions = report.sessions.iter().filter(|session| !explained(&session.source));
    causes.extend(sessions.filter_map(session));
    let secrets = report.secrets.iter().filter(|secret| is_in_trouble(secret));
    causes.extend(
        secrets
            .filter(|secret| !(explained(&secret.secret.source) && is_outage(secret)))
            .map(|secret| self::secret(secret, facts.now)),
    );
    causes.extend(volumes.iter().flat_map(volume));
    if let Some((since, error)) = &facts.pod_directory.failing {
        let since = Human(facts.now.since(*since));
        causes.push(Cause::new(
            format!("no news of this node's pods for {since}: {error}"),
            "let the agent's service account list and watch pods, and look at the API server; \
             pods that are known go on being served",
        ));
    }
    if let Some(problem) = &facts.config_problem {
        causes.push(Cause::new(
            format!("the new configuration is refused and the old one in force: {problem}"),
            "run: secrets-broker check-config",
        ));
    }
    if let Some(impact) = &facts.policy_held {
        causes.push(Cause::new(
            format!("the changed policy is held and the old one in force: {impact}"),
            "correct the grants, or run: secrets-broker reload --accept; a restart accepts it too",
        ));
    }
    causes
}

/// Whether a secret is not as somebody who holds it expects. A refused read that nobody holds an
/// interest in (a mistyped path) is the reader's trouble, not the agent's; a value that nobody
/// holds any more is not refreshed when its `ttl` is over.
pub(super) fn is_in_trouble(secret: &SecretReport) -> bool {
    match secret.state {
        "stale" => !secret.consumers.is_empty() || secret.problem.is_some(),
        "expired" => true,
        "denied" | "not-found" | "failed" => !secret.consumers.is_empty(),
        _ => secret.problem.is_some(),
    }
}

/// Whether the trouble is that the source does not answer.
fn is_outage(secret: &SecretReport) -> bool {
    secret.problem.as_ref().is_none_or(|problem| problem.class == ErrorClass::Unreachable)
}

fn unreachable(source: &SourceReport, now: BootInstant) -> Cause {
    let error = source.last_error.as_deref().unwrap_or("no answer");
    let since = Human(now.since(source.since));
    Cause::new(
        format!("source {} unreachable for {since}: {error}", source.name),
        format!(
            "look at source {} itself (sealed? stopped? network?); do not restart the agent",
            source.name
        ),
    )
}

fn session(session: &SessionReport) -> Option<Cause> {
    let error = session.last_error.as_ref()?;
    if session.state == "live" {
        return None;
    }
    Some(Cause::new(
        format!("no session with source {} ({}): {error}", session.source, session.purpose),
        "compare the role (role of the source, for pods pod_role), auth_mount and the token \
         (token_file; its audience) with Vault's Kubernetes auth method",
    ))
}

fn secret(secret: &SecretReport, now: BootInstant) -> Cause {
    let name = &secret.secret;
    let Some(problem) = &secret.problem else {
        let message = format!("secret {name} is {}", secret.state);
        return Cause { message, to_do: None };
    };
    let attempts = problem.attempts;
    let since = Human(now.since(problem.since));
    let message = format!(
        "secret {name} is {}, for {since} and {attempts} attempts: {}",
        secret.state, problem.message
    );
    let path = &name.path;
    let to_do = match problem.class {
        ErrorClass::Denied => format!(
            "let the Vault policy of the login that reads it (the agent's, or the role of its \
             pods' service account) permit {path}"
        ),
        ErrorClass::NotFound => {
            format!("write {path} again, or remove it from the configuration or the pod's manifest")
        }
        ErrorClass::InvalidRequest => {
            format!("look at the role or back end behind {path} in Vault")
        }
        ErrorClass::Unreachable | ErrorClass::TokenEnded | ErrorClass::LeaseEnded => {
            return Cause { message, to_do: None };
        }
    };
    Cause::new(message, to_do)
}

/// Alarms, and files that are not as they should be for a reason no secret shows.
fn volume(volume: &VolumeStatus) -> Vec<Cause> {
    let name = &volume.name;
    let alarm = volume
        .alarm
        .iter()
        .map(|alarm| Cause { message: format!("volume {name}: {alarm}"), to_do: None });
    let forbidden = volume.items.iter().filter(|item| item.state == "forbidden").map(|item| {
        let to_do = if name.is_of_pod() {
            "add a grant for the pod's namespace and service account, or remove the item from the \
             pod's manifest"
                .to_owned()
        } else {
            format!("add a grant with who = {{ volume = \"{name}\" }}, or remove the item")
        };
        let message =
            format!("volume {name}: no rule permits {} (file {})", item.secret, item.file);
        Cause::new(message, to_do)
    });
    alarm.chain(forbidden).collect()
}
