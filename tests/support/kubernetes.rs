//! etcd and kube-apiserver: real service accounts, tokens, TokenReview and pods that run nowhere;
//! `node` adds a node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::certificates::{TlsFiles, issue_client, key_files};
use super::http::{Api, Reply};
use super::process::{Process, eventually, free_port};
use super::server_program;

const START: Duration = Duration::from_secs(90);
/// The only node's name.
pub const NODE: &str = "node-1";
/// Of services; its first address is the API server's own.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";

pub struct Kubernetes {
    api: Api,
    pub address: String,
    pub ca_file: PathBuf,
    store: String,
    listen: Listen,
    kubelet_client: TlsFiles,
    // The API server goes before the store under it, both before their directory.
    apiserver: Mutex<Process>,
    _etcd: Process,
    dir: TempDir,
}

/// Whom the API server knows by a static token; what they may do is Kubernetes' own RBAC.
#[derive(Clone, Copy)]
pub enum User {
    Admin,
    ControllerManager,
    Node,
    Scheduler,
}

/// Where the API server listens, and the address of it that clients are told.
#[derive(Clone, Copy)]
pub struct Listen {
    pub bind: &'static str,
    pub advertise: &'static str,
    pub port: u16,
}

impl Kubernetes {
    pub fn start() -> Kubernetes {
        let loopback = "127.0.0.1";
        Kubernetes::start_at(&Listen { bind: loopback, advertise: loopback, port: free_port() })
    }

    pub fn start_at(listen: &Listen) -> Kubernetes {
        let dir = TempDir::with_prefix("kubernetes-").expect("create a directory");
        let (store, etcd) = start_etcd(dir.path());
        let address = format!("https://{}:{}", listen.advertise, listen.port);
        key_files(dir.path(), "service-accounts");
        let kubelet_client =
            issue_client(dir.path(), "kubelet-client", "kube-apiserver", "system:masters");
        let command = apiserver(dir.path(), &store, listen, &kubelet_client);
        let mut apiserver = Process::spawn("kube-apiserver", &command, dir.path());
        // The server makes its own certificate; the file ends with the authority's.
        let ca_file = dir.path().join("certs/apiserver.crt");
        let mut ca = String::new();
        apiserver.wait_until(START, "writing its certificate", || {
            ca = fs::read_to_string(&ca_file).unwrap_or_default();
            ca.matches("-----END CERTIFICATE-----").count() == 2
        });
        let api = Api::new(&address, Some(&ca));
        wait_until_ready(&mut apiserver, &api);
        let (listen, apiserver) = (*listen, Mutex::new(apiserver));
        Kubernetes {
            api,
            address,
            ca_file,
            store,
            listen,
            kubelet_client,
            apiserver,
            _etcd: etcd,
            dir,
        }
    }

    /// Who signed the certificate that the API server shows to kubelets.
    pub fn kubelet_client_ca(&self) -> &Path {
        &self.kubelet_client.ca
    }

    /// With which service-account tokens are signed.
    pub fn service_account_key(&self) -> PathBuf {
        self.dir.path().join("service-accounts.key")
    }

    /// A kubeconfig file with this user's token.
    pub fn kubeconfig(&self, user: User) -> PathBuf {
        let name = "harness";
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
            "clusters": [{
                "name": name,
                "cluster": { "server": self.address, "certificate-authority": self.ca_file },
            }],
            "users": [{ "name": name, "user": { "token": user.token() } }],
        });
        let file = self.dir.path().join(format!("{}.kubeconfig", user.token()));
        fs::write(&file, config.to_string()).expect("write a kubeconfig");
        file
    }

    /// Ends the API server at once: asked to stop, it would wait a minute for whoever watches. What
    /// it stored stays.
    pub fn stop(&self) {
        self.apiserver().kill();
    }

    /// Starts it again with another key for tokens: all earlier ones end.
    pub fn start_with_another_key(&self) {
        key_files(self.dir.path(), "service-accounts");
        self.start_again();
    }

    /// Starts it again as it was.
    pub fn start_again(&self) {
        let command = apiserver(self.dir.path(), &self.store, &self.listen, &self.kubelet_client);
        let mut apiserver = self.apiserver();
        *apiserver = Process::spawn("kube-apiserver", &command, self.dir.path());
        wait_until_ready(&mut apiserver, &self.api);
    }

    fn apiserver(&self) -> MutexGuard<'_, Process> {
        self.apiserver.lock().expect("the API server started")
    }

    pub fn create_namespace(&self, name: &str) {
        self.create("api/v1/namespaces", json!({ "metadata": { "name": name } }));
    }

    /// Its uid comes back.
    pub fn create_service_account(&self, namespace: &str, name: &str) -> String {
        let path = format!("api/v1/namespaces/{namespace}/serviceaccounts");
        uid(&self.create(&path, json!({ "metadata": { "name": name } })))
    }

    /// A node that nobody runs.
    pub fn create_node(&self, name: &str) {
        self.create("api/v1/nodes", json!({ "metadata": { "name": name } }));
    }

    /// A pod on that node, which never starts; its uid comes back.
    pub fn create_pod(&self, namespace: &str, name: &str, account: &str, node: &str) -> String {
        let path = format!("api/v1/namespaces/{namespace}/pods");
        let container = json!({ "name": "main", "image": "none" });
        let spec = json!({
            "serviceAccountName": account,
            "automountServiceAccountToken": false,
            "nodeName": node,
            "containers": [container],
        });
        uid(&self.create(&path, json!({ "metadata": { "name": name }, "spec": spec })))
    }

    /// At once, as if its kubelet had confirmed it.
    pub fn delete_pod(&self, namespace: &str, name: &str) {
        let path = format!("api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0");
        self.request("DELETE", &path, None);
    }

    /// Makes its tokens end: the API server then answers TokenReview with an error.
    pub fn delete_service_account(&self, namespace: &str, name: &str) {
        let path = format!("api/v1/namespaces/{namespace}/serviceaccounts/{name}");
        self.request("DELETE", &path, None);
    }

    /// A token through TokenRequest; no audience means the API server's own. Kubernetes allows no
    /// lifetime under ten minutes.
    pub fn token(
        &self,
        namespace: &str,
        name: &str,
        audience: Option<&str>,
        lifetime: Duration,
    ) -> String {
        let path = format!("api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let audiences: Vec<&str> = audience.into_iter().collect();
        let spec = json!({ "audiences": audiences, "expirationSeconds": lifetime.as_secs() });
        let answer = self.create(&path, json!({ "spec": spec }));
        answer["status"]["token"].as_str().expect("status.token").to_owned()
    }

    /// The token a kubelet gets for a pod: bound to the pod, and through it to its node.
    pub fn pod_token(&self, account: (&str, &str), pod: (&str, &str), audience: &str) -> String {
        let ((namespace, account), (pod, uid)) = (account, pod);
        let path = format!("api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let bound = json!({ "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid });
        let spec = json!({
            "audiences": [audience],
            "expirationSeconds": 600,
            "boundObjectRef": bound,
        });
        let answer = self.create(&path, json!({ "spec": spec }));
        answer["status"]["token"].as_str().expect("status.token").to_owned()
    }

    /// The right to ask TokenReview about other people's tokens, which Vault needs.
    /// May be used when this returns: the API server learns of it a moment after it is created.
    pub fn let_review_tokens(&self, namespace: &str, name: &str) {
        let account = json!({ "kind": "ServiceAccount", "namespace": namespace, "name": name });
        let binding = json!({
            "metadata": { "name": format!("{namespace}-{name}-reviews-tokens") },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:auth-delegator",
            },
            "subjects": [account],
        });
        self.create("apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding);
        let token = self.token(namespace, name, None, Duration::from_secs(600));
        let authorization = format!("Bearer {token}");
        let review = json!({ "spec": { "token": token } });
        eventually(START, "the right to review tokens", || {
            let headers = [("Authorization", authorization.as_str())];
            let path = "apis/authentication.k8s.io/v1/tokenreviews";
            self.api
                .send("POST", path, &headers, Some(&review))
                .is_ok_and(|reply| reply.status == 201)
        });
    }

    /// The right to list and watch pods, as the chart grants it.
    pub fn let_watch_pods(&self, namespace: &str, name: &str) {
        let rbac = "apis/rbac.authorization.k8s.io/v1";
        let role = format!("{namespace}-{name}-pods");
        let rule = json!({ "apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"] });
        let definition = json!({ "metadata": { "name": role }, "rules": [rule] });
        self.create(&format!("{rbac}/clusterroles"), definition);
        let account = json!({ "kind": "ServiceAccount", "namespace": namespace, "name": name });
        let reference = json!({
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": role,
        });
        let binding = json!({
            "metadata": { "name": role },
            "roleRef": reference,
            "subjects": [account],
        });
        self.create(&format!("{rbac}/clusterrolebindings"), binding);
    }

    /// Has the API server judge an object as if it were created, unknown fields included.
    pub fn dry_run(&self, object: &Value) {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let version = text("/apiVersion").expect("apiVersion");
        let kind = text("/kind").expect("kind").to_lowercase();
        let plural = match kind.strip_suffix('y') {
            Some(stem) => format!("{stem}ies"),
            None if kind.ends_with('s') => format!("{kind}es"),
            None => format!("{kind}s"),
        };
        let group = if version.contains('/') { "apis" } else { "api" };
        let namespace = text("/metadata/namespace");
        let namespace = namespace.map_or(String::new(), |name| format!("namespaces/{name}/"));
        let query = "dryRun=All&fieldValidation=Strict";
        self.create(&format!("{group}/{version}/{namespace}{plural}?{query}"), object.clone());
    }

    fn create(&self, path: &str, body: Value) -> Value {
        self.request("POST", path, Some(body))
    }

    /// Panics when the answer is no success.
    pub fn request(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let Reply { status, body } = self
            .send(method, path, &[], body.as_ref())
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        assert!((200..300).contains(&status), "{method} {path}: {status} {}", body["message"]);
        body
    }

    /// Any request as the administrator; an error only when no answer came.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Reply, reqwest::Error> {
        let authorization = bearer();
        let headers = [&[("Authorization", &*authorization)], headers].concat();
        self.api.send(method, path, &headers, body)
    }
}

impl User {
    const ALL: [User; 4] = [User::Admin, User::ControllerManager, User::Node, User::Scheduler];

    fn token(self) -> &'static str {
        match self {
            User::Admin => "harness-admin",
            User::ControllerManager => "harness-controller-manager",
            User::Node => "harness-node",
            User::Scheduler => "harness-scheduler",
        }
    }

    /// Its name and group, as Kubernetes' own roles are bound to them.
    fn name_and_group(self) -> (String, &'static str) {
        match self {
            User::Admin => ("admin".to_owned(), "system:masters"),
            User::ControllerManager => ("system:kube-controller-manager".to_owned(), ""),
            User::Node => (format!("system:node:{NODE}"), "system:nodes"),
            User::Scheduler => ("system:kube-scheduler".to_owned(), ""),
        }
    }
}

fn bearer() -> String {
    format!("Bearer {}", User::Admin.token())
}

fn wait_until_ready(apiserver: &mut Process, api: &Api) {
    apiserver.wait_until(START, "answering /readyz", || {
        let reply = api.send("GET", "readyz", &[("Authorization", &bearer())], None);
        reply.is_ok_and(|reply| reply.status == 200)
    });
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().expect("metadata.uid").to_owned()
}

fn start_etcd(dir: &Path) -> (String, Process) {
    let [clients, peers] = [(); 2].map(|()| format!("http://127.0.0.1:{}", free_port()));
    let mut command = Command::new(server_program("etcd"));
    command.arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    command.args(["--initial-cluster", &format!("default={peers}"), "--unsafe-no-fsync"]);
    let mut process = Process::spawn("etcd", &command, dir);
    let api = Api::new(&clients, None);
    process.wait_until(START, "answering /health", || {
        api.send("GET", "health", &[], None).is_ok_and(|reply| reply.status == 200)
    });
    (clients, process)
}

fn apiserver(dir: &Path, store: &str, listen: &Listen, kubelet_client: &TlsFiles) -> Command {
    let [public_key, private_key] =
        ["pub", "key"].map(|part| dir.join(format!("service-accounts.{part}")));
    let tokens = dir.join("tokens.csv");
    let rows = User::ALL.map(|user| {
        let (name, group) = user.name_and_group();
        format!("{},{name},{name},{group}\n", user.token())
    });
    fs::write(&tokens, rows.concat()).expect("write tokens.csv");

    let mut command = Command::new(server_program("kube-apiserver"));
    let fixed = [
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        // A node's name is no address.
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
    ];
    command.args(fixed);
    command.args([
        format!("--advertise-address={}", listen.advertise),
        format!("--bind-address={}", listen.bind),
        format!("--etcd-servers={store}"),
        format!("--secure-port={}", listen.port),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
    ]);
    let files = [
        ("cert-dir", &dir.join("certs")),
        ("kubelet-client-certificate", &kubelet_client.certificate),
        ("kubelet-client-key", &kubelet_client.key),
        ("service-account-key-file", &public_key),
        ("service-account-signing-key-file", &private_key),
        ("token-auth-file", &tokens),
    ];
    command.args(files.map(|(flag, file)| format!("--{flag}={}", file.display())));
    command
}
