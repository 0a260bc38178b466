//! What each state of a secret means for its files: the table "what an error does to a file". Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::{Entry, Problem};
use crate::clock::BootInstant;
use crate::domain::{EngineKind, PathKind, SecretRef};
use crate::source::ErrorClass;

use super::config::{ItemConfig, OnProblem, Reference, VolumeConfig};

/// Where one secret of a volume stands. A level, not an event: only the current one counts.
#[derive(Clone, Default)]
pub struct Level {
    /// The canonical reference, once it is known.
    pub secret: Option<SecretRef>,
    /// The engine it lies in, once it is known.
    pub engine: Option<EngineKind>,
    /// The last good value, as long as the broker has it.
    pub entry: Option<Arc<Entry>>,
    /// Times of the last value seen, which outlive it.
    pub seen: Option<Seen>,
    /// What the subscription says is wrong.
    pub problem: Option<Problem>,
    /// Why there is no subscription at the moment. Never a reason to remove a file.
    pub obstacle: Option<Problem>,
    /// Local policy forbids it.
    pub forbidden: Option<Forbidden>,
}

/// All secrets of a volume.
pub type Levels = BTreeMap<Reference, Level>;

/// Times and version of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What kind of path it came from.
    pub kind: PathKind,
    /// When it was requested.
    pub fetched_at: BootInstant,
    /// Until when it is fresh.
    pub fresh_until: BootInstant,
    /// Until when it works or is served.
    pub dead_at: BootInstant,
    /// KV 2's version.
    pub version: Option<u64>,
}

/// A local denial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forbidden {
    /// Since when.
    pub since: BootInstant,
    /// Why, for operators.
    pub reason: String,
}

impl Seen {
    /// The times of an entry.
    pub fn of(entry: &Entry) -> Self {
        Self {
            kind: entry.kind,
            fetched_at: entry.fetched_at,
            fresh_until: entry.fresh_until,
            dead_at: entry.dead_at,
            version: entry.version,
        }
    }
}

/// What shall happen to a file, most drastic last, so that the greatest of several wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Show the value.
    Show,
    /// Show the last good value if there is one; not good enough for a new volume.
    Keep,
    /// Leave the file as it is on the volume.
    Carry,
    /// Take the file away.
    Remove,
}

/// What a secret's, or an item's, state comes to at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// `fresh`, `stale`, `expired`, `denied`, `gone`, `forbidden`, `waiting`.
    pub state: &'static str,
    /// What happens to the file.
    pub action: Action,
    /// When time alone may change this.
    pub changes_at: Option<BootInstant>,
}

/// Judges one secret.
pub fn judge(level: &Level, volume: &VolumeConfig, now: BootInstant) -> Verdict {
    if let Some(forbidden) = &level.forbidden {
        let ends = forbidden.since + volume.forbid_grace;
        let (action, changes_at) =
            if now < ends { (Action::Carry, Some(ends)) } else { (Action::Remove, None) };
        return Verdict { state: "forbidden", action, changes_at };
    }
    let kept = if level.entry.is_some() { Action::Keep } else { Action::Carry };
    let opted = |choice| if choice == OnProblem::Remove { Action::Remove } else { kept };
    let lasting = |state, action| Verdict { state, action, changes_at: None };
    match level.problem.as_ref().map(|problem| problem.class) {
        Some(ErrorClass::Denied) => lasting("denied", opted(volume.on_denied)),
        Some(ErrorClass::NotFound) => lasting("gone", opted(volume.on_gone)),
        Some(ErrorClass::LeaseEnded) => lasting("expired", kept),
        Some(ErrorClass::Unreachable | ErrorClass::TokenEnded | ErrorClass::InvalidRequest)
        | None => by_age(level, kept, opted(volume.on_stale), now),
    }
}

fn by_age(level: &Level, kept: Action, on_stale: Action, now: BootInstant) -> Verdict {
    let Some(seen) = level.seen else {
        return Verdict { state: "waiting", action: kept, changes_at: None };
    };
    let shown = if level.entry.is_some() { Action::Show } else { Action::Carry };
    if now < seen.fresh_until && now < seen.dead_at {
        let changes_at = Some(seen.fresh_until.min(seen.dead_at));
        return Verdict { state: "fresh", action: shown, changes_at };
    }
    if now < seen.dead_at {
        return Verdict { state: "stale", action: shown, changes_at: Some(seen.dead_at) };
    }
    match seen.kind {
        // Taking the file away would not help anybody before its replacement is there.
        PathKind::Minting => Verdict { state: "expired", action: kept, changes_at: None },
        PathKind::Kv | PathKind::Static => {
            Verdict { state: "stale", action: on_stale, changes_at: None }
        }
    }
}

/// An item's verdict, and the secret that is to blame for it.
pub struct ItemVerdict<'a> {
    /// The worst of its secrets' verdicts.
    pub verdict: Verdict,
    /// The secret that verdict is about.
    pub reference: Reference,
    /// Its level.
    pub level: &'a Level,
}

/// Judges an item: its worst secret decides.
pub fn judge_item<'a>(
    item: &ItemConfig,
    levels: &'a Levels,
    unknown: &'a Level,
    volume: &VolumeConfig,
    now: BootInstant,
) -> Option<ItemVerdict<'a>> {
    let judged = item.references().into_iter().map(|reference| {
        let level = levels.get(&reference).unwrap_or(unknown);
        ItemVerdict { verdict: judge(level, volume, now), reference, level }
    });
    let mut judged: Vec<_> = judged.collect();
    let changes_at = judged.iter().filter_map(|one| one.verdict.changes_at).min();
    let severity = |one: &ItemVerdict<'_>| (one.verdict.action, one.verdict.state != "fresh");
    judged.sort_by_key(severity);
    let mut worst = judged.pop()?;
    worst.verdict.changes_at = changes_at;
    Some(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::files::testing::{at, entry, problem, volume};

    /// An entry fetched at 10 s, fresh until 20 s, dead at 30 s.
    fn level(kind: PathKind, class: Option<ErrorClass>) -> Level {
        let mut entry = entry("{}");
        entry.kind = kind;
        Level {
            seen: Some(Seen::of(&entry)),
            entry: Some(Arc::new(entry)),
            problem: class.map(problem),
            ..Level::default()
        }
    }

    fn check(level: &Level, seconds: u64, expected: (&str, Action), opted_in: Action) {
        let mut config = volume(vec![]);
        let verdict = judge(level, &config, at(seconds));
        assert_eq!((verdict.state, verdict.action), expected, "at {seconds} s");
        (config.on_stale, config.on_denied, config.on_gone) =
            (OnProblem::Remove, OnProblem::Remove, OnProblem::Remove);
        assert_eq!(judge(level, &config, at(seconds)).action, opted_in, "opted in, at {seconds} s");
    }

    #[test]
    fn each_error_class_does_to_a_file_what_the_table_says() {
        use Action::{Keep, Remove, Show};
        use ErrorClass as E;
        let kv = |class| level(PathKind::Kv, Some(class));
        check(&level(PathKind::Kv, None), 15, ("fresh", Show), Show);
        check(&kv(E::Unreachable), 15, ("fresh", Show), Show);
        check(&kv(E::Unreachable), 25, ("stale", Show), Show);
        check(&kv(E::Unreachable), 31, ("stale", Keep), Remove);
        check(&kv(E::TokenEnded), 25, ("stale", Show), Show);
        check(&kv(E::Denied), 15, ("denied", Keep), Remove);
        check(&kv(E::NotFound), 15, ("gone", Keep), Remove);
        check(&level(PathKind::Minting, Some(E::LeaseEnded)), 15, ("expired", Keep), Keep);
        check(&level(PathKind::Minting, Some(E::Unreachable)), 31, ("expired", Keep), Keep);
    }

    #[test]
    fn a_value_the_broker_dropped_leaves_the_file_alone() {
        let mut level = level(PathKind::Kv, Some(ErrorClass::Unreachable));
        level.entry = None;
        check(&level, 25, ("stale", Action::Carry), Action::Carry);
        check(&level, 31, ("stale", Action::Carry), Action::Remove);
        // Without any value seen, its age is unknown, so nothing is taken away.
        level.seen = None;
        check(&level, 31, ("waiting", Action::Carry), Action::Carry);
    }

    #[test]
    fn an_obstacle_on_the_way_to_a_subscription_removes_nothing() {
        let level = Level { obstacle: Some(problem(ErrorClass::Denied)), ..Level::default() };
        check(&level, 99, ("waiting", Action::Carry), Action::Carry);
    }

    #[test]
    fn what_policy_forbids_goes_after_the_grace_and_shows_no_new_value_before() {
        let mut level = level(PathKind::Kv, None);
        level.forbidden = Some(Forbidden { since: at(10), reason: "no rule".into() });
        check(&level, 69, ("forbidden", Action::Carry), Action::Carry);
        check(&level, 70, ("forbidden", Action::Remove), Action::Remove);
        assert_eq!(judge(&level, &volume(vec![]), at(10)).changes_at, Some(at(70)));
    }
}
