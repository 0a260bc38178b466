//! OpenMetrics text: what is counted as it happens, and what the reports say at scrape time.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::broker::report::{Counters, Report, SourceReport};
use crate::clock::BootInstant;
use crate::identity::pods::{DirectoryMode, DirectoryState};
use crate::status::VolumeStatus;
use crate::telemetry::{Limit, Metrics};

/// What the text is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All is well; some secret has a problem; the volume has an alarm; nothing is published yet.
const POD_VOLUME_STATES: [&str; 4] = ["current", "problem", "alarm", "waiting"];

type Labelled = Family<Vec<(&'static str, String)>, Gauge<f64, AtomicU64>>;

/// Everything there is to measure, as OpenMetrics text. No path, consumer or id is a label.
pub fn render(
    metrics: &Metrics,
    report: &Report,
    volumes: &[VolumeStatus],
    pods: &DirectoryState,
) -> String {
    let mut text = String::with_capacity(16 * 1024);
    let mut registry = Registry::with_prefix("secrets_broker");
    register_counters(&mut registry, &report.counters);
    register_sources(&mut registry, &report.sources, report.taken_at);
    register_secrets(&mut registry, report);
    register_limits(&mut registry, report.limits.iter().chain(&metrics.limits()));
    register_volumes(&mut registry, volumes);
    register_pod_directory(&mut registry, pods, report.taken_at);
    let encoded = metrics
        .encode(&mut text)
        .and_then(|()| encode_registry(&mut text, &registry))
        .and_then(|()| encode_eof(&mut text));
    encoded.expect("writing to a String cannot fail");
    text
}

fn register_counters(registry: &mut Registry, counters: &Counters) {
    for (name, help, value) in [
        ("logins", "Logins that worked", counters.logins),
        ("fetches", "Upstream reads", counters.fetches),
        ("lease_renewals", "Lease renewals that worked", counters.renewals),
        ("lease_renewals_failed", "Lease renewals that failed", counters.renewals_failed),
        ("replacements", "Credentials replaced with overlap", counters.replacements),
        ("ambiguous_creates", "Mints of unknown outcome", counters.ambiguous_creates),
        ("effects_failed", "Upstream effects that failed", counters.failures),
        ("evictions", "Idle entries evicted", counters.evictions),
    ] {
        registry.register(name, help, ConstCounter::new(value));
    }
}

fn register_sources(registry: &mut Registry, sources: &[SourceReport], now: BootInstant) {
    let gauge = |registry: &mut Registry, name, help, value: &dyn Fn(&SourceReport) -> f64| {
        let family = Labelled::default();
        for source in sources {
            set(&family, [("source", source.name.to_string())], value(source));
        }
        registry.register(name, help, family);
    };
    gauge(registry, "source_reachable", "Whether the last call was answered", &|source| {
        f64::from(u8::from(source.reachable))
    });
    gauge(registry, "source_failures", "Failed calls in a row", &|source| {
        f64::from(source.failures)
    });
    gauge(registry, "source_state_seconds", "Time in this reachability state", &|source| {
        now.since(source.since).as_secs_f64()
    });
    gauge(registry, "source_calls_in_flight", "Calls running now", &|source| {
        count(source.in_flight)
    });
}

fn register_secrets(registry: &mut Registry, report: &Report) {
    let (mut states, mut oldest, mut soonest) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for secret in &report.secrets {
        *states.entry(secret.state).or_insert(0_usize) += 1;
        let source = &secret.secret.source;
        if let Some(fetched_at) = secret.fetched_at {
            let age = report.taken_at.since(fetched_at);
            let known = oldest.entry(source).or_insert(age);
            *known = age.max(*known);
        }
        if let Some(lease) = &secret.lease {
            let left = report.taken_at.until(lease.expires_at);
            let known = soonest.entry(source).or_insert(left);
            *known = left.min(*known);
        }
    }
    let family = Labelled::default();
    for (state, number) in states {
        set(&family, [("state", state.to_owned())], count(number));
    }
    registry.register("secrets", "Cached secrets by state", family);
    for (name, help, values) in [
        ("secret_age_seconds_max", "Age of the oldest cached value", oldest),
        ("lease_expiry_seconds_min", "Time until the first lease ends", soonest),
    ] {
        let family = Labelled::default();
        for (source, value) in values {
            set(&family, [("source", source.to_string())], value.as_secs_f64());
        }
        registry.register(name, help, family);
    }
    let family = Labelled::default();
    for session in &report.sessions {
        let labels =
            vec![("source", session.source.to_string()), ("state", session.state.to_owned())];
        family.get_or_create(&labels).inc();
    }
    registry.register("sessions", "Upstream sessions by state", family);
}

fn register_limits<'a>(registry: &mut Registry, limits: impl Iterator<Item = &'a Limit>) {
    let (used, cap, hits) = (Labelled::default(), Labelled::default(), Labelled::default());
    for limit in limits {
        let label = || [("limit", limit.name.to_owned())];
        if let Some(share) = limit.used {
            set(&used, label(), share as f64);
        }
        set(&cap, label(), limit.cap as f64);
        set(&hits, label(), limit.hits as f64);
    }
    registry.register("limit_used", "How much of a limit is used", used);
    registry.register("limit_cap", "The limit", cap);
    registry.register("limit_reached", "How often a limit was reached since start", hits);
}

fn register_volumes(registry: &mut Registry, volumes: &[VolumeStatus]) {
    let (alarm, problems, pods) = (Labelled::default(), Labelled::default(), Labelled::default());
    for state in POD_VOLUME_STATES {
        set(&pods, [("state", state.to_owned())], 0.0);
    }
    for volume in volumes {
        let failing = volume.items.iter().filter(|item| item.problem.is_some()).count();
        if volume.name.is_of_pod() {
            // Pods come and go, and each name would be a series for good.
            let state = pod_volume_state(volume, failing);
            pods.get_or_create(&vec![("state", state.to_owned())]).inc();
            continue;
        }
        let label = || [("volume", volume.name.to_string())];
        set(&alarm, label(), f64::from(u8::from(volume.alarm.is_some())));
        set(&problems, label(), count(failing));
    }
    registry.register("volume_alarm", "Whether a declared volume has an alarm", alarm);
    registry.register(
        "volume_items_with_problem",
        "Items of a declared volume whose secret has a problem",
        problems,
    );
    registry.register("pod_volumes", "Pods' volumes by state", pods);
}

/// Without a directory there is nothing to say.
fn register_pod_directory(registry: &mut Registry, pods: &DirectoryState, now: BootInstant) {
    let (up, known, quiet) = (Labelled::default(), Labelled::default(), Labelled::default());
    if pods.mode == DirectoryMode::ApiServer {
        let mode = || [("mode", "apiserver".to_owned())];
        set(&up, mode(), f64::from(u8::from(pods.synced && pods.failing.is_none())));
        set(&known, mode(), count(pods.pods));
        if let Some(heard_at) = pods.heard_at {
            set(&quiet, mode(), now.since(heard_at).as_secs_f64());
        }
    }
    registry.register("pod_directory_up", "Whether the API server tells of pods", up);
    registry.register("pod_directory_pods", "Pods of this node that are known", known);
    registry.register(
        "pod_directory_quiet_seconds",
        "Time since the API server was last heard of",
        quiet,
    );
}

/// The worst that is true of it.
fn pod_volume_state(volume: &VolumeStatus, failing: usize) -> &'static str {
    let [current, problem, alarm, waiting] = POD_VOLUME_STATES;
    match (&volume.revision, &volume.alarm, failing) {
        (None, ..) => waiting,
        (Some(_), Some(_), _) => alarm,
        (Some(_), None, 1..) => problem,
        (Some(_), None, 0) => current,
    }
}

fn set<const N: usize>(family: &Labelled, labels: [(&'static str, String); N], value: f64) {
    family.get_or_create(&labels.to_vec()).set(value);
}

/// Numbers of things stay far below where a double loses whole numbers.
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Pod, ServiceAccount, VolumeName};
    use crate::identity::pods::PodDirectory;
    use std::time::Duration;

    #[test]
    fn pods_volumes_are_counted_by_state_and_not_named() {
        let pod: VolumeName = VolumeName::of_pod(
            &Pod {
                account: ServiceAccount {
                    namespace: "shop".parse().unwrap(),
                    name: "web".parse().unwrap(),
                    uid: "u".parse().unwrap(),
                },
                name: "web-0".parse().unwrap(),
                uid: "11111111-2222-3333-4444-555555555555".parse().unwrap(),
            },
            &"db".parse().unwrap(),
        );
        let volume =
            |name: &VolumeName, revision: Option<&str>, alarm: Option<&str>| VolumeStatus {
                name: name.clone(),
                path: "/v".into(),
                mount: "tmpfs".to_owned(),
                revision: revision.map(str::to_owned),
                published_at: None,
                links_missing: false,
                alarm: alarm.map(str::to_owned),
                items: Vec::new(),
            };
        let declared = "shop".parse().unwrap();
        let volumes = [
            volume(&pod, Some("..1"), None),
            volume(&pod, Some("..1"), Some("full")),
            volume(&pod, None, Some("full")),
            volume(&declared, Some("..1"), Some("full")),
        ];
        let pods = PodDirectory::none().state();
        let text = render(&Metrics::new(), &Report::default(), &volumes, &pods);
        for line in [
            r#"secrets_broker_pod_volumes{state="current"} 1.0"#,
            r#"secrets_broker_pod_volumes{state="problem"} 0.0"#,
            r#"secrets_broker_pod_volumes{state="alarm"} 1.0"#,
            r#"secrets_broker_pod_volumes{state="waiting"} 1.0"#,
            r#"secrets_broker_volume_alarm{volume="shop"} 1.0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("web-0"));
        assert!(!text.lines().any(|line| line.starts_with("secrets_broker_pod_directory")));
    }

    #[test]
    fn a_directory_says_whether_it_is_up_and_how_long_it_has_been_quiet() {
        let at = |seconds| BootInstant::default() + Duration::from_secs(seconds);
        let pods = DirectoryState {
            mode: DirectoryMode::ApiServer,
            synced: true,
            pods: 12,
            heard_at: Some(at(60)),
            failing: None,
        };
        let report = Report { taken_at: at(100), ..Report::default() };
        let text = |pods: &DirectoryState| render(&Metrics::new(), &report, &[], pods);
        let up = text(&pods);
        for (name, value) in [("up", "1.0"), ("pods", "12.0"), ("quiet_seconds", "40.0")] {
            let line = format!("secrets_broker_pod_directory_{name}{{mode=\"apiserver\"}} {value}");
            assert!(up.lines().any(|found| found == line), "{line} in\n{up}");
        }
        let failing = Some((at(90), "connection refused".to_owned()));
        let down = text(&DirectoryState { failing, ..pods });
        assert!(down.contains("pod_directory_up{mode=\"apiserver\"} 0.0"), "{down}");
    }

    #[test]
    fn a_scrape_has_the_counters_the_sources_and_one_end() {
        let taken_at = BootInstant::default() + Duration::from_secs(100);
        let source = SourceReport {
            name: "vault".parse().unwrap(),
            reachable: false,
            since: taken_at - Duration::from_secs(42),
            last_error: Some("connection refused".into()),
            failures: 3,
            next_attempt: None,
            in_flight: 1,
        };
        let counters = Counters { renewals: 7, ..Counters::default() };
        let (sources, limits) = (vec![source], vec![Limit::shared("entries", 5, 10, 2)]);
        let metrics = Metrics::new();
        metrics.watch_limit(|| Limit::each("connections_per_user", 128, 3));
        let report = Report { taken_at, sources, limits, counters, ..Report::default() };
        let pods = PodDirectory::none().state();
        let text = render(&metrics, &report, &[], &pods);
        for line in [
            "secrets_broker_lease_renewals_total 7",
            r#"secrets_broker_source_reachable{source="vault"} 0.0"#,
            r#"secrets_broker_source_state_seconds{source="vault"} 42.0"#,
            r#"secrets_broker_limit_used{limit="entries"} 5.0"#,
            r#"secrets_broker_limit_cap{limit="connections_per_user"} 128.0"#,
            r#"secrets_broker_limit_reached{limit="connections_per_user"} 3.0"#,
            r#"secrets_broker_requests_total{route="secret",code="200",cache="hit"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("connection refused"));
        assert!(!text.contains(r#"limit_used{limit="connections_per_user"}"#), "{text}");
        assert!(text.contains(r#"secrets_broker_pod_volumes{state="alarm"} 0.0"#), "{text}");
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.ends_with("# EOF\n"));
    }
}
