//! What one pass over the files leaves: runs of lines that follow each other, and what is none.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use super::anchors::{Anchors, Verdict};
use super::piece::{self, Bad, Class, Piece, Record};
use crate::audit::chain::LineHash;

/// Runs and bad pieces that are kept. A log that is cut into more is judged by these.
const KEPT_MAX: usize = 100_000;
/// Lines that are no records and are kept all the same: one may stand in the place of a record. A
/// container's log has the agent's own messages between them, any number of them.
const FOREIGN_KEPT_MAX: u64 = 100_000;

/// Where a piece stands; compares by position within a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) file: usize,
    /// Counts the pieces of the file.
    pub(super) ordinal: u64,
    pub(super) line: u64,
}

/// Records of one instance in one file, each of which names the one before.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) first: Place,
    pub(super) last: Place,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    pub(super) first_prev: LineHash,
    pub(super) last_hash: LineHash,
    pub(super) first_time: String,
    pub(super) last_time: String,
    pub(super) lost: u64,
}

/// All that is known of an instance.
#[derive(Debug, Default)]
pub(super) struct Instance {
    pub(super) runs: Vec<Run>,
    /// The newest record that fits a checkpoint.
    pub(super) anchored: Option<u64>,
    /// The first record that a checkpoint contradicts.
    pub(super) contradicted: Option<(u64, Place)>,
    /// The run of the file that is being read.
    open: Option<Run>,
}

/// All that is known.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    pub(super) instances: BTreeMap<String, Instance>,
    pub(super) bad: Vec<(Place, Bad)>,
    /// Lines that hold nothing of a record.
    pub(super) foreign: u64,
    /// More pieces than are kept.
    pub(super) overflowed: bool,
    kept: usize,
}

impl Evidence {
    /// Takes a file in.
    pub(super) fn read(
        &mut self,
        file: usize,
        reader: impl BufRead,
        anchors: Option<&Anchors>,
    ) -> io::Result<()> {
        let mut ordinal = 0;
        piece::for_each(reader, |line, piece| {
            ordinal += 1;
            let place = Place { file, ordinal, line };
            match piece {
                Piece::Record(record) => self.record(&record, place, anchors),
                Piece::Bad(bad) => self.bad(bad, place),
            }
        })
    }

    /// Closes the last runs. Call once, after the last file.
    pub(super) fn finish(&mut self) {
        for instance in self.instances.values_mut() {
            instance.runs.extend(instance.open.take());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.instances.is_empty() && self.bad.is_empty()
    }

    fn record(&mut self, record: &Record<'_>, place: Place, anchors: Option<&Anchors>) {
        if !self.instances.contains_key(record.instance) {
            if self.is_full() {
                self.overflowed = true;
                return;
            }
            self.instances.insert(record.instance.to_owned(), Instance::default());
        }
        let full = self.is_full();
        let Some(instance) = self.instances.get_mut(record.instance) else { return };
        if let Some(anchored) = anchors.and_then(|anchors| anchors.of(record.instance)) {
            instance.compare(anchored.judge(record.seq, record.hash), record.seq, place);
        }
        match &mut instance.open {
            Some(run) if run.continues_with(record, place) => run.extend(record, place),
            _ if full => self.overflowed = true,
            open => {
                self.kept += 1;
                instance.runs.extend(open.replace(Run::new(record, place)));
            }
        }
    }

    fn bad(&mut self, bad: Bad, place: Place) {
        if bad.class == Class::Foreign {
            self.foreign += 1;
            if self.foreign > FOREIGN_KEPT_MAX {
                return;
            }
        } else if self.is_full() {
            self.overflowed = true;
            return;
        } else {
            self.kept += 1;
        }
        self.bad.push((place, bad));
    }

    fn is_full(&self) -> bool {
        self.kept >= KEPT_MAX
    }
}

impl Instance {
    fn compare(&mut self, verdict: Verdict, seq: u64, place: Place) {
        match verdict {
            Verdict::Silent => {}
            Verdict::Fits => self.anchored = self.anchored.max(Some(seq)),
            Verdict::Contradicts => {
                let first = self.contradicted.get_or_insert((seq, place));
                *first = (seq, place).min(*first);
            }
        }
    }
}

impl Run {
    fn new(record: &Record<'_>, place: Place) -> Self {
        Self {
            first: place,
            last: place,
            first_seq: record.seq,
            last_seq: record.seq,
            first_prev: record.prev,
            last_hash: record.hash,
            first_time: record.time.to_owned(),
            last_time: record.time.to_owned(),
            lost: record.lost,
        }
    }

    pub(super) fn records(&self) -> u64 {
        self.last_seq - self.first_seq + 1
    }

    fn continues_with(&self, record: &Record<'_>, place: Place) -> bool {
        self.last.file == place.file
            && Some(record.seq) == self.last_seq.checked_add(1)
            && record.prev == self.last_hash
    }

    fn extend(&mut self, record: &Record<'_>, place: Place) {
        (self.last, self.last_seq, self.last_hash) = (place, record.seq, record.hash);
        record.time.clone_into(&mut self.last_time);
        self.lost = self.lost.saturating_add(record.lost);
    }
}
