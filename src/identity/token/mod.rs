//! Whose pod a service-account token proves: the only thing a kubelet's call is believed for.
//!
//! Signature and claims are judged purely (`jwt`, `jwks`, `claims`, `expectations`); `keys`
//! and `review` fetch what the judgement needs, `verifier` puts both together.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::domain::{
    Namespace, NodeName, Pod, PodName, PodUid, ServiceAccountName, ServiceAccountUid,
};

mod api_server;
mod claims;
mod cluster_keys;
mod expectations;
mod jwks;
mod jwt;
mod keys;
mod keys_file;
mod projected;
mod refused;
mod review;
mod verifier;

#[cfg(test)]
mod lenient_verifier;
#[cfg(test)]
mod test_tokens;

pub(in crate::identity) use api_server::USER_AGENT;
pub use api_server::{ApiServer, ApiServerError};
pub use expectations::Expectations;
pub use jwks::JwksError;
pub use keys::{KeySource, KeysError};
pub use keys_file::KeysFileError;
pub use projected::token_for_audience;
pub use refused::TokenRefused;
pub use verifier::{Verification, Verifier};

/// How far this node's clock may be from the API server's, in either direction.
pub const CLOCK_SKEW: Duration = Duration::from_secs(30);

/// The signature algorithms there are here, each bound to one type of key. There is no HMAC and no
/// `none` among them, so no token can ask for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// RSA PKCS #1 v1.5 with SHA-256, keys of 2048 to 8192 bits.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
}

impl Algorithm {
    /// All of them, the default of what is accepted.
    pub const ALL: [Self; 4] = [Self::Rs256, Self::Es256, Self::Es384, Self::Es512];

    /// As a token's header spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An algorithm that is not one of [`Algorithm::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("algorithm is not one of RS256, ES256, ES384, ES512")]
pub struct UnknownAlgorithm;

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;
    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        let same = |algorithm: &Self| algorithm.as_str() == name;
        Self::ALL.into_iter().find(same).ok_or(UnknownAlgorithm)
    }
}

/// What a verified token says. Only this module constructs one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodClaims {
    pod: Pod,
    node: NodeName,
    expires_at: SystemTime,
}

impl PodClaims {
    /// The pod the token was issued to, and the service account it runs as.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// The node the pod is bound to: this one.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// When the token ends, by the API server's clock.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// Compares with what the kubelet says, field by field; the first difference is the error.
    pub fn matches(&self, info: &PodInfo) -> Result<(), TokenRefused> {
        let account = &self.pod.account;
        let differs = |field, claim: &dyn fmt::Display, kubelet: &dyn fmt::Display| {
            let (claim, kubelet) = (claim.to_string(), kubelet.to_string());
            Err(TokenRefused::Differs { field, claim, kubelet })
        };
        if account.namespace != info.namespace {
            return differs("namespace", &account.namespace, &info.namespace);
        }
        if self.pod.name != info.pod {
            return differs("pod name", &self.pod.name, &info.pod);
        }
        if self.pod.uid != info.uid {
            return differs("pod uid", &self.pod.uid, &info.uid);
        }
        if account.name != info.service_account {
            return differs("service account", &account.name, &info.service_account);
        }
        match &info.account_uid_before {
            Some(before) if *before != account.uid => Err(TokenRefused::AccountReplaced {
                claim: account.uid.clone(),
                before: before.clone(),
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
impl PodClaims {
    /// Claims as a test wants them.
    pub(crate) fn supposed(pod: Pod, node: NodeName, expires_at: SystemTime) -> Self {
        Self { pod, node, expires_at }
    }
}

/// What the kubelet says of the pod it publishes a volume for (`podInfoOnMount`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInfo {
    /// `csi.storage.k8s.io/pod.namespace`.
    pub namespace: Namespace,
    /// `csi.storage.k8s.io/pod.name`.
    pub pod: PodName,
    /// `csi.storage.k8s.io/pod.uid`.
    pub uid: PodUid,
    /// `csi.storage.k8s.io/serviceAccount.name`.
    pub service_account: ServiceAccountName,
    /// The account's uid as an earlier publish of the same volume proved it, which the kubelet does
    /// not say; `None` on the first.
    pub account_uid_before: Option<ServiceAccountUid>,
}

#[cfg(test)]
#[path = "refusal_tests.rs"]
mod tests;
