//! TokenReview: the API server judges the token itself, for clusters whose keys cannot be read.

use std::time::SystemTime;

use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use zeroize::Zeroize;

use super::api_server::Connection;
use super::claims::{NO_NODE, parsed};
use super::jwt::Unverified;
use super::{Expectations, KeysError, PodClaims, TokenRefused};
use crate::domain::{NodeName, Pod, ServiceAccount, Token};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// The answer repeats the token.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Asks the API server about the token and judges its answer.
pub(super) async fn verify(
    connection: &Connection,
    expectations: &Expectations,
    token: &Token,
    now: SystemTime,
) -> Result<PodClaims, TokenRefused> {
    let unverified = Unverified::parse(token)?;
    let status = ask(connection, token, &expectations.audience).await?;
    let (pod, node) = vouched_for(&status, &expectations.audience)?;
    // The API server vouched for these very bytes, so their end of life may be read.
    let expires_at = expectations.check_reviewed(&unverified.reviewed()?, now)?;
    expectations.on_this_node(pod, node, expires_at)
}

async fn ask(
    connection: &Connection,
    token: &Token,
    audience: &str,
) -> Result<TokenReviewStatus, TokenRefused> {
    let spec = TokenReviewSpec {
        audiences: Some(vec![audience.to_owned()]),
        token: Some(token.expose().to_owned()),
    };
    let mut review = TokenReview { spec, ..TokenReview::default() };
    let body = serde_json::to_vec(&review).map_err(|_| TokenRefused::Review(KeysError::Review));
    review.spec.token.zeroize();
    let answer = connection.post(PATH, body?, ANSWER_BYTES_MAX).await;
    let mut answer = answer.map_err(|error| TokenRefused::Review(error.into()))?;
    let review = serde_json::from_slice::<TokenReview>(&answer);
    answer.zeroize();
    let mut review = review.map_err(|_| TokenRefused::Review(KeysError::Review))?;
    review.spec.token.zeroize();
    review.status.ok_or(TokenRefused::Review(KeysError::Review))
}

/// The pod and node of an answer that says yes, for this audience.
fn vouched_for(
    status: &TokenReviewStatus,
    audience: &str,
) -> Result<(Pod, NodeName), TokenRefused> {
    if status.authenticated != Some(true) || status.error.as_ref().is_some_and(|e| !e.is_empty()) {
        return Err(TokenRefused::NotAuthenticated);
    }
    // Authenticators that know no audiences answer without any.
    if !status.audiences.iter().flatten().any(|each| each == audience) {
        return Err(TokenRefused::Audience(audience.to_owned()));
    }
    let user = status.user.as_ref().ok_or(TokenRefused::Review(KeysError::Review))?;
    let (namespace, name) = user
        .username
        .as_deref()
        .and_then(|name| name.strip_prefix("system:serviceaccount:"))
        .and_then(|rest| rest.split_once(':'))
        .ok_or(TokenRefused::Claims("are of no service account"))?;
    let account = ServiceAccount {
        namespace: parsed(namespace)?,
        name: parsed(name)?,
        uid: parsed(user.uid.as_deref().unwrap_or_default())?,
    };
    let uid = parsed(extra(user, POD_UID, "name no pod")?)?;
    let name = parsed(extra(user, POD_NAME, "name no pod")?)?;
    let node = parsed(extra(user, NODE_NAME, NO_NODE)?)?;
    Ok((Pod { uid, name, account }, node))
}

/// The only value of an `extra` key.
fn extra<'a>(
    user: &'a UserInfo,
    key: &str,
    missing: &'static str,
) -> Result<&'a str, TokenRefused> {
    match user.extra.as_ref().and_then(|extra| extra.get(key)).map(Vec::as_slice) {
        Some([only]) => Ok(only),
        _ => Err(TokenRefused::Claims(missing)),
    }
}

#[cfg(test)]
#[path = "review_tests.rs"]
mod tests;
