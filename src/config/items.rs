//! `[[volumes.items]]`: which of the four forms an item has, and its file name and format.

use std::collections::BTreeMap;

use crate::config::document::Section;
use crate::config::field::Field;
use crate::config::settings::{FileOwnership, Format, ItemContent, ItemSettings};
use crate::config::sources::Sources;
use crate::config::volumes::ownership;
use crate::domain::{SourceName, Spelling};

/// Longest file name Linux file systems take, in bytes.
const FILE_NAME_BYTES_MAX: usize = 255;
/// The formats by name.
const FORMATS: [(&str, Format); 5] = [
    ("json", Format::Json),
    ("dotenv", Format::Dotenv),
    ("yaml", Format::Yaml),
    ("properties", Format::Properties),
    ("raw", Format::Raw),
];

pub(super) fn read(
    volume: &Section,
    sources: &Sources,
    defaults: FileOwnership,
) -> Vec<ItemSettings> {
    let sections = volume.sections("items");
    if sections.is_empty() {
        let remedy = "add [[volumes.items]] with secret = \"…\" below it";
        volume.problem_at("items", "the volume has no items, so no files", remedy);
    }
    let mut files: Vec<String> = Vec::new();
    let mut items = Vec::new();
    for section in sections {
        let source = sources.of(&section);
        let content = source.as_ref().and_then(|source| content(&section, sources, source));
        let ownership = ownership(&section, defaults);
        // Without a source the item was not looked into, and its keys are not unknown for that.
        if source.is_some() {
            section.finish();
        }
        let (Some(content), Some(source)) = (content, source) else { continue };
        if let Some(file) = content.file() {
            if files.iter().any(|other| other == file) {
                let message = format!("another item of the volume writes the file {file:?} too");
                let key = if section.has("path") { "path" } else { "secret" };
                section.problem_at(key, message, "give one of them another path");
            }
            files.push(file.to_owned());
        }
        items.push(ItemSettings { source, content, ownership });
    }
    items
}

impl ItemContent {
    /// The name of the item's one file; `None` for a file per key.
    pub fn file(&self) -> Option<&str> {
        match self {
            Self::EveryKey { .. } => None,
            Self::Whole { file, .. } | Self::Value { file, .. } | Self::Composed { file, .. } => {
                Some(file)
            }
        }
    }
}

fn content(section: &Section, sources: &Sources, source: &SourceName) -> Option<ItemContent> {
    let (secret, keys) = (section.get("secret"), section.get("keys"));
    let path = section.get("path");
    let format = section.get("format");
    match (secret, keys) {
        (Some(_), Some(keys)) => {
            let message = "secret and keys are both given, so it is open what the file holds";
            keys.problem(message, "keep one: secret for one secret, keys to compose a file");
            None
        }
        (None, None) => {
            let remedy = "add secret = \"…\", or keys = { name = \"path#key\" } with path";
            section.problem("the item names no secret", remedy);
            None
        }
        (None, Some(keys)) => composed(section, &keys, path, format, sources, source),
        (Some(secret), None) => {
            let spelling = sources.spelling(&secret, source)?;
            match (spelling.key.clone(), path) {
                (Some(key), path) => value(&secret, spelling, &key, path, format),
                (None, Some(path)) => {
                    let format = file_format(&path, format)?;
                    Some(ItemContent::Whole { secret: spelling, file: file_name(&path)?, format })
                }
                (None, None) => {
                    if let Some(format) = format {
                        let message = "format has no effect on one file per key";
                        format.problem(message, "remove it, or add path to get one file");
                    }
                    Some(ItemContent::EveryKey { secret: spelling })
                }
            }
        }
    }
}

fn value(
    field: &Field,
    secret: Spelling,
    key: &str,
    path: Option<Field>,
    format: Option<Field>,
) -> Option<ItemContent> {
    if let Some(format) = format
        && format.choice(&FORMATS)? != Format::Raw
    {
        let message = "one key's value is written as it is, so it has no format";
        format.problem(message, "remove format, or use keys = { … } to format it");
        return None;
    }
    let file = match path {
        Some(path) => file_name(&path)?,
        None => match checked_file_name(key) {
            Ok(()) => key.to_owned(),
            Err(reason) => {
                let message = format!("the key {key:?} {reason}, so it cannot name the file");
                field.problem(message, "add path = \"…\"");
                return None;
            }
        },
    };
    Some(ItemContent::Value { secret, file })
}

fn composed(
    section: &Section,
    keys: &Field,
    path: Option<Field>,
    format: Option<Field>,
    sources: &Sources,
    source: &SourceName,
) -> Option<ItemContent> {
    let Some(path) = path else {
        section.problem_at("path", "a composed file needs a name", "add path = \"app.properties\"");
        return None;
    };
    let (file, format) = (file_name(&path), file_format(&path, format));
    let entries = keys.section().entries();
    if entries.is_empty() {
        keys.problem("there is no key in it", "write keys = { name = \"path#key\" }");
    }
    if entries.len() > 1 && format == Some(Format::Raw) {
        let message = "the format raw has no names, so it takes exactly one key";
        path.problem(message, "choose json, dotenv, yaml or properties");
    }
    let mut composed = BTreeMap::new();
    for (name, field) in entries {
        let Some(spelling) = sources.spelling(&field, source) else { continue };
        if spelling.key.is_none() {
            let message = format!("{} names a whole secret", field.quoted());
            field.problem(message, "write the key behind it: \"path#key\"");
        }
        composed.insert(name.to_owned(), spelling);
    }
    Some(ItemContent::Composed { keys: composed, file: file?, format: format? })
}

fn file_name(field: &Field) -> Option<String> {
    let check = |text: &str| checked_file_name(text).map(|()| text.to_owned());
    field.convert(check, "write one file name, without a directory")
}

/// `..` in front is kept for the volume's own links, as kubelet's AtomicWriter does.
fn checked_file_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("is empty"),
        "." => Err("is no file name"),
        name if name.starts_with("..") => Err("starts with '..'"),
        name if name.contains('/') => Err("holds a '/'"),
        name if name.len() > FILE_NAME_BYTES_MAX => Err("is longer than 255 bytes"),
        name if name.chars().any(char::is_control) => Err("holds a control character"),
        _ => Ok(()),
    }
}

/// The format that is given, else the one of the file name's extension.
fn file_format(path: &Field, format: Option<Field>) -> Option<Format> {
    if let Some(format) = format {
        return format.choice(&FORMATS);
    }
    let file = path.text()?;
    let found = format_of(&file);
    if found.is_none() {
        let message = format!("the name {} does not tell the file's format", path.quoted());
        path.problem(
            message,
            "add format = \"json\", \"dotenv\", \"yaml\", \"properties\" or \"raw\"",
        );
    }
    found
}

fn format_of(file: &str) -> Option<Format> {
    match file.rsplit_once('.')?.1 {
        "json" => Some(Format::Json),
        "env" => Some(Format::Dotenv),
        "yaml" | "yml" => Some(Format::Yaml),
        "properties" => Some(Format::Properties),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_tells_the_format() {
        assert_eq!(format_of("config.json"), Some(Format::Json));
        assert_eq!(format_of(".env"), Some(Format::Dotenv));
        assert_eq!(format_of("a.b.yml"), Some(Format::Yaml));
        assert_eq!(format_of("config"), None);
        assert_eq!(format_of("config.txt"), None);
    }

    #[test]
    fn a_file_name_is_one_visible_component() {
        for good in ["token", ".env", "a b", "käse.json"] {
            assert_eq!(checked_file_name(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "..data", "..status.json", "a/b", "/a", "a\n", "a\0"] {
            assert!(checked_file_name(bad).is_err(), "{bad:?}");
        }
    }
}
