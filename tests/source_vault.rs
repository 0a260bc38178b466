//! The Vault source against a scripted Vault: what every answer becomes, and what is never sent.

#[path = "support/fake_vault.rs"]
mod fake_vault;

#[path = "source_vault/answers.rs"]
mod answers;
#[path = "source_vault/login.rs"]
mod login;
#[path = "source_vault/redirects.rs"]
mod redirects;
#[path = "source_vault/requests.rs"]
mod requests;
#[path = "source_vault/tls.rs"]
mod tls;

use std::path::Path;
use std::time::Duration;

use secrets_broker::domain::{EngineKind, LeaseId, LoginIdentity, PathKind, SecretRef, Token};
use secrets_broker::source::vault::{Deadlines, Vault, VaultConfig};
use secrets_broker::source::{ConfiguredMount, Source, SourceError};

/// Everything secret in these tests holds this word, so one search finds any leak.
pub const CANARY: &str = "CANARY";
pub const TOKEN: &str = "hvs.CANARYtoken0123456789abcdef";
pub const JWT: &str = "eyJhbGciOiJub25lIn0.CANARYjwt0123456789.c2ln";
pub const LEASE: &str = "database/creds/shop/CANARYlease0123456789";
pub const VALUE: &str = "CANARYvalue0123456789";

/// One call of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Login,
    RenewToken,
    EndSession,
    Probe,
    Kv,
    Static,
    Mint,
    RenewLease,
    RevokeLease,
}

impl Op {
    /// Method and path of the request it makes.
    pub fn wire(self) -> (&'static str, &'static str) {
        match self {
            Self::Login => ("POST", "/v1/auth/kubernetes/login"),
            Self::RenewToken => ("POST", "/v1/auth/token/renew-self"),
            Self::EndSession => ("POST", "/v1/auth/token/revoke-self"),
            Self::Probe => ("GET", "/v1/sys/internal/ui/mounts/secret/data/shop"),
            Self::Kv => ("GET", "/v1/secret/data/shop"),
            Self::Static => ("GET", "/v1/database/static-creds/shop"),
            Self::Mint => ("GET", "/v1/database/creds/shop"),
            Self::RenewLease => ("POST", "/v1/sys/leases/renew"),
            Self::RevokeLease => ("POST", "/v1/sys/leases/revoke"),
        }
    }

    /// Makes the call.
    pub async fn run(self, vault: &Vault) -> Result<(), SourceError> {
        let token = token();
        let minute = Duration::from_secs(60);
        let lease = LeaseId::new(LEASE.to_owned());
        match self {
            Self::Login => vault.login(&LoginIdentity::Agent, None).await.map(drop),
            Self::RenewToken => vault.renew_token(&token, minute).await.map(drop),
            Self::EndSession => vault.end_session(&token).await,
            Self::Probe => {
                let path = "secret/data/shop".parse().unwrap();
                vault.probe_mount(&token, &path).await.map(drop)
            }
            Self::Kv => {
                vault.fetch(&token, &secret("secret/data/shop"), PathKind::Kv).await.map(drop)
            }
            Self::Static => {
                let secret = secret("database/static-creds/shop");
                vault.fetch(&token, &secret, PathKind::Static).await.map(drop)
            }
            Self::Mint => {
                let secret = secret("database/creds/shop");
                vault.fetch(&token, &secret, PathKind::Minting).await.map(drop)
            }
            Self::RenewLease => vault.renew_lease(&token, &lease, minute).await.map(drop),
            Self::RevokeLease => vault.revoke_lease(&token, &lease).await,
        }
    }
}

pub fn token() -> Token {
    Token::new(TOKEN.as_bytes().to_vec()).unwrap()
}

pub fn secret(path: &str) -> SecretRef {
    SecretRef { source: "vault".parse().unwrap(), path: path.parse().unwrap(), version: None }
}

/// A configuration with the token file in `dir`.
pub fn config(address: &str, dir: &Path) -> VaultConfig {
    let token_file = dir.join("token");
    std::fs::write(&token_file, JWT).unwrap();
    let mount = |path: &str, kind| ConfiguredMount { path: path.parse().unwrap(), kind };
    VaultConfig {
        address: address.to_owned(),
        namespace: None,
        ca_file: None,
        server_name: None,
        auth_mount: "kubernetes".to_owned(),
        role: "shop".to_owned(),
        pods: None,
        token_file,
        mounts: vec![mount("secret", Some(EngineKind::Kv2)), mount("database", None)],
    }
}

/// Long enough for a busy machine: a test that waits for one has its own.
pub fn deadlines() -> Deadlines {
    Deadlines { connect: Duration::from_secs(60), request: Duration::from_secs(60) }
}

pub fn connect(config: VaultConfig) -> Vault {
    Vault::connect_with_deadlines(config, deadlines()).unwrap()
}

/// No form of an error may hold anything secret.
pub fn assert_clean(name: &str, error: &(impl std::fmt::Display + std::fmt::Debug)) {
    for text in [error.to_string(), format!("{error:?}"), format!("{error:#?}")] {
        assert!(!text.contains(CANARY), "{name} leaks: {text}");
    }
}
