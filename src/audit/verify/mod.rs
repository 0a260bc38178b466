//! Verification of audit logs: which record is the first that was altered, dropped, duplicated or
//! moved, in each instance of the files, in whatever order they are given.
//!
//! Files are streamed once; what is kept are *runs* of lines that follow each other without a
//! break. An intact instance has one per file. Judging them is pure.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

mod anchors;
mod evidence;
mod judge;
mod order;
mod piece;

use anchors::Anchors;
use evidence::Evidence;

/// What to verify.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// Audit logs, in any order; one that is given twice is read once.
    pub files: Vec<PathBuf>,
    /// Anchor files, or logs that hold checkpoints.
    pub anchors: Vec<PathBuf>,
    /// The first records of an instance may be in files that are not given.
    pub partial: bool,
}

/// Nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file could not be read.
    #[error("cannot read '{}'", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is nothing to verify.
    #[error("no audit record in the files, so there is nothing to verify; name the log's files")]
    NoRecord,
    /// The anchor was asked for and says nothing.
    #[error("no checkpoint in the anchor; name a file of [audit] anchor, or a log that has them")]
    NoCheckpoint,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// No trouble was found.
    pub intact: bool,
    /// Every instance of the files, by the time of its first record.
    pub instances: Vec<InstanceReport>,
    /// What was found that belongs to no instance of the files.
    pub troubles: Vec<Trouble>,
    /// What deserves a look and is no tampering.
    pub notes: Vec<String>,
}

/// One process and its records.
#[derive(Debug, Serialize)]
pub struct InstanceReport {
    /// Its name in the lines.
    pub instance: String,
    /// Intact records.
    pub records: u64,
    /// Number of the first of them.
    pub first_seq: u64,
    /// Number of the last.
    pub last_seq: u64,
    /// Time of the first.
    pub first_time: String,
    /// Time of the last.
    pub last_time: String,
    /// The newest record that a checkpoint covers and that fits it.
    pub anchored_seq: Option<u64>,
    /// Records that the agent itself says it could not keep.
    pub lost: u64,
    /// The first record that is not as it was written.
    pub trouble: Option<Trouble>,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// How it is wrong.
    pub kind: Kind,
    /// Whose record it is, as far as that can be told.
    pub instance: Option<String>,
    /// Which record.
    pub seq: Option<u64>,
    /// The file with the line; for a record that is gone, with the line after it.
    pub file: Option<PathBuf>,
    /// The line, from 1.
    pub line: Option<u64>,
    /// The rest of the story.
    pub detail: String,
}

/// How a record can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is not what was written.
    Altered,
    /// It is gone, with others after it still there.
    Dropped,
    /// It is there twice.
    Duplicated,
    /// It stands somewhere else.
    Reordered,
    /// A checkpoint contradicts it, although the chain fits.
    Rewritten,
    /// A checkpoint covers it and it is gone, with everything after it.
    Truncated,
    /// A whole instance that no checkpoint knows, or that only checkpoints know.
    Unanchored,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Altered => "altered",
            Self::Dropped => "dropped",
            Self::Duplicated => "duplicated",
            Self::Reordered => "reordered",
            Self::Rewritten => "rewritten",
            Self::Truncated => "truncated",
            Self::Unanchored => "unanchored",
        })
    }
}

/// Reads everything once and judges it. Blocks.
///
/// # Errors
/// A file that cannot be read; no record at all.
pub fn verify(question: &Question) -> Result<Report, VerifyError> {
    // Before the logs: whatever a checkpoint covers was in the log by then.
    let anchors = match question.anchors.as_slice() {
        [] => None,
        files => Some(Anchors::read(files)?),
    };
    let files = distinct(&question.files)?;
    let mut evidence = Evidence::default();
    for (index, path) in files.iter().enumerate() {
        let read = File::open(path)
            .and_then(|file| evidence.read(index, BufReader::new(file), anchors.as_ref()));
        read.map_err(|source| VerifyError::Read { path: path.to_path_buf(), source })?;
    }
    evidence.finish();
    if evidence.is_empty() && anchors.is_none() {
        return Err(VerifyError::NoRecord);
    }
    Ok(judge::report(&evidence, &files, anchors.as_ref(), question.partial))
}

/// The same file under two names would look like every record twice.
fn distinct(paths: &[PathBuf]) -> Result<Vec<&Path>, VerifyError> {
    let mut seen = BTreeSet::new();
    let mut distinct = Vec::new();
    for path in paths {
        let metadata = std::fs::metadata(path)
            .map_err(|source| VerifyError::Read { path: path.clone(), source })?;
        if seen.insert((metadata.dev(), metadata.ino())) {
            distinct.push(path.as_path());
        }
    }
    Ok(distinct)
}
