//! What a request asks for: method, raw path, query and headers become a route or a refusal.
//!
//! Pure, and all of it happens before policy: what could be rewritten on its way to Vault, what is
//! never forwarded and what is not understood ends here. Paths are taken as they came, undecoded.

use std::borrow::Cow;
use std::num::NonZeroU64;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

use crate::domain::{LocalLeaseId, SecretPath};

/// Vault's header that asks for a wrapped reply; its value would leave the agent's hands.
static WRAP_TTL: HeaderName = HeaderName::from_static("x-vault-wrap-ttl");
/// Vault's header that names a namespace.
static NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// First segments that no engine mount can have and no policy can open.
const NEVER_FORWARDED: [&str; 4] = ["sys", "auth", "identity", "cubbyhole"];

/// A request that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Read a secret.
    Secret {
        /// Its canonical API path.
        path: SecretPath,
        /// The KV 2 version asked for.
        version: Option<NonZeroU64>,
    },
    /// `sys/health`.
    Health,
    /// `sys/seal-status`.
    SealStatus,
    /// `sys/leader`.
    Leader,
    /// `sys/init`.
    Initialized,
    /// `sys/internal/ui/mounts/<path>`: what kind of mount the path lies in.
    MountInfo(SecretPath),
    /// `auth/token/lookup-self`.
    TokenLookup,
    /// `auth/token/renew-self`.
    TokenRenew,
    /// `sys/leases/…` on a local lease; the id is in the body unless it is here.
    Lease(LeaseAction, Option<LocalLeaseId>),
    /// Something below `/agent/v1/`.
    Agent(AgentRoute),
}

/// What to do with a local lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseAction {
    /// `sys/leases/lookup`.
    Lookup,
    /// `sys/leases/renew`.
    Renew,
    /// `sys/leases/revoke`.
    Revoke,
}

/// The agent's own API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentRoute {
    /// The process answers.
    Live,
    /// The process can serve.
    Ready,
    /// OpenMetrics text.
    Metrics,
    /// Everything there is to know, or what concerns the caller.
    Status,
    /// Leases only.
    Leases,
    /// Why a path is as it is, for the caller or for somebody else.
    Explain {
        /// In any spelling.
        path: String,
        /// `uid:1000`, `volume:shop`.
        as_id: Option<String>,
    },
    /// Fetch again now; the path is in the body.
    Refresh,
    /// Read the configuration again now; whether to accept it is in the body.
    Reload,
    /// Let pods in again that are locked out; which ones is in the body.
    Unlock,
    /// Wait for the next change after this one.
    Events {
        /// The change already known.
        since: Option<u64>,
    },
}

impl Route {
    /// The label in metrics: few, and never a path.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Secret { .. } => "secret",
            Self::Health | Self::SealStatus | Self::Leader | Self::Initialized => "sys",
            Self::MountInfo(_) => "mounts",
            Self::TokenLookup | Self::TokenRenew => "token",
            Self::Lease(..) => "leases",
            Self::Agent(_) => "agent",
        }
    }
}

/// A request that is not served, and what the caller is told in Vault's error body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// The only entry of `errors`; `None` is an empty list, as Vault's plain 404.
    pub message: Option<Cow<'static, str>>,
    /// `Retry-After` in seconds.
    pub retry_after: Option<u64>,
}

impl Refusal {
    /// A refusal with a message.
    pub fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, message: Some(message.into()), retry_after: None }
    }

    /// 400 with a message.
    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The terse 403; the reason is for operators and the audit log.
    pub fn denied() -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission denied")
    }

    /// 503 with a hint when to ask again.
    pub fn unavailable(message: impl Into<Cow<'static, str>>, retry_after: u64) -> Self {
        let retry_after = Some(retry_after);
        Self { retry_after, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }
}

/// Understands a request line and its headers.
pub fn parse(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Route, Refusal> {
    if headers.contains_key(&WRAP_TTL) {
        return Err(Refusal::bad_request("response wrapping is not available: omit the wrap TTL"));
    }
    let path = uri.path();
    if let Some(rest) = path.strip_prefix("/v1/") {
        return vault(method, rest, uri.query());
    }
    match path.strip_prefix("/agent/v1/") {
        Some(rest) => agent(method, rest, uri.query()).map(Route::Agent),
        None => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "no such route: secrets are below /v1/, the agent's own answers below /agent/v1/",
        )),
    }
}

/// Whether the caller's namespace header, if there is one, names the configured namespace.
pub fn namespace_fits(headers: &HeaderMap, configured: Option<&str>) -> bool {
    headers.get(&NAMESPACE).is_none_or(|asked| is_namespace(asked, configured))
}

/// Whether a read may be answered as one with these headers was that was: no wrapping is asked for
/// and no namespace but the configured one. One pass, since both headers are rare.
#[inline]
pub fn asks_for_nothing_else(headers: &HeaderMap, configured: Option<&str>) -> bool {
    headers.iter().all(|(name, value)| {
        *name != WRAP_TTL && (*name != NAMESPACE || is_namespace(value, configured))
    })
}

/// Path and version of what may be a read of a secret; whether it is one is decided by [`parse`].
#[inline]
pub fn read_target(uri: &Uri) -> Option<(&str, Option<NonZeroU64>)> {
    Some((uri.path().strip_prefix("/v1/")?, version(uri.query()).ok()?))
}

fn is_namespace(asked: &HeaderValue, configured: Option<&str>) -> bool {
    let trim = |text: &str| text.trim_matches('/').to_owned();
    asked.to_str().is_ok_and(|asked| {
        asked.is_empty() || trim(asked) == configured.map(trim).unwrap_or_default()
    })
}

fn vault(method: &Method, path: &str, query: Option<&str>) -> Result<Route, Refusal> {
    // The mount preflight of `vault kv -mount=secret/` ends with a slash.
    let trimmed =
        path.strip_prefix("sys/internal/ui/mounts/").map(|rest| rest.trim_end_matches('/'));
    if let Some(below) = trimmed {
        return only(method, &[Method::GET], Route::MountInfo(secret_path(below)?));
    }
    let parsed = secret_path(path)?;
    if let Some(route) = local(method, path)? {
        return Ok(route);
    }
    let first = parsed.segments().next().unwrap_or_default();
    if NEVER_FORWARDED.contains(&first) {
        let message = format!("permission denied: the agent never forwards requests to {first}/");
        return Err(Refusal::new(StatusCode::FORBIDDEN, message));
    }
    let version = version(query)?;
    only(method, &[Method::GET], Route::Secret { path: parsed, version })
}

fn secret_path(path: &str) -> Result<SecretPath, Refusal> {
    path.parse().map_err(|error: crate::domain::PathError| Refusal::bad_request(error.to_string()))
}

/// What Vault's clients need of `sys/` and `auth/`, answered here.
fn local(method: &Method, path: &str) -> Result<Option<Route>, Refusal> {
    let write = [Method::PUT, Method::POST];
    let route = match path {
        "sys/health" => only(method, &[Method::GET, Method::HEAD], Route::Health)?,
        "sys/seal-status" => only(method, &[Method::GET], Route::SealStatus)?,
        "sys/leader" => only(method, &[Method::GET], Route::Leader)?,
        "sys/init" => only(method, &[Method::GET], Route::Initialized)?,
        "auth/token/lookup-self" => {
            only(method, &[Method::GET, Method::PUT, Method::POST], Route::TokenLookup)?
        }
        "auth/token/renew-self" => only(method, &write, Route::TokenRenew)?,
        _ => {
            let Some((action, id)) = lease_route(path) else { return Ok(None) };
            only(method, &write, Route::Lease(action, id.map(LocalLeaseId::from_client)))?
        }
    };
    Ok(Some(route))
}

fn lease_route(path: &str) -> Option<(LeaseAction, Option<&str>)> {
    let rest = path.strip_prefix("sys/leases/")?;
    let (verb, id) = rest.split_once('/').map_or((rest, None), |(verb, id)| (verb, Some(id)));
    match (verb, id) {
        ("lookup", None) => Some((LeaseAction::Lookup, None)),
        ("renew", id) => Some((LeaseAction::Renew, id)),
        ("revoke", id) => Some((LeaseAction::Revoke, id)),
        _ => None,
    }
}

fn only(method: &Method, allowed: &[Method], route: Route) -> Result<Route, Refusal> {
    if allowed.contains(method) {
        return Ok(route);
    }
    Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "unsupported operation: the agent only reads"))
}

fn version(query: Option<&str>) -> Result<Option<NonZeroU64>, Refusal> {
    let refusal = || {
        Refusal::bad_request(
            "the only query parameter is 'version', once, with a positive whole number and no \
             zeros before it",
        )
    };
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(None) };
    let digits = query.strip_prefix("version=").ok_or_else(refusal)?;
    // As everywhere in a path, one thing has one spelling.
    if digits.starts_with('0') || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refusal());
    }
    digits.parse().map(Some).map_err(|_| refusal())
}

fn agent(method: &Method, path: &str, query: Option<&str>) -> Result<AgentRoute, Refusal> {
    let mut parameters = Parameters::parse(query)?;
    let route = match path {
        "health/live" => AgentRoute::Live,
        "health/ready" => AgentRoute::Ready,
        "metrics" => AgentRoute::Metrics,
        "status" => AgentRoute::Status,
        "leases" => AgentRoute::Leases,
        "explain" => AgentRoute::Explain {
            path: parameters
                .take("path")
                .ok_or_else(|| Refusal::bad_request("explain needs a query parameter 'path'"))?,
            as_id: parameters.take("as"),
        },
        "refresh" => AgentRoute::Refresh,
        "reload" => AgentRoute::Reload,
        "unlock" => AgentRoute::Unlock,
        "events" => {
            let since = parameters.take("since").map(|text| text.parse());
            let since = since
                .transpose()
                .map_err(|_| Refusal::bad_request("'since' must be the number of a change"))?;
            AgentRoute::Events { since }
        }
        _ => return Err(Refusal::new(StatusCode::NOT_FOUND, "no such route below /agent/v1/")),
    };
    parameters.finish()?;
    let wanted = match route {
        AgentRoute::Refresh | AgentRoute::Reload | AgentRoute::Unlock => Method::POST,
        _ => Method::GET,
    };
    if *method != wanted {
        let message = format!("use {wanted} for this route");
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message));
    }
    Ok(route)
}

/// Decoded query parameters, each at most once; what nobody takes is an error.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn parse(query: Option<&str>) -> Result<Self, Refusal> {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let pairs: Vec<_> = pairs.into_owned().collect();
        let repeated = |(at, pair): (usize, &(String, String))| {
            pairs[..at].iter().any(|earlier| earlier.0 == pair.0)
        };
        if pairs.iter().enumerate().any(repeated) {
            return Err(Refusal::bad_request("a query parameter is given twice"));
        }
        Ok(Self(pairs))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }

    fn finish(self) -> Result<(), Refusal> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(Refusal::bad_request("a query parameter is not known on this route"))
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
