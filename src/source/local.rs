//! The local source: a TOML file with values in clear or encrypted, and generated credentials.

use std::path::PathBuf;

use crate::domain::SecretBytes;

/// A validated local source.
pub struct LocalConfig {
    /// The TOML file.
    pub file: PathBuf,
    /// The AES-256 key that opens `ENC:` values, if one is configured.
    pub key: Option<std::sync::Arc<SecretBytes>>,
}
