//! Engine mounts and what a path below one means for caching: shareable, rotating or minting.

use std::fmt;

use super::SecretPath;

/// The type of a secrets engine mount, as far as reading differs by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EngineKind {
    /// KV version 1.
    Kv1,
    /// KV version 2.
    Kv2,
    /// The database engine: `creds/` mints, `static-creds/` rotates.
    Database,
    /// Anything else: every read is treated as minting.
    Other,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kv1 => "kv1",
            Self::Kv2 => "kv2",
            Self::Database => "database",
            Self::Other => "other",
        })
    }
}

/// An engine mount: its path (no trailing slash) and type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mount {
    /// Where the engine is mounted.
    pub path: SecretPath,
    /// What it is.
    pub kind: EngineKind,
}

/// What reading a path does upstream, and so how it may be cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// A KV read: repeatable, cacheable, shareable by login identity.
    Kv,
    /// A static database credential: fresh until its own `ttl`, never stale past rotation.
    Static,
    /// Every GET may create something: no retry, no sharing, no caching unless a lease comes back.
    Minting,
}

impl Mount {
    /// Classifies a path below this mount.
    pub fn path_kind(&self, path: &SecretPath) -> PathKind {
        let below = path.below(&self.path).unwrap_or_default();
        match self.kind {
            EngineKind::Kv1 | EngineKind::Kv2 => PathKind::Kv,
            EngineKind::Database if below.starts_with("static-creds/") => PathKind::Static,
            EngineKind::Database | EngineKind::Other => PathKind::Minting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kv_and_static_credentials_may_be_read_twice() {
        let kind = |mount: &str, engine, path: &str| {
            Mount { path: mount.parse().unwrap(), kind: engine }.path_kind(&path.parse().unwrap())
        };
        assert_eq!(kind("secret", EngineKind::Kv2, "secret/data/a"), PathKind::Kv);
        assert_eq!(kind("kv", EngineKind::Kv1, "kv/static-creds/a"), PathKind::Kv);
        assert_eq!(kind("db", EngineKind::Database, "db/static-creds/a"), PathKind::Static);
        assert_eq!(kind("db", EngineKind::Database, "db/creds/static-creds"), PathKind::Minting);
        assert_eq!(kind("pki", EngineKind::Other, "pki/static-creds/a"), PathKind::Minting);
    }
}
