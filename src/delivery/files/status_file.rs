//! `..status.json`: what an application can learn about its volume without asking anybody.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, renameat, unlinkat};
use rustix::io::Errno;
use serde::Serialize;

use crate::clock::BootInstant;
use crate::status::{ItemStatus, VolumeStatus};

use super::apply::open_beneath;

/// Its name in the volume's root.
pub const NAME: &str = "..status.json";
/// Its successor, for the moment before the rename.
const TEMPORARY: &str = "..status.tmp";
/// It holds no value, so whoever can enter the volume may read it.
const MODE: u32 = 0o444;

#[derive(Serialize)]
struct Document<'a> {
    volume: &'a str,
    revision: Option<&'a str>,
    published_at: Option<String>,
    alarm: Option<&'a str>,
    wiped_while_open: u64,
    items: Vec<Item<'a>>,
}

#[derive(Serialize)]
struct Item<'a> {
    file: &'a str,
    secret: String,
    state: &'static str,
    fetched_at: Option<String>,
    works_until: Option<String>,
    version: Option<u64>,
    problem: Option<&'static str>,
    problem_since: Option<String>,
}

/// The pair of readings that turns boot time into wall-clock time.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Boot time.
    pub boot: BootInstant,
    /// The same moment on the wall clock.
    pub wall: SystemTime,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self { boot: BootInstant::now(), wall: SystemTime::now() }
    }

    /// This moment.
    pub fn timestamp(self) -> jiff::Timestamp {
        jiff::Timestamp::try_from(self.wall).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }

    /// RFC 3339, to the second: below that the two clocks' readings differ by themselves.
    fn text(self, at: BootInstant) -> String {
        let wall = jiff::Timestamp::try_from(at.to_wall(self.boot, self.wall)).unwrap_or_default();
        let second = jiff::Timestamp::from_second(wall.as_second()).unwrap_or_default();
        second.to_string()
    }
}

/// Renders the document. Pure.
pub fn render(status: &VolumeStatus, wiped_while_open: u64, now: Now) -> Vec<u8> {
    let text = |at: Option<BootInstant>| at.map(|at| now.text(at));
    let items = status.items.iter().map(|item: &ItemStatus| Item {
        file: &item.file,
        secret: item.secret.to_string(),
        state: item.state,
        fetched_at: text(item.fetched_at),
        works_until: text(item.works_until),
        version: item.version,
        problem: item.problem.as_ref().map(|problem| problem.class.name()),
        problem_since: text(item.problem.as_ref().map(|problem| problem.since)),
    });
    let document = Document {
        volume: status.name.as_str(),
        revision: status.revision.as_deref(),
        published_at: text(status.published_at),
        alarm: status.alarm.as_deref(),
        wiped_while_open,
        items: items.collect(),
    };
    let mut bytes = serde_json::to_vec_pretty(&document).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Replaces the file in one rename, so that a reader sees one state or the other.
pub fn write(root: BorrowedFd<'_>, document: &[u8]) -> std::io::Result<()> {
    match unlinkat(root, TEMPORARY, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    let file = open_beneath(root, TEMPORARY, flags)?;
    let mut rest = document;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(file.as_fd(), rest)?..];
    }
    fchmod(&file, Mode::from_raw_mode(MODE))?;
    Ok(renameat(root, TEMPORARY, root, NAME)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::files::testing::{at, problem};
    use crate::source::ErrorClass;
    use std::time::Duration;

    #[test]
    fn times_are_wall_clock_and_problems_are_classes() {
        let item = ItemStatus {
            file: "token".to_owned(),
            secret: crate::domain::SecretRef {
                source: "vault".parse().unwrap(),
                path: "secret/data/web".parse().unwrap(),
                version: None,
            },
            state: "stale",
            fetched_at: Some(at(10)),
            works_until: Some(at(30)),
            version: Some(3),
            problem: Some(problem(ErrorClass::Unreachable)),
        };
        let status = VolumeStatus {
            name: "shop".parse().unwrap(),
            path: "/x".into(),
            mount: String::new(),
            revision: None,
            published_at: None,
            links_missing: false,
            alarm: None,
            items: vec![item],
        };
        let now = Now { boot: at(20), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000) };
        let document = render(&status, 0, now);
        let read: serde_json::Value = serde_json::from_slice(&document).unwrap();
        let expected = serde_json::json!({
            "file": "token", "secret": "vault:secret/data/web", "state": "stale", "version": 3,
            "fetched_at": "1970-01-01T00:16:30Z", "works_until": "1970-01-01T00:16:50Z",
            "problem": "unreachable", "problem_since": "1970-01-01T00:16:32Z",
        });
        assert_eq!(read["items"][0], expected);
        assert_eq!(read["revision"], serde_json::Value::Null);
    }
}
