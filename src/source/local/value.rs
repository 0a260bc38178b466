//! TOML values of a secret as the JSON that Vault would reply with, encrypted strings opened.

use std::io::{self, Write};

use toml::Spanned;
use toml::de::DeValue;

use super::file::Problems;
use crate::domain::SecretBytes;
use crate::encryption::{EncryptedValue, Key};

/// A value of a secret: borrowed from the file's text where it stands there in clear.
pub(super) enum Value<'t> {
    Clear(&'t str),
    Opened(SecretBytes),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Array(Vec<Value<'t>>),
    Table(Vec<(&'t str, Value<'t>)>),
}

impl<'t> Value<'t> {
    /// Reads a value and everything in it; `place` says in words where it stands. What is wrong
    /// goes to `problems`, and then the result is `None`.
    pub(super) fn read(
        value: &'t Spanned<DeValue<'_>>,
        place: &str,
        key: Option<&Key>,
        problems: &mut Problems<'_>,
    ) -> Option<Self> {
        let mut refuse = |message: String| {
            problems.add(value.span(), format!("{place} {message}"));
            None
        };
        match value.get_ref() {
            DeValue::String(text) if EncryptedValue::is_claimed_by(text) => match open(text, key) {
                Ok(opened) => Some(Self::Opened(opened)),
                Err(message) => refuse(message),
            },
            DeValue::String(text) => Some(Self::Clear(text)),
            DeValue::Boolean(boolean) => Some(Self::Boolean(*boolean)),
            DeValue::Integer(number) => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => Some(Self::Integer(number)),
                    Err(_) => refuse("is beyond 64 bits; write it as a string".to_owned()),
                }
            }
            DeValue::Float(number) => match number.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() => Some(Self::Float(number)),
                _ => refuse("is no number that JSON has; write it as a string".to_owned()),
            },
            DeValue::Datetime(_) => {
                refuse("is a date or time, which JSON has not; write it as a string".to_owned())
            }
            DeValue::Array(items) => {
                let items: Vec<_> =
                    items.iter().map(|item| Self::read(item, place, key, problems)).collect();
                items.into_iter().collect::<Option<_>>().map(Self::Array)
            }
            DeValue::Table(entries) => {
                let entries: Vec<_> = entries
                    .iter()
                    .map(|(name, value)| {
                        let name: &str = name.get_ref();
                        let place = format!("{name:?} in {place}");
                        Some((name, Self::read(value, &place, key, problems)?))
                    })
                    .collect();
                entries.into_iter().collect::<Option<_>>().map(Self::Table)
            }
        }
    }

    /// The value as JSON, in one allocation of exact size.
    pub(super) fn to_json(&self) -> SecretBytes {
        let mut length = Length(0);
        self.write_json(&mut length).expect("counting cannot fail, and opened strings are UTF-8");
        let mut json = Vec::with_capacity(length.0);
        self.write_json(&mut json).expect("it has just been counted");
        SecretBytes::new(json)
    }

    fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Clear(text) => Ok(serde_json::to_writer(out, text)?),
            Self::Opened(bytes) => {
                let text = std::str::from_utf8(bytes.expose()).map_err(io::Error::other)?;
                Ok(serde_json::to_writer(out, text)?)
            }
            Self::Integer(number) => write!(out, "{number}"),
            Self::Float(number) => Ok(serde_json::to_writer(out, number)?),
            Self::Boolean(boolean) => write!(out, "{boolean}"),
            Self::Array(items) => {
                out.write_all(b"[")?;
                for (index, item) in items.iter().enumerate() {
                    out.write_all(if index > 0 { b"," } else { b"" })?;
                    item.write_json(out)?;
                }
                out.write_all(b"]")
            }
            Self::Table(entries) => {
                out.write_all(b"{")?;
                for (index, (name, value)) in entries.iter().enumerate() {
                    out.write_all(if index > 0 { b"," } else { b"" })?;
                    serde_json::to_writer(&mut *out, name)?;
                    out.write_all(b":")?;
                    value.write_json(out)?;
                }
                out.write_all(b"}")
            }
        }
    }
}

/// Opens an encrypted string; the error completes a sentence that begins with its place.
fn open(text: &str, key: Option<&Key>) -> Result<SecretBytes, String> {
    let encrypted: EncryptedValue = text
        .parse()
        .map_err(|error| format!("{error}; a text in clear may not begin with 'ENC:'"))?;
    let key = key.ok_or("is encrypted, but this source has no key: set its key_file or key_env")?;
    let opened = encrypted.decrypt(key).map_err(|error| {
        format!(
            "{error}: encrypt it again with this source's key, or configure the key it was made \
             with"
        )
    })?;
    match std::str::from_utf8(opened.expose()) {
        Ok(_) => Ok(opened),
        Err(_) => {
            Err("decrypts to bytes that are not UTF-8; encrypt its base64 instead".to_owned())
        }
    }
}

/// Counts what is written.
struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
