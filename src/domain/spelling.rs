//! The spellings a person writes: CLI or API path, optionally `#key`; turned into the API path
//! before policy.

use std::str::FromStr;

use super::{EngineKind, Mount, PathError, SecretPath};

/// First segments below a KV 2 mount that its API gives a meaning.
const KV2_PREFIXES: [&str; 7] =
    ["data", "metadata", "subkeys", "delete", "undelete", "destroy", "config"];

/// A secret as written in an item or on the command line: `secret/shop/web#password`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spelling {
    /// The path part, not yet canonical for KV 2.
    pub path: SecretPath,
    /// The key after `#`, if one was given.
    pub key: Option<String>,
}

/// Why a spelling was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpellingError {
    /// The path part is not a path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// `#` with nothing behind it, or a key with a control character.
    #[error("the key after '#' is empty or holds a control character")]
    Key,
    /// The path is the mount itself or lies outside it.
    #[error("path does not name a secret below the mount '{0}'")]
    Outside(SecretPath),
    /// Both the CLI and the API reading are possible.
    #[error(
        "'{path}' is ambiguous on the KV 2 mount '{mount}': write '{mount}/data/{rest}' for the \
         secret '{rest}', or the full API path"
    )]
    Ambiguous {
        /// What was written.
        path: SecretPath,
        /// The KV 2 mount.
        mount: SecretPath,
        /// The part below the mount.
        rest: String,
    },
}

impl FromStr for Spelling {
    type Err = SpellingError;

    fn from_str(text: &str) -> Result<Self, SpellingError> {
        let (path, key) = match text.split_once('#') {
            Some((path, key)) => (path, Some(key)),
            None => (text, None),
        };
        if key.is_some_and(|key| key.is_empty() || key.chars().any(char::is_control)) {
            return Err(SpellingError::Key);
        }
        let path = path.strip_prefix("v1/").unwrap_or(path);
        Ok(Self { path: path.parse()?, key: key.map(str::to_owned) })
    }
}

impl Spelling {
    /// The canonical API path under `mount`: on KV 2 the CLI spelling gains `data/`.
    pub fn canonical(&self, mount: &Mount) -> Result<SecretPath, SpellingError> {
        let rest = self
            .path
            .below(&mount.path)
            .ok_or_else(|| SpellingError::Outside(mount.path.clone()))?;
        if mount.kind != EngineKind::Kv2 {
            return Ok(self.path.clone());
        }
        let (first, more) =
            rest.split_once('/').map_or((rest, None), |(first, more)| (first, Some(more)));
        match (first, more) {
            ("data", Some(_)) => Ok(self.path.clone()),
            (first, _) if KV2_PREFIXES.contains(&first) => Err(SpellingError::Ambiguous {
                path: self.path.clone(),
                mount: mount.path.clone(),
                rest: rest.to_owned(),
            }),
            _ => Ok(format!("{}/data/{rest}", mount.path).parse()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(kind: EngineKind, text: &str) -> Result<String, SpellingError> {
        let mount = Mount { path: "secret".parse().unwrap(), kind };
        text.parse::<Spelling>()?.canonical(&mount).map(|path| path.as_str().to_owned())
    }

    #[test]
    fn both_spellings_reach_one_api_path() {
        assert_eq!(canonical(EngineKind::Kv2, "secret/shop/db").unwrap(), "secret/data/shop/db");
        assert_eq!(
            canonical(EngineKind::Kv2, "secret/data/shop/db").unwrap(),
            "secret/data/shop/db"
        );
        assert_eq!(
            canonical(EngineKind::Kv2, "v1/secret/data/shop/db#a").unwrap(),
            "secret/data/shop/db"
        );
        assert_eq!(canonical(EngineKind::Kv1, "secret/shop/db").unwrap(), "secret/shop/db");
    }

    #[test]
    fn a_name_that_the_kv2_api_uses_itself_is_ambiguous() {
        for text in [
            "secret/data",
            "secret/metadata",
            "secret/metadata/a",
            "secret/config",
            "secret/destroy/x",
        ] {
            assert!(
                matches!(canonical(EngineKind::Kv2, text), Err(SpellingError::Ambiguous { .. })),
                "{text}"
            );
        }
        assert_eq!(
            canonical(EngineKind::Kv2, "secret/data/metadata/a").unwrap(),
            "secret/data/metadata/a"
        );
        assert!(canonical(EngineKind::Kv1, "secret/config").is_ok());
    }

    #[test]
    fn an_empty_key_is_refused() {
        assert_eq!("secret/a#".parse::<Spelling>(), Err(SpellingError::Key));
        assert_eq!("secret/a#b".parse::<Spelling>().unwrap().key.as_deref(), Some("b"));
    }
}
