//! Where lines end up: an append-only file or standard output, with no line ever half-finished
//! by a failed write that is later repeated.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::{AuditError, Output};

/// An open output. All methods block.
pub(super) struct Sink {
    file: File,
    /// Set for a file: it can be synced and opened anew.
    path: Option<PathBuf>,
    /// Bytes of the first waiting line that are already written.
    written: usize,
}

impl Sink {
    /// Opens the output for appending.
    pub(super) fn open(output: &Output) -> Result<Self, AuditError> {
        match output {
            Output::Stdout => {
                let fd = io::stdout().as_fd().try_clone_to_owned().map_err(AuditError::Stdout)?;
                Ok(Self { file: File::from(fd), path: None, written: 0 })
            }
            Output::File(path) => {
                Ok(Self { file: open_file(path)?, path: Some(path.clone()), written: 0 })
            }
        }
    }

    #[cfg(test)]
    pub(super) fn from_file(file: File) -> Self {
        Self { file, path: None, written: 0 }
    }

    /// Writes the lines and removes each from the queue when it is complete. After an error the
    /// rest stays, and the next call goes on with the very byte that failed.
    pub(super) fn append(&mut self, lines: &mut VecDeque<Vec<u8>>) -> io::Result<()> {
        while let Some(line) = lines.front() {
            match self.file.write(line.get(self.written..).unwrap_or_default()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.written >= line.len() {
                lines.pop_front();
                self.written = 0;
            }
        }
        Ok(())
    }

    /// Opens the file of the same name anew and says whether it is another one; a line begun in
    /// the old one is repeated whole.
    pub(super) fn reopen(&mut self) -> Result<bool, AuditError> {
        let Some(path) = &self.path else { return Ok(false) };
        let failed = |source| AuditError::Open { path: path.clone(), source };
        let file = open_file(path)?;
        let (old, new) = (self.file.metadata(), file.metadata());
        let (old, new) = (old.map_err(failed)?, new.map_err(failed)?);
        // What the old file holds is as durable as it gets; its closing reports nothing.
        let _ = self.file.sync_data();
        self.file = file;
        self.written = 0;
        Ok((old.dev(), old.ino()) != (new.dev(), new.ino()))
    }

    /// Makes everything durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        if self.path.is_some() { self.file.sync_all() } else { Ok(()) }
    }
}

/// Opens a file for appending on a line of its own; it is created with mode 0600.
pub(super) fn open_file(path: &Path) -> Result<File, AuditError> {
    let failed = |source: io::Error| AuditError::Open { path: path.to_owned(), source };
    // NONBLOCK so that a pipe in the file's place is an error instead of a hang.
    let flags = OFlags::RDWR
        | OFlags::CREATE
        | OFlags::APPEND
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| failed(errno.into()))?;
    let mut file = File::from(fd);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(AuditError::NotAFile { path: path.to_owned() });
    }
    if let Some(last) = metadata.len().checked_sub(1) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, last).map_err(failed)?;
        if byte != *b"\n" {
            // A crash cut the last line off: it must not swallow our first one.
            file.write_all(b"\n").map_err(failed)?;
        }
    }
    Ok(file)
}
