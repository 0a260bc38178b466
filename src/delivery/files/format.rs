//! File formats: how names and values are written and escaped so that a reader gets them back.

use std::str::FromStr;

use zeroize::Zeroizing;

use super::name::FileName;
use super::object::{ObjectError, Text, Value};

/// How several names and values become one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON object; numbers, booleans and objects keep their types.
    Json,
    /// `NAME=value` lines as `sh` and systemd's `EnvironmentFile=` read them.
    Dotenv,
    /// A YAML mapping of double-quoted strings; other values keep their types.
    Yaml,
    /// Java properties, ASCII only.
    Properties,
    /// The only value, byte for byte.
    Raw,
}

/// Why values could not be written in a format. Holds key names, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Not a variable name.
    #[error(
        "'{0}' is no variable name a dotenv file can hold (letters, digits, '_'); \
         rename it with `keys`"
    )]
    VariableName(String),
    /// NUL ends a string for every reader of a dotenv file.
    #[error("the value of '{0}' holds a NUL, which a dotenv file cannot")]
    Nul(String),
    /// A raw file has no place for names.
    #[error("a raw file holds exactly one value, but there are {}: {}", .0.len(), .0.join(", "))]
    RawWantsOne(Vec<String>),
    /// The value itself is damaged.
    #[error("'{0}': {1}")]
    Value(String, ObjectError),
}

/// Not the name of a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("format is one of json, dotenv, yaml, properties, raw")]
pub struct UnknownFormat;

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        match name {
            "json" => Ok(Self::Json),
            "dotenv" => Ok(Self::Dotenv),
            "yaml" => Ok(Self::Yaml),
            "properties" => Ok(Self::Properties),
            "raw" => Ok(Self::Raw),
            _ => Err(UnknownFormat),
        }
    }
}

impl Format {
    /// The format a file's extension stands for; without one it has to be configured.
    pub fn from_file_name(file: &FileName) -> Option<Self> {
        match file.extension()? {
            "json" => Some(Self::Json),
            "env" => Some(Self::Dotenv),
            "yaml" | "yml" => Some(Self::Yaml),
            "properties" => Some(Self::Properties),
            _ => None,
        }
    }

    /// Writes names and values in the order given.
    pub fn write(self, entries: &[(&str, Value<'_>)]) -> Result<Zeroizing<Vec<u8>>, FormatError> {
        let mut out = Buffer::new();
        match self {
            Self::Json => json(&mut out, entries),
            Self::Yaml => yaml(&mut out, entries)?,
            Self::Dotenv => dotenv(&mut out, entries)?,
            Self::Properties => properties(&mut out, entries)?,
            Self::Raw => {
                let &[(name, value)] = entries else {
                    let names = entries.iter().map(|(name, _)| (*name).to_owned()).collect();
                    return Err(FormatError::RawWantsOne(names));
                };
                out.push(&text(name, value)?);
            }
        }
        Ok(out.0)
    }
}

/// Bytes that grow without leaving an unwiped copy behind, unlike a growing `Vec`.
struct Buffer(Zeroizing<Vec<u8>>);

impl Buffer {
    fn new() -> Self {
        Self(Zeroizing::new(Vec::with_capacity(1024)))
    }

    fn push(&mut self, text: &str) {
        let needed = self.0.len() + text.len();
        if needed > self.0.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed * 2));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(text.as_bytes());
    }

    fn push_char(&mut self, c: char) {
        self.push(c.encode_utf8(&mut [0; 4]));
    }
}

fn text<'a>(name: &str, value: Value<'a>) -> Result<Text<'a>, FormatError> {
    value.text().map_err(|error| FormatError::Value(name.to_owned(), error))
}

fn json(out: &mut Buffer, entries: &[(&str, Value<'_>)]) {
    out.push("{");
    for (index, (name, value)) in entries.iter().enumerate() {
        out.push(if index == 0 { "\n  " } else { ",\n  " });
        quoted(out, name);
        out.push(": ");
        out.push(value.raw());
    }
    out.push("\n}\n");
}

fn yaml(out: &mut Buffer, entries: &[(&str, Value<'_>)]) -> Result<(), FormatError> {
    if entries.is_empty() {
        out.push("{}\n");
    }
    for (name, value) in entries {
        quoted(out, name);
        out.push(": ");
        if value.is_string() {
            quoted(out, &text(name, *value)?);
        } else {
            // Every JSON value is a YAML 1.2 value.
            out.push(value.raw());
        }
        out.push("\n");
    }
    Ok(())
}

/// A double-quoted string that JSON and YAML 1.1 and 1.2 read alike: what YAML calls unprintable
/// is escaped, and no surrogate pair is written.
fn quoted(out: &mut Buffer, text: &str) {
    out.push("\"");
    for c in text.chars() {
        match c {
            '"' => out.push("\\\""),
            '\\' => out.push("\\\\"),
            '\n' => out.push("\\n"),
            '\r' => out.push("\\r"),
            '\t' => out.push("\\t"),
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => escaped(out, c),
            c if c.is_control() => escaped(out, c),
            c => out.push_char(c),
        }
    }
    out.push("\"");
}

/// `\uXXXX` per UTF-16 unit.
fn escaped(out: &mut Buffer, c: char) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        out.push("\\u");
        for shift in [12, 8, 4, 0] {
            let digit = char::from_digit(u32::from(*unit >> shift) & 0xf, 16);
            out.push_char(digit.expect("four bits are a hex digit"));
        }
    }
}

fn dotenv(out: &mut Buffer, entries: &[(&str, Value<'_>)]) -> Result<(), FormatError> {
    for (name, value) in entries {
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(FormatError::VariableName((*name).to_owned()));
        }
        let value = text(name, *value)?;
        if value.contains('\0') {
            return Err(FormatError::Nul((*name).to_owned()));
        }
        out.push(name);
        out.push("=");
        // Single quotes are literal for every reader; only where they cannot be used, escapes are.
        if value.contains(['\'', '\\']) {
            out.push("\"");
            for c in value.chars() {
                if matches!(c, '"' | '\\' | '$' | '`') {
                    out.push("\\");
                }
                out.push_char(c);
            }
            out.push("\"\n");
        } else {
            out.push("'");
            out.push(&value);
            out.push("'\n");
        }
    }
    Ok(())
}

fn properties(out: &mut Buffer, entries: &[(&str, Value<'_>)]) -> Result<(), FormatError> {
    for (name, value) in entries {
        name.chars().for_each(|c| property_char(out, c, true));
        out.push("=");
        let value = text(name, *value)?;
        // Only leading white space is dropped by readers, so the rest of it stays readable.
        let mut leading = true;
        for c in value.chars() {
            leading &= c == ' ';
            property_char(out, c, leading);
        }
        out.push("\n");
    }
    Ok(())
}

fn property_char(out: &mut Buffer, c: char, escape_space: bool) {
    match c {
        '\\' => out.push("\\\\"),
        '\n' => out.push("\\n"),
        '\r' => out.push("\\r"),
        '\t' => out.push("\\t"),
        ' ' if !escape_space => out.push(" "),
        ' ' | ':' | '=' | '#' | '!' => {
            out.push("\\");
            out.push_char(c);
        }
        // Readers disagree on Latin-1 or UTF-8; ASCII means the same to all.
        c if !(' '..='~').contains(&c) => escaped(out, c),
        c => out.push_char(c),
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
