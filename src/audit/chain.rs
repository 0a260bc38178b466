//! The chain of an instance's lines: how a line's hash is made, and checked again from its bytes.
//!
//! A line ends in `,"hash":"<64 hex digits>"}`. The hash is the SHA-256 of every byte before that,
//! among them `prev`, the hash of the instance's line before. Nothing is ever serialised again to
//! check it.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// What stands between what a hash covers and its digits.
const FIELD: &[u8] = br#","hash":""#;
const HEX_BYTES: usize = 64;
const END: &[u8] = br#""}"#;

/// SHA-256 of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LineHash([u8; 32]);

/// The newest line of an instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    /// Its number; 0 before the first line.
    pub(super) seq: u64,
    pub(super) hash: LineHash,
}

impl LineHash {
    /// What an instance's first line has as `prev`: nothing precedes it, and it can stand at the
    /// beginning of no other instance.
    pub(super) fn genesis(instance: &str) -> Self {
        Self::of(format!("secrets-broker audit {instance}").as_bytes())
    }

    /// Reads 64 hex digits, small ones: a hash has one spelling.
    pub(super) fn from_hex(digits: &[u8]) -> Option<Self> {
        if digits.iter().any(u8::is_ascii_uppercase) {
            return None;
        }
        let mut hash = [0; 32];
        hex::decode_to_slice(digits, &mut hash).ok()?;
        Some(Self(hash))
    }

    pub(super) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for LineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; HEX_BYTES];
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl Head {
    /// Before the first line.
    pub(super) fn start(instance: &str) -> Self {
        Self { seq: 0, hash: LineHash::genesis(instance) }
    }
}

/// Closes a JSON object with the hash of its bytes and ends the line.
pub(super) fn seal(object: &mut Vec<u8>) -> LineHash {
    debug_assert!(object.ends_with(b"}"), "an object");
    object.pop();
    let hash = LineHash::of(object);
    object.extend_from_slice(FIELD);
    object.extend_from_slice(hash.to_string().as_bytes());
    object.extend_from_slice(END);
    object.push(b'\n');
    hash
}

/// The hash a line (without its end) carries, if it is that of the line's other bytes.
pub(super) fn unseal(line: &[u8]) -> Option<LineHash> {
    let (covered, said) = parts(line)?;
    (LineHash::of(covered) == said).then_some(said)
}

/// Whether a line ends as a whole line does, whatever else is in it.
pub(super) fn is_sealed(line: &[u8]) -> bool {
    parts(line).is_some()
}

/// Whether a line that was cut off could still have grown into a whole one: what is there of its
/// hash is only digits and fewer than all of them.
pub(super) fn is_unfinished(line: &[u8]) -> bool {
    let Some(at) = line.windows(FIELD.len()).rposition(|window| window == FIELD) else {
        return true;
    };
    let rest = &line[at + FIELD.len()..];
    let is_digit = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let digits = rest.iter().take(HEX_BYTES).take_while(is_digit).count();
    let after = &rest[digits..];
    after.is_empty() || digits == HEX_BYTES && after != END && END.starts_with(after)
}

fn parts(line: &[u8]) -> Option<(&[u8], LineHash)> {
    let (rest, digits) = line.strip_suffix(END)?.split_last_chunk::<HEX_BYTES>()?;
    Some((rest.strip_suffix(FIELD)?, LineHash::from_hex(digits)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(object: &str) -> Vec<u8> {
        let mut line = object.as_bytes().to_vec();
        seal(&mut line);
        assert_eq!(line.pop(), Some(b'\n'));
        line
    }

    #[test]
    fn a_sealed_line_is_still_json_and_its_hash_can_be_made_by_hand() {
        let line = sealed(r#"{"a":1}"#);
        let text = String::from_utf8(line.clone()).unwrap();
        let (covered, _) = text.split_once(r#","hash":""#).unwrap();
        let by_hand = hex::encode(Sha256::digest(covered.as_bytes()));
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["hash"], by_hand);
        assert_eq!(unseal(&line).unwrap().to_string(), by_hand);
    }

    #[test]
    fn no_byte_of_a_line_can_be_changed_unnoticed() {
        let line = sealed(r#"{"time":"t","seq":1}"#);
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut changed = line.clone();
                changed[at] ^= 1 << bit;
                assert!(unseal(&changed).is_none(), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_beginning_of_a_line_is_unfinished_and_a_whole_line_with_another_end_is_not() {
        let line = sealed(r#"{"a":"b"}"#);
        for length in 0..line.len() {
            assert!(is_unfinished(&line[..length]), "{length}");
        }
        let last = line.len() - 1;
        for at in last - 65..=last {
            let mut changed = line.clone();
            changed[at] = b'!';
            assert!(!is_unfinished(&changed), "{at}");
        }
    }
}
