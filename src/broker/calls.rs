//! Upstream calls as futures: what goes out, what the audit log says of it, what comes back.

use std::sync::Arc;
use std::time::SystemTime;

use super::LoginTokens;
use super::event::{Call, Done, EffectId};
use super::store::Store;
use crate::audit::{Audit, AuditEvent};
use crate::clock::BootInstant;
use crate::domain::{LeaseId, LoginIdentity, SecretRef, ServiceAccount, SourceName, Token};
use crate::source::{
    ErrorClass, Fetched, LeaseTerms, Login, SharedSource, SourceError, TokenGrant,
};
use crate::telemetry::Hits;

/// A call that came back.
pub(super) struct Returned {
    pub effect: EffectId,
    /// When its request left.
    pub left_at: BootInstant,
    pub outcome: Result<Raw, SourceError>,
}

/// A successful call with its secrets still in it.
pub(super) enum Raw {
    LoggedIn(Login),
    TokenRenewed(TokenGrant),
    Probed(crate::domain::Mount),
    Fetched(Fetched),
    LeaseRenewed(LeaseTerms),
    Ended,
}

/// The cap on the bytes of one value.
#[derive(Clone)]
pub(super) struct ValueCap {
    pub bytes: usize,
    /// Values that were longer.
    pub refused: Hits,
}

/// A call with everything it needs, taken from the store before it leaves.
pub(super) struct Outgoing {
    token: Option<Arc<Token>>,
    lease: Option<Arc<LeaseId>>,
    /// What a pod's account logs in with, and where to say that it was refused.
    account_token: Option<Arc<Token>>,
    login_tokens: LoginTokens,
    call: Call,
}

/// Moves the secrets of a result into the store, leaving their stand-ins.
pub(super) fn keep(
    outcome: Result<Raw, SourceError>,
    store: &mut Store,
    cap: &ValueCap,
) -> Result<Done, SourceError> {
    Ok(match outcome? {
        Raw::LoggedIn(login) => Done::LoggedIn {
            token: store.keep_token(login.token),
            terms: login.terms,
            kind: login.kind,
        },
        Raw::TokenRenewed(terms) => Done::TokenRenewed(terms),
        Raw::Probed(mount) => Done::Probed(mount),
        Raw::Fetched(fetched) if fetched.data.len() > cap.bytes => {
            cap.refused.count();
            let message = format!(
                "the secret has {} bytes, more than limits.value_bytes = {}",
                fetched.data.len(),
                cap.bytes
            );
            return Err(SourceError::new(ErrorClass::InvalidRequest, message));
        }
        Raw::Fetched(fetched) => Done::Fetched(store.keep(fetched)),
        Raw::LeaseRenewed(terms) => Done::LeaseRenewed(terms),
        Raw::Ended => Done::Ended,
    })
}

fn token_of(call: &Call) -> Option<super::event::TokenId> {
    match call {
        Call::Login(_) => None,
        Call::RenewToken { token, .. }
        | Call::EndSession { token }
        | Call::Probe { token, .. }
        | Call::Fetch { token, .. }
        | Call::RenewLease { token, .. }
        | Call::RevokeLease { token, .. } => Some(*token),
    }
}

fn account_of(call: &Call) -> Option<&ServiceAccount> {
    match call {
        Call::Login(LoginIdentity::ServiceAccount(login)) => Some(&login.account),
        _ => None,
    }
}

fn lease_of(call: &Call) -> Option<super::event::ValueId> {
    match call {
        Call::RenewLease { value, .. } | Call::RevokeLease { value, .. } => Some(*value),
        _ => None,
    }
}

impl Outgoing {
    pub(super) fn new(call: Call, store: &Store, login_tokens: &LoginTokens) -> Self {
        let account = account_of(&call);
        Self {
            token: token_of(&call).and_then(|id| store.token(id)),
            lease: lease_of(&call).and_then(|value| store.lease(value)),
            account_token: account.and_then(|one| login_tokens.best(one, SystemTime::now())),
            login_tokens: login_tokens.clone(),
            call,
        }
    }

    /// Sends it. Its lifetime starts when the request leaves, not when it is answered.
    pub(super) async fn run(
        self,
        effect: EffectId,
        name: SourceName,
        source: Option<SharedSource>,
        audit: Audit,
    ) -> Returned {
        let left_at = BootInstant::now();
        let outcome = match &source {
            Some(source) => self.send(source).await,
            None => Err(SourceError::new(ErrorClass::InvalidRequest, "no such source")),
        };
        if let (Err(error), Some(account), Some(token)) =
            (&outcome, account_of(&self.call), &self.account_token)
            && error.class == ErrorClass::Denied
        {
            self.login_tokens.refuse(account, token);
        }
        self.record(name, &outcome, &audit);
        Returned { effect, left_at, outcome }
    }

    async fn send(&self, source: &SharedSource) -> Result<Raw, SourceError> {
        let account_token = self.account_token.as_deref();
        if let Call::Login(identity) = &self.call {
            return source.login(identity, account_token).await.map(Raw::LoggedIn);
        }
        let Some(token) = &self.token else {
            return Err(SourceError::unsent(ErrorClass::TokenEnded, "the session has ended"));
        };
        let gone = || SourceError::unsent(ErrorClass::LeaseEnded, "the lease has ended");
        match &self.call {
            Call::Login(identity) => source.login(identity, account_token).await.map(Raw::LoggedIn),
            Call::RenewToken { increment, .. } => {
                source.renew_token(token, *increment).await.map(Raw::TokenRenewed)
            }
            Call::EndSession { .. } => source.end_session(token).await.map(|()| Raw::Ended),
            Call::Probe { path, .. } => source.probe_mount(token, path).await.map(Raw::Probed),
            Call::Fetch { secret, kind, .. } => {
                source.fetch(token, secret, *kind).await.map(Raw::Fetched)
            }
            Call::RenewLease { increment, .. } => {
                let lease = self.lease.as_ref().ok_or_else(gone)?;
                source.renew_lease(token, lease, *increment).await.map(Raw::LeaseRenewed)
            }
            Call::RevokeLease { .. } => {
                let lease = self.lease.as_ref().ok_or_else(gone)?;
                source.revoke_lease(token, lease).await.map(|()| Raw::Ended)
            }
        }
    }

    fn record(&self, source: SourceName, outcome: &Result<Raw, SourceError>, audit: &Audit) {
        let (action, secret) = self.action();
        let request_id = match outcome {
            Ok(Raw::Fetched(fetched)) => Some(fetched.request_id.clone()),
            _ => None,
        };
        let subject_mac = match (&self.lease, outcome) {
            (Some(lease), _) => Some(audit.mac_lease(lease)),
            (None, Ok(Raw::Fetched(Fetched { lease: Some((lease, _)), .. }))) => {
                Some(audit.mac_lease(lease))
            }
            (None, Ok(Raw::LoggedIn(login))) => Some(audit.mac_token(&login.token)),
            (None, _) => self.token.as_ref().map(|token| audit.mac_token(token)),
        };
        let outcome = match outcome {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.class.name().to_owned(),
        };
        // Renewals and ends are never blocked by the audit log; new secrets were checked before.
        let event =
            AuditEvent::Upstream { action, source, secret, outcome, subject_mac, request_id };
        if audit.record(event).is_err() {
            tracing::warn!(action, "an upstream action could not be recorded: audit log is down");
        }
    }

    fn action(&self) -> (&'static str, Option<SecretRef>) {
        match &self.call {
            Call::Login(_) => ("login", None),
            Call::RenewToken { .. } => ("renew-token", None),
            Call::EndSession { .. } => ("end-session", None),
            Call::Probe { .. } => ("probe", None),
            Call::Fetch { secret, .. } => ("fetch", Some(secret.clone())),
            Call::RenewLease { secret, .. } => ("renew-lease", Some(secret.clone())),
            Call::RevokeLease { secret, .. } => ("revoke-lease", Some(secret.clone())),
        }
    }
}
