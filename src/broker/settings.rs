//! The broker's validated settings: cache times per path, bounds and the upstream budget.

use std::time::Duration;

use crate::domain::{PathPattern, SecretRef, SourceName};

/// Everything the broker is configured with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What applies where no rule does.
    pub defaults: CacheTimes,
    /// How long a negative answer is remembered.
    pub negative_ttl: Duration,
    /// Per-path settings; the first match wins.
    pub rules: Vec<CacheRule>,
    /// Bounds.
    pub limits: Limits,
}

/// Cache times of one secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheTimes {
    /// Served without asking again, counted from when the request left.
    pub ttl: Duration,
    /// Total age at which a KV value stops being served at all.
    pub max_stale: Duration,
    /// How long a replaced credential is kept; `None` is 10 % of the lease, at least 60 s where it
    /// fits.
    pub overlap: Option<Duration>,
}

/// Cache times for the paths a pattern matches.
#[derive(Debug, Clone)]
pub struct CacheRule {
    /// Only this source; `None` is every source.
    pub source: Option<SourceName>,
    /// API paths.
    pub path: PathPattern,
    /// What applies to them.
    pub times: CacheTimes,
}

/// Caps. Each has a line in status and a metric when hit.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Cache entries.
    pub entries: usize,
    /// Bytes of cached values.
    pub bytes: usize,
    /// Bytes of one value.
    pub value_bytes: usize,
    /// Local leases: one for each caller and credential.
    pub local_leases: usize,
    /// Upstream calls running at once, all sources together.
    pub upstream_in_flight: usize,
    /// Upstream calls per second, all sources together, with a burst of the same size.
    pub upstream_per_second: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            defaults: CacheTimes {
                ttl: Duration::from_secs(300),
                max_stale: Duration::from_secs(3600),
                overlap: None,
            },
            negative_ttl: Duration::from_secs(5),
            rules: Vec::new(),
            limits: Limits {
                entries: 20_000,
                bytes: 64 * 1024 * 1024,
                value_bytes: 1024 * 1024,
                local_leases: 40_000,
                upstream_in_flight: 16,
                upstream_per_second: 100,
            },
        }
    }
}

impl Settings {
    /// The cache times of one secret.
    pub fn times(&self, secret: &SecretRef) -> CacheTimes {
        let matches = |rule: &&CacheRule| {
            rule.source.as_ref().is_none_or(|source| *source == secret.source)
                && rule.path.matches(&secret.path, None)
        };
        self.rules.iter().find(matches).map_or(self.defaults, |rule| rule.times)
    }
}
