//! What changed between two views, one line per change: `status --watch` in a pipe.

use std::collections::BTreeMap;

use crate::status::{SecretView, StatusView};

/// What is watched: subject and facet, with its present value.
type Facets = BTreeMap<(String, &'static str), String>;

/// A line per change since `before`; everything there is when there is no `before`.
pub fn changes(before: Option<&StatusView>, now: &StatusView) -> Vec<String> {
    let old = before.map(facets).unwrap_or_default();
    let new = facets(now);
    let at = &now.taken_at;
    let mut lines = Vec::new();
    for ((subject, facet), value) in &new {
        match old.get(&(subject.clone(), *facet)) {
            Some(same) if same == value => {}
            Some(other) => lines.push(format!("{at} {subject}: {facet} {other} -> {value}")),
            None => lines.push(format!("{at} {subject}: {facet} {value}")),
        }
    }
    let mut gone: Vec<&str> = Vec::new();
    for (subject, _) in old.keys() {
        let is_left = new.keys().any(|(other, _)| other == subject);
        if !is_left && !gone.contains(&subject.as_str()) {
            gone.push(subject);
            lines.push(format!("{at} {subject}: gone"));
        }
    }
    lines
}

/// Only what changes by an event; ages and countdowns change by themselves.
fn facets(view: &StatusView) -> Facets {
    let mut facets = Facets::new();
    let mut note = |subject: String, facet, value: String| {
        facets.insert((subject, facet), value);
    };
    note("agent".to_owned(), "health", view.health.as_str().to_owned());
    for source in &view.sources {
        let state = if source.reachable { "reachable" } else { "unreachable" };
        note(format!("source {}", source.name), "state", state.to_owned());
    }
    if let Some(directory) = &view.pod_directory {
        let state = if directory.last_error.is_none() { "heard" } else { "lost" };
        note("pod directory".to_owned(), "state", state.to_owned());
    }
    for session in &view.sessions {
        let subject = format!("session {} ({})", session.source, session.purpose);
        note(subject, "state", session.state.clone());
    }
    for secret in &view.secrets {
        let subject = subject(secret);
        note(subject.clone(), "state", secret.state.clone());
        if let Some(version) = secret.version {
            note(subject.clone(), "version", version.to_string());
        }
        if let Some(lease) = &secret.lease {
            note(subject.clone(), "lease", lease.mac.clone());
            note(subject.clone(), "renewals", lease.renewals.to_string());
        }
        let problem = secret.problem.as_ref().map(|problem| problem.message.clone());
        note(subject, "problem", problem.unwrap_or_else(|| "none".to_owned()));
    }
    for volume in &view.volumes {
        let subject = format!("volume {}", volume.name);
        let none = || "none".to_owned();
        note(subject.clone(), "revision", volume.revision.clone().unwrap_or_else(none));
        note(subject.clone(), "alarm", volume.alarm.clone().unwrap_or_else(none));
        for item in &volume.items {
            note(format!("{subject} file {}", item.file), "state", item.state.clone());
        }
    }
    facets
}

fn subject(secret: &SecretView) -> String {
    match &secret.consumer {
        Some(consumer) => format!("secret {} of {consumer}", secret.secret),
        None => format!("secret {}", secret.secret),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    fn view(
        sample: (
            crate::broker::report::Report,
            Vec<crate::status::VolumeStatus>,
            crate::status::Facts,
        ),
    ) -> StatusView {
        StatusView::new(&sample.0, &sample.1, &sample.2)
    }

    #[test]
    fn nothing_is_said_while_only_time_passes() {
        let before = view(sample::healthy());
        let mut later = sample::healthy();
        later.2.now = later.2.now + std::time::Duration::from_secs(30);
        assert_eq!(changes(Some(&before), &view(later)), Vec::<String>::new());
    }

    #[test]
    fn an_outage_is_one_line_per_thing_it_touches() {
        let lines = changes(Some(&view(sample::healthy())), &view(sample::outage()));
        let at = "2027-01-15T08:00:00Z";
        let expected = [
            "agent: health healthy -> degraded",
            "secret vault:database/creds/shop of volume:shop: problem none -> connection refused",
            "secret vault:secret/data/shop/web: state fresh -> stale",
            "source vault: state reachable -> unreachable",
            "volume shop file *: state fresh -> stale",
        ];
        assert_eq!(lines, expected.map(|line| format!("{at} {line}")));
    }

    #[test]
    fn what_is_no_longer_there_is_said_once() {
        let mut later = sample::healthy();
        later.0.secrets.remove(0);
        let lines = changes(Some(&view(sample::healthy())), &view(later));
        let gone = "secret vault:database/creds/shop of volume:shop: gone";
        assert_eq!(lines, [format!("2027-01-15T08:00:00Z {gone}")]);
    }
}
