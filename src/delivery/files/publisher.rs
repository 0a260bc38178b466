//! One volume's directory over time: from the levels of its secrets to files on the tmpfs.
//!
//! Synchronous and told the time, so that it cannot be dropped half way and tests need no waiting.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::broker::Problem;
use crate::clock::BootInstant;
use crate::domain::SecretRef;
use crate::source::ErrorClass;
use crate::status::{ItemStatus, VolumeStatus};

use super::apply;
use super::config::{DeclaredVolume, ItemConfig, VolumeConfig};
use super::level::{Action, Forbidden, ItemVerdict, Level, Levels, judge_item};
use super::mount::{self, MountError, Root};
use super::name::RevisionName;
use super::object::Object;
use super::plan::{Plan, Present, Prints, Step, Wanted, adopt_owned, plan};
use super::render::{Ingredient, Ingredients, render};
use super::status_file::{self, Now};
use super::wipe::Wiper;

/// When something that failed is tried again although nothing changed.
const RETRY: Duration = Duration::from_secs(10);

/// Owns one volume's directory.
pub struct Publisher {
    config: Arc<VolumeConfig>,
    root: Root,
    prints: Prints,
    present: Option<Present>,
    published_at: Option<BootInstant>,
    /// The names applications use are not all made yet.
    links_missing: bool,
    wiper: Wiper,
    /// What `..status.json` was last written from.
    status_written: Vec<u8>,
}

/// What one round came to.
pub struct Settled {
    /// The state of the volume, for operators.
    pub status: VolumeStatus,
    /// A revision was published in this round.
    pub published: Option<Published>,
    /// When to come again although nothing changed.
    pub next: Option<BootInstant>,
}

/// A revision that was put in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its name.
    pub revision: RevisionName,
    /// It replaced another, so applications may have to be told.
    pub replaced: bool,
    /// It holds no file any more.
    pub empty: bool,
}

impl Publisher {
    /// Makes a declared volume's root ready and adopts what an earlier process published there.
    pub fn open(volume: &DeclaredVolume, now: Now) -> Result<Self, MountError> {
        Self::on(mount::prepare(volume)?, Arc::new(volume.config.clone()), now)
    }

    /// Takes a root that is ready and adopts what an earlier process published there.
    pub fn on(root: Root, config: Arc<VolumeConfig>, now: Now) -> Result<Self, MountError> {
        let mut publisher = Self {
            root,
            prints: Prints::default(),
            present: None,
            published_at: None,
            links_missing: true,
            wiper: Wiper::default(),
            status_written: Vec::new(),
            config,
        };
        publisher.adopt(now).map_err(|source| MountError::Io {
            what: "read the present files of",
            path: publisher.config.path.clone(),
            source,
        })?;
        Ok(publisher)
    }

    /// Whether files are in place, published by itself or found.
    pub fn has_revision(&self) -> bool {
        self.present.is_some()
    }

    /// What it keeps.
    pub fn config(&self) -> Arc<VolumeConfig> {
        Arc::clone(&self.config)
    }

    fn adopt(&mut self, now: Now) -> std::io::Result<()> {
        let root = self.root.dir.as_fd();
        let published = apply::present(root)?;
        for revision in apply::revisions(root)? {
            if Some(&revision) != published.as_ref() {
                self.wiper.retire(revision, now.boot, self.config.retire_grace);
            }
        }
        let Some(revision) = published else { return Ok(()) };
        let mut files = BTreeMap::new();
        for name in apply::list(root, &revision)? {
            let print = match apply::read(root, &revision, &name) {
                Ok(file) => self.prints.of(&file.content, file.ownership),
                // Whether it changed is not known, so it is written again.
                Err(error) if apply::is_kept_from_us(&error) => self.prints.unknown(),
                Err(error) => return Err(error),
            };
            files.insert(name, print);
        }
        let owned = adopt_owned(&self.config.items, files.keys());
        let age = now.wall.duration_since(apply::written_at(root, &revision)?);
        self.published_at = Some(now.boot - age.unwrap_or_default());
        self.present = Some(Present { revision, files, owned });
        Ok(())
    }

    /// Brings the directory to what the levels call for. Never fails: what cannot be done now is an
    /// alarm, and the files stay as they are.
    pub fn settle(&mut self, levels: &Levels, now: Now) -> Settled {
        let unknown = Level::default();
        let config = Arc::clone(&self.config);
        let verdicts: Vec<ItemVerdict<'_>> = config
            .items
            .iter()
            .filter_map(|item| judge_item(item, levels, &unknown, &config, now.boot))
            .collect();
        let ingredients = ingredients(levels);
        let wanted = config.items.iter().zip(&verdicts);
        let wanted = wanted.map(|(item, one)| want(item, one, &ingredients)).collect();
        let Plan { step, alarm } = plan(&config.items, wanted, self.present.as_ref(), &self.prints);
        let mut alarms: Vec<String> = alarm.into_iter().collect();
        let waiting = matches!(step, Step::Wait);
        let (published, mut retry) = self.take(step, now, &mut alarms);
        let items: Vec<ItemStatus> =
            config.items.iter().zip(&verdicts).map(|(item, one)| item_status(item, one)).collect();
        alarms.extend(concerns(&items, waiting));
        let wiped = self.wiper.run(&self.root, now.boot);
        let mut status = VolumeStatus {
            name: config.name.clone(),
            path: config.path.clone(),
            mount: self.root.description.clone(),
            revision: self.present.as_ref().map(|present| present.revision.to_string()),
            published_at: self.published_at,
            links_missing: self.links_missing,
            alarm: (!alarms.is_empty()).then(|| alarms.join("; ")),
            items,
        };
        if let Err(error) = self.write_status(&status, now) {
            tracing::warn!(volume = %config.name, %error, "cannot write a volume's status file");
            let alarm = status.alarm.take().map_or(String::new(), |alarm| format!("{alarm}; "));
            status.alarm = Some(format!("{alarm}cannot write {}: {error}", status_file::NAME));
            retry = true;
        }
        let by_time = verdicts.iter().filter_map(|one| one.verdict.changes_at);
        let next = by_time.chain(wiped).chain(retry.then(|| now.boot + RETRY)).min();
        Settled { status, published, next }
    }

    /// Carries a step out; the flag asks to come again soon.
    fn take(
        &mut self,
        step: Step,
        now: Now,
        alarms: &mut Vec<String>,
    ) -> (Option<Published>, bool) {
        let published = match step {
            Step::Wait => return (None, false),
            Step::Unchanged { owned } => {
                if let Some(present) = &mut self.present {
                    present.owned = owned;
                }
                None
            }
            Step::Publish { files, prints, owned } => {
                let revision = RevisionName::new(now.timestamp(), fastrand::u32(..));
                let old = self.present.as_ref().map(|present| present.revision.clone());
                let root = self.root.dir.as_fd();
                if let Err(error) = apply::publish(root, &revision, &files, old.as_ref()) {
                    alarms.push(chain(&error));
                    self.link(alarms);
                    return (None, true);
                }
                let empty = prints.is_empty();
                self.present = Some(Present { revision: revision.clone(), files: prints, owned });
                self.published_at = Some(now.boot);
                self.links_missing = true;
                let replaced = old.is_some();
                if let Some(old) = old {
                    self.wiper.retire(old, now.boot, self.config.retire_grace);
                }
                Some(Published { revision, replaced, empty })
            }
        };
        self.link(alarms);
        (published, self.links_missing)
    }

    /// Makes the names that lead to the present revision, as far as they are missing.
    fn link(&mut self, alarms: &mut Vec<String>) {
        if let (true, Some(present)) = (self.links_missing, &self.present) {
            match apply::link(self.root.dir.as_fd(), &present.files.keys().collect()) {
                Ok(()) => self.links_missing = false,
                Err(error) => alarms.push(chain(&error)),
            }
        }
    }

    fn write_status(&mut self, status: &VolumeStatus, now: Now) -> std::io::Result<()> {
        // Rendered against a fixed clock, because two readings of the real ones never agree.
        let fixed = Now { boot: BootInstant::default(), wall: std::time::UNIX_EPOCH };
        let key = status_file::render(status, self.wiper.forced, fixed);
        if key != self.status_written {
            let document = status_file::render(status, self.wiper.forced, now);
            status_file::write(self.root.dir.as_fd(), &document)?;
            self.status_written = key;
        }
        Ok(())
    }
}

/// The status of a volume that has no directory yet.
pub fn unopened(config: &VolumeConfig, alarm: String) -> VolumeStatus {
    let (levels, unknown) = (Levels::new(), Level::default());
    let line = |item: &ItemConfig| {
        let one = judge_item(item, &levels, &unknown, config, BootInstant::default())?;
        Some(item_status(item, &one))
    };
    VolumeStatus {
        name: config.name.clone(),
        path: config.path.clone(),
        mount: "none".to_owned(),
        revision: None,
        published_at: None,
        links_missing: false,
        alarm: Some(alarm),
        items: config.items.iter().filter_map(line).collect(),
    }
}

fn ingredients(levels: &Levels) -> Ingredients<'_> {
    let mut ingredients = Ingredients::new();
    for (reference, level) in levels {
        if let (Some(entry), Some(engine)) = (&level.entry, level.engine) {
            let object = Object::parse(entry, engine);
            ingredients.insert(reference.clone(), Ingredient { object, kind: entry.kind });
        }
    }
    ingredients
}

fn want(item: &ItemConfig, one: &ItemVerdict<'_>, ingredients: &Ingredients<'_>) -> Wanted {
    let rendered =
        |make: fn(_) -> Wanted| render(item, ingredients).map_or_else(Wanted::Failed, make);
    match one.verdict.action {
        Action::Show => rendered(Wanted::Show),
        Action::Keep => rendered(Wanted::Keep),
        Action::Carry => Wanted::Carry,
        Action::Remove => Wanted::Remove,
    }
}

fn item_status(item: &ItemConfig, one: &ItemVerdict<'_>) -> ItemStatus {
    let spelled = || SecretRef {
        source: one.reference.source.clone(),
        path: one.reference.path.clone(),
        version: None,
    };
    let forbidden = |forbidden: &Forbidden| Problem {
        class: ErrorClass::Denied,
        message: forbidden.reason.clone(),
        since: forbidden.since,
        attempts: 1,
    };
    let problem = one.level.forbidden.as_ref().map(forbidden);
    let seen = one.level.seen;
    ItemStatus {
        file: item.file_label().to_owned(),
        secret: one.level.secret.clone().unwrap_or_else(spelled),
        state: one.verdict.state,
        fetched_at: seen.map(|seen| seen.fetched_at),
        works_until: seen.map(|seen| seen.dead_at),
        version: seen.and_then(|seen| seen.version),
        problem: problem.or_else(|| one.level.problem.clone().or(one.level.obstacle.clone())),
    }
}

/// What an operator must look at: files that are not what they should be, and why.
fn concerns(items: &[ItemStatus], waiting: bool) -> Vec<String> {
    let concern = |item: &ItemStatus| {
        let alarming = match item.state {
            "fresh" => false,
            "waiting" | "stale" => waiting || item.problem.is_some(),
            _ => true,
        };
        let why = item.problem.as_ref().map_or(String::new(), |why| format!(": {}", why.message));
        alarming.then(|| format!("{} of '{}' is {}{why}", item.file, item.secret, item.state))
    };
    items.iter().filter_map(concern).collect()
}

fn chain(error: &apply::ApplyError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
#[path = "publisher_tests.rs"]
mod tests;
