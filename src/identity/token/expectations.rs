//! What a token must say to be believed here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::claims::Claims;
use super::cluster_keys::ClusterKeys;
use super::jwt::{Unverified, Verified};
use super::{Algorithm, CLOCK_SKEW, PodClaims, TokenRefused};
use crate::domain::{NodeName, Pod, Token};

/// The claims asked of every token.
#[derive(Debug, Clone)]
pub struct Expectations {
    /// `--service-account-issuer` of the API server; several while it changes. Empty: the one the
    /// API server names in its discovery document.
    pub issuers: Vec<String>,
    /// The one audience that must be among the token's.
    pub audience: String,
    /// Accepted algorithms, [`Algorithm::ALL`] by default.
    pub algorithms: Vec<Algorithm>,
    /// The node this agent runs on.
    pub node: NodeName,
}

impl Expectations {
    /// Judges a token by the cluster's keys, at `now` of the wall clock.
    pub(super) fn verify(
        &self,
        cluster: &ClusterKeys,
        token: &Token,
        now: SystemTime,
    ) -> Result<PodClaims, TokenRefused> {
        let verified = Unverified::parse(token)?.verify(cluster.keys(), &self.algorithms)?;
        let claims = verified.claims()?;
        self.check_issuer(&claims, cluster.issuer())?;
        let expires_at = self.check_audience_and_time(&claims, now)?;
        self.on_this_node(claims.pod()?, claims.node()?, expires_at)
    }

    /// Judges what is not in the answer of a TokenReview that vouched for the token; the end of its
    /// life comes back.
    pub(super) fn check_reviewed(
        &self,
        verified: &Verified,
        now: SystemTime,
    ) -> Result<SystemTime, TokenRefused> {
        self.check_audience_and_time(&verified.claims()?, now)
    }

    /// The last step of both ways: the pod runs here.
    pub(super) fn on_this_node(
        &self,
        pod: Pod,
        node: NodeName,
        expires_at: SystemTime,
    ) -> Result<PodClaims, TokenRefused> {
        if node != self.node {
            let (claim, here) = (node.to_string(), self.node.to_string());
            return Err(TokenRefused::Node { claim, here });
        }
        Ok(PodClaims { pod, node, expires_at })
    }

    fn check_issuer(&self, claims: &Claims, discovered: Option<&str>) -> Result<(), TokenRefused> {
        let same = match (self.issuers.as_slice(), discovered) {
            ([], None) => return Err(TokenRefused::IssuerUnknown),
            ([], Some(issuer)) => claims.iss == issuer,
            (issuers, _) => issuers.contains(&claims.iss),
        };
        if same { Ok(()) } else { Err(TokenRefused::Issuer) }
    }

    fn check_audience_and_time(
        &self,
        claims: &Claims,
        now: SystemTime,
    ) -> Result<SystemTime, TokenRefused> {
        if !claims.aud.hold(&self.audience) {
            return Err(TokenRefused::Audience(self.audience.clone()));
        }
        let expires_at = instant(claims.exp)?;
        // Valid until the very second of `exp`, not through it.
        match now.duration_since(expires_at) {
            Ok(past) if past >= CLOCK_SKEW => return Err(TokenRefused::Expired(past)),
            _ => {}
        }
        match instant(claims.nbf)?.duration_since(now) {
            Ok(ahead) if ahead > CLOCK_SKEW => return Err(TokenRefused::NotYetValid(ahead)),
            _ => {}
        }
        Ok(expires_at)
    }
}

fn instant(seconds: u64) -> Result<SystemTime, TokenRefused> {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    at.ok_or(TokenRefused::Claims("name a time out of range"))
}
