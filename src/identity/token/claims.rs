//! The claims the API server signs for a pod, as they stand in the token.

use serde::Deserialize;

use super::TokenRefused;
use crate::domain::{NodeName, Pod, ServiceAccount};

/// Claims this agent reads. A member that occurs twice is an error, however it is escaped; what
/// else the API server adds is of no interest.
#[derive(Deserialize)]
pub(super) struct Claims {
    pub(super) iss: String,
    pub(super) aud: Audiences,
    /// Seconds since 1970.
    pub(super) exp: u64,
    /// Seconds since 1970.
    pub(super) nbf: u64,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

/// One audience or several.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Audiences {
    One(String),
    Several(Vec<String>),
}

impl Audiences {
    pub(super) fn hold(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|each| each == audience),
        }
    }
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Object,
    pod: Option<Object>,
    node: Option<Named>,
}

/// A node that was not registered yet when the token was issued has no uid in it.
#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Object {
    name: String,
    uid: String,
}

/// By default API servers say it from 1.30 on (`ServiceAccountTokenPodNodeInfo`), always from 1.32.
pub(super) const NO_NODE: &str = "name no node, which takes Kubernetes 1.30 or newer";

impl Claims {
    /// The pod the token is bound to; an account's token without a pod is refused.
    pub(super) fn pod(&self) -> Result<Pod, TokenRefused> {
        let Kubernetes { namespace, serviceaccount, pod, .. } = &self.kubernetes;
        let subject = format!("system:serviceaccount:{namespace}:{}", serviceaccount.name);
        if self.sub != subject {
            return Err(TokenRefused::Claims("name another sub than their service account"));
        }
        let pod = pod.as_ref().ok_or(TokenRefused::Claims("name no pod"))?;
        Ok(Pod {
            uid: parsed(&pod.uid)?,
            name: parsed(&pod.name)?,
            account: ServiceAccount {
                namespace: parsed(namespace)?,
                name: parsed(&serviceaccount.name)?,
                uid: parsed(&serviceaccount.uid)?,
            },
        })
    }

    /// The node the pod is bound to.
    pub(super) fn node(&self) -> Result<NodeName, TokenRefused> {
        let node = self.kubernetes.node.as_ref();
        parsed(&node.ok_or(TokenRefused::Claims(NO_NODE))?.name)
    }
}

/// A name or uid as Kubernetes allows it.
pub(super) fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, TokenRefused> {
    text.parse().map_err(|_| TokenRefused::Claims("hold a name Kubernetes would not accept"))
}
