//! The configured sources, opened: keys read, CA bundles loaded, local files parsed.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;

use super::SharedSources;
use crate::config::{KeySource, LocalSettings, SourceConfig};
use crate::domain::SourceName;
use crate::encryption::Key;
use crate::shutdown::{Stage, Stages, Supervisor};
use crate::source::SharedSource;
use crate::source::local::{LocalConfig, LocalSource};
use crate::source::vault::Vault;

/// Every source, and the local ones once more by their own type: they are watched and can be bad.
pub(super) struct Sources {
    shared: SharedSources,
    local: BTreeMap<SourceName, Arc<LocalSource>>,
}

impl Sources {
    pub(super) fn open(configs: BTreeMap<SourceName, SourceConfig>) -> anyhow::Result<Self> {
        let mut sources = Self { shared: BTreeMap::new(), local: BTreeMap::new() };
        for (name, config) in configs {
            let source: SharedSource = match config {
                SourceConfig::Vault(config) => Arc::new(
                    Vault::connect(config).with_context(|| format!("opening source '{name}'"))?,
                ),
                SourceConfig::Local(settings) => {
                    let opened = open_local(&settings);
                    let local =
                        Arc::new(opened.with_context(|| format!("opening source '{name}'"))?);
                    sources.local.insert(name.clone(), Arc::clone(&local));
                    local
                }
            };
            sources.shared.insert(name, source);
        }
        Ok(sources)
    }

    pub(super) fn spawn(&self, supervisor: &mut Supervisor, stages: &Stages) {
        for local in self.local.values() {
            let (local, stop) = (Arc::clone(local), stages.work.clone());
            supervisor.spawn("local source", Stage::Work, async move {
                local.follow(stop).await;
                Ok(())
            });
        }
    }

    pub(super) fn shared(&self) -> SharedSources {
        self.shared.clone()
    }

    pub(super) fn local(&self) -> BTreeMap<SourceName, Arc<LocalSource>> {
        self.local.clone()
    }
}

/// Reads a local source's file and the key to it.
pub fn open_local(settings: &LocalSettings) -> anyhow::Result<LocalSource> {
    let key = settings.key.as_ref().map(key).transpose()?;
    let file = settings.file.clone();
    Ok(LocalSource::open(LocalConfig { file, key: key.map(|key| key.shared()) })?)
}

fn key(source: &KeySource) -> anyhow::Result<Key> {
    Ok(match source {
        KeySource::File(path) => Key::from_file(path)?,
        KeySource::Variable(name) => Key::from_env(name)?,
    })
}
