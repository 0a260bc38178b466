//! Volumes on real mounts: own tmpfs, full tmpfs, adoption after a restart, subPath, other owners.
//!
//! Needs root for most of it. Without root each of those tests says so on standard error and checks
//! the unprivileged way, an existing directory on /dev/shm, instead; it never just passes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use secrets_broker::broker::{DataView, Entry, shared_bytes};
use secrets_broker::clock::BootInstant;
use secrets_broker::delivery::files::config::Reference;
use secrets_broker::delivery::files::level::{Level, Levels, Seen};
use secrets_broker::delivery::files::mount::{self, MountError};
use secrets_broker::delivery::files::publisher::{Publisher, Settled};
use secrets_broker::delivery::files::status_file::Now;
use secrets_broker::delivery::files::{
    Backing, DeclaredVolume, FileOwnership, ItemConfig, ItemContent, OnProblem, VolumeConfig,
};
use secrets_broker::domain::{EngineKind, PathKind, SecretBytes};

/// A volume with one item, `token`, cleaned up however the test ends.
struct Volume {
    _parent: tempfile::TempDir,
    config: VolumeConfig,
    backing: Backing,
    levels: Levels,
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Whatever is still mounted, layer by layer.
        while unmount(&self.config.path, UnmountFlags::DETACH).is_ok() {}
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An own tmpfs for root; otherwise an existing one, announced.
fn backing(test: &str) -> Backing {
    if is_root() {
        return Backing::OwnTmpfs { size_bytes: 64 * 1024, inodes: 64, directory_mode: 0o755 };
    }
    eprintln!("NOT ROOT: {test} runs on an existing tmpfs directory and mounts nothing");
    Backing::ExistingTmpfs
}

fn at(seconds: u64) -> BootInstant {
    BootInstant::from_nanos(seconds * 1_000_000_000)
}

fn now(seconds: u64) -> Now {
    Now { boot: at(seconds), wall: SystemTime::now() }
}

impl Volume {
    fn new(backing: Backing) -> Self {
        secrets_broker::sys::ignore_sigio().unwrap();
        let parent = tempfile::tempdir_in("/dev/shm").unwrap();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let ownership = FileOwnership { uid, gid, mode: 0o440 };
        let content = ItemContent::Value {
            secret: "kv/web#token".parse().unwrap(),
            file: "token".parse().unwrap(),
        };
        let item = ItemConfig { source: "vault".parse().unwrap(), content, ownership };
        let config = VolumeConfig {
            name: "shop".parse().unwrap(),
            path: parent.path().join("volumes/shop"),
            defaults: ownership,
            items: vec![item],
            on_stale: OnProblem::Keep,
            on_denied: OnProblem::Keep,
            on_gone: OnProblem::Keep,
            forbid_grace: Duration::from_secs(60),
            retire_grace: Duration::from_secs(30),
            on_change: None,
            on_change_batch: Duration::from_secs(1),
        };
        Self { _parent: parent, config, backing, levels: Levels::new() }
    }

    fn declared(&self) -> DeclaredVolume {
        DeclaredVolume { config: self.config.clone(), backing: self.backing }
    }

    fn open(&self) -> Publisher {
        Publisher::open(&self.declared(), now(10)).unwrap()
    }

    fn value(&mut self, token: &str) {
        let body = SecretBytes::new(format!(r#"{{"token":"{token}"}}"#).into_bytes());
        let whole = 0..body.len();
        let entry = Entry {
            data: DataView::new(shared_bytes(body), whole),
            kind: PathKind::Kv,
            fetched_at: at(10),
            fresh_until: at(1_000),
            dead_at: at(2_000),
            version: None,
            fingerprint: 0,
            interest: None,
        };
        let reference =
            Reference { source: "vault".parse().unwrap(), path: "kv/web".parse().unwrap() };
        let seen = Some(Seen::of(&entry));
        let (entry, engine) = (Some(Arc::new(entry)), Some(EngineKind::Kv1));
        self.levels.insert(reference, Level { engine, entry, seen, ..Level::default() });
    }

    fn settle(&self, publisher: &mut Publisher, seconds: u64) -> Settled {
        publisher.settle(&self.levels, now(seconds))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.config.path.join(name)
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.path("token")).unwrap()
    }
}

fn mount_line(path: &Path) -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let wanted = format!(" {} ", path.display());
    table.lines().rfind(|line| line.contains(&wanted)).unwrap_or_default().to_owned()
}

#[test]
fn an_own_tmpfs_is_mounted_without_swap_found_again_and_discarded() {
    let mut volume = Volume::new(backing("an own tmpfs"));
    volume.value("t1");
    let mut first = volume.open();
    let status = volume.settle(&mut first, 11).status;
    if is_root() {
        let line = mount_line(&volume.config.path);
        for option in ["nosuid", "nodev", "noexec", "size=64k", "nr_inodes=64"] {
            assert!(line.contains(option), "{option} missing: {line}");
        }
        let mode = volume.config.path.metadata().unwrap().mode() & 0o777;
        assert_eq!((status.mount == "tmpfs noswap", mode), (line.contains("noswap"), 0o755));
    }
    drop(first);
    // A successor with a larger size adopts mount and files.
    if let Backing::OwnTmpfs { size_bytes, .. } = &mut volume.backing {
        *size_bytes = 128 * 1024;
    }
    let before = std::fs::read_link(volume.path("..data")).unwrap();
    let mut second = volume.open();
    assert!(volume.settle(&mut second, 20).published.is_none());
    assert_eq!(
        (volume.token(), std::fs::read_link(volume.path("..data")).unwrap()),
        ("t1".into(), before)
    );
    if is_root() {
        let line = mount_line(&volume.config.path);
        assert!(
            line.contains("size=128k")
                && line.contains("noswap") == (status.mount == "tmpfs noswap"),
            "{line}"
        );
    }
    drop(second);
    mount::discard(&volume.declared()).unwrap();
    assert!(!volume.config.path.exists() && mount_line(&volume.config.path).is_empty());
}

#[test]
fn a_full_volume_keeps_the_old_revision_alarms_and_recovers() {
    let mut volume = Volume::new(backing("a full volume"));
    volume.value("t1");
    let mut publisher = volume.open();
    volume.settle(&mut publisher, 11);
    let entries = || std::fs::read_dir(&volume.config.path).unwrap().count();
    let before = entries();
    // Only an own tmpfs has a size of its own to run out of.
    if is_root() {
        let mut large = Volume::new(Backing::ExistingTmpfs);
        large.value(&"x".repeat(100_000));
        volume.levels = std::mem::take(&mut large.levels);
        let settled = volume.settle(&mut publisher, 12);
        assert!(settled.published.is_none());
        assert!(settled.status.alarm.unwrap().contains("the volume is full"));
        assert_eq!(settled.next, Some(at(22)));
        let entries = std::fs::read_dir(&volume.config.path).unwrap().count();
        assert_eq!((volume.token(), entries), ("t1".to_owned(), before));
    }
    volume.value("t3");
    let settled = volume.settle(&mut publisher, 22);
    assert_eq!((volume.token(), settled.status.alarm), ("t3".to_owned(), None));
}

#[test]
fn a_file_mounted_elsewhere_is_kept_until_it_is_unmounted() {
    let mut volume = Volume::new(backing("a mounted file"));
    volume.value("t1");
    let mut publisher = volume.open();
    volume.settle(&mut publisher, 11);
    let old = volume.path("..data").canonicalize().unwrap();
    let elsewhere = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    let mounted = is_root();
    if mounted {
        mount_bind(old.join("token"), elsewhere.path()).unwrap();
    }
    volume.value("t2");
    volume.settle(&mut publisher, 12);
    volume.settle(&mut publisher, 42);
    // Long past the hard deadline for readers, too.
    volume.settle(&mut publisher, 900);
    let seen = std::fs::read_to_string(elsewhere.path()).unwrap();
    if mounted {
        unmount(elsewhere.path(), UnmountFlags::empty()).unwrap();
        assert_eq!(seen, "t1", "kept while it was mounted");
        assert!(old.exists());
    }
    volume.settle(&mut publisher, 1_900);
    assert!(!old.exists());
    assert_eq!(volume.token(), "t2");
}

#[test]
fn files_belong_to_their_owner_before_anybody_sees_them() {
    let mut volume = Volume::new(backing("another owner"));
    volume.config.items[0].ownership = FileOwnership { uid: 12_345, gid: 23_456, mode: 0o400 };
    volume.value("t1");
    let mut publisher = volume.open();
    let settled = volume.settle(&mut publisher, 11);
    if !is_root() {
        assert!(settled.status.alarm.unwrap().contains("run as root"));
        assert!(!volume.path("token").exists());
        return;
    }
    let file = volume.path("token").metadata().unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (12_345, 23_456, 0o400));
    // Wiping a foreign file needs, and has, the capability for leases.
    volume.value("t2");
    let old = volume.path("..data").canonicalize().unwrap();
    volume.settle(&mut publisher, 12);
    volume.settle(&mut publisher, 42);
    assert!(!old.exists());
}

#[test]
fn directories_with_something_in_them_or_on_them_are_refused_untouched() {
    let volume =
        Volume::new(Backing::OwnTmpfs { size_bytes: 4096, inodes: 16, directory_mode: 0o700 });
    std::fs::create_dir_all(&volume.config.path).unwrap();
    std::fs::write(volume.path("precious"), "x").unwrap();
    let refused = mount::prepare(&volume.declared()).err().unwrap();
    assert!(matches!(refused, MountError::NotEmpty(_)), "{refused}");
    assert!(volume.path("precious").exists() && mount_line(&volume.config.path).is_empty());
    std::fs::remove_file(volume.path("precious")).unwrap();
    if !is_root() {
        let refused = mount::prepare(&volume.declared()).err().unwrap();
        assert!(matches!(refused, MountError::NotPermitted(_)), "{refused}");
        return;
    }
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    mount_bind(other.path(), &volume.config.path).unwrap();
    let refused = mount::prepare(&volume.declared()).err().unwrap();
    assert!(matches!(refused, MountError::Foreign(..)), "{refused}");
}
