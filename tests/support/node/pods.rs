//! Pods: their state, their output, commands in their containers, their end.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::{Node, SOON};

impl Node {
    pub fn pod(&self, namespace: &str, name: &str) -> Value {
        let path = pod_path(namespace, name);
        self.get(&path).unwrap_or_else(|| panic!("{path} does not exist"))
    }

    /// Waits until all containers of the pod are ready.
    pub fn wait_until_ready(&self, namespace: &str, name: &str) -> Value {
        self.wait(&pod_path(namespace, name), SOON, "ready", |pod| {
            self.assert_not_ended(pod, &["Failed", "Succeeded"]);
            let conditions = pod["status"]["conditions"].as_array();
            conditions
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        })
    }

    /// Waits until all containers of the pod have ended with 0.
    pub fn wait_until_succeeded(&self, namespace: &str, name: &str) -> Value {
        self.wait(&pod_path(namespace, name), SOON, "succeeded", |pod| {
            self.assert_not_ended(pod, &["Failed"]);
            pod["status"]["phase"] == "Succeeded"
        })
    }

    /// What the container's current run has written so far, both streams in order; empty before it
    /// starts.
    pub fn pod_log(&self, namespace: &str, pod: &str, container: &str) -> String {
        self.pod_log_file(namespace, pod, container).map_or_else(String::new, |file| {
            plain_log(&fs::read_to_string(file).expect("read the pod's log"))
        })
    }

    /// The file of that, which goes away with the pod; `plain_log` reads its format.
    pub fn pod_log_file(&self, namespace: &str, pod: &str, container: &str) -> Option<PathBuf> {
        let uid = self.pod(namespace, pod)["metadata"]["uid"].as_str().expect("a uid").to_owned();
        let runs = format!("/var/log/pods/{namespace}_{pod}_{uid}/{container}");
        let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u32>().ok();
        let files = fs::read_dir(runs).into_iter().flatten().flatten().map(|entry| entry.path());
        files.filter(|path| number(path).is_some()).max_by_key(number)
    }

    /// Runs a command in a running container, as its user and with its limits.
    pub fn exec(&self, namespace: &str, pod: &str, container: &str, command: &[&str]) -> Output {
        self.exec_in(&self.container_id(namespace, pod, container), command)
    }

    /// The same by the container's id, which needs no API server.
    pub fn exec_in(&self, container: &str, command: &[&str]) -> Output {
        static RUN: AtomicU32 = AtomicU32::new(0);
        let exec = format!("exec-{}", RUN.fetch_add(1, Ordering::Relaxed));
        self.containerd.exec(container, &exec, command)
    }

    /// The first process of a container that runs, as the tests see it: `/proc/<it>/root` is what
    /// the container sees.
    pub fn container_process(&self, namespace: &str, pod: &str, container: &str) -> Option<u32> {
        let id = self.running_id(namespace, pod, container)?;
        let processes = fs::read_dir("/proc").expect("read /proc").flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let read = |process: u32, file: &str| {
            fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default()
        };
        // Before all that it or an `exec` started; a process id says nothing of that.
        ids.filter(|process| read(*process, "cgroup").contains(&id)).min_by_key(|process| {
            let stat = read(*process, "stat");
            let after_name = stat.rsplit(')').next().unwrap_or_default();
            let started = after_name.split_whitespace().nth(19);
            started.and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(u64::MAX)
        })
    }

    /// The id that is also in the container's cgroup path.
    pub fn container_id(&self, namespace: &str, pod: &str, container: &str) -> String {
        let id = self.running_id(namespace, pod, container);
        id.unwrap_or_else(|| panic!("{pod} has no running container {container}"))
    }

    fn running_id(&self, namespace: &str, pod: &str, container: &str) -> Option<String> {
        let status = &self.pod(namespace, pod)["status"];
        let containers = status["containerStatuses"].as_array().into_iter().flatten();
        let mut found = containers.filter(|status| status["name"] == container);
        let id = found.next().and_then(|status| status["containerID"].as_str())?;
        Some(id.trim_start_matches("containerd://").to_owned())
    }

    /// Deletes the pod, with the time it has to end by itself, and waits until it is gone.
    pub fn delete_pod(&self, namespace: &str, name: &str) {
        self.delete(&pod_path(namespace, name));
    }

    /// A pod that has ended never becomes what a test waits for.
    fn assert_not_ended(&self, pod: &Value, ends: &[&str]) {
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        if !ends.contains(&phase) {
            return;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
        let (namespace, name) = (text(namespace), text(name));
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        let logs = containers.map(|container| {
            let container = text(&container["name"]);
            format!("{container} said:\n{}", self.pod_log(&namespace, &name, &container))
        });
        let logs: Vec<_> = logs.collect();
        let states = &pod["status"]["containerStatuses"];
        panic!("{name} is {phase}: {states:#}\n{}", logs.join("\n"));
    }
}

fn pod_path(namespace: &str, name: &str) -> String {
    format!("api/v1/namespaces/{namespace}/pods/{name}")
}

/// The text of a log in the runtime interface's format: "time stream F|P text".
pub fn plain_log(log: &str) -> String {
    let mut text = String::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ').skip(2);
        let whole = fields.next() == Some("F");
        text += fields.next().unwrap_or_default();
        if whole {
            text.push('\n');
        }
    }
    text
}
