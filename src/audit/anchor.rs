//! Checkpoints in a second place: how far an instance's chain had come at some time. A log that
//! was cut or made up anew afterwards contradicts them.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use serde::Serialize;
use tokio::time::Instant;

use super::chain::Head;
use super::{AuditError, line, sink};

/// Lines after which there is a checkpoint although none is due by time.
const LINES_MAX: u64 = 1000;
/// Size at which the file is renamed to `<file>.1` and begun anew: thousands of checkpoints, so a
/// week of quiet operation in each of the two.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// One checkpoint, as it stands in the file.
#[derive(Serialize)]
pub(super) struct Checkpoint<'a> {
    time: String,
    instance: &'a str,
    seq: u64,
    hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rotation: Option<bool>,
}

/// When the next checkpoint is due.
pub(super) struct Schedule {
    every: Duration,
    /// The newest line when the last checkpoint was tried; `None` before the first one.
    covered: Option<u64>,
    due: Option<Instant>,
}

/// The file that checkpoints are appended to. Opened for each, so that it can be renamed at will.
#[derive(Debug, Clone)]
pub(super) struct AnchorFile(PathBuf);

impl<'a> Checkpoint<'a> {
    /// `rotation`: the log was another file up to here, which may be gone one day.
    pub(super) fn new(at: Timestamp, instance: &'a str, head: Head, rotation: bool) -> Self {
        let (time, hash) = (line::time(at), head.hash.to_string());
        Self { time, instance, seq: head.seq, hash, rotation: rotation.then_some(true) }
    }

    /// Line end included.
    pub(super) fn to_line(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers always encode") + "\n"
    }
}

impl Schedule {
    pub(super) fn new(every: Duration) -> Self {
        Self { every, covered: None, due: None }
    }

    /// Says that there are lines up to `seq`.
    pub(super) fn written(&mut self, seq: u64, now: Instant) {
        let new = seq - self.covered.unwrap_or(0);
        if self.covered.is_none() || new >= LINES_MAX {
            self.due = Some(now);
        } else if new > 0 && self.due.is_none() {
            self.due = Some(now + self.every);
        }
    }

    /// Says that there is a checkpoint for `seq`.
    pub(super) fn covered(&mut self, seq: u64) {
        (self.covered, self.due) = (Some(seq), None);
    }

    /// Says that the checkpoint for `seq` failed: the next attempt has time.
    pub(super) fn failed(&mut self, seq: u64, now: Instant) {
        (self.covered, self.due) = (Some(seq), Some(now + self.every));
    }

    /// When the next one is due; `None` while all lines are covered.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl AnchorFile {
    /// Creates the file if it is not there, so that a wrong path is known at the start.
    pub(super) fn open(path: PathBuf) -> Result<Self, AuditError> {
        sink::open_file(&path)?;
        Ok(Self(path))
    }

    /// Appends one line durably. Blocks.
    pub(super) fn append(&self, line: &str) -> Result<(), AuditError> {
        let failed = |source| AuditError::Anchor { path: self.0.clone(), source };
        let mut file = sink::open_file(&self.0)?;
        file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() >= FILE_BYTES_MAX {
            self.rotate(&file).map_err(failed)?;
        }
        Ok(())
    }

    /// Two agents may share the file for a while: only who holds the lock, and only the file that
    /// still has the name, is renamed. Whoever comes too late leaves it to the next checkpoint.
    fn rotate(&self, file: &File) -> io::Result<()> {
        if rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        let (open, named) = (file.metadata()?, std::fs::symlink_metadata(&self.0)?);
        if (open.dev(), open.ino()) == (named.dev(), named.ino()) {
            std::fs::rename(&self.0, previous(&self.0))?;
        }
        Ok(())
    }
}

/// `<file>.1`.
fn previous(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_checkpoint_is_due_at_the_start_after_a_time_and_after_many_lines() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::from_secs(60));
        assert_eq!(schedule.due(), None);
        schedule.written(0, now);
        assert_eq!(schedule.due(), Some(now));
        schedule.covered(0);
        schedule.written(0, now);
        assert_eq!(schedule.due(), None);
        schedule.written(1, now);
        let later = now + Duration::from_secs(30);
        schedule.written(2, later);
        assert_eq!(schedule.due(), Some(now + Duration::from_secs(60)));
        schedule.written(LINES_MAX, later);
        assert_eq!(schedule.due(), Some(later));
        schedule.failed(LINES_MAX, later);
        schedule.written(LINES_MAX + 1, later);
        assert_eq!(schedule.due(), Some(later + Duration::from_secs(60)));
    }

    #[test]
    fn the_file_is_renamed_when_it_is_full_and_keeps_one_predecessor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("anchor");
        let file = AnchorFile::open(path.clone()).unwrap();
        let lines = |path: &Path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
        let long = "x".repeat(200_000) + "\n";
        for _ in 0..6 {
            file.append(&long).unwrap();
        }
        assert_eq!((lines(&previous(&path)), path.exists()), (6, false));
        for _ in 0..7 {
            file.append(&long).unwrap();
        }
        assert_eq!((lines(&previous(&path)), lines(&path)), (6, 1));
    }
}
