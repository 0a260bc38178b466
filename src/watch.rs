//! Tells when a file's content may have changed, through symlinks and Kubernetes' `..data` swap.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// Quiet time after the last event before the file is looked at: editors and kubelet take several
/// steps.
const QUIET: Duration = Duration::from_millis(200);
/// A directory that is never quiet delays a reload by no more than this many quiet times.
const QUIET_TIMES_MAX: u32 = 10;
/// How often the file is looked at without any event, for file systems that send none.
const POLL: Duration = Duration::from_secs(30);
/// Linux gives up after as many symlinks.
const SYMLINKS_MAX: usize = 40;

/// Watches one file by way of the directories that decide what its path means.
///
/// A watch on the file itself would die with the first rename over it. Where inotify is not to be
/// had, a look every 30 s remains.
pub struct FileWatcher {
    path: PathBuf,
    seen: Option<Stamp>,
    woken: Arc<Notify>,
    /// An event was taken from `woken` and the file not yet looked at.
    pending: bool,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeMap<PathBuf, (u64, u64)>,
    quiet: Duration,
    poll: Duration,
}

impl FileWatcher {
    /// Starts watching. Create it *before* reading the file, so that no change falls in between.
    pub fn new(path: &Path) -> Self {
        Self::with_times(path, QUIET, POLL)
    }

    fn with_times(path: &Path, quiet: Duration, poll: Duration) -> Self {
        let woken = Arc::new(Notify::new());
        let waker = Arc::clone(&woken);
        let on_event = move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| may_change_content(&event.kind)) {
                waker.notify_one();
            }
        };
        let watcher = notify::recommended_watcher(on_event)
            .inspect_err(|error| {
                let path = path.display();
                tracing::warn!(%path, %error, "no inotify; the file is looked at every 30 s");
            })
            .ok();
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut new = Self {
            seen: None,
            woken,
            pending: false,
            watcher,
            watched: BTreeMap::new(),
            quiet,
            poll,
            path,
        };
        new.rearm();
        new.seen = Stamp::of(&new.path);
        new
    }

    /// Waits until the file is another one, has other content or attributes, appears or disappears,
    /// and things have been quiet for 200 ms. Cancel-safe: what it had noticed is not forgotten.
    pub async fn changed(&mut self) {
        loop {
            if !self.pending {
                tokio::select! {
                    // Cancel-safe: a permit is taken only when this arm completes.
                    () = self.woken.notified() => {}
                    () = tokio::time::sleep(self.poll) => {}
                }
                self.pending = true;
            }
            self.settle().await;
            self.pending = false;
            self.rearm();
            let stamp = Stamp::of(&self.path);
            if stamp != self.seen {
                self.seen = stamp;
                return;
            }
        }
    }

    /// Waits for a quiet time without events, though not for ever.
    async fn settle(&self) {
        for _ in 0..QUIET_TIMES_MAX {
            if tokio::time::timeout(self.quiet, self.woken.notified()).await.is_err() {
                return;
            }
        }
    }

    /// Watches the directories that matter now: links may have moved, directories been recreated.
    fn rearm(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let wanted: BTreeMap<PathBuf, (u64, u64)> = deciding_directories(&self.path)
            .into_iter()
            .filter_map(|path| {
                let metadata = std::fs::metadata(&path).ok()?;
                Some((path, (metadata.dev(), metadata.ino())))
            })
            .collect();
        self.watched.retain(|path, identity| {
            let keep = wanted.get(path) == Some(identity);
            if !keep {
                // The watch may have died with its directory, so an error means nothing here.
                let _ = watcher.unwatch(path);
            }
            keep
        });
        for (path, identity) in wanted {
            if self.watched.contains_key(&path) {
                continue;
            }
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(path, identity);
                }
                Err(error) => {
                    let path = path.display();
                    tracing::warn!(%path, %error, "cannot watch directory; trying again in 30 s");
                }
            }
        }
    }
}

/// Reads of the directory, our own among them, are no news.
fn may_change_content(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}

/// The directory that holds the file, and that of every symlink on the way to it.
fn deciding_directories(path: &Path) -> BTreeSet<PathBuf> {
    let steps = |path: &Path| -> Vec<OsString> {
        path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut found = BTreeSet::new();
    let mut at = PathBuf::from("/");
    let mut ahead = steps(path);
    let mut symlinks = 0;
    while let Some(step) = ahead.pop() {
        match Path::new(&step).components().next() {
            Some(Component::Normal(_)) => {}
            Some(Component::ParentDir) => {
                at.pop();
                continue;
            }
            Some(Component::RootDir) => {
                at = PathBuf::from("/");
                continue;
            }
            _ => continue,
        }
        let next = at.join(&step);
        match std::fs::read_link(&next) {
            Ok(target) if symlinks < SYMLINKS_MAX => {
                symlinks += 1;
                found.insert(at.clone());
                ahead.extend(steps(&target));
            }
            _ => {
                if ahead.is_empty() {
                    found.insert(at.clone());
                }
                at = next;
            }
        }
    }
    found
}

/// What distinguishes one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    modified: (i64, i64),
    /// Moves even where the modification time is set back, and with owner and mode.
    changed: (i64, i64),
    size: u64,
}

impl Stamp {
    /// The state of the file now; `None` if it is not there or out of reach.
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            file: (metadata.dev(), metadata.ino()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.size(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const LONG: Duration = Duration::from_secs(3600);
    const DEADLINE: Duration = Duration::from_secs(10);

    /// Without events nothing would be noticed before the test's deadline.
    fn by_events(path: &Path) -> FileWatcher {
        FileWatcher::with_times(path, Duration::from_millis(5), LONG)
    }

    async fn notices(watcher: &mut FileWatcher) -> bool {
        tokio::time::timeout(DEADLINE, watcher.changed()).await.is_ok()
    }

    async fn stays_silent(watcher: &mut FileWatcher) -> bool {
        tokio::time::timeout(Duration::from_millis(40), watcher.changed()).await.is_err()
    }

    #[tokio::test]
    async fn a_write_a_rename_over_it_a_removal_and_a_return_are_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secrets.toml");
        fs::write(&file, "a").unwrap();
        let mut watcher = by_events(&file);
        fs::write(&file, "ab").unwrap();
        assert!(notices(&mut watcher).await, "write in place");
        fs::write(directory.path().join("new"), "cd").unwrap();
        fs::rename(directory.path().join("new"), &file).unwrap();
        assert!(notices(&mut watcher).await, "rename");
        fs::remove_file(&file).unwrap();
        assert!(notices(&mut watcher).await, "removal");
        fs::write(&file, "e").unwrap();
        assert!(notices(&mut watcher).await, "return");
    }

    #[tokio::test]
    async fn reading_it_and_changing_its_neighbours_is_no_change() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secrets.toml");
        fs::write(&file, "a").unwrap();
        let mut watcher = by_events(&file);
        fs::read(&file).unwrap();
        fs::write(directory.path().join("neighbour"), "x").unwrap();
        assert!(stays_silent(&mut watcher).await);
    }

    /// The layout kubelet gives a Secret volume, behind one more symlink as users add it.
    #[tokio::test]
    async fn the_data_swap_of_a_secret_volume_is_noticed_each_time() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        let publish = |revision: &str| {
            fs::create_dir_all(volume.join(revision)).unwrap();
            fs::write(volume.join(revision).join("secrets.toml"), "same").unwrap();
            symlink(revision, volume.join("..data_tmp")).unwrap();
            fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        };
        publish("..1");
        symlink("..data/secrets.toml", volume.join("secrets.toml")).unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let file = root.path().join("etc/link.toml");
        symlink(volume.join("secrets.toml"), &file).unwrap();

        let mut watcher = by_events(&file);
        publish("..2");
        assert!(notices(&mut watcher).await, "first swap");
        publish("..3");
        assert!(notices(&mut watcher).await, "second swap");
        fs::remove_file(&file).unwrap();
        symlink(volume.join("..1/secrets.toml"), &file).unwrap();
        assert!(notices(&mut watcher).await, "the outer link");
    }

    #[tokio::test]
    async fn without_events_the_poll_notices() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("not-yet/secrets.toml");
        let tick = Duration::from_millis(5);
        let mut watcher = FileWatcher::with_times(&file, tick, tick);
        watcher.watcher = None;
        fs::create_dir(directory.path().join("not-yet")).unwrap();
        fs::write(&file, "a").unwrap();
        assert!(notices(&mut watcher).await);
    }

    #[tokio::test]
    async fn a_dropped_wait_forgets_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secrets.toml");
        fs::write(&file, "a").unwrap();
        let mut watcher = FileWatcher::with_times(&file, LONG, LONG);
        fs::write(&file, "ab").unwrap();
        let shorter_than_quiet = Duration::from_millis(10);
        while !watcher.pending {
            assert!(tokio::time::timeout(shorter_than_quiet, watcher.changed()).await.is_err());
        }
        watcher.quiet = Duration::from_millis(5);
        assert!(notices(&mut watcher).await);
    }

    #[test]
    fn a_circle_of_symlinks_ends() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        symlink("b", directory.path().join("a")).unwrap();
        symlink("a", directory.path().join("b")).unwrap();
        assert!(deciding_directories(&file).contains(directory.path()));
    }
}
