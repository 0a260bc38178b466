//! One value of the configuration: what it is as text, number, time or path, or what is wrong.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use crate::config::document::{Document, Place, Section, nearest};
use crate::config::{encrypted, values};

/// What to write for a duration.
const DURATION_REMEDY: &str = "write for example \"30s\", \"5m\" or \"1h 30m\"";
/// What to write for a size.
const SIZE_REMEDY: &str = "write bytes as a number, or for example \"16KiB\", \"64MiB\"";
/// Longest piece of the file that a message repeats, in characters.
const QUOTE_CHARS_MAX: usize = 80;

/// A key with its value.
pub(super) struct Field<'a> {
    document: &'a Document<'a>,
    place: Place,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Field<'a> {
    pub(super) fn new(
        document: &'a Document<'a>,
        place: Place,
        value: &'a Spanned<DeValue<'a>>,
    ) -> Self {
        Self { document, place, value }
    }

    pub(super) fn document(&self) -> &'a Document<'a> {
        self.document
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn problem(&self, message: impl Into<String>, remedy: impl Into<String>) {
        self.document.problem(&self.place, message, remedy);
    }

    pub(super) fn warning(&self, message: impl Into<String>, remedy: impl Into<String>) {
        self.document.warning(&self.place, message, remedy);
    }

    /// The value as it is written in the file: never what a variable or `ENC:` stands for.
    pub(super) fn quoted(&self) -> String {
        match self.value.get_ref() {
            DeValue::String(text) if text.starts_with(encrypted::PREFIX) => {
                "the encrypted value".to_owned()
            }
            DeValue::String(text) if text.chars().count() > QUOTE_CHARS_MAX => {
                format!("{:?}…", text.chars().take(QUOTE_CHARS_MAX).collect::<String>())
            }
            DeValue::String(text) => format!("{text:?}"),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Boolean(flag) => flag.to_string(),
            other => format!("this {}", other.type_str()),
        }
    }

    /// The text with variables expanded and `ENC:` opened.
    pub(super) fn text(&self) -> Option<String> {
        let Some(text) = self.value.get_ref().as_str() else {
            let message = format!("{} is not a string", self.quoted());
            self.problem(message, "write it in quotes");
            return None;
        };
        match values::expand(text, self.document.host.variable) {
            Ok(text) if text.starts_with(encrypted::PREFIX) => self.opened(&text),
            Ok(text) => Some(text),
            Err(reason) => {
                let message = format!("{} {reason}", self.quoted());
                self.problem(message, "set the variable, or write \"$${\" for a literal \"${\"");
                None
            }
        }
    }

    fn opened(&self, text: &str) -> Option<String> {
        let Some(key) = self.document.key() else {
            self.problem(
                "the value is encrypted and no key is configured",
                "add [encryption] with key_file or key_env",
            );
            return None;
        };
        match encrypted::open_encrypted(text, key) {
            Ok(text) => Some(text),
            Err(reason) => {
                self.problem(
                    format!("the encrypted value {reason}"),
                    "encrypt it again with: secrets-broker encrypt, and the key of [encryption]",
                );
                None
            }
        }
    }

    /// The text put through `convert`; its error follows the quoted value in the message.
    pub(super) fn convert<T, E: Display>(
        &self,
        convert: impl FnOnce(&str) -> Result<T, E>,
        remedy: &str,
    ) -> Option<T> {
        let text = self.text()?;
        match convert(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(format!("{} {error}", self.quoted()), remedy);
                None
            }
        }
    }

    /// The text through `FromStr`, whose error becomes `"…" is refused: …`.
    pub(super) fn parsed<T: std::str::FromStr<Err: Display>>(&self, remedy: &str) -> Option<T> {
        let parse = |text: &str| text.parse::<T>().map_err(|error| format!("is refused: {error}"));
        self.convert(parse, remedy)
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let flag = self.value.get_ref().as_bool();
        if flag.is_none() {
            let message = format!("{} is neither true nor false", self.quoted());
            self.problem(message, "write true or false, without quotes");
        }
        flag
    }

    /// A whole number, not negative; `None` without a problem if it is no number at all.
    pub(super) fn number(&self) -> Option<u64> {
        let number = self.value.get_ref().as_integer()?;
        u64::from_str_radix(number.as_str(), number.radix()).ok()
    }

    pub(super) fn duration(&self) -> Option<Duration> {
        if let Some(number) = self.number() {
            let message = format!("{number} has no unit, so it is open what it means");
            self.problem(message, format!("write for example \"{number}s\""));
            return None;
        }
        self.convert(values::duration, DURATION_REMEDY)
    }

    pub(super) fn size(&self) -> Option<u64> {
        if self.value.get_ref().is_integer() {
            let number = self.number();
            if number.is_none() {
                self.problem(format!("{} is not a size", self.quoted()), SIZE_REMEDY);
            }
            return number;
        }
        self.convert(values::size, SIZE_REMEDY)
    }

    pub(super) fn mode(&self, allowed: u32, remedy: &str) -> Option<u32> {
        self.convert(|text| values::mode(text, allowed), remedy)
    }

    pub(super) fn absolute_path(&self) -> Option<PathBuf> {
        let remedy = "write the absolute path without '.', '..' and '//'";
        self.convert(values::absolute_path, remedy)
    }

    /// One of these words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let message = format!("{} is not one of {}", self.quoted(), words.join(", "));
            let remedy = nearest(&text, &words).map(|word| format!("did you mean {word:?}?"));
            self.problem(message, remedy.unwrap_or_else(|| "write one of these".to_owned()));
        }
        found
    }

    /// The file's content; that it cannot be read is a problem with this remedy.
    pub(super) fn readable(&self, path: &Path, remedy: &str) -> Option<Vec<u8>> {
        match (self.document.host.read)(path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.problem(format!("cannot read {}: {error}", self.quoted()), remedy);
                None
            }
        }
    }

    /// Whether the file can be opened; that it cannot is a problem with this remedy.
    pub(super) fn can_be_opened(&self, path: &Path, remedy: &str) -> Option<()> {
        let opened = (self.document.host.open)(path);
        if let Err(error) = &opened {
            self.problem(format!("cannot open {}: {error}", self.quoted()), remedy);
        }
        opened.ok()
    }

    /// The elements of an array, or a problem.
    pub(super) fn elements(&self) -> Vec<Field<'a>> {
        let Some(array) = self.value.get_ref().as_array() else {
            self.problem(format!("{} is not a list", self.quoted()), "write it in [ ]");
            return Vec::new();
        };
        let element = |(index, value): (usize, &'a Spanned<DeValue<'a>>)| {
            let key = format!("{}[{}]", self.place.key, index + 1);
            Field::new(self.document, Place { key, offset: value.span().start }, value)
        };
        array.iter().enumerate().map(element).collect()
    }

    /// The table this is, or a problem and an absent section.
    pub(super) fn section(&self) -> Section<'a> {
        let table = self.value.get_ref().as_table();
        if table.is_none() {
            self.problem(format!("{} is not a table", self.quoted()), "write it as a table");
        }
        Section::new(self.document, self.place.clone(), table)
    }
}
