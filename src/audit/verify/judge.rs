//! From runs to a verdict: pure. An instance's first trouble is the one with the lowest number.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::path::Path;

use super::anchors::{Anchored, Anchors, Verdict};
use super::evidence::{Evidence, Instance, Place, Run};
use super::order;
use super::piece::{Bad, Class};
use super::{InstanceReport, Kind, Report, Trouble};
use crate::audit::chain::LineHash;

/// Judges everything that was found.
pub(super) fn report(
    evidence: &Evidence,
    files: &[&Path],
    anchors: Option<&Anchors>,
    partial: bool,
) -> Report {
    let case = Case { evidence, files, anchors, partial };
    let mut instances: Vec<InstanceReport> = evidence
        .instances
        .iter()
        .filter_map(|(name, instance)| case.instance(name, instance))
        .collect();
    instances.sort_by(|a, b| a.first_time.cmp(&b.first_time));
    let mut troubles = case.strangers();
    let from = instances.first().map_or("", |first| first.first_time.as_str());
    troubles.extend(case.unanchored(from));
    let notes = case.notes(from);
    let intact = troubles.is_empty() && instances.iter().all(|i| i.trouble.is_none());
    Report { intact: intact && !evidence.overflowed, instances, troubles, notes }
}

struct Case<'e> {
    evidence: &'e Evidence,
    files: &'e [&'e Path],
    anchors: Option<&'e Anchors>,
    partial: bool,
}

/// What has to come next in an instance.
struct Expected<'r> {
    seq: u64,
    prev: LineHash,
    /// The run that it has to follow; `None` at the beginning.
    after: Option<&'r Run>,
}

impl Case<'_> {
    fn instance(&self, name: &str, instance: &Instance) -> Option<InstanceReport> {
        let (runs, strays) = in_order(name, instance);
        let first = *runs.first()?;
        let last = *runs.iter().max_by_key(|run| run.last_seq)?;
        let broken = self.broken_link(name, &runs);
        let linked = broken.as_ref().map_or(runs.len(), |(linked, _)| *linked);
        let broken = broken.map(|(_, trouble)| trouble);
        let found = [
            order::misplaced(&runs[..linked]).map(|run| {
                let detail = "its place is elsewhere";
                self.trouble(Kind::Reordered, name, run.first_seq, run.first, detail)
            }),
            if broken.is_none() { self.left_over(name, last, &strays) } else { None },
            broken,
            self.contradiction(name, instance, &runs[..linked]),
            self.end(name, last),
        ];
        // Of several with the same number the closest look comes first.
        let trouble = found.into_iter().flatten().min_by_key(|trouble| trouble.seq);
        Some(InstanceReport {
            instance: name.to_owned(),
            records: runs.iter().map(|run| run.records()).sum(),
            first_seq: first.first_seq,
            last_seq: last.last_seq,
            first_time: first.first_time.clone(),
            last_time: last.last_time.clone(),
            anchored_seq: instance.anchored,
            lost: runs.iter().map(|run| run.lost).sum(),
            trouble,
        })
    }

    /// The first place, by number, where the chain does not go on, and how many runs come before.
    fn broken_link(&self, name: &str, runs: &[&Run]) -> Option<(usize, Trouble)> {
        let mut expected = Expected { seq: 1, prev: LineHash::genesis(name), after: None };
        for (index, run) in runs.iter().enumerate() {
            let linked = run.first_seq == expected.seq && run.first_prev == expected.prev;
            if !linked && !self.may_begin(name, run, &expected) {
                let next = runs.get(index + 1).copied();
                return Some((index, self.diagnose(name, &expected, run, next)));
            }
            expected = Expected {
                seq: run.last_seq.saturating_add(1),
                prev: run.last_hash,
                after: Some(run),
            };
        }
        None
    }

    /// Whether an instance may begin with this run although it is not its first record: where a
    /// rotation's checkpoint fits. Any other one stands in the middle of a file, where nobody but a
    /// forger would cut.
    fn may_begin(&self, name: &str, run: &Run, expected: &Expected<'_>) -> bool {
        let Some(before) = run.first_seq.checked_sub(1) else { return false };
        if expected.after.is_some() || before == 0 {
            return false;
        }
        let anchored = self.anchors.and_then(|anchors| anchors.of(name));
        let begins_a_file = |anchored: &Anchored| {
            anchored.is_rotation(before) && anchored.judge(before, run.first_prev) == Verdict::Fits
        };
        self.partial || anchored.is_some_and(begins_a_file)
    }

    fn diagnose(
        &self,
        name: &str,
        expected: &Expected<'_>,
        run: &Run,
        next: Option<&Run>,
    ) -> Trouble {
        let seq = expected.seq;
        if let Some(stray) = self.successor(name, expected) {
            let detail = "another number or instance stands in its place";
            return self.trouble(Kind::Altered, name, seq, stray, detail);
        }
        if run.first_seq > seq {
            if let Some(place) = self.altered_between(name, expected, run) {
                return self.trouble(Kind::Altered, name, seq, place, "its hash does not fit");
            }
            let count = run.first_seq - seq;
            let detail = match (count, expected.after) {
                (1, _) => "the line shown comes after it".to_owned(),
                (count, None) => format!("{count} records are missing before the line shown"),
                (count, _) => format!("{count} records are missing there"),
            };
            return self.trouble(Kind::Dropped, name, seq, run.first, detail);
        }
        if run.first_seq < seq {
            let detail = "a record of this number is there already";
            return self.trouble(Kind::Duplicated, name, run.first_seq, run.first, detail);
        }
        // Two neighbours do not fit. Whichever the record after them vouches for is the right one.
        let vouched = next.is_none_or(|next| next.first_prev == run.last_hash);
        match expected.after {
            Some(before) if vouched || run.records() > 1 => {
                let detail = "the record after it names another hash";
                self.trouble(Kind::Altered, name, before.last_seq, before.last, detail)
            }
            _ => {
                let detail = "it does not name the hash of the record before";
                self.trouble(Kind::Altered, name, seq, run.first, detail)
            }
        }
    }

    /// A record that names the right predecessor, but has another number or instance.
    fn successor(&self, name: &str, expected: &Expected<'_>) -> Option<Place> {
        let all = self.evidence.instances.iter();
        let mut runs = all.flat_map(|(of, instance)| instance.runs.iter().map(move |r| (of, r)));
        let stray = runs.find(|(of, run)| {
            run.first_prev == expected.prev && (*of != name || run.first_seq != expected.seq)
        });
        stray.map(|(_, run)| run.first)
    }

    /// A piece that is no record and stands for the expected one: by what it says, or by its place.
    fn altered_between(&self, name: &str, expected: &Expected<'_>, run: &Run) -> Option<Place> {
        let says =
            |bad: &Bad| bad.instance.as_deref() == Some(name) && bad.seq == Some(expected.seq);
        let between = |place: &Place| match expected.after {
            Some(before) if before.last.file == run.first.file => {
                before.last < *place && *place < run.first
            }
            Some(before) => {
                before.last.file == place.file && before.last < *place
                    || run.first.file == place.file && *place < run.first
            }
            None => run.first.file == place.file && *place < run.first,
        };
        // It says that it is another one of those that could be here.
        let anothers = |bad: &Bad| {
            let instances = &self.evidence.instances;
            let missing = expected.seq..run.first_seq;
            bad.instance.as_ref().is_some_and(|of| {
                let own = of == name && bad.seq.is_some_and(|seq| missing.contains(&seq));
                own || of != name && instances.contains_key(of)
            })
        };
        let all = || self.evidence.bad.iter();
        let found = all()
            .find(|(_, bad)| says(bad))
            .or_else(|| all().find(|(place, bad)| between(place) && !anothers(bad)));
        found.map(|(place, _)| *place)
    }

    /// A checkpoint says something else than the chain, as far as there is one.
    fn contradiction(&self, name: &str, instance: &Instance, linked: &[&Run]) -> Option<Trouble> {
        let (seq, place) = instance.contradicted?;
        let within =
            |run: &&Run| run.first.file == place.file && run.first <= place && place <= run.last;
        linked.iter().copied().find(within)?;
        let since = match instance.anchored.filter(|fits| *fits < seq) {
            Some(fits) => format!("record {fits} still fits: something after it was rewritten"),
            None => "it or something before it was rewritten".to_owned(),
        };
        let detail = format!("a checkpoint has another hash for it; {since}");
        Some(self.trouble(Kind::Rewritten, name, seq, place, detail))
    }

    /// An altered record that left no gap: the last one, or one that was added.
    fn left_over(&self, name: &str, last: &Run, strays: &[&Run]) -> Option<Trouble> {
        if let Some(stray) = strays.first() {
            let detail = "its number does not follow that of the record it names";
            return Some(self.trouble(Kind::Altered, name, stray.first_seq, stray.first, detail));
        }
        let bad = self.evidence.bad.iter().filter(|(_, bad)| {
            bad.class == Class::Altered && bad.instance.as_deref() == Some(name)
        });
        let (place, bad) = bad.min_by_key(|(_, bad)| bad.seq)?;
        let seq = bad.seq.filter(|_| !follows(place, last)).unwrap_or(last.last_seq + 1);
        Some(self.trouble(Kind::Altered, name, seq, *place, "its hash does not fit"))
    }

    /// What checkpoints say of the end: whether it is there, and whether they know the instance.
    fn end(&self, name: &str, last: &Run) -> Option<Trouble> {
        let anchors = self.anchors?;
        let Some(anchored) = anchors.of(name) else {
            let since = anchors.since.as_deref().unwrap_or_default();
            let detail =
                format!("no checkpoint knows this instance, and there are some from {since}");
            let known = last.last_time.as_str() < since;
            return (!known)
                .then(|| self.trouble(Kind::Unanchored, name, last.last_seq, last.last, detail));
        };
        let covered = anchored.last_seq();
        if covered <= last.last_seq {
            return None;
        }
        let seq = last.last_seq + 1;
        let nobodys = |place: &Place, bad: &Bad| {
            let known = bad.instance.as_ref().and_then(|of| self.evidence.instances.get(of));
            bad.class == Class::Altered && known.is_none() && follows(place, last)
        };
        if let Some((place, _)) = self.evidence.bad.iter().find(|(place, bad)| nobodys(place, bad))
        {
            return Some(self.trouble(Kind::Altered, name, seq, *place, "its hash does not fit"));
        }
        let detail = format!("records up to {covered} were there; the line shown is the last");
        Some(self.trouble(Kind::Truncated, name, seq, last.last, detail))
    }

    /// Altered pieces of which not even the instance can be told.
    fn strangers(&self) -> Vec<Trouble> {
        let known = &self.evidence.instances;
        let bad = self.evidence.bad.iter().filter(|(_, bad)| {
            bad.class == Class::Altered
                && bad.instance.as_ref().is_none_or(|of| !known.contains_key(of))
        });
        let trouble = |(place, bad): &(Place, Bad)| Trouble {
            kind: Kind::Altered,
            instance: bad.instance.clone(),
            seq: bad.seq,
            file: self.files.get(place.file).map(|path| path.to_path_buf()),
            line: Some(place.line),
            detail: "its hash does not fit, and no record of this instance does".to_owned(),
        };
        bad.map(trouble).collect()
    }

    /// Instances that only checkpoints know.
    fn missing_instances(&self) -> impl Iterator<Item = (&String, &Anchored)> {
        let known = self.anchors.into_iter().flat_map(Anchors::instances);
        known.filter(|(name, anchored)| {
            !self.evidence.instances.contains_key(*name) && anchored.last_seq() > 0
        })
    }

    /// Those that still ran at the time from which on the files have records.
    fn unanchored(&self, from: &str) -> Vec<Trouble> {
        let missing =
            self.missing_instances().filter(|(_, anchored)| anchored.until.as_str() >= from);
        let trouble = |(name, anchored): (&String, &Anchored)| Trouble {
            kind: Kind::Unanchored,
            instance: Some(name.clone()),
            seq: Some(anchored.last_seq()),
            file: None,
            line: None,
            detail: "checkpoints know this instance, and the files hold none of its records"
                .to_owned(),
        };
        missing.map(trouble).collect()
    }

    fn notes(&self, from: &str) -> Vec<String> {
        let mut notes = Vec::new();
        let torn = self.evidence.bad.iter().filter(|(_, bad)| bad.class == Class::Torn);
        for (place, _) in torn.take(10) {
            let file = self.files.get(place.file).map(|path| path.display().to_string());
            let file = file.unwrap_or_default();
            notes.push(format!("{file}:{}: a line was cut off, as by a crash", place.line));
        }
        if self.evidence.foreign > 0 {
            notes.push(format!("{} lines hold no record", self.evidence.foreign));
        }
        if let Some(others) = self.anchors.map(|a| a.others).filter(|others| *others > 0) {
            notes.push(format!("{others} lines of the anchor hold no checkpoint"));
        }
        let ended = |(_, anchored): &(&String, &Anchored)| anchored.until.as_str() < from;
        match self.missing_instances().filter(ended).count() {
            0 => {}
            count => notes.push(format!(
                "instances that checkpoints know and that ended before {from}, where these files \
                 begin: {count}; have their files gone with age?"
            )),
        }
        if self.evidence.overflowed {
            notes.push("too much is broken to keep track of; not everything was judged".to_owned());
        }
        notes
    }

    fn trouble(
        &self,
        kind: Kind,
        instance: &str,
        seq: u64,
        place: Place,
        detail: impl Into<String>,
    ) -> Trouble {
        Trouble {
            kind,
            instance: Some(instance.to_owned()),
            seq: Some(seq),
            file: self.files.get(place.file).map(|path| path.to_path_buf()),
            line: Some(place.line),
            detail: detail.into(),
        }
    }
}

/// Whether something stands after the last record, in its file.
fn follows(place: &Place, last: &Run) -> bool {
    place.file == last.last.file && *place > last.last
}

/// An instance's runs by number, and beside them those whose number is not the one after the record
/// they name. Of two that begin alike the longer one is taken for the right one.
fn in_order<'i>(name: &str, instance: &'i Instance) -> (Vec<&'i Run>, Vec<&'i Run>) {
    let ends = instance.runs.iter().map(|run| (run.last_hash, run.last_seq.saturating_add(1)));
    let expected: HashMap<LineHash, u64> = ends.chain([(LineHash::genesis(name), 1)]).collect();
    let follows = |run: &&Run| expected.get(&run.first_prev).is_none_or(|s| *s == run.first_seq);
    let (mut runs, mut strays): (Vec<&Run>, Vec<&Run>) = instance.runs.iter().partition(follows);
    if runs.is_empty() {
        std::mem::swap(&mut runs, &mut strays);
    }
    runs.sort_by_key(|run| (run.first_seq, Reverse(run.records()), run.first));
    (runs, strays)
}
