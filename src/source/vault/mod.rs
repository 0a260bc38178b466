//! The Vault source (OpenBao speaks the same wire): log in, fetch, renew and revoke over vaultrs.
//!
//! One call is built in `client`, carried by `http`, judged by `classify` and read by `decode`; the
//! last two are pure.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::{LeaseId, LoginIdentity, Mount, PathKind, SecretPath, SecretRef, Token};
use crate::source::{
    ConfiguredMount, Fetched, LeaseTerms, Login, Source, SourceDescription, SourceError, TokenGrant,
};

mod address;
mod auth;
mod classify;
mod client;
mod decode;
mod endpoints;
mod error;
mod http;
mod mounts;
mod role;
mod text;
mod tls;

pub use error::VaultError;
pub use http::Deadlines;
pub use role::{RolePattern, RolePatternError};

use classify::{Call, Operation};
use client::Client;
use endpoints::{ReadSecret, RenewLease, RevokeLease};

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
    /// How pods' service accounts log in; `None` when they do not.
    pub pods: Option<PodLogin>,
    /// Service-account token, re-read at each login.
    pub token_file: PathBuf,
    /// The only engine mounts that are ever read, with their kind (`None` = probe).
    pub mounts: Vec<ConfiguredMount>,
}

/// How pods' service accounts log in, at the same auth mount as the agent.
#[derive(Debug, Clone)]
pub struct PodLogin {
    /// The role of an account that asks for none of its own.
    pub role: RolePattern,
}

/// One Vault, reached over two HTTP clients; no request is ever repeated here.
///
/// Every call ends within [`Deadlines::request`], or twice that when Vault answers 403 and the
/// token has to be looked up. Dropping a call leaves its outcome unknown.
pub struct Vault {
    config: VaultConfig,
    client: Client,
}

impl Vault {
    /// Reads the CA bundle (blocking, once) and prepares the clients; nothing is sent yet.
    ///
    /// # Errors
    /// A configuration that is unsafe or cannot work; the message names field, file and remedy.
    pub fn connect(config: VaultConfig) -> Result<Self, VaultError> {
        Self::connect_with_deadlines(config, Deadlines::default())
    }

    /// [`Vault::connect`] with other deadlines than connect 2 s and request 10 s.
    ///
    /// # Errors
    /// As [`Vault::connect`].
    pub fn connect_with_deadlines(
        config: VaultConfig,
        deadlines: Deadlines,
    ) -> Result<Self, VaultError> {
        auth::check_settings(&config)?;
        let client = Client::new(&config, deadlines)?;
        Ok(Self { config, client })
    }
}

#[async_trait]
impl Source for Vault {
    fn description(&self) -> SourceDescription {
        SourceDescription {
            kind: "vault",
            address: self.client.address().to_owned(),
            namespace: self.config.namespace.clone(),
            generated: false,
        }
    }

    fn mount_of(&self, path: &SecretPath) -> Option<ConfiguredMount> {
        mounts::longest_prefix(&self.config.mounts, path).cloned()
    }

    async fn login(
        &self,
        identity: &LoginIdentity,
        account_token: Option<&Token>,
    ) -> Result<Login, SourceError> {
        match identity {
            LoginIdentity::Agent => auth::login_agent(&self.client, &self.config).await,
            LoginIdentity::ServiceAccount(login) => {
                auth::login_account(&self.client, &self.config, login, account_token).await
            }
        }
    }

    async fn renew_token(
        &self,
        token: &Token,
        increment: Duration,
    ) -> Result<TokenGrant, SourceError> {
        auth::renew(&self.client, token, increment).await
    }

    async fn end_session(&self, token: &Token) -> Result<(), SourceError> {
        auth::revoke(&self.client, token).await
    }

    async fn probe_mount(&self, token: &Token, path: &SecretPath) -> Result<Mount, SourceError> {
        mounts::probe(&self.client, token, path).await
    }

    async fn fetch(
        &self,
        token: &Token,
        secret: &SecretRef,
        kind: PathKind,
    ) -> Result<Fetched, SourceError> {
        let call = Call::new(Operation::Fetch(kind), secret.path.as_str());
        let version = secret.version.filter(|_| kind == PathKind::Kv);
        let read = ReadSecret { path: &secret.path, version };
        let body = self.client.call(&call, Some(token), &read).await?;
        let kv2 = kind == PathKind::Kv && mounts::may_be_kv2(&self.config.mounts, &secret.path);
        decode::fetched(&body, kind, kv2).map_err(|defect| classify::unusable(&call, defect))
    }

    async fn renew_lease(
        &self,
        token: &Token,
        lease: &LeaseId,
        increment: Duration,
    ) -> Result<LeaseTerms, SourceError> {
        let call = lease_call(Operation::RenewLease, lease);
        let renew = RenewLease { lease_id: lease.expose(), increment: increment.as_secs() };
        let body = self.client.call(&call, Some(token), &renew).await?;
        decode::lease_terms(&body).map_err(|defect| classify::unusable(&call, defect))
    }

    async fn revoke_lease(&self, token: &Token, lease: &LeaseId) -> Result<(), SourceError> {
        let call = lease_call(Operation::RevokeLease, lease);
        let revoke = RevokeLease { lease_id: lease.expose() };
        let body = self.client.call(&call, Some(token), &revoke).await?;
        decode::acknowledged(&body).map_err(|defect| classify::unusable(&call, defect))
    }
}

/// A lease is named by the path it came from: the id's last segment is what makes it a secret.
fn lease_call(operation: Operation, lease: &LeaseId) -> Call<'_> {
    let path = lease.expose().rsplit_once('/').map_or("an unnamed path", |(path, _)| path);
    Call::new(operation, path).hiding(lease.expose())
}
