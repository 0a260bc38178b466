//! A model of Vault whose every token, accessor, lease id and value is known: Kubernetes login with
//! one role for each pod, each role with a secret and a database credential of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::cluster::reviewed;
use crate::fake_vault::{Answer, FakeVault, Recorded};

/// What begins every value, token, accessor and lease id of the model, and nothing else.
pub const CANARY: &str = "canary-";
pub const CREDENTIALS: [&str; 3] = ["hvs.", "upstream-accessor-", "upstream-lease-"];

/// Whose each value is: the number of a pod.
pub type Owners = HashMap<String, usize>;

/// Who may log in with a role, and what its tokens read.
struct Role {
    account: String,
    reads: Reads,
}

#[derive(Clone, Copy)]
enum Reads {
    Own(usize),
    Everything,
}

#[derive(Default)]
struct Model {
    roles: BTreeMap<String, Role>,
    /// Paths of the pods' secrets and database roles.
    secrets: HashMap<String, (usize, String)>,
    databases: HashMap<String, usize>,
    tokens: HashMap<String, Reads>,
    owners: Owners,
}

/// The running model.
pub struct Upstream {
    pub vault: FakeVault,
    model: Arc<Mutex<Model>>,
}

impl Upstream {
    /// One role for each of these accounts, named `namespace-account`, and the role `agent`, which
    /// reads everything.
    pub fn start(accounts: &[(&str, &str)]) -> Upstream {
        let mut model = Model::default();
        for (number, (namespace, account)) in accounts.iter().enumerate() {
            let role = format!("{namespace}-{account}");
            let value = model.canary(number);
            model.secrets.insert(format!("{namespace}/{account}"), (number, value));
            model.databases.insert(role.clone(), number);
            let account = format!("{namespace}:{account}");
            model.roles.insert(role, Role { account, reads: Reads::Own(number) });
        }
        let account = "secrets-broker:secrets-broker".to_owned();
        model.roles.insert("agent".to_owned(), Role { account, reads: Reads::Everything });
        let model = Arc::new(Mutex::new(model));
        let answers = Arc::clone(&model);
        let answer = move |request: &Recorded| {
            answers.lock().unwrap_or_else(PoisonError::into_inner).answer(request)
        };
        Upstream { vault: FakeVault::with_model(answer), model }
    }

    /// Everything that was ever handed out.
    pub fn owners(&self) -> Owners {
        self.model.lock().expect("the model").owners.clone()
    }
}

impl Model {
    fn canary(&mut self, owner: usize) -> String {
        let value = format!("{CANARY}{:032x}", fastrand::u128(..));
        self.owners.insert(value.clone(), owner);
        value
    }

    fn answer(&mut self, request: &Recorded) -> Answer {
        let denied = || Answer::errors(403, &["1 error occurred:\n\t* permission denied\n\n"]);
        let path = request.target.strip_prefix("/v1/").unwrap_or_default();
        if path == "auth/kubernetes/login" {
            return self.log_in(&request.body).unwrap_or_else(denied);
        }
        let token = request.header("x-vault-token");
        let Some(reads) = self.tokens.get(token).copied() else { return denied() };
        let may = |owner: usize| match reads {
            Reads::Own(number) => number == owner,
            Reads::Everything => true,
        };
        match path {
            "auth/token/lookup-self" => Answer::envelope(json!({ "data": { "id": token } })),
            "auth/token/revoke-self" => Answer::new(204, ""),
            _ => {
                if let Some(path) = path.strip_prefix("secret/data/") {
                    let found = self.secrets.get(path).filter(|(owner, _)| may(*owner));
                    return found.map_or_else(denied, |(_, value)| kv2(value));
                }
                let role = path.strip_prefix("database/creds/").unwrap_or_default();
                let owner = self.databases.get(role).copied().filter(|owner| may(*owner));
                owner.map_or_else(denied, |owner| self.lease(path, owner))
            }
        }
    }

    fn log_in(&mut self, body: &[u8]) -> Option<Answer> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let role = self.roles.get(body["role"].as_str()?)?;
        if reviewed(body["jwt"].as_str()?)? != role.account {
            return None;
        }
        let [token, accessor, _] = CREDENTIALS.map(|kind| format!("{kind}{:032x}", random()));
        self.tokens.insert(token.clone(), role.reads);
        Some(Answer::envelope(json!({ "auth": {
            "client_token": token, "accessor": accessor, "policies": ["default"],
            "token_policies": ["default"], "metadata": {}, "lease_duration": 3600,
            "renewable": true, "entity_id": "", "token_type": "service", "orphan": true,
            "mfa_requirement": null, "num_uses": 0,
        }})))
    }

    fn lease(&mut self, path: &str, owner: usize) -> Answer {
        let (username, password) = (self.canary(owner), self.canary(owner));
        Answer::envelope(json!({
            "lease_id": format!("{path}/{}{:032x}", CREDENTIALS[2], random()),
            "renewable": true, "lease_duration": 3600,
            "data": { "username": username, "password": password },
        }))
    }
}

fn random() -> u128 {
    fastrand::u128(..)
}

fn kv2(value: &str) -> Answer {
    let metadata = json!({
        "created_time": "2026-01-01T00:00:00.000000000Z", "custom_metadata": null,
        "deletion_time": "", "destroyed": false, "version": 1,
    });
    Answer::envelope(json!({ "data": { "data": { "password": value }, "metadata": metadata } }))
}
