//! What each error does to real files, with time given by hand.

use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::delivery::files::Backing;
use crate::delivery::files::config::{ItemContent, OnProblem, Reference};
use crate::delivery::files::level::{Forbidden, Seen};
use crate::delivery::files::testing::{at, entry, own_files, problem, volume};
use crate::domain::EngineKind;
use crate::source::ErrorClass;

/// A volume with `token` from `kv/web` and every key of `kv/db`.
struct Fixture {
    parent: tempfile::TempDir,
    config: VolumeConfig,
    publisher: Publisher,
    levels: Levels,
}

fn item(content: ItemContent) -> ItemConfig {
    ItemConfig { source: "vault".parse().unwrap(), content, ownership: own_files(0o440) }
}

fn reference(path: &str) -> Reference {
    Reference { source: "vault".parse().unwrap(), path: path.parse().unwrap() }
}

fn now(seconds: u64) -> Now {
    Now { boot: at(seconds), wall: std::time::SystemTime::now() }
}

fn declared(config: &VolumeConfig) -> DeclaredVolume {
    DeclaredVolume { config: config.clone(), backing: Backing::ExistingTmpfs }
}

impl Fixture {
    fn new(change: impl FnOnce(&mut VolumeConfig)) -> Self {
        crate::sys::ignore_sigio().unwrap();
        let parent = tempfile::tempdir_in("/dev/shm").unwrap();
        let token = "token".parse().unwrap();
        let mut config = volume(vec![
            item(ItemContent::Value { secret: "kv/web#token".parse().unwrap(), file: token }),
            item(ItemContent::EveryKey { secret: "kv/db".parse().unwrap() }),
        ]);
        config.path = parent.path().join("v");
        change(&mut config);
        let publisher = Publisher::open(&declared(&config), now(10)).unwrap();
        Self { parent, config, publisher, levels: Levels::new() }
    }

    /// With a first revision: `token` = `t1`, `user` = `u1`.
    fn published(change: impl FnOnce(&mut VolumeConfig)) -> Self {
        let mut fixture = Self::new(change);
        fixture.value("kv/web", r#"{"token":"t1"}"#);
        fixture.value("kv/db", r#"{"user":"u1"}"#);
        assert!(fixture.settle(11).published.is_some());
        fixture
    }

    fn value(&mut self, path: &str, data: &str) {
        let entry = Arc::new(entry(data));
        let level = self.levels.entry(reference(path)).or_default();
        level.engine = Some(EngineKind::Kv1);
        (level.seen, level.entry) = (Some(Seen::of(&entry)), Some(entry));
        (level.problem, level.forbidden) = (None, None);
    }

    fn level(&mut self, path: &str) -> &mut Level {
        self.levels.get_mut(&reference(path)).unwrap()
    }

    fn settle(&mut self, seconds: u64) -> Settled {
        self.publisher.settle(&self.levels, now(seconds))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.config.path.join(name)
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path(name)).ok()
    }

    fn document(&self) -> serde_json::Value {
        serde_json::from_str(&self.read("..status.json").unwrap()).unwrap()
    }

    /// A new process on the same directory, which knows no levels yet.
    fn restart(self) -> Self {
        let Self { parent, config, publisher, .. } = self;
        drop(publisher);
        let publisher = Publisher::open(&declared(&config), now(50)).unwrap();
        Self { parent, config, publisher, levels: Levels::new() }
    }
}

#[test]
fn the_first_revision_waits_for_every_item_and_says_for_which() {
    let mut volume = Fixture::new(|_| {});
    volume.value("kv/web", r#"{"token":"t1"}"#);
    let obstacle = Some(problem(ErrorClass::Unreachable));
    volume.levels.insert(reference("kv/db"), Level { obstacle, ..Level::default() });
    let settled = volume.settle(11);
    assert!(settled.published.is_none() && volume.read("token").is_none());
    let alarm = settled.status.alarm.unwrap();
    assert!(alarm.contains("* of 'vault:kv/db' is waiting: as the test wants"), "{alarm}");
    volume.value("kv/db", r#"{"user":"u1"}"#);
    let published = volume.settle(12).published.unwrap();
    assert!(!published.replaced);
    assert_eq!(
        (volume.read("token").as_deref(), volume.read("user").as_deref()),
        (Some("t1"), Some("u1"))
    );
}

#[test]
fn a_change_swaps_and_no_change_does_not() {
    let mut volume = Fixture::published(|_| {});
    volume.value("kv/db", r#"{"user":"u1"}"#);
    assert_eq!(volume.settle(12).published, None);
    volume.value("kv/db", r#"{"user":"u2","extra":"x"}"#);
    let published = volume.settle(13).published.unwrap();
    assert!(published.replaced && !published.empty);
    assert_eq!(volume.read("user").as_deref(), Some("u2"));
    volume.value("kv/db", r#"{"user":"u2"}"#);
    assert!(volume.settle(14).published.is_some());
    assert!(volume.path("extra").symlink_metadata().is_err());
}

#[test]
fn a_problem_keeps_the_file_marked_and_an_opt_in_removes_it() {
    for (class, state, seconds) in [
        (ErrorClass::Denied, "denied", 15),
        (ErrorClass::NotFound, "gone", 15),
        (ErrorClass::Unreachable, "stale", 31),
    ] {
        let mut kept = Fixture::published(|_| {});
        kept.level("kv/web").problem = Some(problem(class));
        let status = kept.settle(seconds).status;
        assert_eq!((kept.read("token").as_deref(), status.items[0].state), (Some("t1"), state));
        assert!(status.alarm.unwrap().contains(state));
        assert_eq!(kept.document()["items"][0]["state"], state);
        let mut removed = Fixture::published(|config| {
            config.on_denied = OnProblem::Remove;
            config.on_gone = OnProblem::Remove;
            config.on_stale = OnProblem::Remove;
        });
        // Its neighbour's value is renewed all along.
        let mut renewed = entry(r#"{"user":"u1"}"#);
        (renewed.fresh_until, renewed.dead_at) = (at(90), at(99));
        let level = removed.level("kv/db");
        (level.seen, level.entry) = (Some(Seen::of(&renewed)), Some(Arc::new(renewed)));
        removed.level("kv/web").problem = Some(problem(class));
        removed.settle(seconds);
        assert_eq!((removed.read("token"), removed.read("user").as_deref()), (None, Some("u1")));
    }
}

#[test]
fn what_policy_forbids_is_gone_after_the_grace_and_wiped_after_another() {
    let mut volume = Fixture::published(|_| {});
    let first = volume.path("..data").read_link().unwrap();
    volume.level("kv/web").forbidden = Some(Forbidden { since: at(12), reason: "no rule".into() });
    assert_eq!(volume.settle(13).next, Some(at(20)), "the neighbour's value ages");
    assert!(volume.read("token").is_some());
    assert!(volume.settle(14).status.alarm.unwrap().contains("forbidden: no rule"));
    volume.settle(72);
    assert!(volume.read("token").is_none() && volume.read("user").is_some());
    assert!(volume.config.path.join(&first).exists());
    volume.settle(102);
    assert!(!volume.config.path.join(&first).exists());
    volume.value("kv/web", r#"{"token":"t1"}"#);
    volume.settle(103);
    assert_eq!(volume.read("token").as_deref(), Some("t1"), "allowed again");
}

#[test]
fn a_secret_without_the_asked_key_holds_the_whole_set() {
    let mut volume = Fixture::published(|_| {});
    volume.value("kv/web", r#"{"other":"x"}"#);
    volume.value("kv/db", r#"{"user":"u2"}"#);
    let settled = volume.settle(12);
    assert!(settled.published.is_none());
    assert_eq!(volume.read("user").as_deref(), Some("u1"));
    assert!(settled.status.alarm.unwrap().contains("has no key 'token' (it has: other)"));
}

#[test]
fn a_restart_without_the_source_changes_no_file_and_a_value_that_is_the_same_does_not_either() {
    let mut volume = Fixture::published(|_| {}).restart();
    let before = volume.path("..data").read_link().unwrap();
    let settled = volume.settle(51);
    assert!(settled.published.is_none());
    assert_eq!(volume.read("user").as_deref(), Some("u1"));
    volume.value("kv/db", r#"{"user":"u1"}"#);
    volume.value("kv/web", r#"{"token":"t1"}"#);
    assert!(volume.settle(52).published.is_none());
    assert_eq!(volume.path("..data").read_link().unwrap(), before);
    volume.value("kv/web", r#"{"token":"t2"}"#);
    assert!(volume.settle(53).published.unwrap().replaced);
}

#[test]
fn what_a_dead_process_left_half_written_is_wiped() {
    let volume = Fixture::published(|_| {});
    let half = volume.path("..2026_01_01_00_00_00.deadbeef");
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("token"), "half").unwrap();
    let mut volume = volume.restart();
    volume.settle(51);
    assert!(half.exists());
    volume.settle(81);
    assert!(!half.exists());
    assert_eq!(volume.read("token").as_deref(), Some("t1"));
}

#[test]
fn the_status_file_changes_with_the_state_only() {
    use std::os::unix::fs::MetadataExt;
    let mut volume = Fixture::published(|_| {});
    let inode = |volume: &Fixture| volume.path("..status.json").metadata().unwrap().ino();
    let first = inode(&volume);
    volume.settle(12);
    volume.settle(13);
    assert_eq!(inode(&volume), first);
    volume.level("kv/web").problem = Some(problem(ErrorClass::Unreachable));
    volume.settle(14);
    assert_ne!(inode(&volume), first);
    assert_eq!(volume.document()["items"][0]["problem"], "unreachable");
}

/// As in a container whose root may change owners and modes, and nothing else.
#[test]
fn a_file_that_only_its_owner_may_read_is_adopted_carried_and_wiped_without_the_right_to_read_it() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT ROOT: nothing to give away, and nothing that only another may read");
        return;
    }
    let limited = |mode| {
        let mut sets = capabilities(None).unwrap();
        sets.effective = CapabilitySet::CHOWN | CapabilitySet::FOWNER;
        set_capabilities(None, sets).unwrap();
        let mut fixture = Fixture::published(|config| {
            config.retire_grace = Duration::from_secs(1);
            for item in &mut config.items {
                item.ownership.uid = 4242;
                item.ownership.mode = mode;
            }
        });
        let path = fixture.config.path.join("token");
        assert!(std::fs::read(&path).is_err(), "the test has the right it must not have");
        let first = std::fs::read_link(fixture.config.path.join("..data")).unwrap();
        // A successor cannot compare, so it writes once; then nothing changes any more.
        fixture.publisher = Publisher::open(&declared(&fixture.config), now(20)).unwrap();
        assert!(fixture.settle(20).published.is_some());
        assert!(fixture.settle(21).published.is_none());
        // One secret changes, the other is out of reach and carried as it is.
        fixture.value("kv/db", r#"{"user":"u2"}"#);
        fixture.levels.get_mut(&reference("kv/web")).unwrap().entry = None;
        assert!(fixture.settle(22).published.is_some());
        fixture.settle(60);
        assert!(!fixture.config.path.join(first).exists(), "the first revision is wiped");
        // Only now with the right to look.
        let mut sets = capabilities(None).unwrap();
        sets.effective |= CapabilitySet::DAC_OVERRIDE;
        set_capabilities(None, sets).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "t1");
        assert_eq!(std::fs::read_to_string(fixture.config.path.join("user")).unwrap(), "u2");
        let metadata = path.metadata().unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (4242, mode));
    };
    // Capabilities are a thread's own.
    for mode in [0o400, 0o004] {
        std::thread::spawn(move || limited(mode)).join().unwrap();
    }
}
