//! What the local file said when it was last good: secrets with their versions, and roles.
//!
//! Between load and fetch a secret is kept encrypted under a key of this process alone, so that a
//! value is in clear only while somebody holds it, and an evicted one is nowhere.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::file::LocalFile;
use super::generated::Role;
use crate::domain::{EngineKind, Mount, SecretBytes, SecretPath};
use crate::encryption::{EncryptedValue, EncryptionError, Key};

/// One good state of the file.
#[derive(Default)]
pub(super) struct Content {
    pub(super) mounts: BTreeMap<SecretPath, EngineKind>,
    pub(super) roles: BTreeMap<SecretPath, Role>,
    secrets: BTreeMap<SecretPath, Stored>,
    /// Versions reached by secrets that are gone: one that returns must not repeat a number.
    gone: BTreeMap<SecretPath, u64>,
}

#[derive(Clone)]
struct Stored {
    json: EncryptedValue,
    version: u64,
    created_at: Timestamp,
}

/// A secret as it is handed out.
pub(super) struct Current {
    /// The JSON object of keys and values.
    pub(super) json: SecretBytes,
    /// 1 at first load, one more with every change.
    pub(super) version: u64,
    /// When the file that brought this version was written.
    pub(super) created_at: Timestamp,
}

impl Content {
    /// The state after `self` when the file, written at `written_at`, says this; `None` if nothing
    /// changed. `key` is the process's own.
    pub(super) fn next(
        &self,
        file: LocalFile,
        written_at: Timestamp,
        key: &Key,
    ) -> Result<Option<Self>, EncryptionError> {
        let mut changed = self.mounts != file.mounts || self.roles != file.roles;
        let mut secrets = Vec::with_capacity(file.secrets.len());
        for (path, json) in file.secrets {
            let before = self.secrets.get(&path);
            let same = match before {
                Some(before) => before.json.decrypt(key)?.expose() == json.expose(),
                None => false,
            };
            let stored = match before.filter(|_| same) {
                Some(before) => before.clone(),
                None => {
                    changed = true;
                    let reached = before.map(|before| before.version);
                    let reached = reached.or_else(|| self.gone.get(&path).copied()).unwrap_or(0);
                    let json = EncryptedValue::encrypt(json.expose(), key)?;
                    Stored { json, version: reached + 1, created_at: written_at }
                }
            };
            secrets.push((path, stored));
        }
        // All at once: one after the other, and in order, they would leave each node half empty.
        let secrets = BTreeMap::from_iter(secrets);
        let mut gone = self.gone.clone();
        for (path, stored) in &self.secrets {
            if !secrets.contains_key(path) {
                changed = true;
                gone.insert(path.clone(), stored.version);
            }
        }
        let next = Self { mounts: file.mounts, roles: file.roles, secrets, gone };
        Ok(changed.then_some(next))
    }

    /// The mount a path lies below.
    pub(super) fn mount_of(&self, path: &SecretPath) -> Option<Mount> {
        // No mount lies in another, so at most one fits.
        let (mount, kind) = self.mounts.iter().find(|(mount, _)| path.below(mount).is_some())?;
        Some(Mount { path: mount.clone(), kind: *kind })
    }

    /// The secret at an API path, decrypted.
    pub(super) fn current(
        &self,
        path: &SecretPath,
        key: &Key,
    ) -> Result<Option<Current>, EncryptionError> {
        let Some(stored) = self.secrets.get(path) else { return Ok(None) };
        let json = stored.json.decrypt(key)?;
        Ok(Some(Current { json, version: stored.version, created_at: stored.created_at }))
    }

    /// Whether any mount hands out credentials that no server honours.
    pub(super) fn generates(&self) -> bool {
        self.mounts.values().any(|kind| *kind == EngineKind::Database)
    }
}
