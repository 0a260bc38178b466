//! Why a configured Vault source cannot be used: each message names field or file and remedy.

use std::path::PathBuf;

/// A Vault source that was refused before anything was sent.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Not a plain `scheme://host:port`. The address is not repeated: it may hold a password.
    #[error("address: {0}; write https://host:port and nothing behind it")]
    Address(&'static str),
    /// `http` beyond this machine.
    #[error(
        "address: http would carry tokens and secrets in clear to '{0}'; use https and set ca_file \
         (http is accepted for a loopback host only)"
    )]
    Cleartext(String),
    /// `https` without a bundle to trust.
    #[error(
        "ca_file: not set, but the address is https; name the PEM bundle of the CA that signs \
         Vault's certificate (no other CA is trusted, the system's neither)"
    )]
    CaMissing,
    /// The bundle cannot be read.
    #[error("ca_file '{file}': {source}; check the path and that this user may read it")]
    CaUnreadable {
        /// The bundle.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bundle has no certificate.
    #[error("ca_file '{0}' holds no certificate; write the CA's PEM ('BEGIN CERTIFICATE') into it")]
    CaEmpty(PathBuf),
    /// The bundle has something that is not a certificate.
    #[error("ca_file '{file}': certificate {number} {problem}; replace it with the CA's PEM")]
    CaInvalid {
        /// The bundle.
        file: PathBuf,
        /// Which certificate in it, from 1.
        number: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// Every certificate of the bundle is outside its validity.
    #[error(
        "ca_file '{file}': {problem}; replace it with the current CA certificate, or correct this \
         machine's clock"
    )]
    CaNotValid {
        /// The bundle.
        file: PathBuf,
        /// Since or until when.
        problem: String,
    },
    /// A name that cannot be verified as one.
    #[error("server_name '{0}' is not a DNS name; write one that Vault's certificate carries")]
    ServerName(String),
    /// A namespace that cannot travel in a header.
    #[error("namespace: {0}; write it as in `vault namespace list`, such as 'team-a/shop'")]
    Namespace(&'static str),
    /// An auth mount that is not a path.
    #[error(
        "auth_mount: {0}; write it without 'auth/' and slashes at the ends, such as 'kubernetes'"
    )]
    AuthMount(crate::domain::PathError),
    /// No role.
    #[error("role: empty; name the Vault role of the Kubernetes auth method to log in with")]
    Role,
    /// The TLS or HTTP stack refused its settings.
    #[error("prepare the connection to Vault: {0}")]
    Stack(String),
}
