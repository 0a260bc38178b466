//! A volume as the configuration declares it, validated; and the rules its file names must keep.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::domain::{SecretPath, SourceName, Spelling, VolumeName};

use super::format::Format;
use super::name::FileName;
use super::on_change::OnChange;

/// A volume declared for this host, and what its files lie on.
#[derive(Debug, Clone)]
pub struct DeclaredVolume {
    /// The volume; its name is also its identity for policy.
    pub config: VolumeConfig,
    /// What the files lie on.
    pub backing: Backing,
}

/// One volume, declared for this host or published by the kubelet.
#[derive(Debug, Clone)]
pub struct VolumeConfig {
    /// Its name.
    pub name: VolumeName,
    /// Where applications find it: absolute, without `..`.
    pub path: PathBuf,
    /// Ownership of what belongs to no item.
    pub defaults: FileOwnership,
    /// The files.
    pub items: Vec<ItemConfig>,
    /// What happens to a file whose value is past `max_stale`.
    pub on_stale: OnProblem,
    /// What happens to a file whose secret the source denies.
    pub on_denied: OnProblem,
    /// What happens to a file whose secret is gone after it was there.
    pub on_gone: OnProblem,
    /// How long a file stays after local policy began to forbid its secret.
    pub forbid_grace: Duration,
    /// How long a replaced revision stays before it is overwritten; 30 s unless configured.
    pub retire_grace: Duration,
    /// Whom to tell after a revision replaced another.
    pub on_change: Option<OnChange>,
    /// Revisions within this time are told once.
    pub on_change_batch: Duration,
}

/// What a declared volume's files lie on: always a tmpfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// A mount of our own.
    OwnTmpfs {
        /// Bytes that fit.
        size_bytes: u64,
        /// Files and directories that fit; a revision needs one more than it has entries.
        inodes: u64,
        /// Mode of the volume's root.
        directory_mode: u32,
    },
    /// A directory that is on a tmpfs already, for runs without the right to mount.
    ExistingTmpfs,
}

/// Who owns a file and who may read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileOwnership {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, at most `0o777`.
    pub mode: u32,
}

/// What a lasting problem does to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnProblem {
    /// It stays, marked in the status.
    Keep,
    /// It is removed.
    Remove,
}

/// One item: a file, or a set of them, from one source.
#[derive(Debug, Clone)]
pub struct ItemConfig {
    /// Where its secrets come from.
    pub source: SourceName,
    /// What goes into which file.
    pub content: ItemContent,
    /// Ownership of its files.
    pub ownership: FileOwnership,
}

/// What an item shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemContent {
    /// Every key of a secret as a file of its own.
    EveryKey {
        /// The secret.
        secret: Spelling,
    },
    /// A whole secret in one file.
    Whole {
        /// The secret.
        secret: Spelling,
        /// The file.
        file: FileName,
        /// How it is written.
        format: Format,
    },
    /// One value, byte for byte.
    Value {
        /// The secret, with its key.
        secret: Spelling,
        /// The file.
        file: FileName,
    },
    /// One file from values of several secrets.
    Composed {
        /// Name in the file → secret with its key.
        keys: BTreeMap<String, Spelling>,
        /// The file.
        file: FileName,
        /// How it is written.
        format: Format,
    },
}

impl ItemContent {
    /// Its file, where that is known without reading the secret.
    pub fn file(&self) -> Option<&FileName> {
        match self {
            Self::EveryKey { .. } => None,
            Self::Whole { file, .. } | Self::Value { file, .. } | Self::Composed { file, .. } => {
                Some(file)
            }
        }
    }
}

/// A secret as an item spells it; everything that spells it alike shares one subscription.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// The source.
    pub source: SourceName,
    /// The path as written, not yet canonical.
    pub path: SecretPath,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.path)
    }
}

impl ItemConfig {
    /// The secrets it needs, without repetition.
    pub fn references(&self) -> BTreeSet<Reference> {
        match &self.content {
            ItemContent::EveryKey { secret }
            | ItemContent::Whole { secret, .. }
            | ItemContent::Value { secret, .. } => BTreeSet::from([self.reference(secret)]),
            ItemContent::Composed { keys, .. } => {
                keys.values().map(|secret| self.reference(secret)).collect()
            }
        }
    }

    /// The secret that one of its spellings means.
    pub fn reference(&self, secret: &Spelling) -> Reference {
        Reference { source: self.source.clone(), path: secret.path.clone() }
    }

    /// Its file, where that is known without reading the secret.
    pub fn file(&self) -> Option<&FileName> {
        self.content.file()
    }

    /// What status calls it: its file name, or `*` for one file per key.
    pub fn file_label(&self) -> &str {
        self.file().map_or("*", FileName::as_str)
    }

    /// What messages call it: `'token'`, or `every key of 'secret/shop/web'`.
    pub fn label(&self) -> String {
        match &self.content {
            ItemContent::EveryKey { secret } => format!("every key of '{}'", secret.path),
            ItemContent::Whole { file, .. }
            | ItemContent::Value { file, .. }
            | ItemContent::Composed { file, .. } => format!("'{file}'"),
        }
    }
}

impl VolumeConfig {
    /// Every secret the volume needs, without repetition.
    pub fn references(&self) -> BTreeSet<Reference> {
        self.items.iter().flat_map(ItemConfig::references).collect()
    }
}

/// Every pair of items whose file names exclude each other, as problems for whoever wrote them.
/// Items without a name that is known beforehand are `None`.
pub fn check_names(files: &[Option<&FileName>]) -> Vec<String> {
    let mut problems = Vec::new();
    for (index, second) in files.iter().enumerate() {
        for (earlier, first) in files[..index].iter().enumerate() {
            let (Some(a), Some(b)) = (first, second) else { continue };
            let (first, second) = (earlier + 1, index + 1);
            if a == b {
                problems.push(format!(
                    "items {first} and {second} both write '{a}'; give one of them another path"
                ));
            } else if a.conflicts_with(b) {
                problems.push(format!(
                    "items {first} and {second} exclude each other: \
                     '{a}' and '{b}' cannot be a file and a directory at once"
                ));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(names: &[&str]) -> Vec<String> {
        let files: Vec<FileName> = names.iter().map(|name| name.parse().unwrap()).collect();
        check_names(&files.iter().map(Some).collect::<Vec<_>>())
    }

    #[test]
    fn two_items_with_one_name_or_a_file_as_directory_are_named() {
        let found = problems(&["a", "b/c", "a", "b"]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("items 1 and 3 both write 'a'"));
        assert!(found[1].contains("items 2 and 4"));
        assert!(problems(&["a", "b", "c/d", "c/e"]).is_empty());
    }

    #[test]
    fn two_keys_of_one_secret_are_one_reference() {
        let mut keys = BTreeMap::new();
        keys.insert("u".to_owned(), "database/creds/shop#username".parse().unwrap());
        keys.insert("p".to_owned(), "database/creds/shop#password".parse().unwrap());
        let file: FileName = "app.properties".parse().unwrap();
        let format = Format::from_file_name(&file).unwrap();
        let item = ItemConfig {
            source: "vault".parse().unwrap(),
            content: ItemContent::Composed { keys, file, format },
            ownership: FileOwnership { uid: 0, gid: 0, mode: 0o400 },
        };
        assert_eq!(item.references().len(), 1);
    }
}
