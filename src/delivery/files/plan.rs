//! From what is wanted and what is there to what to do: wait, nothing, or a new revision. Pure.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;

use super::config::{FileOwnership, ItemConfig};
use super::name::{FileName, RevisionName};
use super::render::{RenderError, RenderedFile};

/// What one item comes to now.
pub enum Wanted {
    /// These files, which are good enough for a new volume.
    Show(Vec<RenderedFile>),
    /// These files, if the volume has been published before.
    Keep(Vec<RenderedFile>),
    /// Its files as they are on the volume.
    Carry,
    /// None.
    Remove,
    /// It could not be rendered.
    Failed(RenderError),
}

/// What the volume shows now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// The published revision.
    pub revision: RevisionName,
    /// Its files.
    pub files: BTreeMap<FileName, Print>,
    /// Which of them belong to each item, in item order.
    pub owned: Vec<BTreeSet<FileName>>,
}

/// A keyed fingerprint of a file's content and ownership, comparable within this process only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Print(u64);

/// Makes fingerprints under a key of its own.
#[derive(Default)]
pub struct Prints(RandomState);

impl Prints {
    /// The fingerprint of a file.
    pub fn of(&self, content: &[u8], ownership: FileOwnership) -> Print {
        Print(self.0.hash_one((content, ownership)))
    }

    /// The fingerprint of a file that cannot be read: unlike every other.
    pub fn unknown(&self) -> Print {
        Print(fastrand::u64(..))
    }
}

/// A file of the next revision.
pub enum PlannedFile {
    /// Written anew.
    Write(RenderedFile),
    /// Taken over from the present revision, content and ownership.
    Carry(FileName),
}

impl PlannedFile {
    /// Where it goes.
    pub fn name(&self) -> &FileName {
        match self {
            Self::Write(file) => &file.name,
            Self::Carry(name) => name,
        }
    }
}

/// What to do, and what an operator must know.
pub struct Plan {
    /// What to do.
    pub step: Step,
    /// What is wrong with the set of files.
    pub alarm: Option<String>,
}

/// What to do.
pub enum Step {
    /// Not everything is there for a first revision.
    Wait,
    /// What is wanted is what is there; only the knowledge of whose files they are may be new.
    Unchanged {
        /// As in [`Present`].
        owned: Vec<BTreeSet<FileName>>,
    },
    /// Put a revision in place.
    Publish {
        /// Its files.
        files: Vec<PlannedFile>,
        /// Their fingerprints.
        prints: BTreeMap<FileName, Print>,
        /// As in [`Present`].
        owned: Vec<BTreeSet<FileName>>,
    },
}

/// Whose files are whose on a volume that an earlier process published. A file no item names
/// belongs to every item whose names are only known once its secret is.
pub fn adopt_owned<'a>(
    items: &[ItemConfig],
    files: impl Iterator<Item = &'a FileName>,
) -> Vec<BTreeSet<FileName>> {
    let named: BTreeSet<&FileName> = items.iter().filter_map(ItemConfig::file).collect();
    let files: Vec<&FileName> = files.collect();
    let of = |item: &ItemConfig| match item.file() {
        Some(file) => {
            files.iter().filter(|name| **name == file).map(|&name| name.clone()).collect()
        }
        None => {
            files.iter().filter(|name| !named.contains(*name)).map(|&name| name.clone()).collect()
        }
    };
    items.iter().map(of).collect()
}

/// Plans. `wanted` has one element per item.
///
/// The first revision waits until every item can be shown. Later, an item that cannot be rendered
/// holds the whole set as it is, because files of one set belong together; what must be removed is
/// removed all the same.
pub fn plan(
    items: &[ItemConfig],
    wanted: Vec<Wanted>,
    present: Option<&Present>,
    prints: &Prints,
) -> Plan {
    let held = held(items, &wanted);
    let Some(present) = present else {
        let complete = wanted.iter().all(|one| matches!(one, Wanted::Show(_)));
        if complete && held.is_none() {
            return Plan { step: publish(wanted, None, prints), alarm: None };
        }
        return Plan { step: Step::Wait, alarm: held };
    };
    let wanted = if held.is_some() { wanted.into_iter().map(hold).collect() } else { wanted };
    let step = match publish(wanted, Some(present), prints) {
        Step::Publish { prints, owned, .. } if prints == present.files => Step::Unchanged { owned },
        step => step,
    };
    Plan { step, alarm: held }
}

/// Why the set must stay as it is, if it must.
fn held(items: &[ItemConfig], wanted: &[Wanted]) -> Option<String> {
    let mut taken: BTreeMap<&FileName, usize> = BTreeMap::new();
    for (index, one) in wanted.iter().enumerate() {
        let files = match one {
            Wanted::Failed(error) => return Some(format!("{error}; the files stay as they are")),
            Wanted::Show(files) | Wanted::Keep(files) => files,
            Wanted::Carry | Wanted::Remove => continue,
        };
        for file in files {
            let other = taken.iter().find(|(name, _)| name.conflicts_with(&file.name));
            if let Some((name, other)) = other {
                let (first, second) = (items[*other].label(), items[index].label());
                return Some(format!(
                    "items {first} and {second} exclude each other ('{name}' and '{}'); \
                     the files stay as they are, give one of them another path",
                    file.name
                ));
            }
            taken.insert(&file.name, index);
        }
    }
    None
}

fn hold(wanted: Wanted) -> Wanted {
    match wanted {
        Wanted::Remove => Wanted::Remove,
        Wanted::Show(_) | Wanted::Keep(_) | Wanted::Carry | Wanted::Failed(_) => Wanted::Carry,
    }
}

fn publish(wanted: Vec<Wanted>, present: Option<&Present>, prints: &Prints) -> Step {
    let mut files: BTreeMap<FileName, (PlannedFile, Print)> = BTreeMap::new();
    let mut owned = vec![BTreeSet::new(); wanted.len()];
    let mut carried = Vec::new();
    for (index, one) in wanted.into_iter().enumerate() {
        match one {
            Wanted::Show(rendered) | Wanted::Keep(rendered) => {
                for file in rendered {
                    let print = prints.of(&file.content, file.ownership);
                    owned[index].insert(file.name.clone());
                    files.insert(file.name.clone(), (PlannedFile::Write(file), print));
                }
            }
            Wanted::Carry => carried.push(index),
            Wanted::Remove | Wanted::Failed(_) => {}
        }
    }
    // Last, so that a rendered file goes before an old one that it excludes.
    for (index, present) in carried.into_iter().filter_map(|index| Some((index, present?))) {
        for name in present.owned.get(index).into_iter().flatten() {
            let Some(print) = present.files.get(name) else { continue };
            let excluded = |other: &FileName| other != name && other.conflicts_with(name);
            if !files.keys().any(excluded) {
                owned[index].insert(name.clone());
                let carry = || (PlannedFile::Carry(name.clone()), *print);
                files.entry(name.clone()).or_insert_with(carry);
            }
        }
    }
    let prints = files.iter().map(|(name, (_, print))| (name.clone(), *print)).collect();
    Step::Publish { files: files.into_values().map(|(file, _)| file).collect(), prints, owned }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
