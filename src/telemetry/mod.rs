//! What the process says about itself: log set-up, error chains for logs, the metrics registry and
//! the caps of all parts.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

mod limits;

use limits::Probes;
pub use limits::{Hits, Limit};

/// Libraries that log request paths, headers or bodies are silenced whatever the level is.
const LIBRARIES: &str = "vaultrs=off,rustify=off,rustify_derive=off,hyper=warn,hyper_util=warn,\
                         reqwest=warn,rustls=warn,h2=warn,notify=warn,cedar_policy=warn,kube=off,\
                         kube_client=off,kube_core=off,tower=warn,tower_http=off";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One line of text per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

impl LogFormat {
    /// Their names, in the configuration and on the command line.
    pub const NAMES: [(&str, Self); 2] = [("text", Self::Text), ("json", Self::Json)];
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level is not one of trace, debug, info, warn, error.
    #[error("log level '{0}' is not one of trace, debug, info, warn, error")]
    Level(String),
    /// Somebody else has set a subscriber already.
    #[error("logging is already set up")]
    Twice(#[source] Box<dyn Error + Send + Sync>),
}

/// Sends logs of `level` and above to standard error; standard output belongs to the audit log.
pub fn init_logging(level: &str, format: LogFormat) -> Result<(), LoggingError> {
    let filter = filter(level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(LoggingError::Twice)
}

fn filter(level: &str) -> Result<EnvFilter, LoggingError> {
    let known: tracing::Level = level.parse().map_err(|_| LoggingError::Level(level.to_owned()))?;
    Ok(EnvFilter::new(format!("{known},{LIBRARIES}")))
}

/// An error with all its causes on one line: `cannot log in: connection refused`.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// A label pair; label names are ours, values are bounded sets.
pub type Label = (&'static str, &'static str);

/// What is counted as it happens. Cheap to clone; the rest is derived from reports at scrape time.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    limits: Probes,
    /// Answered requests by `route`, `code` and `cache`.
    pub requests: Family<[(&'static str, String); 3], Counter>,
    /// The hottest one of them: secrets from the snapshot.
    pub hits: Counter,
    /// Open connections by `socket`.
    pub connections: Family<[Label; 1], Gauge>,
    /// Connections that were not served, by `socket` and `reason`.
    pub refused: Family<[Label; 2], Counter>,
    /// Requests over a caller's rate.
    pub limited: Counter,
    /// Requests that policy denied.
    pub denied: Counter,
    /// Denials that were coalesced in the audit log.
    pub denials_coalesced: Counter,
    /// NodePublishVolume calls by gRPC `code`.
    pub publishes: Family<[Label; 1], Counter>,
    /// Tokens on the node socket that proved nothing.
    pub proofs_refused: Counter,
    /// Pods that were locked out of the node socket.
    pub lock_outs: Counter,
    /// Volumes that would lose secrets by the policy that is held; 0 while none is.
    pub policy_held_volumes: Gauge,
    /// 1 while the newest configuration is refused.
    pub config_refused: Gauge,
    /// 1 while the CSI driver waits for something and does not serve the kubelet.
    pub csi_waiting: Gauge,
}

impl Metrics {
    /// Registers everything; call once per process and clone the result.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("secrets_broker");
        let requests = Family::<[(&'static str, String); 3], Counter>::default();
        registry.register("requests", "Answered requests", requests.clone());
        let connections = Family::default();
        registry.register("connections", "Open connections", connections.clone());
        let refused = Family::default();
        registry.register("connections_refused", "Connections not served", refused.clone());
        let counter = |registry: &mut Registry, name, help| {
            let counter: Counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let limited = counter(&mut registry, "requests_limited", "Requests over a caller's rate");
        let denied = counter(&mut registry, "requests_denied", "Requests that policy denied");
        let denials_coalesced =
            counter(&mut registry, "denials_coalesced", "Denials left out of the audit log");
        let publishes = Family::<[Label; 1], Counter>::default();
        registry.register("csi_publishes", "Calls to publish a volume", publishes.clone());
        // A family is shown from its first label on.
        drop(publishes.get_or_create(&[("code", "OK")]));
        let proofs_refused =
            counter(&mut registry, "proofs_refused", "Pods' tokens that proved nothing");
        let lock_outs = counter(&mut registry, "lock_outs", "Pods locked out for forged tokens");
        let policy_held_volumes = Gauge::default();
        let help = "Volumes that would lose secrets by a policy that is held";
        registry.register("policy_held_volumes", help, policy_held_volumes.clone());
        let config_refused = Gauge::default();
        let help = "Whether the newest configuration is bad and the old one in force";
        registry.register("config_refused", help, config_refused.clone());
        let csi_waiting = Gauge::default();
        let help = "Whether the CSI driver waits for something and the kubelet is not served";
        registry.register("csi_waiting", help, csi_waiting.clone());
        let hit = [("route", "secret".into()), ("code", "200".into()), ("cache", "hit".into())];
        let hits = requests.get_or_create(&hit).clone();
        let registry = Arc::new(registry);
        Self {
            registry,
            limits: Probes::default(),
            requests,
            hits,
            connections,
            refused,
            limited,
            denied,
            denials_coalesced,
            publishes,
            proofs_refused,
            lock_outs,
            policy_held_volumes,
            config_refused,
            csi_waiting,
        }
    }

    /// Counts one answered request.
    pub fn count(&self, route: &'static str, code: u16, cache: &'static str) {
        let labels = [("route", route.into()), ("code", code.to_string()), ("cache", cache.into())];
        self.requests.get_or_create(&labels).inc();
    }

    /// Appends everything counted so far in OpenMetrics text, without the final `# EOF`.
    pub fn encode(&self, text: &mut String) -> fmt::Result {
        encode_registry(text, &self.registry)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn a_chain_prints_every_cause_once() {
        let error = Layer("cannot log in", Some(Box::new(Layer("connection refused", None))));
        assert_eq!(Chain(&error).to_string(), "cannot log in: connection refused");
    }

    #[test]
    fn libraries_that_log_requests_stay_silent_at_every_level() {
        for level in ["trace", "debug", "info", "warn", "error"] {
            let filter = filter(level).unwrap().to_string();
            assert!(filter.contains("vaultrs=off") && filter.contains("rustify=off"), "{filter}");
        }
        assert!(matches!(filter("loud"), Err(LoggingError::Level(_))));
        assert!(matches!(filter("info,vaultrs=trace"), Err(LoggingError::Level(_))));
    }

    #[test]
    fn counted_requests_appear_with_their_labels() {
        let metrics = Metrics::new();
        metrics.count("secret", 403, "none");
        metrics.hits.inc();
        let mut text = String::new();
        metrics.encode(&mut text).unwrap();
        let denied = r#"secrets_broker_requests_total{route="secret",code="403",cache="none"} 1"#;
        assert!(text.contains(denied), "{text}");
        assert!(text.contains(r#"code="200",cache="hit"} 1"#), "{text}");
    }
}
