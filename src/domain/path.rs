//! The canonical API path of a secret, parsed once: the authorised path is the requested path.
//!
//! HTTP clients drop `.` and `..` segments and percent-encode `% ? #` behind the caller's back
//! (rustify does both), so anything that could be rewritten on the way to Vault is refused here.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::Arc;

use super::SourceName;

/// Longest path in bytes; Vault's own storage keys stay far below.
const PATH_BYTES_MAX: usize = 1024;
/// Longest segment in bytes: a segment may become a file name.
const SEGMENT_BYTES_MAX: usize = 255;

/// Why a path was refused. The message never repeats hostile bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Nothing there.
    #[error("path is empty")]
    Empty,
    /// Over the total bound.
    #[error("path is longer than {PATH_BYTES_MAX} bytes")]
    TooLong,
    /// Over the per-segment bound.
    #[error("path segment {0} is longer than {SEGMENT_BYTES_MAX} bytes")]
    SegmentTooLong(usize),
    /// A leading, trailing or doubled slash.
    #[error("path has an empty segment (leading, trailing or doubled '/')")]
    EmptySegment,
    /// `.` or `..`.
    #[error("path segment {0} is '.' or '..'")]
    DotSegment(usize),
    /// A character that is rewritten, hidden or ambiguous on its way to Vault.
    #[error(
        "path holds {0}: write the plain path, without encoding, wildcards, spaces at an end, \
         control or direction characters"
    )]
    Character(&'static str),
}

/// A canonical Vault API path without `/v1/`: `secret/data/shop/db`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretPath(Arc<str>);

impl SecretPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments, none of them empty.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// What follows `prefix/`, if this path lies below `prefix`.
    pub fn below<'a>(&'a self, prefix: &SecretPath) -> Option<&'a str> {
        self.0.strip_prefix(prefix.as_str())?.strip_prefix('/')
    }
}

impl FromStr for SecretPath {
    type Err = PathError;

    fn from_str(path: &str) -> Result<Self, PathError> {
        if path.is_empty() {
            return Err(PathError::Empty);
        }
        if path.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        for (index, segment) in path.split('/').enumerate() {
            check_segment(index + 1, segment)?;
        }
        Ok(Self(Arc::from(path)))
    }
}

fn check_segment(number: usize, segment: &str) -> Result<(), PathError> {
    if segment.is_empty() {
        return Err(PathError::EmptySegment);
    }
    if segment.len() > SEGMENT_BYTES_MAX {
        return Err(PathError::SegmentTooLong(number));
    }
    if segment == "." || segment == ".." {
        return Err(PathError::DotSegment(number));
    }
    if segment.starts_with(' ') || segment.ends_with(' ') {
        return Err(PathError::Character("a space at the end of a segment"));
    }
    segment.chars().find_map(refused).map_or(Ok(()), |what| Err(PathError::Character(what)))
}

fn refused(c: char) -> Option<&'static str> {
    match c {
        '\0' => Some("a NUL"),
        '%' => Some("'%'"),
        '?' => Some("'?'"),
        '#' => Some("'#'"),
        '\\' => Some("'\\'"),
        '*' => Some("'*'"),
        c if c.is_control() => Some("a control character"),
        // Direction overrides and isolates, zero-width characters and the byte order mark (UTS 55).
        '\u{061c}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}' => Some("an invisible or direction character"),
        c if c.is_whitespace() && c != ' ' => Some("unusual white space"),
        _ => None,
    }
}

impl fmt::Display for SecretPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One secret: source, canonical API path and, for KV 2, an optional pinned version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretRef {
    /// The source it comes from.
    pub source: SourceName,
    /// The canonical API path.
    pub path: SecretPath,
    /// The KV 2 version asked for; `None` is the current one.
    pub version: Option<NonZeroU64>,
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.path)?;
        self.version.map_or(Ok(()), |version| write!(f, "?version={version}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_that_something_would_rewrite_are_refused() {
        let long = format!("a/{}", "b".repeat(256));
        let bad = [
            "",
            "/a",
            "a/",
            "a//b",
            "a/./b",
            "a/../b",
            "..",
            "a/%2e%2e/b",
            "a?b",
            "a#b",
            "a\\b",
            "a/*",
            "a\0b",
            "a\nb",
            "a/\u{202e}b",
            "a/\u{200b}",
            "a/ b",
            "a /b",
            "a\u{a0}b",
            &long,
        ];
        for path in bad {
            assert!(path.parse::<SecretPath>().is_err(), "{path:?}");
        }
        for good in [
            "secret/data/shop/db",
            "kv/a b/c",
            "database/creds/shop-rw",
            "secret/data/käse",
            "a/..b/c.",
        ] {
            assert!(good.parse::<SecretPath>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn below_wants_a_whole_segment() {
        let mount: SecretPath = "secret".parse().unwrap();
        let path = |text: &str| text.parse::<SecretPath>().unwrap();
        assert_eq!(path("secret/data/a").below(&mount), Some("data/a"));
        assert_eq!(path("secrets/data/a").below(&mount), None);
        assert_eq!(path("secret").below(&mount), None);
    }

    proptest! {
        #[test]
        fn whatever_parses_is_returned_unchanged_and_has_no_odd_segment(text in "\\PC{0,40}") {
            if let Ok(path) = text.parse::<SecretPath>() {
                prop_assert_eq!(path.as_str(), text.as_str());
                prop_assert!(path.segments().all(|s| !s.is_empty() && s != "." && s != ".."));
            }
        }
    }
}
