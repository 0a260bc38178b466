//! What rendered manifests grant: as lines to compare with a golden file, and what must never be
//! among it whatever that file says.

use serde_json::Value;

/// What grants nothing, or is another test's.
const LEFT_OUT: [&str; 12] = [
    "affinity",
    "annotations",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/name",
    "app.kubernetes.io/version",
    "data",
    "helm.sh/chart",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "readinessProbe",
];

/// What the agent's container may have beyond an ordinary user.
const CAPABILITIES: [&str; 4] = ["CHOWN", "FOWNER", "IPC_LOCK", "LEASE"];
/// Rights that lead to other rights.
const RESOURCES: [(&str, &str); 3] =
    [("tokenreviews", "create"), ("pods", "list"), ("pods", "watch")];
/// Cluster roles that are not ours.
const FOREIGN_ROLES: [&str; 1] = ["system:service-account-issuer-discovery"];

/// Every object of a file with several documents.
pub fn objects(yaml: &str) -> Vec<Value> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(yaml).expect("the manifests are YAML");
    objects.into_iter().filter(|object| !object.is_null()).collect()
}

/// One line per setting, sorted: `DaemonSet name: path = value`.
pub fn privileges(objects: &[Value]) -> String {
    let mut lines = Vec::new();
    for object in objects {
        let of = format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"));
        flatten(object, String::new(), &mut |path, value| {
            if !matches!(path, "apiVersion" | "kind" | "metadata.name") {
                lines.push(format!("{of}: {path} = {value}"));
            }
        });
    }
    lines.sort();
    lines.join("\n") + "\n"
}

fn flatten(value: &Value, path: String, found: &mut impl FnMut(&str, String)) {
    let join =
        |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields.iter().filter(|(name, _)| !LEFT_OUT.contains(&&***name)) {
                flatten(value, join(name), found);
            }
        }
        Value::Array(elements) if elements.iter().any(Value::is_object) => {
            for (index, element) in elements.iter().enumerate() {
                let name = element["name"].as_str().map_or(index.to_string(), str::to_owned);
                flatten(element, format!("{path}[{name}]"), found);
            }
        }
        other => found(&path, other.to_string()),
    }
}

/// What breaks the promise of the split, each with its place.
pub fn violations(objects: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for object in objects {
        match text(object, "/kind") {
            "DaemonSet" => found.extend(of_pod(&object["spec"]["template"]["spec"])),
            "ClusterRole" | "Role" => found.extend(of_role(object)),
            "ClusterRoleBinding" => {
                let role = text(object, "/roleRef/name");
                let ours = objects.iter().any(|other| {
                    text(other, "/kind") == "ClusterRole" && text(other, "/metadata/name") == role
                });
                if !ours && !FOREIGN_ROLES.contains(&role) {
                    found.push(format!("binds the role {role}"));
                }
            }
            "CSIDriver" => found.extend(of_driver(&object["spec"])),
            _ => {}
        }
    }
    found
}

fn of_pod(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let places = pod.to_string().contains("POD_UID");
    for shared in ["hostPID", "hostIPC", "shareProcessNamespace", "automountServiceAccountToken"] {
        let needed = shared == "hostPID" && places;
        if pod[shared].as_bool() == Some(true) && !needed {
            found.push(format!("{shared} is true"));
        }
    }
    if pod["automountServiceAccountToken"].as_bool() != Some(false) {
        found.push("a token is mounted into every container".to_owned());
    }
    for container in pod["containers"].as_array().into_iter().flatten() {
        let name = text(container, "/name");
        let rules = if name == "mounter" { of_mounter } else { of_agent };
        found.extend(rules(container).into_iter().map(|rule| format!("{name}: {rule}")));
        if container["securityContext"]["readOnlyRootFilesystem"] != true {
            found.push(format!("{name}: the root file system is writable"));
        }
    }
    found
}

fn mounts(container: &Value) -> Vec<&str> {
    let mounts = container["volumeMounts"].as_array().into_iter().flatten();
    mounts.map(|mount| text(mount, "/name")).collect()
}

fn of_mounter(container: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let foreign =
        mounts(container).into_iter().filter(|m| !["kubelet", "mounter-socket"].contains(m));
    found.extend(foreign.map(|mount| format!("mounts {mount}")));
    for nothing in ["env", "envFrom", "ports"] {
        if !container[nothing].is_null() {
            found.push(format!("has {nothing}"));
        }
    }
    found
}

fn of_agent(container: &Value) -> Vec<String> {
    let context = &container["securityContext"];
    let mut found = Vec::new();
    if context["privileged"] != false || context["allowPrivilegeEscalation"] != false {
        found.push("is privileged, or may become so".to_owned());
    }
    if context["seccompProfile"]["type"] != "RuntimeDefault" {
        found.push("has no seccomp profile".to_owned());
    }
    if context["capabilities"]["drop"] != serde_json::json!(["ALL"]) {
        found.push("keeps the runtime's capabilities".to_owned());
    }
    let added = context["capabilities"]["add"].as_array().into_iter().flatten();
    let surplus = added.filter_map(Value::as_str).filter(|one| !CAPABILITIES.contains(one));
    found.extend(surplus.map(|capability| format!("has CAP_{capability}")));
    if mounts(container).contains(&"kubelet") {
        found.push("reaches every pod's files through the kubelet's directory".to_owned());
    }
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        if mount["mountPropagation"] == "Bidirectional" {
            found.push("mounts for the node".to_owned());
        }
    }
    found
}

fn of_role(role: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let each = |name: &str| -> Vec<String> {
            let elements = rule[name].as_array().into_iter().flatten();
            elements.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        for resource in each("resources") {
            for verb in each("verbs") {
                if !RESOURCES.contains(&(&resource, &verb)) {
                    found.push(format!("may {verb} {resource}"));
                }
            }
        }
    }
    found
}

fn of_driver(spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let expected = [
        ("podInfoOnMount", Value::Bool(true)),
        ("requiresRepublish", Value::Bool(true)),
        ("attachRequired", Value::Bool(false)),
        ("fsGroupPolicy", "None".into()),
        ("volumeLifecycleModes", serde_json::json!(["Ephemeral"])),
    ];
    for (name, value) in expected {
        if spec[name] != value {
            found.push(format!("{name} of the CSIDriver is {}", spec[name]));
        }
    }
    let tokens = spec["tokenRequests"].as_array().map_or(&[][..], Vec::as_slice);
    if !matches!(tokens, [token] if !text(token, "/audience").is_empty()) {
        found.push("the CSIDriver asks for another token than Vault's".to_owned());
    }
    found
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
