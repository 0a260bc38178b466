//! Reads the local file as a whole, within a bound, and tells one state of it from another.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::LocalError;

/// A file beyond this is something else.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What was read.
pub(super) struct Text {
    pub(super) text: Zeroizing<String>,
    pub(super) written_at: Timestamp,
    pub(super) stamp: Stamp,
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    file: (u64, u64),
    length: u64,
    changed_at: (i64, i64),
}

impl Stamp {
    /// The file's present one; `None` if it cannot be looked at.
    pub(super) fn of(file: &Path) -> Option<Self> {
        std::fs::metadata(file).ok().map(|metadata| Self::from_metadata(&metadata))
    }

    fn from_metadata(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            changed_at: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Reads a file of at most 16 MiB into a buffer that is wiped.
pub(super) fn read(path: &Path) -> Result<Text, LocalError> {
    let read_error = |source| LocalError::Read { file: path.to_owned(), source };
    let file = File::open(path).map_err(read_error)?;
    let metadata = file.metadata().map_err(read_error)?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(LocalError::TooLarge { file: path.to_owned() });
    }
    let written_at = metadata.modified().map_err(read_error)?;
    // One byte more than the size, so that reading to the end never moves the buffer.
    let capacity = usize::try_from(metadata.len()).unwrap_or_default() + 1;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(read_error)?;
    Ok(Text {
        text,
        written_at: Timestamp::try_from(written_at).unwrap_or(Timestamp::UNIX_EPOCH),
        stamp: Stamp::from_metadata(&metadata),
    })
}
