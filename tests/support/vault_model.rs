//! The model of Vault that the virtual-time tests run against: tokens, leases, faults.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use secrets_broker::broker::event::{Call, Done, FetchedValue, TokenId, ValueId};
use secrets_broker::clock::BootInstant;
use secrets_broker::domain::{EngineKind, LoginIdentity, Mount, PathKind, SecretRef};
use secrets_broker::source::{ErrorClass, LeaseTerms, SourceError, TokenGrant, TokenKind};

use super::{World, seconds};

/// What the model's Vault does with calls.
#[derive(Debug, Clone)]
pub struct Vault {
    pub sealed: bool,
    pub renewals_fail: bool,
    pub reads_denied: bool,
    /// Paths whose reads are denied, beside all while `reads_denied`.
    pub denied: BTreeSet<&'static str>,
    /// Paths whose engine fails in a way that may have made something.
    pub failing: BTreeSet<&'static str>,
    /// Paths that are read when they are asked for and answered so much later.
    pub slow: BTreeMap<&'static str, Duration>,
    pub gone: bool,
    pub revoke_permitted: bool,
    pub ambiguous: bool,
    pub login_denied: bool,
    pub ends_denied: bool,
    /// Who may not log in, beside everybody while `login_denied`.
    pub shut_out: BTreeSet<LoginIdentity>,
    /// Who has no token to log in with, so that no request is made.
    pub tokenless: BTreeSet<LoginIdentity>,
    /// Who may not ask for the kind of a mount.
    pub probes_denied: BTreeSet<LoginIdentity>,
    /// What the mount of unknown kind is.
    pub auto_kind: EngineKind,
    pub lease_ttl: u64,
    pub lease_max_ttl: u64,
    pub lease_renewable: bool,
    pub token_ttl: u64,
    pub token_max_ttl: u64,
    pub token_kind: TokenKind,
    pub rotation: u64,
    pub content: u64,
    pub latency: Duration,
    pub tokens: BTreeMap<TokenId, (BootInstant, BootInstant)>,
    /// Whose each token is or was.
    pub logins: BTreeMap<TokenId, LoginIdentity>,
    pub leases: BTreeMap<u64, Lease>,
    pub log: Vec<(BootInstant, &'static str)>,
}

#[derive(Debug, Clone)]
pub struct Lease {
    pub secret: SecretRef,
    pub token: TokenId,
    pub issued: BootInstant,
    pub expires: BootInstant,
}

impl Default for Vault {
    fn default() -> Self {
        Self {
            sealed: false,
            renewals_fail: false,
            reads_denied: false,
            denied: BTreeSet::new(),
            failing: BTreeSet::new(),
            slow: BTreeMap::new(),
            gone: false,
            revoke_permitted: false,
            ambiguous: false,
            login_denied: false,
            ends_denied: false,
            shut_out: BTreeSet::new(),
            tokenless: BTreeSet::new(),
            probes_denied: BTreeSet::new(),
            auto_kind: EngineKind::Kv2,
            lease_ttl: 20,
            lease_max_ttl: 60,
            lease_renewable: true,
            token_ttl: 3600,
            token_max_ttl: 1_000_000,
            token_kind: TokenKind::Service,
            rotation: 30,
            content: 1,
            latency: Duration::from_millis(5),
            tokens: BTreeMap::new(),
            logins: BTreeMap::new(),
            leases: BTreeMap::new(),
            log: Vec::new(),
        }
    }
}

impl World {
    pub(super) fn answer(&mut self, call: Call, left_at: BootInstant) -> Result<Done, SourceError> {
        let error = |class, text: &str| Err(SourceError::new(class, text));
        self.expire();
        if self.vault.sealed {
            return error(ErrorClass::Unreachable, "sealed");
        }
        let token = match &call {
            Call::Login(_) => None,
            Call::RenewToken { token, .. }
            | Call::EndSession { token }
            | Call::Probe { token, .. }
            | Call::Fetch { token, .. }
            | Call::RenewLease { token, .. }
            | Call::RevokeLease { token, .. } => Some(*token),
        };
        if token.is_some_and(|token| !self.vault.tokens.contains_key(&token)) {
            return error(ErrorClass::TokenEnded, "bad token");
        }
        match call {
            Call::Login(login) => self.login(login, left_at),
            Call::RenewToken { token, .. } => self.renew_token(token, left_at),
            Call::EndSession { .. } if self.vault.ends_denied => {
                error(ErrorClass::Denied, "permission denied")
            }
            Call::EndSession { token } => {
                self.note("end-session");
                self.vault.tokens.remove(&token);
                self.vault.leases.retain(|_, lease| lease.token != token);
                Ok(Done::Ended)
            }
            Call::Probe { token, .. } => {
                if self.vault.probes_denied.contains(&self.vault.logins[&token]) {
                    self.note("probe-denied");
                    return error(ErrorClass::Denied, "permission denied");
                }
                self.note("probe");
                let path = "auto".parse().unwrap();
                Ok(Done::Probed(Mount { path, kind: self.vault.auto_kind }))
            }
            Call::Fetch { token, kind, secret } => self.fetch(token, kind, &secret, left_at),
            Call::RenewLease { value, increment, .. } => self.renew(value, increment, left_at),
            Call::RevokeLease { value, .. } => {
                if !self.vault.revoke_permitted {
                    return error(ErrorClass::Denied, "permission denied");
                }
                self.note("revoke");
                self.vault.leases.remove(&value.id);
                Ok(Done::Ended)
            }
        }
    }

    fn login(&mut self, login: LoginIdentity, left_at: BootInstant) -> Result<Done, SourceError> {
        if self.vault.login_denied || self.vault.shut_out.contains(&login) {
            self.note("login-denied");
            return Err(SourceError::new(ErrorClass::Denied, "role not allowed"));
        }
        if self.vault.tokenless.contains(&login) {
            return Err(SourceError::unsent(ErrorClass::Unreachable, "no token was delivered"));
        }
        self.note("login");
        let token = TokenId(1_000_000 + self.id());
        let ttl = seconds(self.vault.token_ttl);
        let max = left_at + seconds(self.vault.token_max_ttl);
        // A TTL of zero does not expire.
        let ends = if ttl.is_zero() { max } else { (left_at + ttl).min(max) };
        self.vault.tokens.insert(token, (ends, max));
        self.vault.logins.insert(token, login);
        let renewable = self.vault.token_kind == TokenKind::Service;
        let terms = TokenGrant { ttl, renewable };
        Ok(Done::LoggedIn { token, terms, kind: self.vault.token_kind })
    }

    fn renew_token(&mut self, token: TokenId, left_at: BootInstant) -> Result<Done, SourceError> {
        self.note("renew-token");
        let ttl = seconds(self.vault.token_ttl);
        let (expires, max) = self.vault.tokens.get_mut(&token).unwrap();
        *expires = (left_at + ttl).min(*max);
        let ttl = expires.since(left_at);
        Ok(Done::TokenRenewed(TokenGrant { ttl, renewable: true }))
    }

    fn fetch(
        &mut self,
        token: TokenId,
        kind: PathKind,
        secret: &SecretRef,
        left_at: BootInstant,
    ) -> Result<Done, SourceError> {
        let path = secret.path.as_str();
        if self.vault.reads_denied || self.vault.denied.contains(path) {
            return Err(SourceError::new(ErrorClass::Denied, "permission denied"));
        }
        if self.vault.gone {
            return Err(SourceError::new(ErrorClass::NotFound, "not found"));
        }
        if self.vault.failing.contains(path) {
            let mut error = SourceError::new(ErrorClass::Unreachable, "HTTP 500");
            error.ambiguous = kind == PathKind::Minting;
            return Err(error);
        }
        let id = self.id();
        let fingerprint = self.vault.content + secret.path.as_str().len() as u64;
        let value = ValueId { id, len: 100, fingerprint };
        let mut fetched = FetchedValue { value, lease: None, rotates_in: None, version: None };
        match kind {
            PathKind::Kv => self.note("fetch"),
            PathKind::Static => {
                self.note("fetch-static");
                let period = self.vault.rotation * 1_000_000_000;
                let left = period - left_at.as_nanos() % period;
                fetched.rotates_in = Some(Duration::from_secs(left / 1_000_000_000));
            }
            PathKind::Minting => {
                self.note("mint");
                let duration = seconds(self.vault.lease_ttl);
                let (secret, expires) = (secret.clone(), left_at + duration);
                let lease = Lease { secret, token, issued: left_at, expires };
                self.vault.leases.insert(id, lease);
                if self.vault.ambiguous {
                    let mut error = SourceError::new(ErrorClass::Unreachable, "no answer");
                    error.ambiguous = true;
                    return Err(error);
                }
                let renewable = self.vault.lease_renewable;
                fetched.lease = Some(LeaseTerms { duration, renewable });
            }
        }
        self.values.insert(value);
        Ok(Done::Fetched(fetched))
    }

    fn renew(
        &mut self,
        value: ValueId,
        increment: Duration,
        left_at: BootInstant,
    ) -> Result<Done, SourceError> {
        if self.vault.renewals_fail {
            self.note("renew-failed");
            return Err(SourceError::new(ErrorClass::InvalidRequest, "failed to renew entry"));
        }
        let max = seconds(self.vault.lease_max_ttl);
        let Some(lease) = self.vault.leases.get_mut(&value.id) else {
            return Err(SourceError::new(ErrorClass::LeaseEnded, "lease not found"));
        };
        lease.expires = (left_at + increment).min(lease.issued + max);
        let duration = lease.expires.since(left_at);
        self.note("renew");
        Ok(Done::LeaseRenewed(LeaseTerms { duration, renewable: true }))
    }
}
