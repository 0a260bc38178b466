//! Names given in the configuration and ids we hand out; `FromStr` is the only door to the former.

use std::fmt;
use std::sync::Arc;

use super::text_name::text_name;

/// Longest configured name, in bytes. The DNS label limit, so a name also fits a metric label.
const NAME_BYTES_MAX: usize = 63;

/// Why a configured name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The name has no characters.
    #[error("name is empty")]
    Empty,
    /// The name is longer than 63 bytes.
    #[error("name is longer than {NAME_BYTES_MAX} bytes")]
    TooLong,
    /// A character outside `a-z 0-9 - _ .`, or one of `- _ .` in front.
    #[error("name may hold only a-z, 0-9, '-', '_' and '.', starting with a letter or digit")]
    Character,
}

fn check_name(name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(IdError::TooLong);
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || !name.chars().all(allowed) {
        return Err(IdError::Character);
    }
    Ok(())
}

text_name!(
    /// The configured name of a source.
    SourceName,
    IdError,
    check_name
);
text_name!(
    /// The name of a volume: configured on a host, or made of a pod's names.
    VolumeName,
    IdError,
    check_name
);
text_name!(
    /// The configured name of a policy rule, shown to operators and in the audit log.
    RuleName,
    IdError,
    check_name
);

impl VolumeName {
    /// The name of a pod's volume: `shop/web-0/db@<pod uid>`. No configured name holds a slash, and
    /// a pod's successor of the same name has another uid.
    pub fn of_pod(pod: &super::Pod, volume: &super::PodVolumeName) -> Self {
        Self(Arc::from(format!("{pod}/{volume}@{}", pod.uid)))
    }

    /// Whether it is a pod's volume; otherwise it is a declared one.
    pub fn is_of_pod(&self) -> bool {
        self.0.contains('/')
    }
}

/// The opaque id a socket caller gets instead of Vault's lease id.
///
/// Holds no upstream information: the path is there because clients print it, the rest is random.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalLeaseId(Arc<str>);

impl LocalLeaseId {
    /// Builds `<path>/<32 hex digits>`, the shape of Vault's own lease ids.
    pub fn new(path: &super::SecretPath, random: u128) -> Self {
        Self(Arc::from(format!("{path}/{random:032x}")))
    }

    /// The id as a client sent it; unknown ids simply match nothing.
    pub fn from_client(id: &str) -> Self {
        Self(Arc::from(id))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LocalLeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label_with_dots_and_underscores() {
        for good in ["vault", "vault-eu.1", "a", "0db", "a_b"] {
            assert!(good.parse::<SourceName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a b", "a/b", "é", &"a".repeat(64)] {
            assert!(bad.parse::<SourceName>().is_err(), "{bad}");
        }
    }
}
