//! Cgroups of containers where a kubelet would make them, for processes that a test starts in them.
//! Only inside of `tests/node/isolated`, which removes what is below `kubepods` at the end. Include
//! it with `#[path = "support/pod_cgroups.rs"]`.
#![allow(dead_code, reason = "each user compiles this and uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kubelet's root in each hierarchy, for `cgroup_root`.
pub const ROOT: &str = "/kubepods";
const CONTAINER: &str = "4f3c0e6c2f7b8d9e0a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef";

/// The cgroup v2 hierarchy, which places processes.
pub fn placing() -> PathBuf {
    mounted(|line| line.fs_type == "cgroup2").expect("a cgroup v2 hierarchy is mounted")
}

/// The hierarchy that counts memory.
pub fn counting_memory() -> PathBuf {
    let v1 = |options: &str| options.split(',').any(|option| option == "memory");
    mounted(|line| line.fs_type == "cgroup" && v1(&line.super_options)).unwrap_or_else(placing)
}

fn mounted(wanted: impl Fn(&secrets_broker::mountinfo::MountLine) -> bool) -> Option<PathBuf> {
    let mounts = secrets_broker::mountinfo::read().expect("read the mount table");
    let whole = mounts.into_iter().filter(|line| line.root == Path::new("/"));
    whole.filter(wanted).map(|line| line.mount_point).next()
}

/// The cgroup of the pod's one container, made if it is missing.
pub fn container(hierarchy: &Path, uid: &str) -> PathBuf {
    let directory = hierarchy.join(format!("kubepods/burstable/pod{uid}/{CONTAINER}"));
    fs::create_dir_all(&directory).expect("make a cgroup");
    directory
}

/// The same command, run by a process that has entered these cgroups.
pub fn inside(cgroups: &[PathBuf], command: &Command) -> Command {
    let enter = |cgroup: &PathBuf| format!("echo 0 >'{}/cgroup.procs' && ", cgroup.display());
    let script = cgroups.iter().map(enter).collect::<String>() + "exec \"$@\"";
    let mut inside = Command::new("sh");
    inside.args(["-c", &script, "sh"]);
    inside.arg(command.get_program()).args(command.get_args());
    inside
}
