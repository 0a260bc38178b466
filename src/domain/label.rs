//! Labels of Kubernetes objects as rules name them: exact keys and values.

use super::text_name::text_name;

/// Longest name part of a key, and longest value.
const PART_BYTES_MAX: usize = 63;
/// Longest prefix of a key: a DNS subdomain.
const PREFIX_BYTES_MAX: usize = 253;

/// Why something is no label's key or value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Not a key that an object can have.
    #[error(
        "a label's key is at most 63 of a-z, A-Z, 0-9, '-', '_', '.', with a domain and '/' before \
         it or without"
    )]
    Key,
    /// Not a value that an object can have.
    #[error("a label's value is at most 63 of a-z, A-Z, 0-9, '-', '_', '.', or empty")]
    Value,
}

fn is_part(text: &str, bytes_max: usize) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let at_ends = |c: char| c.is_ascii_alphanumeric();
    text.len() <= bytes_max
        && text.chars().all(allowed)
        && text.starts_with(at_ends)
        && text.ends_with(at_ends)
}

fn check_key(text: &str) -> Result<(), LabelError> {
    let lower = |prefix: &str| !prefix.contains(|c: char| c.is_ascii_uppercase() || c == '_');
    let good = match text.split_once('/') {
        Some((prefix, name)) => {
            is_part(prefix, PREFIX_BYTES_MAX) && lower(prefix) && is_part(name, PART_BYTES_MAX)
        }
        None => is_part(text, PART_BYTES_MAX),
    };
    if good { Ok(()) } else { Err(LabelError::Key) }
}

fn check_value(text: &str) -> Result<(), LabelError> {
    let good = text.is_empty() || is_part(text, PART_BYTES_MAX);
    if good { Ok(()) } else { Err(LabelError::Value) }
}

text_name!(
    /// A label's key: `app`, `app.kubernetes.io/name`.
    LabelKey,
    LabelError,
    check_key
);
text_name!(
    /// A label's value; may be empty.
    LabelValue,
    LabelError,
    check_value
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_those_of_kubernetes() {
        let long = "a".repeat(63);
        for good in ["app", "app.kubernetes.io/name", "A_b-c.d", "x/Y", &long] {
            assert!(good.parse::<LabelKey>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "/", "a/", "/a", "a/b/c", "-a", "a-", "a b", "A/b", "a\"b", "ä", &too_long]
        {
            assert!(bad.parse::<LabelKey>().is_err(), "{bad}");
        }
        for good in ["", "shop", "V1.2_x-y", &long] {
            assert!(good.parse::<LabelValue>().is_ok(), "{good}");
        }
        for bad in ["a/b", "-a", "a.", "a b", "\"", &too_long] {
            assert!(bad.parse::<LabelValue>().is_err(), "{bad}");
        }
    }
}
