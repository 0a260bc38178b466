//! The Vault source (OpenBao speaks the same wire).

use std::path::PathBuf;

use crate::source::ConfiguredMount;

/// A validated Vault source.
#[derive(Debug, Clone)]
pub struct VaultConfig {
    /// `https://host:port` (or `http://` on loopback), without a path.
    pub address: String,
    /// `X-Vault-Namespace`.
    pub namespace: Option<String>,
    /// PEM bundle that is trusted exclusively; required for `https`.
    pub ca_file: Option<PathBuf>,
    /// Verify the certificate against this name instead of the address's host.
    pub server_name: Option<String>,
    /// Mount of the Kubernetes auth method.
    pub auth_mount: String,
    /// Vault role to log in with.
    pub role: String,
    /// Service-account token, re-read at each login.
    pub token_file: PathBuf,
    /// The only engine mounts that are ever read, with their kind (`None` = probe).
    pub mounts: Vec<ConfiguredMount>,
}
