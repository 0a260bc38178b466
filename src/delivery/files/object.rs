//! The keys and values of one secret, borrowed from the entry so that no value is copied unwiped.

use std::collections::BTreeMap;
use std::ops::Deref;

use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::broker::Entry;
use crate::domain::{EngineKind, PathKind};

/// Why a secret has no keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The bytes are no JSON object where one is expected.
    #[error("the secret is not an object of keys and values")]
    NotAnObject,
    /// A string with half a surrogate pair.
    #[error("a value holds a broken unicode escape")]
    BrokenEscape,
}

/// The keys and values of one secret.
pub struct Object<'a>(BTreeMap<String, Value<'a>>);

/// One value as JSON text.
#[derive(Clone, Copy)]
pub struct Value<'a>(&'a str);

impl<'a> Object<'a> {
    /// Finds the keys: on KV 2 they lie one level below the reply's `data`.
    ///
    /// The `ttl` of a static credential counts down with every read, so it is no part of the whole
    /// secret; asked for by its key it is still there.
    pub fn parse(entry: &'a Entry, engine: EngineKind) -> Result<Self, ObjectError> {
        let reply = keys(entry.data.expose())?;
        if engine != EngineKind::Kv2 {
            return Ok(Self(reply));
        }
        let data = reply.get("data").ok_or(ObjectError::NotAnObject)?;
        keys(data.0.as_bytes()).map(Self)
    }

    /// One value.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.0.get(key).copied()
    }

    /// Key names, sorted, for messages: names may be shown, values never.
    pub fn keys(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// What belongs to the whole secret, in key order.
    pub fn whole(&self, kind: PathKind) -> impl Iterator<Item = (&str, Value<'a>)> {
        let counts_down = move |key: &str| kind == PathKind::Static && key == "ttl";
        let entries = self.0.iter().map(|(key, value)| (key.as_str(), *value));
        entries.filter(move |(key, _)| !counts_down(key))
    }
}

fn keys(bytes: &[u8]) -> Result<BTreeMap<String, Value<'_>>, ObjectError> {
    let raw: BTreeMap<String, &RawValue> =
        // The error's text could quote input, so it is dropped.
        serde_json::from_slice(bytes).map_err(|_| ObjectError::NotAnObject)?;
    Ok(raw.into_iter().map(|(key, value)| (key, Value::from_json(value))).collect())
}

/// A value as text: borrowed where the JSON text already is it, else decoded into a wiped buffer.
pub enum Text<'a> {
    /// No escapes were in it.
    Borrowed(&'a str),
    /// Decoded.
    Decoded(Zeroizing<String>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Decoded(text) => text,
        }
    }
}

impl<'a> Value<'a> {
    /// A value from JSON text that was checked when it was parsed.
    pub fn from_json(json: &'a RawValue) -> Self {
        Self(json.get())
    }

    /// The JSON text.
    pub fn raw(self) -> &'a str {
        self.0
    }

    /// Whether it is a JSON string.
    pub fn is_string(self) -> bool {
        self.0.starts_with('"')
    }

    /// Strings as they are, everything else as JSON.
    pub fn text(self) -> Result<Text<'a>, ObjectError> {
        let Some(inner) = self.0.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
            return Ok(Text::Borrowed(self.0));
        };
        if !inner.contains('\\') {
            return Ok(Text::Borrowed(inner));
        }
        decode(inner).map(Text::Decoded)
    }
}

/// Decodes JSON escapes. Not serde_json's decoder, whose scratch buffer is freed without a wipe.
fn decode(inner: &str) -> Result<Zeroizing<String>, ObjectError> {
    // Decoding never lengthens, so the buffer never moves and leaves no copy behind.
    let mut out = Zeroizing::new(String::with_capacity(inner.len()));
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let escape = rest.chars().next().ok_or(ObjectError::BrokenEscape)?;
        rest = &rest[escape.len_utf8()..];
        out.push(match escape {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => unicode(&mut rest)?,
            '"' | '\\' | '/' => escape,
            _ => return Err(ObjectError::BrokenEscape),
        });
    }
    out.push_str(rest);
    Ok(out)
}

fn unicode(rest: &mut &str) -> Result<char, ObjectError> {
    let high = hex4(rest)?;
    if !(0xd800..0xdc00).contains(&high) {
        return char::from_u32(high).ok_or(ObjectError::BrokenEscape);
    }
    *rest = rest.strip_prefix("\\u").ok_or(ObjectError::BrokenEscape)?;
    let low = hex4(rest)?;
    if !(0xdc00..0xe000).contains(&low) {
        return Err(ObjectError::BrokenEscape);
    }
    let scalar = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
    char::from_u32(scalar).ok_or(ObjectError::BrokenEscape)
}

fn hex4(rest: &mut &str) -> Result<u32, ObjectError> {
    let digits = rest.get(..4).ok_or(ObjectError::BrokenEscape)?;
    let value = u32::from_str_radix(digits, 16).map_err(|_| ObjectError::BrokenEscape)?;
    *rest = &rest[4..];
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text_of(json: &str) -> Result<String, ObjectError> {
        Value(json).text().map(|text| text.to_owned())
    }

    #[test]
    fn escapes_of_every_kind_are_decoded() {
        assert_eq!(
            text_of(r#""a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00""#).unwrap(),
            "a\"\\/\u{8}\u{c}\n\r\té😀"
        );
        assert_eq!(text_of("12.50").unwrap(), "12.50");
        assert_eq!(text_of(r#"{"a":1}"#).unwrap(), r#"{"a":1}"#);
        for broken in [r#""\ud83d""#, r#""\ud83dx""#, r#""\ud83d\u0041""#, r#""\udc00""#] {
            assert_eq!(text_of(broken), Err(ObjectError::BrokenEscape), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn decoding_is_the_inverse_of_serde_json(value in "(?s).{0,60}") {
            let json = serde_json::to_string(&value).unwrap();
            prop_assert_eq!(text_of(&json).unwrap(), value);
        }
    }
}
