//! A node that is suspended, a frozen cgroup, a debugger: processes that are stopped and go on.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::Pod;
use crate::pod_node::PodNode;
use crate::support::process::{Process, eventually};
use crate::{LIMIT, runtime, with_secrets};

/// Whether a thread of the process is in this system call.
fn is_in(process: &Process, call: libc::c_long) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("list threads");
    let current = |path| fs::read_to_string(path).unwrap_or_default();
    let number = |text: String| text.split(' ').next().and_then(|number| number.parse().ok());
    threads.flatten().any(|thread| number(current(thread.path().join("syscall"))) == Some(call))
}

fn state(process: &Process) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("its status");
    status.lines().find(|line| line.starts_with("State:")).expect("a state").to_owned()
}

#[test]
fn an_agent_that_is_stopped_while_it_waits_for_its_mounter_goes_on_waiting() {
    let (_dir, config) = with_secrets();
    let node = PodNode::start("info", &config);
    let pod = Pod::new("shop", "web-0", "web");
    runtime().block_on(async {
        let driver = node.driver().await;
        let attributes = [("secret", "secret/shop/web#token")];
        let publish = driver.publish(&pod, "secrets", &attributes);
        let pause = async {
            let agent = &node.agent.process;
            node.mounter.signal(Signal::STOP);
            // The call goes out meanwhile.
            tokio::time::sleep(Duration::from_millis(50)).await;
            eventually(LIMIT / 10, "it waits", || is_in(agent, libc::SYS_recvmsg));
            agent.signal(Signal::STOP);
            eventually(LIMIT / 10, "it is stopped", || state(agent).contains("stopped"));
            agent.signal(Signal::CONT);
            eventually(LIMIT / 10, "it waits again", || is_in(agent, libc::SYS_recvmsg));
            node.mounter.signal(Signal::CONT);
        };
        let (published, ()) = tokio::join!(publish, pause);
        published.expect("nothing was wrong but the time it took");
    });
    let file = fs::read_to_string(node.target(&pod, "secrets").join("token"));
    assert_eq!(file.expect("the secret's file"), "s3cr3t");
}
