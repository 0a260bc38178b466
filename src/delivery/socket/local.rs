//! What Vault's clients ask before and around a read, answered here: no upstream token, accessor
//! or lease id is in any of it.

use std::time::SystemTime;

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::answer;
use super::request::Refusal;
use super::routes::Connection;
use super::transport::Answer;
use crate::domain::{EngineKind, Mount, SecretPath, SecretRef, Spelling};
use crate::identity::Identity;

/// A semantic version, as clients parse one, that does not pass for Vault's.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "+secrets-broker");

/// `sys/health`: this agent answers; whether Vault does is in `/agent/v1/status`.
pub(super) fn health() -> Answer {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    answer::json(
        StatusCode::OK,
        &json!({
            "initialized": true, "sealed": false, "standby": false, "performance_standby": false,
            "replication_performance_mode": "disabled", "replication_dr_mode": "disabled",
            "server_time_utc": unix.as_secs(), "version": VERSION,
        }),
    )
}

/// `sys/seal-status`, which `vault status` asks first.
pub(super) fn seal_status() -> Answer {
    answer::json(
        StatusCode::OK,
        &json!({
            "type": "secrets-broker", "initialized": true, "sealed": false, "t": 0, "n": 0,
            "progress": 0, "nonce": "", "version": VERSION, "build_date": "", "migration": false,
            "recovery_seal": false, "storage_type": "none",
        }),
    )
}

/// `sys/leader`, which `vault status` asks next: there is one agent, and this is it.
pub(super) fn leader() -> Answer {
    answer::json(
        StatusCode::OK,
        &json!({
            "ha_enabled": false, "is_self": false, "leader_address": "",
            "leader_cluster_address": "", "performance_standby": false,
            "performance_standby_last_remote_wal": 0,
        }),
    )
}

/// `sys/init`, which SDKs ask for readiness.
pub(super) fn initialized() -> Answer {
    answer::json(StatusCode::OK, &json!({ "initialized": true }))
}

/// `auth/token/lookup-self`: callers have no token; this one says who the kernel says they are.
pub(super) fn token_lookup(identity: &Identity) -> Answer {
    let data = json!({
        "id": "", "accessor": "", "policies": [], "path": "", "meta": null,
        "display_name": identity.to_string(), "num_uses": 0, "orphan": true, "creation_time": 0,
        "creation_ttl": 0, "expire_time": null, "ttl": 0, "explicit_max_ttl": 0, "entity_id": "",
        "type": "service", "renewable": false,
    });
    answer::json(StatusCode::OK, &answer::envelope(&data))
}

/// `auth/token/renew-self`: there is nothing to renew, and that is not an error.
pub(super) fn token_renew() -> Answer {
    let mut reply = answer::envelope(&Value::Null);
    reply["auth"] = json!({
        "client_token": "", "accessor": "", "policies": [], "token_policies": [],
        "identity_policies": [], "metadata": null, "lease_duration": 0, "renewable": false,
        "entity_id": "", "token_type": "service", "orphan": true, "mfa_requirement": null,
        "num_uses": 0,
    });
    answer::json(StatusCode::OK, &reply)
}

impl Connection {
    /// `sys/internal/ui/mounts/<path>`, which `vault kv` asks before every read.
    ///
    /// A path below a mount is told to those who may read it. A mount's own path (`vault kv
    /// -mount=secret`) is told to every identified caller: it holds what the configuration names.
    pub(super) async fn mount_info(
        &self,
        path: SecretPath,
        headers: &HeaderMap,
    ) -> Result<Answer, Refusal> {
        let sources = &self.deps.sources;
        let (located, at_mount) = match sources.mount_at(&path) {
            Some(located) => (Some(located), true),
            None => (sources.mount_of(&path), false),
        };
        let located = self.located(located, &path, headers)?;
        let mount = match located.mount.kind {
            Some(kind) => Mount { path: located.mount.path.clone(), kind },
            None => {
                let below = if at_mount { format!("{path}/data") } else { path.to_string() };
                let below = below.parse().map_err(|_| Refusal::bad_request("path is too long"))?;
                let (identity, source) = (&self.caller.identity, &located.source);
                let asking = self.deps.policy.probing_login(identity, source);
                self.deps.broker.mount(source, &asking, &below).await?
            }
        };
        if !at_mount {
            let path = api_path(path, &mount);
            let secret = SecretRef { source: located.source, path, version: None };
            self.permitted(&secret).await?;
        }
        Ok(answer::json(StatusCode::OK, &answer::envelope(&mount_data(&mount))))
    }
}

/// `vault kv get secret/foo` asks with the command line's spelling, SDKs with the API path.
fn api_path(path: SecretPath, mount: &Mount) -> SecretPath {
    let spelling = Spelling { path: path.clone(), key: None };
    spelling.canonical(mount).unwrap_or(path)
}

fn mount_data(mount: &Mount) -> Value {
    let (kind, options) = match mount.kind {
        EngineKind::Kv1 => ("kv", json!({ "version": "1" })),
        EngineKind::Kv2 => ("kv", json!({ "version": "2" })),
        EngineKind::Database => ("database", Value::Null),
        EngineKind::Other => ("other", Value::Null),
    };
    json!({
        "path": format!("{}/", mount.path), "type": kind, "options": options, "description": "",
        "accessor": "", "local": false, "seal_wrap": false, "external_entropy_access": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn value(answer: Answer) -> Value {
        assert_eq!(answer.status(), StatusCode::OK);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test]
    async fn health_says_that_this_server_can_be_asked() {
        let health = value(health()).await;
        assert_eq!(health["initialized"], true);
        assert_eq!(health["sealed"], false);
        assert_eq!(health["standby"], false);
        assert!(health["server_time_utc"].as_u64().is_some_and(|seconds| seconds > 1_700_000_000));
        assert_eq!(value(seal_status()).await["sealed"], false);
        assert_eq!(value(leader()).await["ha_enabled"], false);
        assert_eq!(value(initialized()).await["initialized"], true);
    }

    #[tokio::test]
    async fn the_synthetic_token_names_the_caller_and_holds_no_credential() {
        let strength = crate::identity::ProofStrength::PidFd;
        let identity = Identity::host_user(1000, 1, &[], strength, crate::identity::Listener::Host);
        let lookup = value(token_lookup(&identity)).await;
        assert_eq!(lookup["data"]["display_name"], "uid:1000");
        assert_eq!(lookup["data"]["renewable"], false);
        assert!(lookup["data"]["id"] == "" && lookup["data"]["accessor"] == "");
        let renewed = value(token_renew()).await;
        assert!(renewed["auth"]["client_token"] == "" && renewed["auth"]["accessor"] == "");
        assert_eq!(renewed["auth"]["renewable"], false);
    }

    #[test]
    fn mounts_are_described_in_vaults_words() {
        let data = |kind| mount_data(&Mount { path: "secret".parse().unwrap(), kind });
        assert_eq!(data(EngineKind::Kv2)["options"]["version"], "2");
        assert_eq!(data(EngineKind::Kv1)["options"]["version"], "1");
        assert_eq!(data(EngineKind::Kv2)["path"], "secret/");
        assert_eq!(data(EngineKind::Database)["type"], "database");
    }

    #[test]
    fn both_spellings_of_a_preflight_mean_one_api_path() {
        let mount = Mount { path: "secret".parse().unwrap(), kind: EngineKind::Kv2 };
        let path = |text: &str| api_path(text.parse().unwrap(), &mount).to_string();
        assert_eq!(path("secret/shop/db"), "secret/data/shop/db");
        assert_eq!(path("secret/data/shop/db"), "secret/data/shop/db");
        assert_eq!(path("secret/metadata/shop"), "secret/metadata/shop");
    }
}
