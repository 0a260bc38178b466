//! Everything there is to say about one secret: entries, lease, trouble, files and who may read it.

use serde::{Deserialize, Serialize};

use crate::broker::report::{Report, SecretReport};
use crate::clock::Human;
use crate::domain::SecretRef;
use crate::status::build;
use crate::status::{Facts, ItemStatus, Moment, SecretView, TroubleView, VolumeStatus};

/// The answer to `explain`: the stable JSON of `/agent/v1/explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainView {
    /// `source:path`, the canonical API path.
    pub secret: String,
    /// Why the source does not answer, if it does not.
    pub source_problem: Option<String>,
    /// Its cache entries: one, or one per consumer of a dynamic credential.
    pub entries: Vec<ExplainedEntry>,
    /// The files that show it.
    pub files: Vec<ExplainedFile>,
    /// Who may read it, as policy decides now.
    pub access: Vec<Access>,
}

/// A cache entry with the reason for its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedEntry {
    /// The entry, as in status.
    #[serde(flatten)]
    pub entry: SecretView,
    /// Why it is not fresh.
    pub why: Option<String>,
}

/// A file that shows the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedFile {
    /// The volume.
    pub volume: String,
    /// The file, or the directory for one file per key.
    pub path: String,
    /// As in status: `fresh`, `stale`, `forbidden` and so on.
    pub state: String,
    /// When the value in it was requested.
    pub fetched: Option<Moment>,
    /// What is wrong.
    pub problem: Option<TroubleView>,
}

/// What policy says about one identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// `volume:shop`, `uid:1000`.
    pub who: String,
    /// Whether it may read.
    pub allowed: bool,
    /// The deciding rule; absent when nothing matched.
    pub rule: Option<String>,
    /// Why not.
    pub reason: Option<String>,
}

impl ExplainView {
    /// Explains every entry of `secret`; without a version in it, those of all versions.
    pub fn new(
        secret: &SecretRef,
        report: &Report,
        volumes: &[VolumeStatus],
        access: Vec<Access>,
        facts: &Facts,
    ) -> Self {
        let is_meant = |other: &SecretRef| {
            other.source == secret.source
                && other.path == secret.path
                && (secret.version.is_none() || other.version == secret.version)
        };
        let down = report.sources.iter().find(|s| s.name == secret.source && !s.reachable);
        let source_problem = down.map(|source| {
            let since = Human(facts.now.since(source.since));
            let error = source.last_error.as_deref().unwrap_or("no answer");
            format!("source {} unreachable for {since}: {error}", source.name)
        });
        let entries = report.secrets.iter().filter(|entry| is_meant(&entry.secret));
        let entries = entries.map(|entry| ExplainedEntry {
            entry: build::secret(entry, facts.clocks()),
            why: why(entry, source_problem.as_deref()),
        });
        let items = volumes.iter().flat_map(|volume| volume.items.iter().map(move |i| (volume, i)));
        let files = items.filter(|(_, item)| is_meant(&item.secret));
        Self {
            secret: secret.to_string(),
            entries: entries.collect(),
            files: files.map(|(volume, item)| file(volume, item, facts)).collect(),
            source_problem,
            access,
        }
    }
}

fn why(entry: &SecretReport, source_problem: Option<&str>) -> Option<String> {
    if entry.state == "fresh" {
        return None;
    }
    let failure = entry.problem.as_ref().map(|problem| problem.message.as_str());
    let reason = failure.or(source_problem);
    match (entry.state, reason) {
        ("stale", Some(reason)) => Some(format!("its ttl is over and refreshing failed: {reason}")),
        ("stale", None) => Some("its ttl is over and nobody has asked since".to_owned()),
        ("expired", Some(reason)) => Some(format!("its time is over: {reason}")),
        ("expired", None) => Some("its time is over".to_owned()),
        (_, reason) => reason.map(str::to_owned),
    }
}

fn file(volume: &VolumeStatus, item: &ItemStatus, facts: &Facts) -> ExplainedFile {
    let path = if item.file == "*" { volume.path.clone() } else { volume.path.join(&item.file) };
    ExplainedFile {
        volume: volume.name.to_string(),
        path: path.display().to_string(),
        state: item.state.to_owned(),
        fetched: item.fetched_at.map(|at| facts.clocks().moment(at)),
        problem: item.problem.as_ref().map(|problem| facts.clocks().trouble(problem)),
    }
}
