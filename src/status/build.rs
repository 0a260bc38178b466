//! Makes the view from what the broker, the volumes and the agent say. Pure: facts in, view out.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::broker::report::{LeaseReport, Report, SecretReport, SessionReport, SourceReport};
use crate::clock::{BootInstant, Human};
use crate::domain::{ConsumerId, PathKind, SourceName};
use crate::identity::lock_out::LockedPod;
use crate::identity::pods::{DirectoryMode, DirectoryState};
use crate::source::SourceDescription;
use crate::status::view::{Clocks, rfc3339};
use crate::status::{
    Health, ItemStatus, ItemView, LeaseView, LimitView, LockedPodView, PodDirectoryView,
    SecretView, SessionView, SourceView, StatusView, VolumeStatus, VolumeView, cause, outlook,
};
use crate::telemetry::Limit;

/// What only the agent itself knows.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The agent's version.
    pub version: &'static str,
    /// When it started.
    pub started_at: BootInstant,
    /// Now, by the clock that decides.
    pub now: BootInstant,
    /// Now, by the clock that people read.
    pub wall_now: SystemTime,
    /// This process's name in the audit log.
    pub instance: String,
    /// Why the newest configuration is not in force, if it is not.
    pub config_problem: Option<String>,
    /// What a changed policy would take away, if it is held.
    pub policy_held: Option<String>,
    /// What the CSI driver waits for, if it does not serve the kubelet.
    pub csi_waits_for: Option<String>,
    /// Whether audit records are being taken.
    pub audit_healthy: bool,
    /// What each source is.
    pub sources: BTreeMap<SourceName, SourceDescription>,
    /// How the pod directory is.
    pub pod_directory: DirectoryState,
    /// Pods that the node socket is closed to.
    pub locked_out: Vec<LockedPod>,
    /// Protections of this process that are in force or missing.
    pub hardening: Vec<String>,
    /// Anything else worth knowing.
    pub notes: Vec<String>,
}

impl Facts {
    pub(super) fn clocks(&self) -> Clocks {
        Clocks { now: self.now, wall_now: self.wall_now }
    }
}

impl StatusView {
    /// The view of one instant. The report may be a little older than `facts.now`.
    pub fn new(report: &Report, volumes: &[VolumeStatus], facts: &Facts) -> Self {
        let clocks = facts.clocks();
        let causes = cause::causes(report, volumes, facts);
        let health = if causes.is_empty() { Health::Healthy } else { Health::Degraded };
        let lines: Vec<String> = causes.iter().map(|cause| cause.message.clone()).collect();
        Self {
            health,
            headline: lines.first().cloned().unwrap_or_else(|| summary(report, volumes, facts)),
            deadlines: outlook::deadlines(report, clocks),
            outlook: (health == Health::Degraded)
                .then(|| outlook::outlook(report, volumes, facts, &causes)),
            causes: lines,
            version: facts.version.to_owned(),
            instance: facts.instance.clone(),
            taken_at: rfc3339(facts.wall_now),
            uptime_seconds: facts.now.since(facts.started_at).as_secs(),
            sources: report.sources.iter().map(|source| self::source(source, facts)).collect(),
            sessions: report
                .sessions
                .iter()
                .map(|session| self::session(session, clocks))
                .collect(),
            secrets: report.secrets.iter().map(|secret| self::secret(secret, clocks)).collect(),
            volumes: volumes.iter().map(|volume| self::volume(volume, clocks)).collect(),
            pod_directory: pod_directory(&facts.pod_directory, clocks),
            locked_out: facts.locked_out.iter().map(|pod| locked_out(pod, clocks)).collect(),
            limits: report.limits.iter().map(limit).collect(),
            counters: report.counters.into(),
            hardening: facts.hardening.clone(),
            notes: facts.notes.clone(),
        }
    }
}

fn summary(report: &Report, volumes: &[VolumeStatus], facts: &Facts) -> String {
    format!(
        "{}, {} and {} in order, up {}",
        count(report.secrets.len(), "secret"),
        count(report.sources.len(), "source"),
        count(volumes.len(), "volume"),
        Human(facts.now.since(facts.started_at)),
    )
}

/// `1 secret`, `2 secrets`.
pub(super) fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

pub(super) fn kind_name(kind: PathKind) -> &'static str {
    match kind {
        PathKind::Kv => "kv",
        PathKind::Static => "static",
        PathKind::Minting => "dynamic",
    }
}

fn source(source: &SourceReport, facts: &Facts) -> SourceView {
    let clocks = facts.clocks();
    let description = facts.sources.get(&source.name);
    SourceView {
        name: source.name.to_string(),
        kind: description.map_or("", |description| description.kind).to_owned(),
        address: description.map(|description| description.address.clone()).unwrap_or_default(),
        namespace: description.and_then(|description| description.namespace.clone()),
        generated: description.is_some_and(|description| description.generated),
        reachable: source.reachable,
        since: clocks.moment(source.since),
        last_error: source.last_error.clone(),
        failures: source.failures,
        next_attempt: source.next_attempt.map(|at| clocks.moment(at)),
        in_flight: source.in_flight,
    }
}

fn session(session: &SessionReport, clocks: Clocks) -> SessionView {
    SessionView {
        source: session.source.to_string(),
        purpose: session.purpose.clone(),
        state: session.state.to_owned(),
        expires: session.expires_at.map(|at| clocks.moment(at)),
        renews: session.renew_at.map(|at| clocks.moment(at)),
        holders: session.holders,
        last_error: session.last_error.clone(),
    }
}

pub(super) fn secret(secret: &SecretReport, clocks: Clocks) -> SecretView {
    SecretView {
        secret: secret.secret.to_string(),
        kind: secret.kind.map(|kind| kind_name(kind).to_owned()),
        consumer: secret.consumer.as_ref().map(ConsumerId::to_string),
        state: secret.state.to_owned(),
        fetched: secret.fetched_at.map(|at| clocks.moment(at)),
        fresh_until: secret.fresh_until.map(|at| clocks.moment(at)),
        works_until: outlook::works_until(secret).map(|at| clocks.moment(at)),
        version: secret.version,
        lease: secret.lease.as_ref().map(|lease| self::lease(lease, clocks)),
        next: secret.next.map(|(what, _)| what.to_owned()),
        next_at: secret.next.map(|(_, at)| clocks.moment(at)),
        problem: secret.problem.as_ref().map(|problem| clocks.trouble(problem)),
        consumers: secret.consumers.iter().map(ConsumerId::to_string).collect(),
        local_leases: secret.local_leases,
        retiring: secret
            .retiring
            .iter()
            .map(|old| clocks.moment(old.lapses_at.unwrap_or(old.ends_at)))
            .collect(),
    }
}

fn lease(lease: &LeaseReport, clocks: Clocks) -> LeaseView {
    LeaseView {
        mac: lease.mac.clone(),
        issued: clocks.moment(lease.issued_at),
        expires: clocks.moment(lease.expires_at),
        first_duration_seconds: lease.first_duration.as_secs(),
        renewable: lease.renewable,
        renewals: lease.renewals,
    }
}

fn volume(volume: &VolumeStatus, clocks: Clocks) -> VolumeView {
    VolumeView {
        name: volume.name.to_string(),
        path: volume.path.display().to_string(),
        mount: volume.mount.clone(),
        revision: volume.revision.clone(),
        published: volume.published_at.map(|at| clocks.moment(at)),
        alarm: volume.alarm.clone(),
        items: volume.items.iter().map(|item| self::item(item, clocks)).collect(),
    }
}

fn item(item: &ItemStatus, clocks: Clocks) -> ItemView {
    ItemView {
        file: item.file.clone(),
        secret: item.secret.to_string(),
        state: item.state.to_owned(),
        fetched: item.fetched_at.map(|at| clocks.moment(at)),
        works_until: item.works_until.map(|at| clocks.moment(at)),
        version: item.version,
        problem: item.problem.as_ref().map(|problem| clocks.trouble(problem)),
    }
}

fn locked_out(locked: &LockedPod, clocks: Clocks) -> LockedPodView {
    LockedPodView {
        pod: locked.pod.to_string(),
        uid: locked.pod.uid.to_string(),
        since: clocks.moment(locked.since),
        until: clocks.moment(locked.until),
    }
}

fn pod_directory(state: &DirectoryState, clocks: Clocks) -> Option<PodDirectoryView> {
    (state.mode == DirectoryMode::ApiServer).then(|| PodDirectoryView {
        mode: "apiserver".to_owned(),
        synced: state.synced,
        pods: state.pods,
        heard: state.heard_at.map(|at| clocks.moment(at)),
        failing_since: state.failing.as_ref().map(|(since, _)| clocks.moment(*since)),
        last_error: state.failing.as_ref().map(|(_, error)| error.clone()),
    })
}

fn limit(limit: &Limit) -> LimitView {
    LimitView { name: limit.name.to_owned(), used: limit.used, cap: limit.cap, hits: limit.hits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Problem;
    use crate::source::ErrorClass;
    use crate::status::sample;

    fn view(report: &Report, volumes: &[VolumeStatus], facts: &Facts) -> StatusView {
        StatusView::new(report, volumes, facts)
    }

    #[test]
    fn the_json_keeps_its_field_names() {
        let (report, volumes, facts) = sample::healthy();
        let json = serde_json::to_value(view(&report, &volumes, &facts)).unwrap();
        let names = |value: &serde_json::Value| {
            let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(
            names(&json),
            "causes counters deadlines hardening headline health instance limits locked_out notes \
             outlook pod_directory secrets sessions sources taken_at uptime_seconds version volumes"
        );
        assert_eq!(
            names(&json["secrets"][0]),
            "consumer consumers fetched fresh_until kind lease local_leases next next_at problem \
             retiring secret state version works_until"
        );
        assert_eq!(
            names(&json["secrets"][0]["lease"]),
            "expires first_duration_seconds issued mac renewable renewals"
        );
        assert_eq!(json["secrets"][0]["lease"]["expires"]["in_seconds"], 400);
        assert_eq!(json["secrets"][0]["lease"]["expires"]["at"], "2027-01-15T08:06:40Z");
        assert_eq!(json["health"], "healthy");
    }

    #[test]
    fn json_survives_the_way_to_the_command_line() {
        let (report, volumes, facts) = sample::outage();
        let view = view(&report, &volumes, &facts);
        let json = serde_json::to_vec(&view).unwrap();
        assert_eq!(serde_json::from_slice::<StatusView>(&json).unwrap(), view);
    }

    #[test]
    fn a_denied_secret_in_use_degrades_and_names_the_missing_right() {
        let (mut report, volumes, facts) = sample::healthy();
        report.secrets[1].state = "denied";
        report.secrets[1].problem = Some(Problem {
            class: ErrorClass::Denied,
            message: "permission denied".to_owned(),
            since: facts.now,
            attempts: 2,
        });
        let view = view(&report, &volumes, &facts);
        assert_eq!(view.health, Health::Degraded);
        assert!(
            view.headline.contains("vault:secret/data/shop/web is denied"),
            "{}",
            view.headline
        );
        let to_do = view.outlook.unwrap().to_do;
        let policy = "let the Vault policy of the login that reads it (the agent's, or the role of \
                      its pods' service account) permit secret/data/shop/web";
        assert_eq!(to_do, [policy]);
        assert_eq!(view.deadlines.len(), 1);
    }

    #[test]
    fn a_refused_read_of_a_passer_by_is_not_the_agents_trouble() {
        let (mut report, volumes, facts) = sample::healthy();
        report.secrets[1].state = "not-found";
        report.secrets[1].consumers.clear();
        assert_eq!(view(&report, &volumes, &facts).health, Health::Healthy);
    }

    #[test]
    fn a_lost_directory_degrades_and_says_what_still_works() {
        let (report, volumes, mut facts) = sample::healthy();
        facts.pod_directory = DirectoryState {
            mode: DirectoryMode::ApiServer,
            synced: true,
            pods: 7,
            heard_at: Some(facts.now - std::time::Duration::from_secs(40)),
            failing: None,
        };
        let healthy = view(&report, &volumes, &facts);
        assert_eq!(healthy.health, Health::Healthy);
        let directory = healthy.pod_directory.unwrap();
        assert_eq!((directory.pods, directory.heard.unwrap().in_seconds), (7, -40));
        let since = facts.now - std::time::Duration::from_secs(30);
        facts.pod_directory.failing = Some((since, "connection refused".to_owned()));
        let lost = view(&report, &volumes, &facts);
        let expected = "no news of this node's pods for 30s: connection refused";
        assert_eq!((lost.health, lost.headline.as_str()), (Health::Degraded, expected));
        assert!(lost.outlook.unwrap().to_do[0].contains("list and watch pods"));
    }

    #[test]
    fn a_dead_audit_log_leads_and_a_refused_configuration_degrades() {
        let (report, volumes, mut facts) = sample::outage();
        facts.audit_healthy = false;
        facts.config_problem = Some("broker.toml:3: x".to_owned());
        let view = view(&report, &volumes, &facts);
        assert!(view.headline.starts_with("the audit log takes no records"));
        assert!(view.causes.last().unwrap().contains("broker.toml:3: x"));
    }

    #[test]
    fn a_held_policy_degrades_and_says_how_it_is_accepted() {
        let (report, volumes, mut facts) = sample::healthy();
        facts.policy_held = Some("3 of 4 volumes would lose secrets: …".to_owned());
        let view = view(&report, &volumes, &facts);
        assert_eq!(view.health, Health::Degraded);
        assert!(view.headline.contains("3 of 4 volumes"), "{}", view.headline);
        assert!(view.outlook.unwrap().to_do[0].contains("reload --accept"));
    }
}
