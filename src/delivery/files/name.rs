//! Names inside a volume: the files an application sees and the revisions behind them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::domain::{PathError, SecretPath};

/// A file below the volume's root, possibly in sub-directories: `tls/key.pem`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(SecretPath);

/// Why a file name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileNameError {
    /// Not a relative path, or one with hidden or ambiguous characters.
    #[error("file name: {0}")]
    Path(#[from] PathError),
    /// The prefix of the volume's own entries.
    #[error("file name segment {0} starts with '..', which the volume keeps for itself")]
    Reserved(usize),
    /// A key of a secret is one file, never a directory.
    #[error("a key with '/' cannot be a file name; give it one with `path`")]
    Nested,
}

impl FromStr for FileName {
    type Err = FileNameError;

    /// The rules of [`SecretPath`] (relative, no empty, `.` or `..` segment, up to 255 bytes each,
    /// no control, direction or wildcard characters), and no segment that starts with `..`.
    fn from_str(name: &str) -> Result<Self, FileNameError> {
        let path: SecretPath = name.parse()?;
        let reserved = path.segments().position(|segment| segment.starts_with(".."));
        match reserved {
            Some(index) => Err(FileNameError::Reserved(index + 1)),
            None => Ok(Self(path)),
        }
    }
}

impl FileName {
    /// The name for one key of a secret that is projected as a file of its own.
    pub fn from_key(key: &str) -> Result<Self, FileNameError> {
        if key.contains('/') { Err(FileNameError::Nested) } else { key.parse() }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The directories above the file, outermost first, and the file's own name.
    pub fn split(&self) -> (Vec<&str>, &str) {
        let mut segments: Vec<&str> = self.0.segments().collect();
        let last = segments.pop().unwrap_or_default();
        (segments, last)
    }

    /// The entry in the volume's root through which the file is seen.
    pub fn top(&self) -> &str {
        self.0.segments().next().unwrap_or_default()
    }

    /// Whether `self` would have to be a directory for `other` to exist.
    pub fn is_directory_of(&self, other: &FileName) -> bool {
        other.0.below(&self.0).is_some()
    }

    /// Whether both cannot be files of one volume.
    pub fn conflicts_with(&self, other: &FileName) -> bool {
        self == other || self.is_directory_of(other) || other.is_directory_of(self)
    }

    /// What follows the last dot of the last segment; `.env` counts as an extension.
    pub fn extension(&self) -> Option<&str> {
        self.split().1.rsplit_once('.').map(|(_, extension)| extension)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The directory of one complete state of a volume: `..2026_05_01_10_00_00.1a2b3c4d`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevisionName(Arc<str>);

impl RevisionName {
    /// A fresh name, in the form Kubernetes' AtomicWriter uses.
    pub fn new(now: jiff::Timestamp, random: u32) -> Self {
        Self(Arc::from(format!("..{}.{random:08x}", now.strftime("%Y_%m_%d_%H_%M_%S"))))
    }

    /// Recognises a revision among the entries of a volume's root.
    pub fn recognise(entry: &str) -> Option<Self> {
        let rest = entry.strip_prefix("..")?;
        let (time, random) = rest.split_once('.')?;
        let is_time = time.len() == 19 && time.bytes().all(|b| b.is_ascii_digit() || b == b'_');
        let is_random = random.len() == 8 && random.bytes().all(|b| b.is_ascii_hexdigit());
        (is_time && is_random).then(|| Self(Arc::from(entry)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RevisionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> FileName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_stays_inside_the_volume_and_off_its_own_entries() {
        let long = "a".repeat(256);
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/..",
            "..data",
            "a/..b",
            "a\u{202e}",
            "a\nb",
            &long,
        ] {
            assert!(bad.parse::<FileName>().is_err(), "{bad:?}");
        }
        for good in ["token", ".env", "tls/key.pem", "a..b", "käse"] {
            assert!(good.parse::<FileName>().is_ok(), "{good:?}");
        }
        assert_eq!(FileName::from_key("a/b"), Err(FileNameError::Nested));
    }

    #[test]
    fn a_file_cannot_be_the_directory_of_another() {
        assert!(name("a").conflicts_with(&name("a")));
        assert!(name("a").conflicts_with(&name("a/b")));
        assert!(name("a/b").conflicts_with(&name("a")));
        assert!(!name("a").conflicts_with(&name("ab")));
        assert_eq!(name("a/b/c.json").split(), (vec!["a", "b"], "c.json"));
        assert_eq!(name(".env").extension(), Some("env"));
    }

    #[test]
    fn only_revisions_are_recognised_as_revisions() {
        let made = RevisionName::new(jiff::Timestamp::UNIX_EPOCH, 7);
        assert_eq!(made.as_str(), "..1970_01_01_00_00_00.00000007");
        assert_eq!(RevisionName::recognise(made.as_str()), Some(made));
        for other in ["..data", "..status.json", "..data_tmp", "token", "..1970_01_01_00_00_00.0"] {
            assert_eq!(RevisionName::recognise(other), None, "{other}");
        }
    }
}
