//! Engine mounts: which configured one a path lies below, and asking Vault what kind it is.

use serde::Deserialize;

use super::classify::{self, Call, Operation};
use super::client::Client;
use super::decode::{self, Defect};
use super::endpoints::ReadMount;
use crate::domain::{EngineKind, Mount, SecretPath, Token};
use crate::source::{ConfiguredMount, SourceError};

/// The configured mount with the longest path that `path` lies below.
pub(super) fn longest_prefix<'a>(
    mounts: &'a [ConfiguredMount],
    path: &SecretPath,
) -> Option<&'a ConfiguredMount> {
    let below = mounts.iter().filter(|mount| path.below(&mount.path).is_some());
    below.max_by_key(|mount| mount.path.as_str().len())
}

/// Whether a reply for this KV path may have KV 2's `data` and `metadata` inside.
pub(super) fn may_be_kv2(mounts: &[ConfiguredMount], path: &SecretPath) -> bool {
    longest_prefix(mounts, path).is_some_and(|mount| {
        mount.kind.is_none_or(|kind| kind == EngineKind::Kv2)
            && path.below(&mount.path).is_some_and(|rest| rest.starts_with("data/"))
    })
}

/// Asks Vault for the mount of `path`; needs any right below it.
pub(super) async fn probe(
    client: &Client,
    token: &Token,
    path: &SecretPath,
) -> Result<Mount, SourceError> {
    let call = Call::new(Operation::ProbeMount, path.as_str());
    let body = client.call(&call, Some(token), &ReadMount { path }).await?;
    mount(&body, path).map_err(|defect| classify::unusable(&call, defect))
}

#[derive(Deserialize)]
struct MountData<'a> {
    path: &'a str,
    #[serde(rename = "type")]
    engine: &'a str,
    #[serde(borrow)]
    options: Option<MountOptions<'a>>,
}

#[derive(Deserialize)]
struct MountOptions<'a> {
    version: Option<&'a str>,
}

fn mount(body: &[u8], asked: &SecretPath) -> Result<Mount, Defect> {
    let data = decode::data(body)?;
    let data: MountData = serde_json::from_str(data).map_err(|_| Defect::NotVault)?;
    let path: SecretPath = data.path.trim_end_matches('/').parse().map_err(|_| Defect::NotVault)?;
    if asked.below(&path).is_none() {
        return Err(Defect::NotVault);
    }
    let version = data.options.and_then(|options| options.version);
    let kind = match (data.engine, version) {
        ("kv" | "generic", Some("2")) => EngineKind::Kv2,
        ("kv" | "generic", _) => EngineKind::Kv1,
        ("database", _) => EngineKind::Database,
        _ => EngineKind::Other,
    };
    Ok(Mount { path, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> SecretPath {
        text.parse().unwrap()
    }

    fn probed(path_field: &str, engine: &str, options: &str, asked: &str) -> Option<Mount> {
        let data = format!(r#"{{"path":"{path_field}","type":"{engine}","options":{options}}}"#);
        let body = format!(r#"{{"request_id":"r","data":{data}}}"#);
        mount(body.as_bytes(), &path(asked)).ok()
    }

    #[test]
    fn the_probe_tells_the_engines_apart() {
        let kind = |engine, options| probed("a/", engine, options, "a/b").map(|mount| mount.kind);
        assert_eq!(kind("kv", r#"{"version":"2"}"#), Some(EngineKind::Kv2));
        assert_eq!(kind("kv", r#"{"version":"1"}"#), Some(EngineKind::Kv1));
        assert_eq!(kind("kv", "null"), Some(EngineKind::Kv1));
        assert_eq!(kind("generic", "{}"), Some(EngineKind::Kv1));
        assert_eq!(kind("database", "null"), Some(EngineKind::Database));
        assert_eq!(kind("pki", "null"), Some(EngineKind::Other));
    }

    #[test]
    fn a_probe_that_answers_for_another_path_is_not_believed() {
        assert_eq!(probed("a/b/", "kv", "null", "a/b/c").map(|m| m.path), Some(path("a/b")));
        assert!(probed("other/", "kv", "null", "a/b").is_none());
        assert!(probed("", "kv", "null", "a/b").is_none());
    }

    #[test]
    fn the_longest_configured_prefix_wins() {
        let mount = |text, kind| ConfiguredMount { path: path(text), kind };
        let mounts = [
            mount("kv", Some(EngineKind::Kv1)),
            mount("kv/team", None),
            mount("db", Some(EngineKind::Database)),
        ];
        let of = |text| longest_prefix(&mounts, &path(text)).map(|m| m.path.to_string());
        assert_eq!(of("kv/a").as_deref(), Some("kv"));
        assert_eq!(of("kv/team/data/a").as_deref(), Some("kv/team"));
        assert_eq!(of("kv/teams/a").as_deref(), Some("kv"));
        assert_eq!(of("kv"), None);
        assert_eq!(of("secret/a"), None);
        assert!(may_be_kv2(&mounts, &path("kv/team/data/a")));
        assert!(!may_be_kv2(&mounts, &path("kv/team/a")));
        assert!(!may_be_kv2(&mounts, &path("kv/data/a")));
    }
}
