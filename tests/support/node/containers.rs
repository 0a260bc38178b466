//! containerd with runc, a bridge for pods, and images that come from files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use serde_json::json;

use super::super::process::Process;
use super::super::server_program;
use super::image::{self, File};
use super::{BUSYBOX, SOON, run};

/// Its socket; `/run` is the node's own.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// Where the container runtime interface keeps what is Kubernetes'.
const NAMESPACE: &str = "k8s.io";
/// Only the first layer of a container is ever needed, and every file system can copy.
const SNAPSHOTTER: &str = "native";
/// Where Debian puts the network plugins.
const PLUGINS: &str = "/usr/lib/cni";
const POD_RANGE: &str = "10.88.0.0/16";

pub struct Containerd {
    pub process: Process,
    dir: PathBuf,
}

impl Containerd {
    /// Starts it, waits until it answers, and imports the image of pods' sandboxes.
    pub fn start(node: &Path) -> Containerd {
        let dir = node.join("containerd");
        fs::create_dir_all(dir.join("net.d")).expect("create containerd's directory");
        write_network(&dir);
        let config = dir.join("config.toml");
        fs::write(&config, configuration(&dir)).expect("write containerd's configuration");
        let mut command = Command::new(server_program("containerd"));
        command.arg("--config").arg(config);
        put_programs_first(&mut command);
        let mut process = Process::spawn("containerd", &command, node);
        process.wait_until(SOON, "answering ctr", || {
            ctr(&["version"]).output().is_ok_and(|output| output.status.success())
        });
        let containerd = Containerd { process, dir };
        containerd.import(BUSYBOX, &[]);
        containerd
    }

    /// Makes an image of a busybox and these files under this reference.
    pub fn import(&self, reference: &str, files: &[File]) {
        let archive = image::write_archive(&self.dir, reference, files);
        let archive_path = archive.path().to_str().expect("a readable path");
        let how = ["images", "import", "--local", "--snapshotter", SNAPSHOTTER];
        run(&mut ctr(&[&how[..], &[archive_path]].concat()));
    }

    /// Runs a command in a running container as the container's user.
    pub fn exec(&self, container: &str, exec: &str, command: &[&str]) -> Output {
        let how = ["tasks", "exec", "--exec-id", exec, container];
        ctr(&[&how[..], command].concat()).output().expect("run ctr")
    }

    /// The process ids of shims, which outlive containerd.
    pub fn shims() -> Vec<u32> {
        let processes = fs::read_dir("/proc").expect("read /proc").flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_shim = |id: &u32| {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
            let name = words.next().unwrap_or_default();
            name.ends_with("/containerd-shim-runc-v2") && words.any(|word| word == SOCKET)
        };
        ids.filter(is_shim).collect()
    }
}

/// The programs that `tests/servers/build` made come before the distribution's.
pub fn put_programs_first(command: &mut Command) {
    let own = server_program("runc").parent().map(Path::to_owned).expect("a directory");
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let all = std::iter::once(own).chain(env::split_paths(&path)).chain(system);
    command.env("PATH", env::join_paths(all).expect("a PATH of readable directories"));
}

fn ctr(arguments: &[&str]) -> Command {
    let mut command = Command::new(server_program("ctr"));
    command.args(["--address", SOCKET, "--namespace", NAMESPACE]).args(arguments);
    // It would warn of old cgroups amid what a command in a container says.
    command.env("CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "true");
    command
}

fn configuration(dir: &Path) -> String {
    let (root, networks) = (dir.join("root"), dir.join("net.d"));
    format!(
        r#"
version = 3
root = {root:?}
state = "/run/containerd"

[grpc]
address = {SOCKET:?}

[plugins.'io.containerd.cri.v1.images']
snapshotter = {SNAPSHOTTER:?}

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = {BUSYBOX:?}

[plugins.'io.containerd.cri.v1.runtime']
# Without the capability to lower it, as in a container, no sandbox would start.
restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [{PLUGINS:?}]
conf_dir = {networks:?}

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
"#
    )
}

/// Pods get an address each on a bridge that is also the way to the node.
fn write_network(dir: &Path) {
    assert!(Path::new(PLUGINS).join("bridge").exists(), "run tests/servers/build cni");
    let network = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "pods0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": dir.join("addresses"),
                "ranges": [[{ "subnet": POD_RANGE }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    });
    let file = dir.join("net.d/10-pods.conflist");
    fs::write(file, network.to_string()).expect("write the network's configuration");
}
