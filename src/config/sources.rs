//! `[sources.*]`: which there are, which one is the default, and what their paths must look like.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::document::{Document, Section};
use crate::config::field::Field;
use crate::config::settings::{LocalSettings, SourceConfig};
use crate::config::{encrypted, vault};
use crate::domain::{
    EngineKind, Mount, PathPattern, SecretPath, SourceName, Spelling, SpellingError,
};
use crate::source::ConfiguredMount;

/// Vault's own paths, which are never forwarded.
pub(super) const RESERVED: [&str; 4] = ["sys", "auth", "identity", "cubbyhole"];

/// Every source that is named, and the configuration of those that are in order.
#[derive(Default)]
pub(super) struct Sources {
    names: Vec<SourceName>,
    /// Of Vault sources, also of those that have other problems.
    mounts: BTreeMap<SourceName, Vec<ConfiguredMount>>,
    pub(super) configs: BTreeMap<SourceName, SourceConfig>,
    /// `None` only after a problem was noted.
    pub(super) default: Option<SourceName>,
}

pub(super) fn read(document: &Document, root: &Section) -> Sources {
    let section = root.section("sources");
    let mut sources = Sources::default();
    let mut defaults = Vec::new();
    for (name, field) in section.entries() {
        let source = field.section();
        if source.get("default").and_then(|field| field.boolean()) == Some(true) {
            defaults.push((name, source.place().clone()));
        }
        let (config, mounts) = source_config(document, &source);
        match name.parse::<SourceName>() {
            Ok(name) => {
                sources.names.push(name.clone());
                sources.mounts.extend(mounts.map(|mounts| (name.clone(), mounts)));
                sources.configs.extend(config.map(|config| (name, config)));
            }
            Err(error) => field.problem(format!("{name:?}: {error}"), "rename the source"),
        }
    }
    match (defaults.as_slice(), sources.names.as_slice()) {
        ([], [only]) => sources.default = Some(only.clone()),
        ([], []) if section.is_empty() => root.problem_at(
            "sources",
            "no source is configured, so there is nothing to serve",
            "add [sources.vault] or [sources.local]",
        ),
        ([], _) => section.problem(
            "several sources and none is the default",
            "write default = true in the one that paths without a source mean",
        ),
        ([(name, _)], _) => sources.default = name.parse().ok(),
        ([(first, _), more @ ..], _) => {
            for (_, place) in more {
                let message = format!("source {first:?} is the default already");
                document.problem(place, message, "keep default = true in one source");
            }
        }
    }
    sources
}

/// The source, if it is in order, and the mounts of a Vault source, if they are.
fn source_config(
    document: &Document,
    section: &Section,
) -> (Option<SourceConfig>, Option<Vec<ConfiguredMount>>) {
    let kind = section
        .require("kind", "write kind = \"vault\" or kind = \"local\"")
        .and_then(|kind| kind.choice(&[("vault", true), ("local", false)]));
    let found = match kind {
        // Which keys are known depends on the kind.
        None => return (None, None),
        Some(true) => {
            let mounts = vault::mounts(section);
            (vault::read(section, mounts.clone()).map(SourceConfig::Vault), mounts)
        }
        Some(false) => (local(document, section).map(SourceConfig::Local), None),
    };
    section.finish();
    found
}

fn local(document: &Document, section: &Section) -> Option<LocalSettings> {
    let own_key = encrypted::key_source(section);
    let file = section.require("file", "name the TOML file with the secrets: file = \"/…\"")?;
    let path = file.absolute_path()?;
    file.can_be_opened(&path, "create the file, or correct the path")?;
    Some(LocalSettings { file: path, key: own_key.or_else(|| document.key().cloned()) })
}

impl Sources {
    /// The source a field names; one that does not exist is a problem.
    pub(super) fn named(&self, field: &Field) -> Option<SourceName> {
        let name = field.text()?;
        let found = self.names.iter().find(|known| known.as_str() == name);
        if found.is_none() {
            let known: Vec<&str> = self.names.iter().map(SourceName::as_str).collect();
            let remedy = crate::config::document::suggestion(&name, &known);
            field.problem(format!("no source is named {}", field.quoted()), remedy);
        }
        found.cloned()
    }

    /// The source of a section: its `source` key or the default.
    pub(super) fn of(&self, section: &Section) -> Option<SourceName> {
        match section.get("source") {
            Some(field) => self.named(&field),
            None => self.default.clone(),
        }
    }

    fn mounts(&self, source: Option<&SourceName>) -> Option<&[ConfiguredMount]> {
        self.mounts.get(source.or(self.default.as_ref())?).map(Vec::as_slice)
    }

    /// A path pattern, checked against the source's mounts as far as they are known.
    /// The sources that pods log in to as themselves.
    pub(super) fn with_pod_login(&self) -> BTreeSet<SourceName> {
        let configs = self.configs.iter();
        configs
            .filter(|(_, config)| matches!(config, SourceConfig::Vault(v) if v.pods.is_some()))
            .map(|(name, _)| name.clone())
            .collect()
    }

    pub(super) fn pattern(
        &self,
        field: &Field,
        source: Option<&SourceName>,
    ) -> Option<PathPattern> {
        let remedy = "write a path of whole segments; '*' is one segment, a final '**' the rest";
        let pattern: PathPattern = field.parsed(remedy)?;
        let text = pattern.to_string();
        let first = text.split('/').next().unwrap_or_default();
        if RESERVED.contains(&first) {
            let message = format!("paths below {first:?} are Vault's own and never forwarded");
            field.problem(message, "remove the pattern");
            return None;
        }
        let Some(mounts) = self.mounts(source) else { return Some(pattern) };
        if first.starts_with('*') {
            return Some(pattern);
        }
        match mounts.iter().find(|mount| below(&text, &mount.path).is_some()) {
            Some(mount) => match api_spelling(&text, mount) {
                Some(api) => {
                    let message =
                        format!("{} is the CLI's spelling; policy sees API paths", field.quoted());
                    field.problem(message, format!("write {api:?}"));
                    None
                }
                None => Some(pattern),
            },
            None => {
                field.warning(
                    format!(
                        "{} lies below no mount of the source and matches nothing",
                        field.quoted()
                    ),
                    "correct it, or add the mount to the source's mounts",
                );
                Some(pattern)
            }
        }
    }

    /// A secret as a person writes it, checked against the source's mounts.
    pub(super) fn spelling(&self, field: &Field, source: &SourceName) -> Option<Spelling> {
        let remedy =
            "write the plain path, for example \"secret/shop/db\" or \"secret/shop/db#key\"";
        let spelling: Spelling = field.parsed(remedy)?;
        let Some(mounts) = self.mounts(Some(source)) else { return Some(spelling) };
        let mount = mounts.iter().find(|mount| {
            spelling.path == mount.path || spelling.path.below(&mount.path).is_some()
        });
        let Some(mount) = mount else {
            let known: Vec<&str> = mounts.iter().map(|mount| mount.path.as_str()).collect();
            let message = format!("{} lies below no mount of source \"{source}\"", field.quoted());
            let remedy = format!(
                "add its mount to [sources.{source}.mounts] (there: {}), or correct the path",
                known.join(", ")
            );
            field.problem(message, remedy);
            return None;
        };
        // With `auto` the kind is unknown; any other kind than KV 2 has no second spelling.
        let kind = mount.kind.unwrap_or(EngineKind::Other);
        match spelling.canonical(&Mount { path: mount.path.clone(), kind }) {
            Ok(_) => Some(spelling),
            Err(error @ SpellingError::Ambiguous { .. }) => {
                field.problem(
                    "is ambiguous, so it is open which secret is meant",
                    error.to_string(),
                );
                None
            }
            Err(error) => {
                field.problem(format!("{}: {error}", field.quoted()), "name a secret below it");
                None
            }
        }
    }
}

fn below<'t>(pattern: &'t str, mount: &SecretPath) -> Option<&'t str> {
    pattern.strip_prefix(mount.as_str())?.strip_prefix('/')
}

/// For a pattern that is a CLI spelling on a KV 2 mount: the API path that was meant.
fn api_spelling(pattern: &str, mount: &ConfiguredMount) -> Option<String> {
    let kind = mount.kind.filter(|kind| *kind == EngineKind::Kv2)?;
    let rest = below(pattern, &mount.path)?;
    if rest.starts_with('*') {
        return None;
    }
    // Any wildcard stands for some path; the first literal segment decides which spelling it is.
    let example: Spelling = pattern.replace('*', "x").parse().ok()?;
    let api = example.canonical(&Mount { path: mount.path.clone(), kind }).ok()?;
    (api != example.path).then(|| format!("{}/data/{rest}", mount.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_in_the_clis_spelling_is_recognised_on_kv2_only() {
        let api = |pattern: &str, kind| {
            let mount = ConfiguredMount { path: "secret".parse().unwrap(), kind };
            api_spelling(pattern, &mount)
        };
        let kv2 = Some(EngineKind::Kv2);
        assert_eq!(api("secret/shop/*", kv2).as_deref(), Some("secret/data/shop/*"));
        assert_eq!(api("secret/data/shop/**", kv2), None);
        assert_eq!(api("secret/**", kv2), None);
        assert_eq!(api("secret/metadata/shop", kv2), None);
        assert_eq!(api("secret/shop/*", Some(EngineKind::Kv1)), None);
        assert_eq!(api("secret/shop/*", None), None);
    }
}
