//! What became of a reload, as plain data and in words. Its JSON is an interface, as the view's is.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::status::build::count;

/// How many losses status names; `reload` names all.
const LOSSES_IN_STATUS: usize = 3;

/// What became of the configuration file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadView {
    /// In one word.
    pub outcome: ReloadOutcome,
    /// How many volumes this agent keeps.
    pub volumes: usize,
    /// How many of them lose secrets by the new policy, or would.
    pub volumes_hit: usize,
    /// The share of volumes above which a change is held, in percent.
    pub hold_percent: u32,
    /// What they lose, or would.
    pub losses: Vec<LossView>,
    /// What is wrong with the file.
    pub problem: Option<String>,
    /// What of it waits for a restart.
    pub note: Option<String>,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReloadOutcome {
    /// Its policy is in force.
    InForce,
    /// Its policy waits until an operator accepts it.
    Held,
    /// It is wrong, and changed nothing.
    Refused,
    /// There is none to read.
    NoFile,
}

/// One secret that a volume may not read under the new policy, and may under the old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossView {
    /// The volume.
    pub volume: String,
    /// `source:path`.
    pub secret: String,
    /// The rule that forbids it; absent when none permits it.
    pub rule: Option<String>,
    /// Why, for operators.
    pub reason: String,
}

impl LossView {
    fn words(&self) -> String {
        let why = match &self.rule {
            Some(rule) => format!("rule '{rule}' forbids it"),
            None => "no rule permits it".to_owned(),
        };
        format!("volume {}: {} ({why})", self.volume, self.secret)
    }
}

impl ReloadView {
    /// A view without volumes and losses.
    pub fn without_losses(outcome: ReloadOutcome, hold_percent: u32) -> Self {
        let (volumes, volumes_hit, losses) = (0, 0, Vec::new());
        Self { outcome, volumes, volumes_hit, hold_percent, losses, problem: None, note: None }
    }

    /// One line for status: how much is at stake and the first of it.
    pub fn held_summary(&self) -> String {
        let named: Vec<String> =
            self.losses.iter().take(LOSSES_IN_STATUS).map(LossView::words).collect();
        let more = self.losses.len() - named.len();
        let more = if more == 0 { String::new() } else { format!("; and {more} more") };
        format!("{} would lose secrets: {}{more}", self.share(), named.join("; "))
    }

    /// `3 of 20 volumes`
    fn share(&self) -> String {
        format!("{} of {}", self.volumes_hit, count(self.volumes, "volume"))
    }
}

/// The view in words.
pub fn render_reload(view: &ReloadView) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        let _infallible = writeln!(text, "{line}");
    };
    let share = view.share();
    match view.outcome {
        ReloadOutcome::InForce if view.losses.is_empty() => {
            line("the policy of the configuration file is in force".to_owned());
        }
        ReloadOutcome::InForce => line(format!(
            "the policy of the configuration file is in force; {share} lose secrets by it:"
        )),
        ReloadOutcome::Held => line(format!(
            "held, the old policy stays in force: {share} would lose secrets, which is more than \
             {} %:",
            view.hold_percent
        )),
        ReloadOutcome::Refused => line("refused, the old policy stays in force:".to_owned()),
        ReloadOutcome::NoFile => {
            line("this agent was started without a configuration file".to_owned());
        }
    }
    for loss in &view.losses {
        line(format!("  {}", loss.words()));
    }
    if let Some(problem) = &view.problem {
        line(problem.clone());
    }
    if view.outcome == ReloadOutcome::Held {
        line("to put it in force: secrets-broker reload --accept".to_owned());
    }
    if let Some(note) = &view.note {
        line(format!("note: {note}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> ReloadView {
        let loss = |index: usize| LossView {
            volume: format!("v{index}"),
            secret: "vault:secret/data/a".to_owned(),
            rule: (index == 0).then(|| "stop".to_owned()),
            reason: String::new(),
        };
        ReloadView {
            volumes: 20,
            volumes_hit: 5,
            losses: (0..5).map(loss).collect(),
            ..ReloadView::without_losses(ReloadOutcome::Held, 10)
        }
    }

    #[test]
    fn status_names_the_first_losses_and_reload_all_of_them() {
        assert_eq!(
            held().held_summary(),
            "5 of 20 volumes would lose secrets: volume v0: vault:secret/data/a (rule 'stop' \
             forbids it); volume v1: vault:secret/data/a (no rule permits it); volume v2: \
             vault:secret/data/a (no rule permits it); and 2 more"
        );
        let text = render_reload(&held());
        assert!(text.contains("more than 10 %:\n"), "{text}");
        assert_eq!(text.matches("  volume v").count(), 5);
        assert!(text.ends_with("to put it in force: secrets-broker reload --accept\n"));
    }

    #[test]
    fn json_survives_the_way_to_the_command_line() {
        let json = serde_json::to_string(&held()).unwrap();
        assert!(json.contains(r#""outcome":"held""#), "{json}");
        assert_eq!(serde_json::from_str::<ReloadView>(&json).unwrap(), held());
    }
}
