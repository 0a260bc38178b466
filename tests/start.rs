//! What others hear of a start: the service manager over its socket, a scraper over TCP.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use support::agent::Agent;
use support::process::{eventually, free_port};

const PATIENCE: Duration = Duration::from_secs(20);

const CONFIG: &str = r#"
[agent]
runtime_dir = "{dir}/run"
[sources.local]
kind = "local"
file = "{dir}/secrets.toml"
[[grants]]
name = "volume"
who = { volume = "web" }
paths = ["secret/data/**"]
[[volumes]]
name = "web"
path = "{dir}/volume"
tmpfs = "existing"
[[volumes.items]]
secret = "secret/web"
"#;

/// A directory on tmpfs with a local source that has not got the volume's secret yet.
fn playground() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    fs::create_dir(dir.path().join("volume")).expect("the volume's directory");
    write_secrets(dir.path(), "other");
    dir
}

fn write_secrets(dir: &Path, name: &str) {
    let secrets = format!("[mounts.secret.secrets]\n{name} = {{ token = \"t\" }}\n");
    fs::write(dir.join("secrets.toml"), secrets).expect("write the source");
}

#[test]
fn the_service_manager_hears_ready_after_the_first_fill_then_of_reload_and_stop() {
    let dir = playground();
    let address = dir.path().join("notify");
    let manager = UnixDatagram::bind(&address).expect("bind");
    manager.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    let hear = || {
        let mut message = [0; 1024];
        let length = manager.recv(&mut message).expect("a message in time");
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let variables = [("NOTIFY_SOCKET", address.as_os_str())];
    let mut agent = Agent::launch_with(dir.path(), CONFIG, &variables).wait_ready();
    eventually(PATIENCE, "the volume waits for its secret", || {
        agent.status()["volumes"][0]["items"][0]["problem"].is_object()
    });
    manager.set_nonblocking(true).expect("do not wait");
    assert!(manager.recv(&mut [0; 1024]).is_err(), "ready before there was a file");
    manager.set_nonblocking(false).expect("wait");

    write_secrets(dir.path(), "web");
    assert_eq!(hear(), "READY=1\nSTATUS=serving");
    assert!(dir.path().join("volume/token").exists(), "ready without the file");

    agent.process.signal(Signal::HUP);
    assert!(hear().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(hear(), "READY=1\nSTATUS=serving; policy reloaded");
    agent.stop();
    assert_eq!(hear(), "STOPPING=1\nSTATUS=stopping");
}

#[test]
fn the_port_answers_with_metrics_and_health_and_nothing_else() {
    let dir = playground();
    write_secrets(dir.path(), "web");
    let port = free_port();
    let metrics = format!("[sockets.metrics]\nenabled = true\nport = {port}\n");
    let _agent = Agent::start(dir.path(), &[CONFIG, &metrics].concat());
    let get = |method: &str, path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
        stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("ask");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer, then the end");
        answer
    };
    let answer = get("GET", "/agent/v1/metrics");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("secrets_broker_source_reachable{source=\"local\"} 1"), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
    for health in ["live", "ready"] {
        let answer = get("GET", &format!("/agent/v1/health/{health}"));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(health), "{answer}");
    }
    for (method, path) in [
        ("GET", "/v1/secret/data/web"),
        ("GET", "/agent/v1/status"),
        ("GET", "/agent/v1/leases"),
        ("GET", "/agent/v1/explain?path=secret/web"),
        ("POST", "/agent/v1/refresh"),
        ("POST", "/agent/v1/metrics"),
        ("GET", "/"),
    ] {
        let answer = get(method, path);
        assert!(answer.starts_with("HTTP/1.1 404"), "{method} {path}: {answer}");
    }
}

#[test]
fn connections_that_say_nothing_do_not_keep_a_scraper_out_for_long() {
    let dir = playground();
    write_secrets(dir.path(), "web");
    let port = free_port();
    let metrics = format!("[sockets.metrics]\nenabled = true\nport = {port}\n");
    let _agent = Agent::start(dir.path(), &[CONFIG, &metrics].concat());
    let connect = || TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    let silent: Vec<TcpStream> = (0..17).map(|_| connect()).collect();
    let mut scraper = connect();
    scraper.set_read_timeout(Some(Duration::from_secs(60))).expect("set a timeout");
    write!(scraper, "GET /agent/v1/health/live HTTP/1.1\r\nhost: x\r\n\r\n").expect("ask");
    let mut answer = String::new();
    scraper.read_to_string(&mut answer).expect("an answer while the others are still connected");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(silent);
}

/// An agent that only waits must not look as if the pods of its node got their volumes.
#[test]
fn an_agent_whose_driver_waits_for_the_mounter_is_not_ready_and_says_so() {
    let dir = playground();
    fs::create_dir_all(dir.path().join("kubelet/plugins/csi.secrets-broker.io")).expect("a place");
    fs::create_dir_all(dir.path().join("kubelet/plugins_registry")).expect("a place");
    fs::write(dir.path().join("keys.json"), r#"{"keys":[]}"#).expect("the cluster's keys");
    let csi = r#"
[csi]
enabled = true
node = "node-1"
kubelet_root = "{dir}/kubelet"
keys_file = "{dir}/keys.json"
issuers = ["https://kubernetes.default.svc"]
mounter_socket = "{dir}/mounter.sock"
"#;
    let agent = Agent::launch(dir.path(), &[CONFIG, csi].concat()).wait_live();
    let waits = "waiting for the mounter: ";
    eventually(PATIENCE, "it waits", || agent.status().to_string().contains(waits));
    let ready = agent.operator("GET", "/agent/v1/health/ready", None);
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains(waits), "{}", ready.body);
    let status = agent.status();
    assert_eq!(status["health"], "degraded", "{status:#}");
    let metrics = agent.operator("GET", "/agent/v1/metrics", None).body;
    assert!(metrics.contains("\nsecrets_broker_csi_waiting 1\n"), "{metrics}");
}
