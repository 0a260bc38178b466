//! The node's end: pods first, then what runs them, then what either left.

use std::thread;
use std::time::{Duration, Instant};
use std::{fs, process};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::containers::Containerd;
use super::{Node, SOON, mounts_under};

impl Drop for Node {
    /// Says what does not end as it should, and panics for it unless the test has failed already.
    fn drop(&mut self) {
        let mut problems = Vec::new();
        // Nobody makes new pods for those that go.
        self.control_plane.clear();
        // Volumes of the others may need the plugins that run as a DaemonSet to go away.
        problems.extend(self.end_pods("pods", |pod| !belongs_to_daemon_set(pod)));
        problems.extend(self.end_pods("pods of DaemonSets", |_| true));
        for (name, process) in
            [("kubelet", &mut self.kubelet), ("containerd", &mut self.containerd.process)]
        {
            process.signal(Signal::TERM);
            if process.exits_within(SOON).is_none() {
                problems.push(format!("{name} does not stop:\n{}", process.stderr()));
            }
        }
        problems.extend(end_shims());
        problems.extend(self.unmount_all());
        if !problems.is_empty() {
            let problems = problems.join("\n");
            eprintln!("the node did not end as it should: {problems}");
            assert!(thread::panicking(), "the node did not end as it should: {problems}");
        }
    }
}

impl Node {
    fn end_pods(&self, what: &str, these: fn(&Value) -> bool) -> Option<String> {
        let list = || -> Option<Vec<Value>> {
            let reply = self.kubernetes.send("GET", "api/v1/pods", &[], None).ok()?;
            let pods = reply.body["items"].as_array()?;
            Some(pods.iter().filter(|pod| these(pod)).cloned().collect())
        };
        for pod in list().unwrap_or_default() {
            let text = |key: &str| pod["metadata"][key].as_str().unwrap_or_default();
            let path = format!("api/v1/namespaces/{}/pods/{}", text("namespace"), text("name"));
            let soon = json!({ "gracePeriodSeconds": 1 });
            let _ = self.kubernetes.send("DELETE", &path, &[], Some(&soon));
        }
        let gone = within(SOON, || list().is_some_and(|pods| pods.is_empty()));
        let left = || format!("{what} do not go away: {:#?}\n{}", list(), self.kubelet.stderr());
        (!gone).then(left)
    }

    /// Everything at and under the kubelet's root and in containerd's state, root included.
    fn unmount_all(&self) -> Option<String> {
        let root = self.kubelet_root();
        let expected = [root.to_owned()];
        let places = [root, "/run/containerd".as_ref(), "/run/netns".as_ref()];
        let mounts: Vec<_> = places.into_iter().flat_map(mounts_under).collect();
        for mount in &mounts {
            let _ = unmount(mount, UnmountFlags::DETACH);
        }
        let left: Vec<_> = mounts.into_iter().filter(|mount| !expected.contains(mount)).collect();
        (!left.is_empty()).then(|| format!("mounts that pods left: {left:?}"))
    }
}

fn belongs_to_daemon_set(pod: &Value) -> bool {
    let owners = pod["metadata"]["ownerReferences"].as_array();
    owners.into_iter().flatten().any(|owner| owner["kind"] == "DaemonSet")
}

/// Containers outlive containerd: kills those of pods that did not go, and their shims.
fn end_shims() -> Option<String> {
    if within(Duration::from_secs(5), || Containerd::shims().is_empty()) {
        return None;
    }
    let shims = Containerd::shims();
    for shim in &shims {
        let children = format!("/proc/{shim}/task/{shim}/children");
        let children = fs::read_to_string(children).unwrap_or_default();
        children.split_whitespace().filter_map(|id| id.parse().ok()).for_each(kill);
        kill(*shim);
    }
    Some(format!("shims outlived their pods: {shims:?}"))
}

fn kill(id: u32) {
    assert_ne!(id, process::id(), "a shim's child is not this process");
    let id = i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id");
    // It may have ended by now.
    let _ = kill_process(id, Signal::KILL);
}

fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
}
