//! The doors that are not for pods: the kubelet's two and the operators', knocked at by root in a
//! pod.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use crate::cluster::Pod;
use crate::pod_cgroups::{container, counting_memory, inside, placing};
use crate::pod_node::PodNode;
use crate::support::process::eventually;
use crate::{LIMIT, csi_driver, with_secrets};

/// Names a socket to the process that is to knock at it.
const DOOR: &str = "SECRETS_BROKER_TEST_DOOR";
/// How HTTP/2 begins: the preface and settings of no entries, which a server answers with its own.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
const HTTP1: &[u8] = b"GET /agent/v1/status HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// What a socket answers to this, or nothing if it closes at once.
fn knock(door: &Path) -> String {
    let mut stream = UnixStream::connect(door).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("set a time-out");
    let is_operators = door.ends_with("operator.sock");
    // Who is refused may find the connection closed already.
    let _ = stream.write_all(if is_operators { HTTP1 } else { HTTP2 });
    let mut reply = [0; 64];
    let length = match stream.read(&mut reply) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
        read => read.expect("a reply or the end"),
    };
    match &reply[..length] {
        [] => "nothing".to_owned(),
        text if is_operators => String::from_utf8_lossy(text).lines().next().unwrap_or("").into(),
        // The fourth byte of a frame is its type.
        [_, _, _, 4, ..] => "settings".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Not a test by itself: the process that knocks, where its parent put it.
#[test]
fn knocks() {
    if let Some(door) = std::env::var_os(DOOR) {
        println!("ANSWER {}", knock(Path::new(&door)));
    }
}

/// The same by a process in this pod's cgroups.
fn knock_from(pod: &str, door: &Path) -> String {
    let cgroups = [placing(), counting_memory()].map(|hierarchy| container(&hierarchy, pod));
    let mut knocks = Command::new(std::env::current_exe().expect("this program has a path"));
    knocks.args(["doors::knocks", "--exact", "--nocapture"]);
    let mut knocks = inside(&cgroups, &knocks);
    let output = knocks.env(DOOR, door).output().expect("run this program");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer = text.lines().find_map(|line| line.split_once("ANSWER "));
    answer.unwrap_or_else(|| panic!("no answer: {text}")).1.to_owned()
}

#[test]
fn root_in_a_pod_is_neither_the_kubelet_nor_an_operator() {
    let (_dir, config) = with_secrets();
    let node = PodNode::start("info", &config);
    let kubelet = node.kubelet();
    let csi = csi_driver::socket(&kubelet);
    // The last one to be there.
    let registration = kubelet.join("plugins_registry/csi.secrets-broker.io@reg.sock");
    eventually(LIMIT / 10, "the registration socket", || registration.exists());
    let operator = node.agent.operator_socket();
    let pod = Pod::new("shop", "web-0", "web");
    for (door, own, refused) in [
        (&csi, "settings", "nothing"),
        (&registration, "settings", "nothing"),
        (&operator, "HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden"),
    ] {
        assert_eq!(knock(door), own, "{}", door.display());
        let from_pod = knock_from(&pod.uid, door);
        assert_eq!(from_pod, refused, "{}", door.display());
        // The agent's own container: `kubectl exec` gets the operators' socket and no other.
        let from_agent = knock_from(&node.uid, door);
        let expected = if *door == operator { own } else { refused };
        assert_eq!(from_agent, expected, "{}", door.display());
    }
    let log = node.agent.process.stderr();
    assert!(log.contains("a caller of the CSI socket is not the kubelet"), "{log}");
}
