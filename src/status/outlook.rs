//! What stops working when, what still works, what a restart would lose and what recovery brings.

use crate::broker::report::{Report, SecretReport};
use crate::clock::{BootInstant, Human};
use crate::domain::{ConsumerId, PathKind, SourceName};
use crate::status::build::count;
use crate::status::cause::{Cause, is_in_trouble};
use crate::status::view::Clocks;
use crate::status::{DeadlineView, Facts, Outlook, VolumeStatus};

/// When a secret stops working: its value's end, or its lease's if that comes first.
pub(super) fn works_until(secret: &SecretReport) -> Option<BootInstant> {
    let lease = secret.lease.as_ref().map(|lease| lease.expires_at);
    secret.dead_at.into_iter().chain(lease).min()
}

/// Only what is at risk: secrets in trouble or of an unreachable source, and sessions of one.
pub(super) fn deadlines(report: &Report, clocks: Clocks) -> Vec<DeadlineView> {
    let secrets = report
        .secrets
        .iter()
        .filter(|secret| is_down(report, &secret.secret.source) || is_in_trouble(secret))
        .filter_map(|secret| Some((works_until(secret)?, self::secret(secret, clocks)?)));
    let sessions = report.sessions.iter().filter(|session| {
        session.state == "live"
            && (is_down(report, &session.source) || session.last_error.is_some())
    });
    let sessions = sessions.filter_map(|session| {
        let at = session.expires_at?;
        let deadline = DeadlineView {
            at: clocks.moment(at),
            what: format!("session {} ({})", session.source, session.purpose),
            effect: "its token ends, and the leases made with it".to_owned(),
            consumers: Vec::new(),
        };
        Some((at, deadline))
    });
    let mut all: Vec<(BootInstant, DeadlineView)> = secrets.chain(sessions).collect();
    all.sort_by(|(a, left), (b, right)| a.cmp(b).then_with(|| left.what.cmp(&right.what)));
    all.into_iter().map(|(_, deadline)| deadline).collect()
}

fn secret(secret: &SecretReport, clocks: Clocks) -> Option<DeadlineView> {
    let effect = match secret.kind {
        Some(PathKind::Minting) => "the credential ends",
        Some(PathKind::Static) => "the password is rotated away",
        Some(PathKind::Kv) | None => "sockets answer 503; files stay, marked stale",
    };
    Some(DeadlineView {
        at: clocks.moment(works_until(secret)?),
        what: secret.secret.to_string(),
        effect: effect.to_owned(),
        consumers: secret.consumers.iter().map(ConsumerId::to_string).collect(),
    })
}

fn is_down(report: &Report, source: &SourceName) -> bool {
    report.sources.iter().any(|report| report.name == *source && !report.reachable)
}

pub(super) fn outlook(
    report: &Report,
    volumes: &[VolumeStatus],
    facts: &Facts,
    causes: &[Cause],
) -> Outlook {
    let mut to_do: Vec<String> = Vec::new();
    for step in causes.iter().filter_map(|cause| cause.to_do.clone()) {
        if !to_do.contains(&step) {
            to_do.push(step);
        }
    }
    Outlook {
        works_now: works_now(report, volumes, facts),
        restart_would_lose: restart_would_lose(report, facts.now),
        on_recovery: on_recovery(report, facts.now),
        to_do,
    }
}

fn is_alive(secret: &SecretReport, now: BootInstant) -> bool {
    secret.fetched_at.is_some() && works_until(secret).is_none_or(|end| end > now)
}

fn works_now(report: &Report, volumes: &[VolumeStatus], facts: &Facts) -> Vec<String> {
    let total = report.secrets.len();
    let alive = report.secrets.iter().filter(|secret| is_alive(secret, facts.now)).count();
    let mut lines = vec![format!("{alive} of {} can be used", count(total, "cached secret"))];
    let published = volumes.iter().filter(|volume| volume.revision.is_some()).count();
    if !volumes.is_empty() {
        lines.push(format!(
            "files of {published} of {} are in place",
            count(volumes.len(), "volume")
        ));
    }
    let down: Vec<String> =
        report.sources.iter().filter(|s| !s.reachable).map(|s| s.name.to_string()).collect();
    if !down.is_empty() {
        lines.push(format!("secrets of {} that are not cached cannot be read", down.join(", ")));
    }
    lines
}

/// Without a journal a restart keeps neither values nor leases.
fn restart_would_lose(report: &Report, now: BootInstant) -> Vec<String> {
    let alive: Vec<&SecretReport> =
        report.secrets.iter().filter(|secret| is_alive(secret, now)).collect();
    let leased = alive.iter().filter(|secret| secret.lease.is_some()).count();
    let cut_off = alive.iter().filter(|secret| is_down(report, &secret.secret.source)).count();
    let mut lines = Vec::new();
    if leased > 0 {
        let credentials = count(leased, "leased credential");
        lines.push(format!("{credentials}: replaced on restart, as there is no journal"));
    }
    if cut_off > 0 {
        let values = count(cut_off, "cached value");
        lines
            .push(format!("{values} that cannot be fetched again while the source is unreachable"));
    }
    if lines.is_empty() {
        lines.push("nothing that is not fetched again at once".to_owned());
    }
    lines
}

fn on_recovery(report: &Report, now: BootInstant) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for source in report.sources.iter().filter(|source| !source.reachable) {
        let when = source.next_attempt.map_or_else(
            || "is tried again with the next read or renewal".to_owned(),
            |at| format!("is tried again by itself, next in {}", Human(now.until(at))),
        );
        lines.push(format!("source {} {when}", source.name));
    }
    let leased = |secret: &&SecretReport| secret.lease.is_some() && is_alive(secret, now);
    if report.secrets.iter().any(|secret| leased(&secret)) {
        lines.push(
            "leases that still live are renewed under the same ids; none is minted".to_owned(),
        );
    }
    lines.push("stale values are refreshed, files follow without a restart".to_owned());
    lines
}
