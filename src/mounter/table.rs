//! The kernel's mount table, as one request sees it.

use std::cell::OnceCell;
use std::os::fd::OwnedFd;

use super::tree::place_of;
use super::{Failure, failed};
use crate::mountinfo::{self, MountLine};

/// Read when something is first looked up in it. The kernel writes a line for each mount of the
/// node, which takes a millisecond or two beside a hundred volumes, and requests wait for each
/// other. To publish a volume is to look at directories that have nothing mounted on them.
#[derive(Debug, Default)]
pub(super) struct MountTable(OnceCell<Vec<MountLine>>);

/// What is mounted exactly on a directory.
pub(super) enum On<'a> {
    /// Nothing.
    Nothing,
    /// This.
    Mount(&'a MountLine),
    /// Something that is not in the table: it came after that was read, or went before.
    Unknown,
}

impl MountTable {
    /// Every line, as they were when the first one was asked for.
    pub(super) fn lines(&self) -> Result<&[MountLine], Failure> {
        if let Some(lines) = self.0.get() {
            return Ok(lines);
        }
        let lines = mountinfo::read().map_err(|error| Failure::System {
            what: "read the mount table".to_owned(),
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        })?;
        Ok(self.0.get_or_init(|| lines))
    }

    /// Looks up what is mounted on an open directory.
    pub(super) fn on(&self, directory: &OwnedFd) -> Result<On<'_>, Failure> {
        let place = place_of(directory).map_err(failed("look for mounts"))?;
        if !place.is_root {
            return Ok(On::Nothing);
        }
        let line = self.lines()?.iter().find(|line| line.id == place.mount);
        Ok(line.map_or(On::Unknown, On::Mount))
    }
}
