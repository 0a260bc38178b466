//! `[[volumes.items]]`: which of the four forms an item has, and its file name and format.

use std::collections::BTreeMap;

use crate::config::document::Section;
use crate::config::field::Field;
use crate::config::sources::Sources;
use crate::config::volumes::ownership;
use crate::delivery::files::{
    FileName, FileOwnership, Format, ItemConfig, ItemContent, check_names,
};
use crate::domain::{SourceName, Spelling};

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
) -> Vec<ItemConfig> {
    let sections = volume.sections("items");
    if sections.is_empty() {
        let remedy = "add [[volumes.items]] with secret = \"…\" below it";
        volume.problem_at("items", "the volume has no items, so no files", remedy);
    }
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
        let item = ItemConfig { source, content, ownership };
        items.push(item);
        if let Some(clash) =
            check_names(&items.iter().map(ItemConfig::file).collect::<Vec<_>>()).into_iter().next()
        {
            let key = if section.has("path") { "path" } else { "secret" };
            section.problem_at(key, clash, "give one of them another path");
            items.pop();
        }
    }
    items
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
        None => match FileName::from_key(key) {
            Ok(file) => file,
            Err(reason) => {
                let message = format!("the key {key:?} cannot name the file: {reason}");
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

fn file_name(field: &Field) -> Option<FileName> {
    let parse = |text: &str| text.parse::<FileName>().map_err(|reason| reason.to_string());
    field.convert(parse, "write a relative file name below the volume, for example \"token\"")
}

/// The format that is given, else the one of the file name's extension.
fn file_format(path: &Field, format: Option<Field>) -> Option<Format> {
    if let Some(format) = format {
        return format.choice(&FORMATS);
    }
    let found = Format::from_file_name(&file_name(path)?);
    if found.is_none() {
        let message = format!("the name {} does not tell the file's format", path.quoted());
        path.problem(
            message,
            "add format = \"json\", \"dotenv\", \"yaml\", \"properties\" or \"raw\"",
        );
    }
    found
}
