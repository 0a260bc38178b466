//! `sys/leases/{lookup,renew,revoke}` on the caller's own local leases. Never an upstream call.

use std::time::SystemTime;

use http::{HeaderMap, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer;
use super::request::{LeaseAction, Refusal};
use super::routes::Connection;
use super::transport::Answer;
use crate::broker::{LocalLease, LocalLeaseError};
use crate::clock::BootInstant;
use crate::domain::{LocalLeaseId, SecretRef};

/// Vault's request body; `increment` and `sync` are accepted and change nothing.
#[derive(Deserialize)]
struct LeaseRequest {
    lease_id: String,
}

impl Connection {
    pub(super) async fn lease(
        &self,
        action: LeaseAction,
        id: Option<LocalLeaseId>,
        body: &mut Incoming,
    ) -> Result<Answer, Refusal> {
        let body = self.body(body).await?;
        let id = match id {
            Some(id) => id,
            None => lease_id(&body)?,
        };
        let (broker, consumer) = (&self.deps.broker, self.caller.identity.consumer().clone());
        match action {
            LeaseAction::Lookup => {
                let lease = broker.lookup_local(consumer, id).await.map_err(lookup_refusal)?;
                let data = lookup_data(&lease, BootInstant::now(), SystemTime::now());
                Ok(answer::json(StatusCode::OK, &answer::envelope(&data)))
            }
            LeaseAction::Renew => {
                let known = broker.lookup_local(consumer.clone(), id.clone()).await;
                self.check_still_allowed(&known.map_err(refusal)?).await?;
                let lease = broker.renew_local(consumer, id).await.map_err(refusal)?;
                Ok(answer::json(StatusCode::OK, &renewed(&lease)))
            }
            LeaseAction::Revoke => {
                broker.revoke_local(consumer, id).await.map_err(refusal)?;
                Ok(answer::no_content())
            }
        }
    }

    /// An interest outlives a grant no longer than the next renewal.
    async fn check_still_allowed(&self, lease: &LocalLease) -> Result<(), Refusal> {
        let located = self.deps.sources.mount_of(&lease.path);
        let source = self.located(located, &lease.path, &HeaderMap::new())?.source;
        let secret = SecretRef { source, path: lease.path.clone(), version: None };
        self.decide(&secret).await.map(drop)
    }
}

fn lease_id(body: &[u8]) -> Result<LocalLeaseId, Refusal> {
    let request: LeaseRequest = serde_json::from_slice(body)
        .map_err(|_| Refusal::bad_request("the body must be a JSON object with a lease_id"))?;
    Ok(LocalLeaseId::from_client(&request.lease_id))
}

fn refusal(error: LocalLeaseError) -> Refusal {
    match error {
        LocalLeaseError::NotFound => Refusal::bad_request("lease not found"),
        LocalLeaseError::Busy => Refusal::unavailable(error.to_string(), 1),
    }
}

fn lookup_refusal(error: LocalLeaseError) -> Refusal {
    match error {
        LocalLeaseError::NotFound => Refusal::bad_request("invalid lease"),
        LocalLeaseError::Busy => refusal(error),
    }
}

fn lookup_data(lease: &LocalLease, now: BootInstant, wall: SystemTime) -> Value {
    let time = |at: BootInstant| {
        jiff::Timestamp::try_from(at.to_wall(now, wall)).map(|time| time.to_string()).ok()
    };
    json!({
        "id": lease.id.as_str(), "path": lease.path.as_str(),
        "issue_time": time(lease.issued_at), "expire_time": time(now + lease.duration),
        "last_renewal": null, "ttl": lease.duration.as_secs(), "renewable": lease.renewable,
    })
}

fn renewed(lease: &LocalLease) -> Value {
    let mut reply = answer::envelope(&Value::Null);
    reply["lease_id"] = lease.id.as_str().into();
    reply["lease_duration"] = lease.duration.as_secs().into();
    reply["renewable"] = lease.renewable.into();
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn lease() -> LocalLease {
        let path = "database/creds/shop".parse().unwrap();
        LocalLease {
            id: LocalLeaseId::new(&path, 1),
            path,
            issued_at: BootInstant::from_nanos(0),
            duration: Duration::from_secs(30),
            renewable: true,
        }
    }

    #[test]
    fn a_lookup_tells_wall_clock_times() {
        let now = BootInstant::from_nanos(10_000_000_000);
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(110);
        let data = lookup_data(&lease(), now, wall);
        assert_eq!(data["issue_time"], "1970-01-01T00:01:40Z");
        assert_eq!(data["expire_time"], "1970-01-01T00:02:20Z");
        assert_eq!(data["ttl"], 30);
    }

    #[test]
    fn a_renewal_has_no_data() {
        let reply = renewed(&lease());
        assert_eq!(reply["lease_id"], lease().id.as_str());
        assert_eq!(reply["lease_duration"], 30);
        assert!(reply["data"].is_null());
    }

    #[test]
    fn unknown_leases_are_400_in_vaults_words() {
        let not_found = refusal(LocalLeaseError::NotFound);
        assert_eq!(
            (not_found.status.as_u16(), not_found.message),
            (400, Some("lease not found".into()))
        );
        assert_eq!(lookup_refusal(LocalLeaseError::NotFound).message, Some("invalid lease".into()));
        assert_eq!(lookup_refusal(LocalLeaseError::Busy).status.as_u16(), 503);
    }

    #[test]
    fn the_lease_id_is_taken_from_vaults_body_shape_only() {
        let id = |body: &str| lease_id(body.as_bytes()).map(|id| id.as_str().to_owned());
        assert_eq!(id(r#"{"lease_id":"a/b","increment":3600,"sync":true}"#).unwrap(), "a/b");
        for bad in ["", "{}", "[]", r#"{"lease_id":1}"#, "\u{0}"] {
            assert!(id(bad).is_err(), "{bad}");
        }
    }
}
