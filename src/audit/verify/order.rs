//! Which run of an instance stands where it does not belong.

use std::collections::BTreeMap;

use super::evidence::{Place, Run};

/// The first run, of those in the order of their numbers, that stands elsewhere.
///
/// What was moved is told from what it was moved across by taking it away: if everything else is in
/// order then, it was this one, or the shorter one if either could be. Two that changed places are
/// both out of order; the lower is named.
pub(super) fn misplaced<'r>(by_seq: &[&'r Run]) -> Option<&'r Run> {
    let ranks = file_ranks(by_seq);
    let rank = |run: &Run| (ranks.get(&run.first.file).copied(), run.first);
    let mut by_place = by_seq.to_vec();
    by_place.sort_by_key(|run| rank(run));
    let differs = |pair: &(&&Run, &&Run)| pair.0.first != pair.1.first;
    let (wanted, found) = by_seq.iter().zip(&by_place).find(differs)?;
    let alone = |run: &Run| {
        let others = |runs: &[&Run]| -> Vec<Place> {
            runs.iter().map(|other| other.first).filter(|first| *first != run.first).collect()
        };
        others(by_seq) == others(&by_place)
    };
    let moved = alone(found) && (!alone(wanted) || found.records() < wanted.records());
    Some(if moved { found } else { wanted })
}

/// The files' order: by the beginning of the longest run each has.
fn file_ranks(runs: &[&Run]) -> BTreeMap<usize, u64> {
    let mut longest: BTreeMap<usize, &Run> = BTreeMap::new();
    for run in runs {
        let of_file = longest.entry(run.first.file).or_insert(run);
        if run.records() > of_file.records() {
            *of_file = run;
        }
    }
    longest.into_iter().map(|(file, run)| (file, run.first_seq)).collect()
}
