//! Everything the broker talks to, configured as its README asks an operator to.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::kubernetes::Kubernetes;
use super::node::Node;
use super::postgres::Postgres;
use super::shared::{AGENT, NAMESPACE, REVIEWER, Shared, shared, shared_beside};
use super::vault::Vault;

/// What Vault lets the broker read; the policy is also named `broker`.
pub const POLICY: &str = r#"
path "secret/data/*"           { capabilities = ["read"] }
path "secret/metadata/*"       { capabilities = ["read"] }
path "kv/*"                    { capabilities = ["read"] }
path "database/creds/*"        { capabilities = ["read"] }
path "database/static-creds/*" { capabilities = ["read"] }
"#;
const AUDIENCE: &str = "vault";
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
const CREATE_ROLE: &str =
    r#"CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"#;

/// Vault with KV 1 at `kv/`, KV 2 at `secret/`, the database engine at `database/` with the role
/// `shop`, and the Kubernetes login role `broker`.
pub struct Testbed {
    pub vault: Vault,
    pub postgres: Arc<Postgres>,
    pub kubernetes: Arc<Kubernetes>,
    /// Holds a service-account token for Vault, as the kubelet would project it.
    pub token_file: PathBuf,
    /// Free for the test: configuration, sockets, volumes.
    pub dir: TempDir,
    role_prefix: String,
}

impl Testbed {
    pub fn start() -> Testbed {
        Testbed::with(Vault::start(), shared())
    }

    /// The same with Vault over TLS; its authority is `vault.ca_file()`.
    pub fn start_tls() -> Testbed {
        Testbed::with(Vault::start_tls(), shared())
    }

    /// The same with the node's API server, so that its pods' tokens log in.
    pub fn start_beside(node: &Node) -> Testbed {
        Testbed::with(Vault::start(), shared_beside(node))
    }

    fn with(vault: Vault, shared: Shared) -> Testbed {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let dir = TempDir::with_prefix("testbed-").expect("create a directory");
        let testbed = Testbed {
            vault,
            postgres: shared.postgres,
            kubernetes: shared.kubernetes,
            token_file: dir.path().join("token"),
            dir,
            role_prefix: format!("bed{}-", STARTED.fetch_add(1, Ordering::Relaxed)),
        };
        testbed.vault.mount("kv", "kv", json!({ "version": "1" }));
        testbed.vault.mount("secret", "kv", json!({ "version": "2" }));
        testbed.configure_database();
        testbed.configure_login();
        testbed.rotate_token();
        testbed
    }

    fn configure_database(&self) {
        let url = "postgresql://{{username}}:{{password}}@127.0.0.1";
        let name = r#"{{ printf "%s%s-%s" PREFIX (.RoleName | truncate 20) (random 20) }}"#;
        self.vault.mount("database", "database", json!({}));
        self.vault.write(
            "database/config/postgres",
            json!({
                "plugin_name": "postgresql-database-plugin",
                "connection_url": format!("{url}:{}/postgres?sslmode=disable", self.postgres.port),
                "username": "postgres",
                "password": "not-asked-for",
                "username_template": name.replace("PREFIX", &format!("{:?}", self.role_prefix)),
                "allowed_roles": "*",
            }),
        );
        self.write_database_role("shop", json!({}));
    }

    fn configure_login(&self) {
        let lifetime = Duration::from_secs(24 * 3600);
        let ca = fs::read_to_string(&self.kubernetes.ca_file).expect("read the cluster's CA");
        self.vault.write("sys/auth/kubernetes", json!({ "type": "kubernetes" }));
        self.vault.write(
            "auth/kubernetes/config",
            json!({
                "kubernetes_host": self.kubernetes.address,
                "kubernetes_ca_cert": ca,
                "token_reviewer_jwt": self.kubernetes.token(NAMESPACE, REVIEWER, None, lifetime),
                "disable_local_ca_jwt": true,
            }),
        );
        self.write_policy(POLICY);
        self.write_login_role(json!({}));
    }

    /// Role `name` of the database engine: leases of 20 s, at most 60 s, but for `changes`.
    pub fn write_database_role(&self, name: &str, changes: Value) {
        let role = json!({
            "db_name": "postgres",
            "creation_statements": [CREATE_ROLE],
            "default_ttl": "20s",
            "max_ttl": "60s",
        });
        self.vault.write(&format!("database/roles/{name}"), merged(role, changes));
    }

    /// Static role `name` over a new PostgreSQL user, whose name it returns. Rotate at once with
    /// `vault.write("database/rotate-role/<name>", json!({}))`.
    pub fn add_static_role(&self, name: &str, rotation_period: Duration) -> String {
        let user = format!("{}static-{name}", self.role_prefix);
        self.postgres.query(&format!(r#"CREATE ROLE "{user}" WITH LOGIN"#));
        self.vault.write(
            &format!("database/static-roles/{name}"),
            json!({
                "db_name": "postgres",
                "username": user,
                "rotation_period": format!("{}s", rotation_period.as_secs()),
            }),
        );
        user
    }

    /// Roles in PostgreSQL that this testbed's Vault made.
    pub fn database_users(&self) -> Vec<String> {
        self.postgres.roles_like(&format!("{}%", self.role_prefix))
    }

    /// Lease ids Vault holds for a database role, without their common prefix.
    pub fn leases(&self, role: &str) -> Vec<String> {
        self.vault.list(&format!("sys/leases/lookup/database/creds/{role}"))
    }

    /// Replaces the policy `broker`.
    pub fn write_policy(&self, policy: &str) {
        self.vault.write("sys/policies/acl/broker", json!({ "policy": policy }));
    }

    /// Replaces the login role `broker`: tokens of an hour, but for `changes`.
    pub fn write_login_role(&self, changes: Value) {
        let role = json!({
            "bound_service_account_names": [AGENT],
            "bound_service_account_namespaces": [NAMESPACE],
            "audience": AUDIENCE,
            "token_policies": ["broker"],
            "token_ttl": "1h",
        });
        self.vault.write("auth/kubernetes/role/broker", merged(role, changes));
    }

    /// Puts a new service-account token in the token file and returns it.
    pub fn rotate_token(&self) -> String {
        let token = self.kubernetes.token(NAMESPACE, AGENT, Some(AUDIENCE), TOKEN_LIFETIME);
        let next = self.token_file.with_extension("next");
        fs::write(&next, &token).expect("write the token");
        fs::rename(&next, &self.token_file).expect("replace the token file");
        token
    }

    /// Logs in as the broker would; the whole reply.
    pub fn log_in(&self) -> Value {
        let jwt = fs::read_to_string(&self.token_file).expect("read the token file");
        let body = json!({ "role": "broker", "jwt": jwt });
        let reply = self.vault.send("PUT", "auth/kubernetes/login", None, Some(body));
        assert_eq!(reply.status, 200, "login: {}", reply.body["errors"]);
        reply.body
    }
}

/// `base` with the fields of `changes` put over it.
fn merged(mut base: Value, changes: Value) -> Value {
    let (Value::Object(fields), Value::Object(changes)) = (&mut base, changes) else {
        panic!("two JSON objects");
    };
    fields.extend(changes);
    base
}
