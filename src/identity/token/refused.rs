//! Why a token was not believed: each message names the field and the remedy, never the token.

use std::time::Duration;

use super::{Algorithm, CLOCK_SKEW, KeysError};
use crate::clock::Human;
use crate::domain::ServiceAccountUid;

/// A token that proves nothing. Names in the messages were parsed or configured before.
#[derive(Debug, thiserror::Error)]
pub enum TokenRefused {
    /// The kubelet sent no token for the audience.
    #[error(
        "no token for audience '{0}' came with the call; name that audience under tokenRequests of \
         the CSIDriver object"
    )]
    Missing(String),
    /// Not the tokens a kubelet sends.
    #[error("the tokens with the call are not what a kubelet sends: {0}")]
    Projected(&'static str),
    /// Over the bound.
    #[error("token is longer than {0} bytes; request it for fewer audiences")]
    TooLong(usize),
    /// Not a compact JWS.
    #[error("token {0}; send the service-account token as the API server issued it")]
    Malformed(&'static str),
    /// An algorithm that does not exist here, or was configured away.
    #[error(
        "token's alg is not accepted; the API server must sign with one of the configured \
         algorithms (all: RS256, ES256, ES384, ES512)"
    )]
    Algorithm,
    /// Another algorithm than the key's.
    #[error("token's alg is not {0}, which is bound to the key its kid names")]
    KeyOfAnotherType(Algorithm),
    /// No such key.
    #[error(
        "token's kid names no key of this cluster; another cluster issued it, or its keys were \
         rotated and could not be fetched yet"
    )]
    UnknownKey,
    /// No such key, and the cluster could not be asked.
    #[error("token's kid names no key known here, and new ones cannot be had")]
    Keys(#[source] KeysError),
    /// Not signed by the key.
    #[error("token's signature does not match; it was changed, or signed by somebody else")]
    Signature,
    /// Signed, but not a pod's token.
    #[error("token's claims {0}; use a token projected into a pod, not a Secret's")]
    Claims(&'static str),
    /// Another issuer.
    #[error(
        "token's iss is not this cluster's issuer; configure what --service-account-issuer of the \
         API server says, old and new while it changes"
    )]
    Issuer,
    /// No issuer configured and none discovered.
    #[error(
        "this cluster's issuer is not known yet; configure it, or let the agent read \
         /.well-known/openid-configuration of the API server"
    )]
    IssuerUnknown,
    /// Meant for somebody else.
    #[error("token's aud lacks '{0}'; request it with that audience")]
    Audience(String),
    /// Over, also with the clocks apart.
    #[error(
        "token expired {} ago, more than the {} allowed for clocks apart; correct this node's \
         clock, or wait for the kubelet's next token",
        Human(*.0), Human(CLOCK_SKEW)
    )]
    Expired(Duration),
    /// Not begun, also with the clocks apart.
    #[error(
        "token is valid only in {}, more than the {} allowed for clocks apart; correct this \
         node's clock",
        Human(*.0), Human(CLOCK_SKEW)
    )]
    NotYetValid(Duration),
    /// A pod elsewhere, or nowhere yet.
    #[error("token's node is '{claim}' and this is '{here}'; use the token on the pod's own node")]
    Node {
        /// Which node the pod is bound to.
        claim: String,
        /// Which node this is.
        here: String,
    },
    /// The kubelet speaks of another pod than the token.
    #[error("token's {field} is '{claim}' and the pod's is '{kubelet}'; send the pod's own")]
    Differs {
        /// Which field.
        field: &'static str,
        /// As the token has it.
        claim: String,
        /// As the kubelet has it.
        kubelet: String,
    },
    /// The account was deleted and made again while the pod ran.
    #[error(
        "token's service-account uid is '{claim}' and this volume was published for '{before}'; \
         the account was replaced: restart the pod"
    )]
    AccountReplaced {
        /// As the token has it.
        claim: ServiceAccountUid,
        /// As the volume has it.
        before: ServiceAccountUid,
    },
    /// TokenReview says no.
    #[error(
        "the API server's TokenReview does not vouch for the token: its account or pod is gone, \
         or it is of another cluster or audience"
    )]
    NotAuthenticated,
    /// TokenReview did not answer.
    #[error("the API server cannot be asked for a TokenReview")]
    Review(#[source] KeysError),
}

impl TokenRefused {
    /// Whether somebody made the token up: it names a key of this cluster that did not sign it.
    /// Everything else happens to honest pods too, whose token is old or meant for somebody else.
    pub fn is_forgery(&self) -> bool {
        matches!(self, Self::Signature | Self::KeyOfAnotherType(_))
    }

    /// Whether the token may yet be good: the cluster could not be asked.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Keys(_) | Self::Review(_) | Self::IssuerUnknown)
    }
}
