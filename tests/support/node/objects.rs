//! Any object of the API, by its own kind or by its path.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::kubernetes::User;
use super::super::process::eventually;
use super::super::server_program;
use super::{Node, SOON, run};

impl Node {
    /// Creates the object or brings it to this state; returns what the API server made of it.
    pub fn apply(&self, object: &Value) -> Value {
        let path = self.path_of(object);
        let query = "fieldManager=tests&force=true";
        let kind = [("Content-Type", "application/apply-patch+yaml")];
        let reply = self.kubernetes.send("PATCH", &format!("{path}?{query}"), &kind, Some(object));
        let reply = reply.unwrap_or_else(|error| panic!("apply {path}: {error}"));
        assert!((200..300).contains(&reply.status), "apply {path}: {}", reply.body["message"]);
        reply.body
    }

    /// The same for manifests in YAML, as `helm template` prints them. Returns kubectl's output.
    pub fn apply_yaml(&self, manifests: &str) -> String {
        let file = self.dir.path().join("manifests.yaml");
        fs::write(&file, manifests).expect("write the manifests");
        let file = file.to_str().expect("a readable path");
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "--filename", file])
    }

    /// kubectl as the administrator; panics when it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(server_program("kubectl"));
        command.arg("--kubeconfig").arg(self.kubernetes.kubeconfig(User::Admin));
        // Its cache of the API would be shared with other clusters.
        command.arg("--cache-dir").arg(self.dir.path().join("kubectl"));
        run(command.args(arguments))
    }

    /// The object at `api/v1/…` or `apis/…`; `None` when it does not exist.
    pub fn get(&self, path: &str) -> Option<Value> {
        let reply = self.kubernetes.send("GET", path, &[], None);
        let reply = reply.unwrap_or_else(|error| panic!("GET {path}: {error}"));
        match reply.status {
            200 => Some(reply.body),
            404 => None,
            status => panic!("GET {path}: {status} {}", reply.body["message"]),
        }
    }

    /// Waits until the object at `path` (`Null` while it does not exist) is so, and returns it.
    /// Panics after `limit` with the object's status and what happened to it.
    pub fn wait(
        &self,
        path: &str,
        limit: Duration,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + limit;
        loop {
            let object = self.get(path).unwrap_or_default();
            if holds(&object) {
                return object;
            }
            if Instant::now() > deadline {
                let (status, events) = (&object["status"], self.events_of(&object));
                panic!("{path}: {what}: not within {limit:?}\n{status:#}\n{}", events.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Deletes the object and waits until it is gone.
    pub fn delete(&self, path: &str) {
        self.kubernetes.request("DELETE", path, Some(json!({ "propagationPolicy": "Background" })));
        self.wait(path, SOON, "gone", Value::is_null);
    }

    /// Creates a namespace (or finds it) in which pods can be created at once.
    pub fn create_namespace(&self, name: &str) {
        self.apply(
            &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }),
        );
        // A controller makes what every pod refers to.
        for made in ["serviceaccounts/default", "configmaps/kube-root-ca.crt"] {
            let path = format!("api/v1/namespaces/{name}/{made}");
            eventually(SOON, &path, || self.get(&path).is_some());
        }
    }

    /// Has the API server admit pods in this namespace only if they are restricted, as the Pod
    /// Security Standards have it.
    pub fn admit_restricted_pods_only(&self, namespace: &str) {
        let label = "pod-security.kubernetes.io/enforce=restricted";
        self.kubectl(&["label", "namespace", namespace, "--overwrite", label]);
    }

    /// "Warning FailedMount: …", as `kubectl describe` ends with.
    fn events_of(&self, object: &Value) -> Vec<String> {
        let metadata = &object["metadata"];
        let (Some(namespace), Some(uid)) =
            (metadata["namespace"].as_str(), metadata["uid"].as_str())
        else {
            return Vec::new();
        };
        let selector = format!("fieldSelector=involvedObject.uid={uid}");
        let events = self.get(&format!("api/v1/namespaces/{namespace}/events?{selector}"));
        let events = events.unwrap_or_default();
        let line = |event: &Value| {
            let text = |key: &str| event[key].as_str().unwrap_or_default();
            format!("{} {}: {}", text("type"), text("reason"), text("message"))
        };
        events["items"].as_array().into_iter().flatten().map(line).collect()
    }

    /// The path of an object, by what the API server says about its kind.
    fn path_of(&self, object: &Value) -> String {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let name = text(&object["metadata"]["name"]);
        assert!(!name.is_empty(), "an object has apiVersion, kind and metadata.name: {object}");
        let group = if version.contains('/') { "apis" } else { "api" };
        let base = format!("{group}/{version}");
        let kinds = self.get(&base).unwrap_or_else(|| panic!("no API {version}"));
        let resources = kinds["resources"].as_array().into_iter().flatten();
        // "pods/log" is of kind Pod as well.
        let whole = |resource: &&Value| !text(&resource["name"]).contains('/');
        let resource = resources.filter(whole).find(|resource| resource["kind"] == *kind);
        let resource = resource.unwrap_or_else(|| panic!("no kind {kind} in {version}"));
        let plural = text(&resource["name"]);
        if resource["namespaced"] == false {
            return format!("{base}/{plural}/{name}");
        }
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        format!("{base}/namespaces/{namespace}/{plural}/{name}")
    }
}
