//! Which files a volume will hold, whose they are, and which secrets they come from. Pure.

use super::judge::Operator;
use crate::delivery::csi::attributes::Attributes;
use crate::delivery::files::{FileOwnership, ItemContent};
use crate::domain::{EngineKind, Mount, Spelling};
use crate::source::ConfiguredMount;

/// One file, or one for each key of a secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PlannedFile {
    /// Its name, or `*`.
    pub(super) file: String,
    /// Whose it is.
    pub(super) ownership: FileOwnership,
    /// The secrets, as API paths where the kind of their mount is known, each with its key.
    pub(super) secrets: Vec<String>,
}

impl PlannedFile {
    /// `1000:2000`
    pub(super) fn owner(&self) -> String {
        format!("{}:{}", self.ownership.uid, self.ownership.gid)
    }

    /// `0440`
    pub(super) fn mode(&self) -> String {
        format!("{:04o}", self.ownership.mode)
    }
}

/// The files, or why a secret cannot be one of the source.
pub(super) fn files(
    attributes: &Attributes,
    fs_group: Option<u32>,
    operator: Option<&Operator<'_>>,
) -> Result<Vec<PlannedFile>, Vec<String>> {
    let mounts = operator.and_then(|operator| operator.mounts);
    // Which source it is changes neither files nor owners.
    let source = operator.map_or_else(|| "source".parse().ok(), |one| Some(one.source.clone()));
    let items = source.map_or_else(Vec::new, |source| attributes.items(&source, fs_group));
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    for item in items {
        let secrets: Vec<&Spelling> = match &item.content {
            ItemContent::EveryKey { secret }
            | ItemContent::Whole { secret, .. }
            | ItemContent::Value { secret, .. } => vec![secret],
            ItemContent::Composed { keys, .. } => keys.values().collect(),
        };
        let mut paths = Vec::new();
        for secret in secrets {
            match api_path(secret, mounts) {
                Ok(path) if paths.contains(&path) => {}
                Ok(path) => paths.push(path),
                Err(problem) => problems.push(format!("{}: {problem}", item.label())),
            }
        }
        let file = item.file_label().to_owned();
        files.push(PlannedFile { file, ownership: item.ownership, secrets: paths });
    }
    if problems.is_empty() { Ok(files) } else { Err(problems) }
}

/// `secret/data/shop/web#token`; as it is written where the mount's kind is not known.
fn api_path(secret: &Spelling, mounts: Option<&[ConfiguredMount]>) -> Result<String, String> {
    let key = secret.key.as_ref().map(|key| format!("#{key}")).unwrap_or_default();
    let Some(mounts) = mounts else { return Ok(format!("{}{key}", secret.path)) };
    let lies_in = |mount: &&ConfiguredMount| secret.path.below(&mount.path).is_some();
    let Some(mount) = mounts.iter().find(lies_in) else {
        let known: Vec<&str> = mounts.iter().map(|mount| mount.path.as_str()).collect();
        let known = known.join(", ");
        return Err(format!("'{}' lies below no mount of the source ({known})", secret.path));
    };
    // Where the kind is found out later, the spelling stays as it is.
    let kind = mount.kind.unwrap_or(EngineKind::Other);
    let mount = Mount { path: mount.path.clone(), kind };
    let path = secret.canonical(&mount).map_err(|error| error.to_string())?;
    Ok(format!("{path}{key}"))
}
