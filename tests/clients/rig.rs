//! What one client meets: an agent on a testbed with secrets to read and some it may not.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::client_program;
use crate::support::agent::Agent;
use crate::support::testbed::Testbed;

const CONFIG: &str = r#"
[agent]
runtime_dir = "{dir}/run"

[sources.vault]
kind = "vault"
address = "{vault}"
role = "broker"
token_file = "{dir}/token"
mounts = { kv = "auto", secret = "auto", database = "auto" }

[[grants]]
name = "shop"
who = { any_host_user = true }
paths = ["kv/shop/*", "secret/data/shop/*", "database/creds/shop", "database/creds/watched"]
"#;

/// Declared in the order in which they end.
pub(crate) struct Rig {
    agent: Agent,
    pub(crate) bed: Testbed,
}

impl Rig {
    pub(crate) fn start() -> Rig {
        let bed = Testbed::start();
        bed.vault.put_kv1("shop/web", json!({ "colour": "blue" }));
        bed.vault.put_kv1("private/web", json!({ "colour": "grey" }));
        bed.vault.put_kv2("shop/web", json!({ "colour": "red" }));
        bed.vault.put_kv2("shop/web", json!({ "colour": "green" }));
        bed.vault.put_kv2("private/web", json!({ "colour": "grey" }));
        bed.write_database_role("watched", json!({ "max_ttl": "10m" }));
        bed.write_database_role("private", json!({}));
        let config = CONFIG.replace("{vault}", &bed.vault.address);
        let agent = Agent::start(bed.dir.path(), &config);
        Rig { agent, bed }
    }

    /// A client as an application starts it: the socket, and a token that nobody believes.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut command = client_program(program);
        command
            .env("VAULT_ADDR", format!("unix://{}", self.agent.host_socket().display()))
            .env("VAULT_TOKEN", "made-up-by-the-client")
            .env("PGPORT", self.bed.postgres.port.to_string())
            .env("HOME", self.home());
        command
    }

    fn home(&self) -> &Path {
        self.bed.dir.path()
    }
}
