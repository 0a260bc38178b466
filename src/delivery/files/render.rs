//! From an item and its secrets to the contents of its files. Pure.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use crate::domain::{PathKind, SecretPath, Spelling};

use super::config::{FileOwnership, ItemConfig, ItemContent, Reference};
use super::format::FormatError;
use super::name::{FileName, FileNameError};
use super::object::{Object, ObjectError, Value};

/// One file as it shall be: content, owner and mode.
pub struct RenderedFile {
    /// Where it goes.
    pub name: FileName,
    /// What is in it.
    pub content: Zeroizing<Vec<u8>>,
    /// Who may read it.
    pub ownership: FileOwnership,
}

/// A secret an item draws on.
pub struct Ingredient<'a> {
    /// Its keys and values, or why it has none.
    pub object: Result<Object<'a>, ObjectError>,
    /// What kind of path it came from.
    pub kind: PathKind,
}

/// The secrets at hand, by how items spell them.
pub type Ingredients<'a> = BTreeMap<Reference, Ingredient<'a>>;

/// Why an item could not be written. Holds key names, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The secret is not there; the caller should not have asked.
    #[error("secret '{0}' has no value yet")]
    Missing(SecretPath),
    /// The secret has no keys.
    #[error("secret '{0}': {1}")]
    Object(SecretPath, ObjectError),
    /// The secret has other keys.
    #[error("secret '{secret}' has no key '{key}' (it has: {})", has.join(", "))]
    NoKey {
        /// The secret.
        secret: SecretPath,
        /// What was asked for.
        key: String,
        /// What is there.
        has: Vec<String>,
    },
    /// A key that is to be a file cannot be one.
    #[error("key '{key}' of secret '{secret}': {reason}")]
    KeyAsFile {
        /// The secret.
        secret: SecretPath,
        /// The key, shown escaped because it may hold anything.
        key: String,
        /// Why.
        reason: FileNameError,
    },
    /// The format cannot hold it.
    #[error("file '{0}': {1}")]
    Format(FileName, FormatError),
}

/// Renders one item. All its secrets must be among the ingredients.
pub fn render(
    item: &ItemConfig,
    ingredients: &Ingredients<'_>,
) -> Result<Vec<RenderedFile>, RenderError> {
    let file = |name: &FileName, content| RenderedFile {
        name: name.clone(),
        content,
        ownership: item.ownership,
    };
    match &item.content {
        ItemContent::EveryKey { secret } => {
            let (object, kind) = find(item, secret, ingredients)?;
            let one = |(key, value)| {
                let name = FileName::from_key(key).map_err(|reason| RenderError::KeyAsFile {
                    secret: secret.path.clone(),
                    key: key.escape_debug().to_string(),
                    reason,
                })?;
                Ok(file(&name, plain(secret, value)?))
            };
            object.whole(kind).map(one).collect()
        }
        ItemContent::Whole { secret, file: name, format } => {
            let (object, kind) = find(item, secret, ingredients)?;
            let entries: Vec<_> = object.whole(kind).collect();
            let content = format.write(&entries);
            let content = content.map_err(|error| RenderError::Format(name.clone(), error))?;
            Ok(vec![file(name, content)])
        }
        ItemContent::Value { secret, file: name } => {
            let value = value(item, secret, ingredients)?;
            Ok(vec![file(name, plain(secret, value)?)])
        }
        ItemContent::Composed { keys, file: name, format } => {
            let one = |(written, secret): (&'_ String, &Spelling)| {
                value(item, secret, ingredients).map(|value| (written.clone(), value))
            };
            let values = keys.iter().map(one).collect::<Result<Vec<_>, _>>()?;
            let entries: Vec<_> =
                values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            let content = format.write(&entries);
            let content = content.map_err(|error| RenderError::Format(name.clone(), error))?;
            Ok(vec![file(name, content)])
        }
    }
}

fn find<'i, 'a>(
    item: &ItemConfig,
    secret: &Spelling,
    ingredients: &'i Ingredients<'a>,
) -> Result<(&'i Object<'a>, PathKind), RenderError> {
    let ingredient = ingredients
        .get(&item.reference(secret))
        .ok_or_else(|| RenderError::Missing(secret.path.clone()))?;
    let object = ingredient.object.as_ref();
    Ok((object.map_err(|error| RenderError::Object(secret.path.clone(), *error))?, ingredient.kind))
}

fn value<'a>(
    item: &ItemConfig,
    secret: &Spelling,
    ingredients: &Ingredients<'a>,
) -> Result<Value<'a>, RenderError> {
    let (object, _) = find(item, secret, ingredients)?;
    let key = secret.key.as_deref().unwrap_or_default();
    object.get(key).ok_or_else(|| RenderError::NoKey {
        secret: secret.path.clone(),
        key: key.to_owned(),
        has: object.keys(),
    })
}

fn plain(secret: &Spelling, value: Value<'_>) -> Result<Zeroizing<Vec<u8>>, RenderError> {
    let text = value.text().map_err(|error| RenderError::Object(secret.path.clone(), error))?;
    Ok(Zeroizing::new(text.as_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::files::format::Format;
    use crate::delivery::files::testing::entry;
    use crate::domain::EngineKind;

    fn item(content: ItemContent) -> ItemConfig {
        let ownership = FileOwnership { uid: 1, gid: 2, mode: 0o440 };
        ItemConfig { source: "vault".parse().unwrap(), content, ownership }
    }

    fn check(content: ItemContent) -> Result<Vec<(String, String)>, String> {
        let kv2 = entry(r#"{"data":{"host":"db","port":5432,"on":true},"metadata":{"version":3}}"#);
        let minted = entry(r#"{"username":"u1","password":"p\"1"}"#);
        let mut rotating = entry(r#"{"username":"s","ttl":77}"#);
        rotating.kind = PathKind::Static;
        let mut ingredients = Ingredients::new();
        for (path, entry, engine) in [
            ("secret/shop/web", &kv2, EngineKind::Kv2),
            ("database/creds/shop", &minted, EngineKind::Database),
            ("database/static-creds/shop", &rotating, EngineKind::Database),
        ] {
            let reference =
                Reference { source: "vault".parse().unwrap(), path: path.parse().unwrap() };
            let object = Object::parse(entry, engine);
            ingredients.insert(reference, Ingredient { object, kind: entry.kind });
        }
        let files = render(&item(content), &ingredients).map_err(|error| error.to_string())?;
        let text = |file: RenderedFile| {
            (file.name.to_string(), String::from_utf8(file.content.to_vec()).unwrap())
        };
        Ok(files.into_iter().map(text).collect())
    }

    fn pair(name: &str, content: &str) -> (String, String) {
        (name.to_owned(), content.to_owned())
    }

    #[test]
    fn every_key_of_a_kv2_secret_is_a_file_without_its_metadata() {
        let files = check(ItemContent::EveryKey { secret: "secret/shop/web".parse().unwrap() });
        assert_eq!(files.unwrap(), [pair("host", "db"), pair("on", "true"), pair("port", "5432")]);
    }

    #[test]
    fn a_whole_secret_keeps_its_types_and_has_no_envelope() {
        let files = check(ItemContent::Whole {
            secret: "secret/shop/web".parse().unwrap(),
            file: "config.json".parse().unwrap(),
            format: Format::Json,
        });
        let text = "{\n  \"host\": \"db\",\n  \"on\": true,\n  \"port\": 5432\n}\n";
        assert_eq!(files.unwrap(), [pair("config.json", text)]);
    }

    #[test]
    fn one_file_is_composed_from_several_secrets() {
        let keys =
            [("spring.user", "database/creds/shop#username"), ("db.port", "secret/shop/web#port")];
        let files = check(ItemContent::Composed {
            keys: keys.iter().map(|(k, v)| ((*k).to_owned(), v.parse().unwrap())).collect(),
            file: "app.properties".parse().unwrap(),
            format: Format::Properties,
        });
        assert_eq!(files.unwrap(), [pair("app.properties", "db.port=5432\nspring.user=u1\n")]);
    }

    #[test]
    fn a_missing_key_is_named_beside_those_that_exist() {
        let files = check(ItemContent::Value {
            secret: "database/creds/shop#token".parse().unwrap(),
            file: "token".parse().unwrap(),
        });
        let message =
            "secret 'database/creds/shop' has no key 'token' (it has: password, username)";
        assert_eq!(files.unwrap_err(), message);
    }

    #[test]
    fn a_static_credentials_countdown_is_only_there_when_asked_for() {
        let secret = "database/static-creds/shop";
        let files = check(ItemContent::EveryKey { secret: secret.parse().unwrap() });
        assert_eq!(files.unwrap(), [pair("username", "s")]);
        let secret = format!("{secret}#ttl").parse().unwrap();
        let files = check(ItemContent::Value { secret, file: "ttl".parse().unwrap() });
        assert_eq!(files.unwrap(), [pair("ttl", "77")]);
    }
}
