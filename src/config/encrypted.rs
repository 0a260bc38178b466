//! The `ENC:` values of the configuration file and where the key that opens them comes from.

use crate::config::KeySource;
use crate::config::document::{Document, Section};
use crate::encryption::{EncryptedValue, Key};

/// What an encrypted value starts with.
pub(super) const PREFIX: &str = "ENC:";

/// Reads `key_file`/`key_env` of a section; at most one of them may be there.
pub(super) fn key_source(section: &Section) -> Option<KeySource> {
    let file = section.get("key_file");
    let variable = section.get("key_env");
    if let (Some(_), Some(variable)) = (&file, &variable) {
        variable.problem(
            "key_file and key_env are both given, so it is open which key counts",
            "keep one of them",
        );
        return None;
    }
    if let Some(file) = file {
        let path = file.absolute_path()?;
        file.can_be_opened(
            &path,
            "create it with: secrets-broker encrypt --generate-key, or correct the path",
        )?;
        return Some(KeySource::File(path));
    }
    let variable = variable?;
    let name = variable.text()?;
    if (variable.document().host.variable)(&name).is_none() {
        variable.problem(
            format!("no environment variable {} is set", variable.quoted()),
            "set it to the key (secrets-broker encrypt --generate-key), or use key_file",
        );
        return None;
    }
    Some(KeySource::Variable(name))
}

/// `[encryption]`: remembered by the document, so that later values can be opened.
pub(super) fn read(document: &Document, root: &Section) {
    let section = root.section("encryption");
    let key = key_source(&section);
    if section.is_present() && key.is_none() && section.is_empty() {
        section.problem("no key is named", "add key_file or key_env, or remove the section");
    }
    section.finish();
    if let Some(key) = key {
        document.set_key(key);
    }
}

/// Opens one `ENC:` value. The error says why, and never holds the value or the key.
pub(super) fn open_encrypted(text: &str, source: &KeySource) -> Result<String, String> {
    let key = match source {
        KeySource::File(path) => Key::from_file(path),
        KeySource::Variable(name) => Key::from_env(name),
    };
    let key = key.map_err(|error| format!("cannot be opened: {error}"))?;
    let value: EncryptedValue = text.parse().map_err(|error| format!("{error}"))?;
    let plain = value.decrypt(&key).map_err(|error| format!("{error}"))?;
    String::from_utf8(plain.expose().to_vec())
        .map_err(|_| "holds bytes that are no text".to_owned())
}
