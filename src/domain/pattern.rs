//! Segment-wise path patterns for grants and cache rules, with places for a pod's own names.

use std::fmt;
use std::str::FromStr;

use super::{SecretPath, ServiceAccount};

/// What stands for the caller's namespace.
const NAMESPACE: &str = "{namespace}";
/// What stands for the caller's service account.
const SERVICE_ACCOUNT: &str = "{serviceaccount}";

/// A pattern over API paths: `*` is exactly one segment, a final `**` is one or more. A segment may
/// hold `{namespace}` and `{serviceaccount}`, which are the caller's; nobody else's paths match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    /// A literal with placeholders in it.
    Own(String),
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
    /// A brace that is no placeholder's.
    #[error("'{{' and '}}' are for the placeholders {NAMESPACE} and {SERVICE_ACCOUNT}")]
    Placeholder,
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
                let filled = part.replace(NAMESPACE, "a").replace(SERVICE_ACCOUNT, "a");
                filled.parse::<SecretPath>()?;
                match part {
                    _ if filled.contains(['{', '}']) => Err(PatternError::Placeholder),
                    _ if filled == part => Ok(Segment::Literal(filled)),
                    _ => Ok(Segment::Own(part.to_owned())),
                }
            }
        };
        Ok(Self { segments: parts.iter().enumerate().map(segment).collect::<Result<_, _>>()? })
    }
}

impl PathPattern {
    /// Whether the whole path matches the whole pattern, for a caller with this service account.
    /// What has placeholders matches nothing for a caller without one.
    pub fn matches(&self, path: &SecretPath, account: Option<&ServiceAccount>) -> bool {
        let mut path_segments = path.segments();
        for segment in &self.segments {
            let Some(actual) = path_segments.next() else { return false };
            match segment {
                Segment::Rest => return true,
                Segment::One => {}
                Segment::Literal(literal) if literal == actual => {}
                Segment::Literal(_) => return false,
                Segment::Own(own) => {
                    // The names hold no brace, so what is filled in is not filled in again.
                    let filled = account.map(|account| {
                        let own = own.replace(NAMESPACE, account.namespace.as_str());
                        own.replace(SERVICE_ACCOUNT, account.name.as_str())
                    });
                    if filled.as_deref() != Some(actual) {
                        return false;
                    }
                }
            }
        }
        path_segments.next().is_none()
    }
}

impl PathPattern {
    /// Whether it is about the caller's own names.
    pub fn has_placeholders(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Own(_)))
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.segments.iter().enumerate() {
            if index > 0 {
                f.write_str("/")?;
            }
            f.write_str(match segment {
                Segment::Literal(text) | Segment::Own(text) => text,
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
            pattern.parse::<PathPattern>().unwrap().matches(&path.parse().unwrap(), None)
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
    fn placeholders_are_the_callers_own_names() {
        let account = |namespace: &str, name: &str| ServiceAccount {
            namespace: namespace.parse().unwrap(),
            name: name.parse().unwrap(),
            uid: "u".parse().unwrap(),
        };
        let pattern: PathPattern = "secret/data/{namespace}/x-{serviceaccount}/*".parse().unwrap();
        assert_eq!(pattern.to_string(), "secret/data/{namespace}/x-{serviceaccount}/*");
        let path = "secret/data/shop/x-web/db".parse().unwrap();
        assert!(pattern.matches(&path, Some(&account("shop", "web"))));
        assert!(!pattern.matches(&path, Some(&account("shop", "db"))));
        assert!(!pattern.matches(&path, Some(&account("other", "web"))));
        assert!(!pattern.matches(&path, None));
        for bad in ["secret/{pod}", "secret/{namespace", "secret/}", "{namespace}*"] {
            assert!(bad.parse::<PathPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn wildcards_inside_a_segment_are_refused() {
        for bad in ["secret/sh*p", "secret/**/x", "secret//x", ""] {
            assert!(bad.parse::<PathPattern>().is_err(), "{bad}");
        }
    }
}
