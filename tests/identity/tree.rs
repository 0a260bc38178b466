//! Cgroups of the test's own: one name below the root of a v1 and of the v2 hierarchy.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// What begins the name of everything that is made here; the pid of its maker follows.
const NAME: &str = "sbforge";
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(5);

/// Which interface a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// Where one hierarchy is mounted.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) version: Version,
    mount: PathBuf,
}

/// Both hierarchies, and the names of all that is made in them.
pub(crate) struct Trees {
    pub(crate) v1: Tree,
    pub(crate) v2: Tree,
    pub(crate) name: String,
}

impl Trees {
    /// Finds a mounted hierarchy of each kind, and removes what runs that were killed have left.
    pub(crate) fn make() -> Self {
        let name = format!("{NAME}{}", std::process::id());
        let v1 = found("cgroup", Version::V1).unwrap_or_else(|| {
            panic!("no v1 hierarchy: mount -t cgroup -o none,name=forgery cgroup DIRECTORY")
        });
        let v2 = found("cgroup2", Version::V2)
            .unwrap_or_else(|| panic!("no v2 hierarchy: mount -t cgroup2 cgroup2 DIRECTORY"));
        for left in [&v1, &v2].into_iter().flat_map(|tree| directories(&tree.mount)) {
            if maker(&left).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                remove(&left);
            }
        }
        Self { v1, v2, name }
    }

    /// Removes everything below the test's name; whether nothing is left.
    pub(crate) fn remove(&self) -> bool {
        let gone = |tree: &Tree| self.tops(tree).iter().all(|top| remove(top));
        let (v1, v2) = (gone(&self.v1), gone(&self.v2));
        v1 && v2
    }

    fn tops(&self, tree: &Tree) -> Vec<PathBuf> {
        let all = directories(&tree.mount).into_iter();
        all.filter(|path| maker(path) == Some(std::process::id())).collect()
    }
}

impl Drop for Trees {
    fn drop(&mut self) {
        if !self.remove() {
            eprintln!("tests/identity: cgroups named {}… are left", self.name);
        }
    }
}

impl Tree {
    /// Makes a cgroup with all above it; `path` begins with a slash, as in `/proc/<pid>/cgroup`.
    pub(crate) fn make(&self, path: &str) -> PathBuf {
        let directory = self.directory(path);
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    pub(crate) fn directory(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    /// Makes one and moves a process into it.
    pub(crate) fn put(&self, pid: u32, path: &str) {
        fs::write(self.make(path).join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Makes one that a user may fill, as systemd delegates it.
    pub(crate) fn delegate(&self, path: &str, uid: u32) -> PathBuf {
        let directory = self.make(path);
        chown(&directory, Some(uid), Some(uid)).unwrap();
        chown(directory.join("cgroup.procs"), Some(uid), Some(uid)).unwrap();
        directory
    }
}

fn found(kind: &str, version: Version) -> Option<Tree> {
    let mounts = secrets_broker::mountinfo::read().unwrap();
    // A hierarchy that limits something would limit the test, too.
    let harmless = |options: &str| {
        version == Version::V2 || options.contains("name=") || options.contains("pids")
    };
    let whole = mounts.into_iter().filter(|line| line.root == Path::new("/"));
    let mount = whole
        .filter(|line| line.fs_type == kind && harmless(&line.super_options))
        .map(|line| line.mount_point)
        .next()?;
    Some(Tree { version, mount })
}

/// The pid of the run that made a cgroup below the root, if one of this test did.
fn maker(cgroup: &Path) -> Option<u32> {
    let rest = cgroup.file_name()?.to_str()?.strip_prefix(NAME)?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Ends what still runs in a cgroup of ours, then removes it with all below.
fn remove(cgroup: &Path) -> bool {
    let below = directories(cgroup).iter().all(|directory| remove(directory));
    let mut waited = Duration::ZERO;
    while below && waited < PATIENCE {
        match fs::remove_dir(cgroup) {
            Ok(()) => return true,
            Err(error) if error.kind() == ErrorKind::NotFound => return true,
            Err(_) => {}
        }
        let inside = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            // It may have ended by itself just now.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(PAUSE);
        waited += PAUSE;
    }
    false
}
