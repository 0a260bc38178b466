//! The operators' picture of the state, taken on request.

use super::State;
use super::cache::{Action, Activity, Entry};
use crate::broker::event::ValueId;
use crate::broker::report::{
    LeaseReport, Report, RetiringReport, SecretReport, SessionReport, SourceReport,
};
use crate::broker::state::session::{Purpose, Session};
use crate::clock::BootInstant;
use crate::domain::PathKind;
use crate::source::ErrorClass;
use crate::telemetry::Limit;

impl State {
    /// Everything operators may know; `mac` names a lease without telling its id.
    pub fn report(&self, now: BootInstant, mac: &dyn Fn(ValueId) -> String) -> Report {
        let entries = self.index.values().filter_map(|id| self.entries.get(id));
        Report {
            taken_at: now,
            sources: self.source_reports(),
            sessions: self.sessions.values().map(session_report).collect(),
            secrets: entries.map(|entry| self.secret_report(entry, now, mac)).collect(),
            counters: self.counters,
            limits: self.limits(now),
        }
    }

    fn source_reports(&self) -> Vec<SourceReport> {
        let report =
            |(name, health): (&crate::domain::SourceName, &crate::broker::budget::Health)| {
                SourceReport {
                    name: name.clone(),
                    reachable: health.reachable,
                    since: health.since,
                    last_error: health.last_error.clone(),
                    failures: health.failures,
                    next_attempt: health.open_until,
                    in_flight: health.in_flight,
                }
            };
        self.sources.iter().map(report).collect()
    }

    fn limits(&self, now: BootInstant) -> Vec<Limit> {
        let (limits, hits, budget) = (&self.settings.limits, &self.limit_hits, &self.budget);
        let (running, running_max) = (budget.in_flight(), budget.in_flight_max());
        let per_second = limits.upstream_per_second as usize;
        vec![
            Limit::shared("entries", self.entries.len(), limits.entries, hits.entries),
            Limit::shared("bytes", self.bytes, limits.bytes, hits.bytes),
            Limit::shared("local_leases", self.locals.len(), limits.local_leases, hits.locals),
            Limit::shared("upstream_in_flight", running, running_max, budget.slot_waits),
            Limit::shared("upstream_per_second", budget.spent(now), per_second, budget.rate_waits),
        ]
    }

    fn secret_report(
        &self,
        entry: &Entry,
        now: BootInstant,
        mac: &dyn Fn(ValueId) -> String,
    ) -> SecretReport {
        let held = entry.current.as_ref();
        let lease = held.and_then(|held| {
            let lease = held.lease?;
            Some(LeaseReport {
                mac: mac(held.value),
                issued_at: lease.issued_at,
                first_duration: lease.first_duration,
                expires_at: held.dead_at,
                renewable: lease.renewable,
                renewals: lease.renewals,
            })
        });
        let retiring = entry.retiring.iter().map(|old| RetiringReport {
            mac: mac(old.held.value),
            ends_at: old.ends_at,
            lapses_at: old.lapses.then_some(old.held.dead_at),
        });
        let consumers = entry.subscriptions.values().cloned().chain(
            entry.locals.iter().filter_map(|key| Some(self.locals.get(key)?.consumer.clone())),
        );
        let mut consumers: Vec<_> = consumers.collect();
        consumers.sort();
        consumers.dedup();
        SecretReport {
            secret: entry.key.secret.clone(),
            kind: Some(entry.kind),
            consumer: entry.key.consumer.clone(),
            state: state_word(entry, now),
            fetched_at: held.map(|held| held.fetched_at),
            fresh_until: held.map(|held| held.fresh_until),
            dead_at: held.map(|held| held.dead_at),
            version: held.and_then(|held| held.version),
            lease,
            next: next_word(entry),
            problem: entry.problem.clone(),
            consumers,
            local_leases: entry.locals.len(),
            retiring: retiring.collect(),
        }
    }
}

fn state_word(entry: &Entry, now: BootInstant) -> &'static str {
    match (entry.alive(now), entry.problem.as_ref().map(|problem| problem.class)) {
        (Some(held), _) if now < held.fresh_until => "fresh",
        (Some(_), _) => "stale",
        (None, Some(ErrorClass::Denied)) => "denied",
        (None, Some(ErrorClass::NotFound)) => "not-found",
        (None, Some(ErrorClass::LeaseEnded | ErrorClass::TokenEnded)) => "expired",
        (None, Some(_)) => "failed",
        (None, None) => "fetching",
    }
}

fn next_word(entry: &Entry) -> Option<(&'static str, BootInstant)> {
    if let Some((action, at)) = entry.next_action() {
        let word = match action {
            Action::Fetch => "fetch",
            Action::Refresh => "refresh",
            Action::Renew => "renew",
            Action::Replace => "replace",
        };
        return Some((if entry.retry_at.is_some() { "retry" } else { word }, at));
    }
    if entry.activity != Activity::Idle || entry.kind == PathKind::Minting {
        return None;
    }
    entry.current.as_ref().map(|held| ("evict", held.dead_at))
}

fn session_report(session: &Session) -> SessionReport {
    let login = &session.key.login;
    let purpose = match &session.key.purpose {
        Purpose::Kv => login.to_string(),
        Purpose::Consumer(consumer) => format!("{login} for {consumer}"),
        Purpose::Shared(secret) => format!("{login} for {} (shared)", secret.path),
    };
    let current = session.current.as_ref();
    let state = match (current, session.logging_in) {
        (Some(_), _) => "live",
        (None, true) => "logging-in",
        (None, false) => "none",
    };
    SessionReport {
        source: session.key.source.clone(),
        purpose,
        state,
        expires_at: current.and_then(|generation| generation.expires_at),
        renew_at: current.and_then(|generation| generation.renew_at),
        holders: session.holders.len(),
        last_error: session.last_error.as_ref().map(|error| error.message.clone()),
    }
}
