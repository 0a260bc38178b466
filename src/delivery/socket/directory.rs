//! Which source a path belongs to: the first, default source first, whose mounts cover it.

use std::collections::BTreeMap;

use crate::domain::{SecretPath, SourceName};
use crate::source::{ConfiguredMount, SharedSource};

/// The configured sources in the order in which they are asked.
pub struct SourceDirectory {
    sources: Vec<(SourceName, SharedSource)>,
}

/// A path's source and mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The source.
    pub source: SourceName,
    /// The mount as configured.
    pub mount: ConfiguredMount,
    /// The source's namespace.
    pub namespace: Option<String>,
}

impl SourceDirectory {
    /// The default source first, then the others by name.
    pub fn new(default: &SourceName, sources: &BTreeMap<SourceName, SharedSource>) -> Self {
        let mut sources: Vec<_> =
            sources.iter().map(|(name, source)| (name.clone(), source.clone())).collect();
        sources.sort_by_key(|(name, _)| name != default);
        Self { sources }
    }

    /// The source and mount that a secret's path lies below.
    pub fn mount_of(&self, path: &SecretPath) -> Option<Located> {
        self.sources.iter().find_map(|(name, source)| {
            let mount = source.mount_of(path)?;
            let namespace = source.description().namespace;
            Some(Located { source: name.clone(), mount, namespace })
        })
    }

    /// The same for the path of a mount itself, which lies below nothing.
    pub fn mount_at(&self, path: &SecretPath) -> Option<Located> {
        let below = format!("{path}/data").parse().ok()?;
        self.mount_of(&below).filter(|located| located.mount.path == *path)
    }
}
