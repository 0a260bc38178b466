//! `/agent/v1/`: status, leases, explain, refresh, reload, events, metrics and health. Operators
//! see everything except values; a workload sees itself.

use std::time::Duration;

use async_trait::async_trait;
use http::StatusCode;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::request::{AgentRoute, Refusal};
use super::routes::{Connection, over_budget};
use super::transport::Answer;
use super::{answer, metrics};
use crate::broker::{Broker, ResolveError};
use crate::clock::BootInstant;
use crate::domain::{ConsumerId, LocalLeaseId, LoginIdentity, PathKind, SecretRef, Spelling};
use crate::identity::pods::DirectoryState;
use crate::identity::{Identity, Listener, Subject};

/// How long an event request waits for a change.
const EVENT_WAIT: Duration = Duration::from_secs(25);
/// How long the broker may take to answer anything before it counts as wedged.
const LIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Who asks, and so how much is told.
#[derive(Debug, Clone)]
pub enum Viewer {
    /// Everything except values.
    Operator,
    /// What concerns this caller's own consumer.
    Caller(Identity),
}

/// What these routes need of the rest of the agent, which knows configuration and status.
#[async_trait]
pub trait OperatorApi: Send + Sync {
    /// Whether the agent can serve, or what it waits for.
    fn ready(&self) -> Result<(), String>;
    /// How the pod directory is.
    fn pod_directory(&self) -> DirectoryState;
    /// The status view, as JSON text: a tree of values would be several times its size.
    async fn status(&self, viewer: &Viewer) -> Result<Box<RawValue>, Refusal>;
    /// Its leases.
    async fn leases(&self, viewer: &Viewer) -> Result<Box<RawValue>, Refusal>;
    /// Why a path is as it is for the viewer, or for `as_id` (operators only, checked already).
    async fn explain(
        &self,
        viewer: &Viewer,
        path: &str,
        as_id: Option<&str>,
    ) -> Result<Box<RawValue>, Refusal>;
    /// Reads the configuration again (operators only, checked already); `accept` puts its policy in
    /// force whatever it takes away.
    async fn reload(&self, accept: bool) -> Result<Box<RawValue>, Refusal>;
    /// Lets a pod in again (operators only, checked already), by `namespace/name` or uid; how many
    /// pods were locked out.
    fn unlock(&self, pod: &str) -> Result<usize, Refusal>;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefreshRequest {
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReloadRequest {
    accept: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnlockRequest {
    pod: String,
}

impl Connection {
    pub(super) async fn agent(
        &self,
        route: AgentRoute,
        body: &mut Incoming,
    ) -> Result<Answer, Refusal> {
        let (api, viewer) = (&self.deps.operators, self.viewer());
        let reports =
            matches!(route, AgentRoute::Status | AgentRoute::Leases | AgentRoute::Explain { .. });
        if reports && matches!(viewer, Viewer::Caller(_)) {
            self.caller.admitted.budget().charge_report(BootInstant::now());
        }
        let value = match route {
            AgentRoute::Live => self.live().await?,
            AgentRoute::Ready => {
                api.ready().map_err(|waiting| Refusal::unavailable(waiting, 1))?;
                json!({ "ready": true })
            }
            AgentRoute::Metrics => return self.metrics(&viewer).await,
            AgentRoute::Status => return Ok(answer::json_text(api.status(&viewer).await?)),
            AgentRoute::Leases => return Ok(answer::json_text(api.leases(&viewer).await?)),
            AgentRoute::Explain { path, as_id } => {
                check_explain(&viewer, as_id.as_deref())?;
                let view = api.explain(&viewer, &path, as_id.as_deref()).await?;
                return Ok(answer::json_text(view));
            }
            AgentRoute::Refresh => self.refresh(&viewer, body).await?,
            AgentRoute::Reload => {
                return Ok(answer::json_text(self.reload(&viewer, body).await?));
            }
            AgentRoute::Unlock => self.unlock(&viewer, body).await?,
            AgentRoute::Events { since } => self.events(since).await?,
        };
        Ok(answer::json(StatusCode::OK, &value))
    }

    fn viewer(&self) -> Viewer {
        match self.caller.identity.listener() {
            Listener::Operator => Viewer::Operator,
            Listener::Host
            | Listener::Volume
            | Listener::Csi
            | Listener::PodSocket
            | Listener::Node => Viewer::Caller(self.caller.identity.clone()),
        }
    }

    async fn live(&self) -> Result<Value, Refusal> {
        match answers(&self.deps.broker).await {
            true => Ok(json!({ "live": true })),
            false => Err(Refusal::unavailable("the broker does not answer", 1)),
        }
    }

    async fn metrics(&self, viewer: &Viewer) -> Result<Answer, Refusal> {
        if !matches!(viewer, Viewer::Operator) {
            return Err(Refusal::denied());
        }
        let report = self.deps.broker.report().await?;
        let (volumes, pods) = (self.deps.volumes.all(), self.deps.operators.pod_directory());
        let text = metrics::render(&self.deps.metrics, &report, &volumes, &pods);
        Ok(answer::text(metrics::CONTENT_TYPE, text))
    }

    async fn refresh(&self, viewer: &Viewer, body: &mut Incoming) -> Result<Value, Refusal> {
        let body = self.body(body).await?;
        let asked: RefreshRequest = serde_json::from_slice(&body)
            .map_err(|_| Refusal::bad_request("the body must be a JSON object with a path"))?;
        let spelling: Spelling =
            asked.path.parse().map_err(|error| Refusal::from(ResolveError::Spelling(error)))?;
        let located = self.deps.sources.mount_of(&spelling.path);
        let source = self.located(located, &spelling.path, &http::HeaderMap::new())?.source;
        if let Viewer::Caller(_) = viewer {
            let budget = self.caller.admitted.budget().take_refresh(BootInstant::now());
            budget.map_err(over_budget)?;
        }
        let asking = match viewer {
            Viewer::Operator => LoginIdentity::Agent,
            Viewer::Caller(identity) => self.deps.policy.probing_login(identity, &source),
        };
        let secret = self.deps.broker.resolve(&source, &asking, &spelling).await?;
        let login = match viewer {
            Viewer::Operator => None,
            Viewer::Caller(_) => Some(self.check_may_refresh(&secret).await?),
        };
        let entries = self.deps.broker.refresh(secret.clone(), login).await?;
        Ok(json!({ "secret": secret.to_string(), "entries": entries }))
    }

    async fn reload(&self, viewer: &Viewer, body: &mut Incoming) -> Result<Box<RawValue>, Refusal> {
        if !matches!(viewer, Viewer::Operator) {
            return Err(Refusal::denied());
        }
        let body = self.body(body).await?;
        let asked: ReloadRequest = serde_json::from_slice(&body).map_err(|_| {
            Refusal::bad_request("the body must be a JSON object with accept: true or false")
        })?;
        self.deps.operators.reload(asked.accept).await
    }

    async fn unlock(&self, viewer: &Viewer, body: &mut Incoming) -> Result<Value, Refusal> {
        if !matches!(viewer, Viewer::Operator) {
            return Err(Refusal::denied());
        }
        let body = self.body(body).await?;
        let asked: UnlockRequest = serde_json::from_slice(&body)
            .map_err(|_| Refusal::bad_request("the body must be a JSON object with a pod"))?;
        let unlocked = self.deps.operators.unlock(&asked.pod)?;
        Ok(json!({ "unlocked": unlocked }))
    }

    /// A workload may have its own KV read again, with the identity this returns; anything else
    /// would touch others or mint.
    async fn check_may_refresh(&self, secret: &SecretRef) -> Result<LoginIdentity, Refusal> {
        let authorized = self.decide(secret).await?;
        let broker = &self.deps.broker;
        let mount = broker.mount(&secret.source, authorized.login(), &secret.path).await?;
        let is_pod = matches!(self.caller.identity.subject(), Subject::Pod(_));
        // What the agent reads for a pod is everybody's.
        let own = !(is_pod && *authorized.login() == LoginIdentity::Agent);
        if own && mount.path_kind(&secret.path) == PathKind::Kv {
            return Ok(authorized.login().clone());
        }
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "permission denied: only operators may refresh this",
        ))
    }

    /// Answers when there has been a change since the given one, after a while, or at the stop.
    async fn events(&self, since: Option<u64>) -> Result<Value, Refusal> {
        let mut changes = self.deps.broker.changes();
        if let Some(since) = since {
            // A number of an earlier process differs too, and is answered at once.
            let moved = changes.wait_for(|now| *now != since);
            tokio::select! {
                _ = tokio::time::timeout(EVENT_WAIT, moved) => {}
                () = self.stop.cancelled() => {}
            }
        }
        let now = *changes.borrow();
        Ok(json!({ "change": now }))
    }
}

/// Whether the broker's task answers at all, within two seconds. The question is its cheapest one;
/// that there is no such lease, or that it is busy, is an answer.
pub async fn answers(broker: &Broker) -> bool {
    let answer = broker.lookup_local(ConsumerId::host_user(0), LocalLeaseId::from_client(""));
    tokio::time::timeout(LIVE_TIMEOUT, answer).await.is_ok()
}

/// Asking about somebody else is for operators.
fn check_explain(viewer: &Viewer, as_id: Option<&str>) -> Result<(), Refusal> {
    match (viewer, as_id) {
        (Viewer::Caller(identity), Some(id)) if id != identity.consumer().as_str() => {
            Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "permission denied: only operators may ask about somebody else",
            ))
        }
        _ => Ok(()),
    }
}

impl From<ResolveError> for Refusal {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::Spelling(error) => Self::bad_request(error.to_string()),
            ResolveError::Read(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ProofStrength;

    #[test]
    fn only_operators_ask_about_somebody_else() {
        let strength = ProofStrength::PidFd;
        let identity = Identity::host_user(1000, 1000, &[], strength, Listener::Host);
        let caller = Viewer::Caller(identity);
        assert!(check_explain(&Viewer::Operator, Some("uid:0")).is_ok());
        assert!(check_explain(&caller, None).is_ok());
        assert!(check_explain(&caller, Some("uid:1000")).is_ok());
        for other in ["uid:0", "volume:shop", ""] {
            assert_eq!(check_explain(&caller, Some(other)).unwrap_err().status.as_u16(), 403);
        }
    }
}
