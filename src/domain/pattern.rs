//! Segment-wise path patterns for grants and cache rules.

use std::fmt;
use std::str::FromStr;

use super::SecretPath;

/// A pattern over API paths: `*` is exactly one segment, a final `**` is one or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    One,
    Rest,
}

/// Why a pattern was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// `**` is only meaningful at the end.
    #[error("'**' may only be the last segment")]
    RestNotLast,
    /// `*` mixed with other characters in one segment.
    #[error("'*' must stand alone in its segment: patterns match whole segments")]
    PartialWildcard,
    /// A literal segment that no path can have.
    #[error("pattern: {0}")]
    Path(#[from] super::PathError),
}

impl FromStr for PathPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let parts: Vec<&str> = text.split('/').collect();
        let last = parts.len() - 1;
        let segment = |(index, part): (usize, &&str)| match *part {
            "*" => Ok(Segment::One),
            "**" if index == last => Ok(Segment::Rest),
            "**" => Err(PatternError::RestNotLast),
            part if part.contains('*') => Err(PatternError::PartialWildcard),
            part => {
                part.parse::<SecretPath>()?;
                Ok(Segment::Literal(part.to_owned()))
            }
        };
        Ok(Self { segments: parts.iter().enumerate().map(segment).collect::<Result<_, _>>()? })
    }
}

impl PathPattern {
    /// Whether the whole path matches the whole pattern.
    pub fn matches(&self, path: &SecretPath) -> bool {
        let mut path_segments = path.segments();
        for segment in &self.segments {
            let Some(actual) = path_segments.next() else { return false };
            match segment {
                Segment::Rest => return true,
                Segment::One => {}
                Segment::Literal(literal) if literal == actual => {}
                Segment::Literal(_) => return false,
            }
        }
        path_segments.next().is_none()
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.segments.iter().enumerate() {
            if index > 0 {
                f.write_str("/")?;
            }
            f.write_str(match segment {
                Segment::Literal(literal) => literal,
                Segment::One => "*",
                Segment::Rest => "**",
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_whole_segment_and_two_stars_are_the_rest() {
        let matches = |pattern: &str, path: &str| {
            pattern.parse::<PathPattern>().unwrap().matches(&path.parse().unwrap())
        };
        assert!(matches("secret/data/shop/*", "secret/data/shop/db"));
        assert!(!matches("secret/data/shop/*", "secret/data/shop/db/ro"));
        assert!(!matches("secret/data/shop/*", "secret/data/shop"));
        assert!(!matches("secret/data/shop/*", "secret/data/shopping/db"));
        assert!(matches("secret/**", "secret/data/shop/db"));
        assert!(!matches("secret/**", "secret"));
        assert!(matches("*/data/x", "kv/data/x"));
    }

    #[test]
    fn wildcards_inside_a_segment_are_refused() {
        for bad in ["secret/sh*p", "secret/**/x", "secret//x", ""] {
            assert!(bad.parse::<PathPattern>().is_err(), "{bad}");
        }
    }
}
