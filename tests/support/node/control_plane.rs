//! kube-controller-manager and kube-scheduler, with the rights that Kubernetes gives them.

use std::path::Path;
use std::process::Command;

use super::super::kubernetes::{Kubernetes, User};
use super::super::process::Process;
use super::super::server_program;

/// What pods, DaemonSets and Deployments on one node need.
const CONTROLLERS: [&str; 10] = [
    "daemonset-controller",
    "deployment-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "taint-eviction-controller",
];

/// Starts both; they are ready when the node is.
pub fn start(kubernetes: &Kubernetes, dir: &Path) -> Vec<Process> {
    let mut controllers = program("kube-controller-manager", kubernetes, User::ControllerManager);
    let flag = |name: &str, file: &Path| format!("--{name}={}", file.display());
    controllers.args([
        format!("--controllers={}", CONTROLLERS.join(",")),
        flag("service-account-private-key-file", &kubernetes.service_account_key()),
        flag("root-ca-file", &kubernetes.ca_file),
        // Each controller then has the rights of its own role.
        "--use-service-account-credentials=true".to_owned(),
    ]);
    let scheduler = program("kube-scheduler", kubernetes, User::Scheduler);
    vec![
        Process::spawn("kube-controller-manager", &controllers, dir),
        Process::spawn("kube-scheduler", &scheduler, dir),
    ]
}

fn program(name: &str, kubernetes: &Kubernetes, user: User) -> Command {
    let mut command = Command::new(server_program(name));
    command.arg("--kubeconfig").arg(kubernetes.kubeconfig(user));
    command.args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
    command
}
