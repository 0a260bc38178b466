//! How large a volume's tmpfs may be. Pure.

use serde::{Deserialize, Serialize};

/// Room for one page of content, its directories and links, twice.
const BYTES_MIN: u64 = 64 * 1024;
/// Far more than files of secrets need; pages are charged to the agent.
const BYTES_MAX: u64 = 1 << 30;
/// Two revisions of a file each, with directories and links.
const INODES_MIN: u64 = 16;
/// Each inode takes about a kilobyte of the kernel's memory.
const INODES_MAX: u64 = 65_536;

/// The bounds of one tmpfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct TmpfsSize {
    bytes: u64,
    inodes: u64,
}

/// What is on the wire.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    bytes: u64,
    inodes: u64,
}

/// Why a size was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TmpfsSizeError {
    /// Outside of the bounds.
    #[error("a tmpfs of {0} bytes is not possible; give between {BYTES_MIN} and {BYTES_MAX}")]
    Bytes(u64),
    /// Outside of the bounds.
    #[error("a tmpfs of {0} inodes is not possible; give between {INODES_MIN} and {INODES_MAX}")]
    Inodes(u64),
}

impl TmpfsSize {
    /// A size within the bounds; the kernel rounds bytes up to whole pages.
    pub fn new(bytes: u64, inodes: u64) -> Result<Self, TmpfsSizeError> {
        if !(BYTES_MIN..=BYTES_MAX).contains(&bytes) {
            return Err(TmpfsSizeError::Bytes(bytes));
        }
        if !(INODES_MIN..=INODES_MAX).contains(&inodes) {
            return Err(TmpfsSizeError::Inodes(inodes));
        }
        Ok(Self { bytes, inodes })
    }

    /// Bytes of content.
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// Files, directories and links together.
    pub fn inodes(self) -> u64 {
        self.inodes
    }
}

impl TryFrom<Unchecked> for TmpfsSize {
    type Error = TmpfsSizeError;

    fn try_from(size: Unchecked) -> Result<Self, TmpfsSizeError> {
        Self::new(size.bytes, size.inodes)
    }
}

impl From<TmpfsSize> for Unchecked {
    fn from(size: TmpfsSize) -> Self {
        Self { bytes: size.bytes, inodes: size.inodes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_outside_the_bounds_is_refused_however_it_arrives() {
        for (bytes, inodes) in [(0, 64), (1 << 31, 64), (1 << 20, 0), (1 << 20, u64::MAX)] {
            assert!(TmpfsSize::new(bytes, inodes).is_err(), "{bytes} {inodes}");
            let wire = format!(r#"{{"bytes":{bytes},"inodes":{inodes}}}"#);
            assert!(serde_json::from_str::<TmpfsSize>(&wire).is_err(), "{wire}");
        }
        let size = TmpfsSize::new(1 << 20, 64).unwrap();
        let wire = serde_json::to_string(&size).unwrap();
        assert_eq!(serde_json::from_str::<TmpfsSize>(&wire).unwrap(), size);
    }
}
