//! The README's own lines, pasted as an administrator would, on a node that knows nothing of the
//! product yet: the chart's defaults, Vault over TLS under its service's name, pods on the pod
//! network.
//!
//! Not as in a cluster: network policies are not enforced, and the image is imported, not built.

#[path = "../support/markdown.rs"]
mod markdown;
#[path = "../support/mod.rs"]
mod support;

mod administrator;

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use markdown::{blocks, section};
use serde_json::Value;
use support::node::image::program_with_libraries;
use support::node::{ADDRESS, CLUSTER_DOMAIN, Node, SOON, mounts_under};
use support::postgres::Postgres;
use support::process::{Process, eventually};
use support::vault::Vault;
use tempfile::{NamedTempFile, TempDir};

use administrator::Administrator;

/// What the README calls the image; the chart adds its version.
const IMAGE: &str = concat!("registry.example.com/secrets-broker:", env!("CARGO_PKG_VERSION"));
/// Vault's service in the chart's default configuration.
const VAULT_SERVICE: &str = "vault.vault.svc";
/// Where the driver mounts pods' volumes, below the kubelet's root.
const VOLUMES: &str = "plugins/csi.secrets-broker.io/volumes";

#[test]
fn the_readmes_lines_install_the_product_give_a_pod_its_secrets_and_say_why_one_waits() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
    let readme = readme.expect("read the README");
    let node = Node::start();
    node.image_as(IMAGE, &program_with_libraries(Path::new(env!("CARGO_BIN_EXE_secrets-broker"))));
    node.image_as("docker.io/library/busybox:1", &[]);
    let postgres = Postgres::start();
    let vault = Vault::start_tls_at(&format!("{ADDRESS}:8200"), &[VAULT_SERVICE, ADDRESS]);
    let names = TempDir::with_prefix("names-").expect("create a directory");
    let _names = cluster_dns(names.path());
    let administrator = Administrator::new(&node, &vault);

    let [set_up] = shell(&readme, "## Setting up Vault");
    let set_up = set_up.replace("API-SERVER:6443", &format!("{ADDRESS}:443"));
    let set_up = set_up.replace("DB-HOST:5432", &format!("127.0.0.1:{}", postgres.port));
    let set_up = set_up.replace("DB-ADMIN", "postgres").replace("DB-PASSWORD", "not-asked-for");
    administrator.paste(&set_up);

    let [install, apply, why] = shell(&readme, "## On Kubernetes");
    administrator.paste(&install);
    let pods = blocks(section(&readme, "## On Kubernetes"), "yaml pod");
    let [pod] = pods.as_slice() else { panic!("one pod: {pods:?}") };
    administrator.write("pod.yaml", pod);
    let printed = administrator.paste(&apply);
    let (_, credential) = printed.split_once("condition met\n").expect("the pod is ready");
    let credential: Value = serde_json::from_str(credential).expect("JSON");

    let cat = |file: &str| administrator.paste(&format!("kubectl exec -n shop web -- cat {file}"));
    assert_eq!((cat("/secrets/user"), cat("/secrets/token")), ("web".into(), "s3cr3t".into()));
    let text = |key: &str| credential[key].as_str().expect("a text").to_owned();
    postgres.login(&text("username"), &text("password")).expect("the credential works");
    assert!(node.pod_log("shop", "web", "web").contains("db.json"));
    let agent =
        "kubectl exec -n secrets-broker daemonset/secrets-broker -c agent -- secrets-broker";
    let status = administrator.paste(&format!("{agent} status"));
    assert!(status.starts_with("healthy"), "{status}");
    let said = administrator.paste(&why);
    assert!(said.contains("pod:shop/web") && !said.contains("s3cr3t"), "{said}");

    // Its end is the credential's.
    administrator.paste("kubectl delete -f pod.yaml --grace-period=1");
    eventually(SOON, "the role is dropped", || postgres.roles_like(&text("username")).is_empty());

    // The same pod with an item that Vault's policy does not give.
    administrator.write("pod.yaml", &pod.replace("secret/shop/web ", "secret/shop/keys"));
    administrator.paste("kubectl apply -f pod.yaml");
    let why = why.replace("secret/shop/web", "secret/shop/keys");
    let (describe, _) = why.split_once('\n').expect("the first line asks for the events");
    let reason = "code = PermissionDenied desc = * of 'vault:secret/data/shop/keys'";
    eventually(SOON, "the pod's events say why it waits", || {
        std::thread::sleep(Duration::from_millis(500));
        administrator.paste(describe).contains(reason)
    });
    let said = administrator.paste(&why);
    assert!(said.contains("kv: denied") && !said.contains("s3cr3t"), "{said}");

    // An agent on a host beside them.
    let [login] = shell(section(&readme, "## On a host"), "### 1. A login for the agent");
    administrator.paste(&login);

    verify_audit_log(&node, &administrator);

    // Of a pod that never had its volume nothing stays.
    administrator.paste("kubectl delete -f pod.yaml --grace-period=1");
    let volumes = node.kubelet_root().join(VOLUMES);
    eventually(SOON, "nothing is mounted", || mounts_under(&volumes).is_empty());
}

/// The agent's container log has both, records and checkpoints, between other messages.
fn verify_audit_log(node: &Node, administrator: &Administrator) {
    let pods = "kubectl get pods -n secrets-broker -o 'jsonpath={.items[*].metadata.name}'";
    let log = node.pod_log_file("secrets-broker", &administrator.paste(pods), "agent");
    let verify = |log: &Path| {
        let mut verify = Command::new(env!("CARGO_BIN_EXE_secrets-broker"));
        verify.args(["audit", "verify", "-o", "json"]).arg(log).arg("--anchor").arg(log);
        let output = verify.output().expect("run the verification");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let log = log.expect("its log");
    let (code, report) = verify(&log);
    assert_eq!(code, Some(0), "{report}");
    // The same without one of the records.
    let text = fs::read_to_string(&log).expect("read the log");
    let is_record = |line: &&str| line.contains(r#""event":"decision""#);
    let gone = text.lines().find(is_record).expect("a record");
    let copy = NamedTempFile::new().expect("create a file");
    fs::write(copy.path(), text.replace(&format!("{gone}\n"), "")).expect("write the copy");
    let (code, report) = verify(copy.path());
    assert!(code == Some(1) && report.contains("dropped"), "{code:?} {report}");
}

/// The shell's blocks of a section, as many as the test knows.
fn shell<const N: usize>(text: &str, heading: &str) -> [String; N] {
    let found = blocks(section(text, heading), "sh");
    found.try_into().unwrap_or_else(|found| panic!("{heading}: not {N} blocks: {found:?}"))
}

/// What a cluster's DNS says of Vault's service.
fn cluster_dns(dir: &Path) -> Process {
    let mut command = Command::new("/usr/sbin/dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="]);
    command.args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--log-facility=-"]);
    // Another user's process would not end with this one.
    command.args(["--user=root", "--group=root"]);
    command.arg(format!("--listen-address={ADDRESS}"));
    command.arg(format!("--local=/{CLUSTER_DOMAIN}/"));
    command.arg(format!("--address=/{VAULT_SERVICE}.{CLUSTER_DOMAIN}/{ADDRESS}"));
    let mut process = Process::spawn("dnsmasq", &command, dir);
    process.wait_until(SOON, "answering", || TcpStream::connect((ADDRESS, 53)).is_ok());
    process
}
