//! An item as a pod's manifest writes it, in texts: which of the four forms it has. Pure.

use std::collections::BTreeMap;

use crate::domain::{Spelling, SpellingError};

use super::config::ItemContent;
use super::format::Format;
use super::name::{FileName, FileNameError};

/// The texts of one item.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ItemText {
    /// A secret, with `#key` for one value.
    pub secret: Option<String>,
    /// Name in the file → secret with its key.
    pub keys: Option<BTreeMap<String, String>>,
    /// The file.
    pub path: Option<String>,
    /// How it is written.
    pub format: Option<String>,
}

/// Why the texts are no item: what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ItemTextError {
    /// Neither form.
    #[error(
        "names no secret; add secret: \"secret/shop/web\", or keys: {{ name: \"path#key\" }} with \
         path"
    )]
    Nothing,
    /// Both forms.
    #[error("has both secret and keys; keep one: secret for one secret, keys to compose a file")]
    Both,
    /// A spelling.
    #[error("secret '{0}': {1}")]
    Secret(String, SpellingError),
    /// A file name.
    #[error("path '{0}': {1}")]
    Path(String, FileNameError),
    /// A key that cannot be a file.
    #[error("the key '{0}' cannot name the file: {1}; add path")]
    Key(String, FileNameError),
    /// A composed file without a name.
    #[error("keys make one file, which needs a name; add path: \"app.properties\"")]
    Unnamed,
    /// Nothing to compose.
    #[error("keys has no key in it; write keys: {{ name: \"path#key\" }}")]
    NoKeys,
    /// A whole secret among the keys.
    #[error("keys: '{0}' names a whole secret; write the key behind it: \"path#key\"")]
    WholeSecret(String),
    /// No such format.
    #[error("format '{0}' does not exist; write json, dotenv, yaml, properties or raw")]
    Format(String),
    /// The name does not tell.
    #[error("path '{0}' does not tell the file's format; add format")]
    UnknownExtension(String),
    /// A format that does nothing.
    #[error("format has no effect on {0}; remove it")]
    NoFormat(&'static str),
    /// Raw has no names.
    #[error("the format raw takes exactly one key; choose json, dotenv, yaml or properties")]
    RawKeys,
}

impl ItemText {
    /// The item these texts mean.
    pub fn content(&self) -> Result<ItemContent, ItemTextError> {
        match (&self.secret, &self.keys) {
            (Some(_), Some(_)) => Err(ItemTextError::Both),
            (None, None) => Err(ItemTextError::Nothing),
            (None, Some(keys)) => self.composed(keys),
            (Some(secret), None) => self.single(secret),
        }
    }

    fn single(&self, text: &str) -> Result<ItemContent, ItemTextError> {
        let secret = spelling(text)?;
        match (secret.key.clone(), self.file()?) {
            (Some(key), file) => {
                if self.format()?.is_some_and(|format| format != Format::Raw) {
                    return Err(ItemTextError::NoFormat("one value, which is written as it is"));
                }
                let named = |error| ItemTextError::Key(key.clone(), error);
                let file = file.map_or_else(|| FileName::from_key(&key).map_err(named), Ok)?;
                Ok(ItemContent::Value { secret, file })
            }
            (None, Some(file)) => {
                let format = self.format_of(&file)?;
                Ok(ItemContent::Whole { secret, file, format })
            }
            (None, None) if self.format.is_some() => {
                Err(ItemTextError::NoFormat("one file per key"))
            }
            (None, None) => Ok(ItemContent::EveryKey { secret }),
        }
    }

    fn composed(&self, texts: &BTreeMap<String, String>) -> Result<ItemContent, ItemTextError> {
        let file = self.file()?.ok_or(ItemTextError::Unnamed)?;
        let format = self.format_of(&file)?;
        match texts.len() {
            0 => return Err(ItemTextError::NoKeys),
            1 => {}
            _ if format == Format::Raw => return Err(ItemTextError::RawKeys),
            _ => {}
        }
        let mut keys = BTreeMap::new();
        for (name, text) in texts {
            let secret = spelling(text)?;
            if secret.key.is_none() {
                return Err(ItemTextError::WholeSecret(text.clone()));
            }
            keys.insert(name.clone(), secret);
        }
        Ok(ItemContent::Composed { keys, file, format })
    }

    fn file(&self) -> Result<Option<FileName>, ItemTextError> {
        let parse = |text: &String| {
            text.parse()
                .map_err(|error| ItemTextError::Path(text.escape_debug().to_string(), error))
        };
        self.path.as_ref().map(parse).transpose()
    }

    fn format(&self) -> Result<Option<Format>, ItemTextError> {
        let parse = |text: &String| {
            text.parse().map_err(|_| ItemTextError::Format(text.escape_debug().to_string()))
        };
        self.format.as_ref().map(parse).transpose()
    }

    /// The format that is given, else the one of the file name's extension.
    fn format_of(&self, file: &FileName) -> Result<Format, ItemTextError> {
        let unknown = || ItemTextError::UnknownExtension(file.to_string());
        self.format()?.or_else(|| Format::from_file_name(file)).ok_or_else(unknown)
    }
}

fn spelling(text: &str) -> Result<Spelling, ItemTextError> {
    text.parse().map_err(|error| ItemTextError::Secret(text.escape_debug().to_string(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(fields: &[(&str, &str)]) -> ItemText {
        let get = |name: &str| {
            let found = fields.iter().find(|(field, _)| *field == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let keys = get("keys").map(|text| {
            let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
            pairs.map(|(name, secret)| (name.to_owned(), secret.to_owned())).collect()
        });
        ItemText { secret: get("secret"), keys, path: get("path"), format: get("format") }
    }

    #[test]
    fn the_four_forms_are_told_apart() {
        let content = |fields: &[(&str, &str)]| item(fields).content().unwrap();
        assert!(matches!(content(&[("secret", "kv/a")]), ItemContent::EveryKey { .. }));
        let whole = content(&[("secret", "kv/a"), ("path", "a.json")]);
        assert!(matches!(whole, ItemContent::Whole { format: Format::Json, .. }));
        let value = content(&[("secret", "kv/a#token")]);
        assert!(matches!(value, ItemContent::Value { file, .. } if file.as_str() == "token"));
        let composed = content(&[("keys", "u=kv/a#u p=kv/a#p"), ("path", "app.properties")]);
        assert!(matches!(composed, ItemContent::Composed { keys, .. } if keys.len() == 2));
    }

    #[test]
    fn what_is_no_item_is_refused_with_a_remedy() {
        for (fields, message) in [
            (&[][..], "names no secret"),
            (&[("secret", "kv/a"), ("keys", "u=kv/a#u")], "keep one"),
            (&[("secret", "kv//a")], "empty segment"),
            (&[("secret", "kv/a#")], "after '#'"),
            (&[("secret", "kv/a"), ("path", "../a.json")], "path"),
            (&[("secret", "kv/a"), ("path", "a")], "add format"),
            (&[("secret", "kv/a"), ("path", "a.json"), ("format", "toml")], "does not exist"),
            (&[("secret", "kv/a"), ("format", "json")], "no effect"),
            (&[("secret", "kv/a#k"), ("format", "json")], "no effect"),
            (&[("secret", "kv/a#a/b")], "add path"),
            (&[("keys", "u=kv/a#u")], "needs a name"),
            (&[("keys", ""), ("path", "a.json")], "no key"),
            (&[("keys", "u=kv/a"), ("path", "a.json")], "whole secret"),
            (&[("keys", "u=kv/a#u p=kv/a#p"), ("path", "a"), ("format", "raw")], "exactly one"),
        ] {
            let error = item(fields).content().unwrap_err().to_string();
            assert!(error.contains(message), "{fields:?}: {error}");
        }
    }
}
