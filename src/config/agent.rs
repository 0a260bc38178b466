//! `[agent]`, `[sockets]`, `[audit]` and the sockets' part of `[limits]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::audit::{AuditConfig, Output};
use crate::config::accounts;
use crate::config::document::Section;
use crate::config::node_socket;
use crate::config::settings::AgentConfig;
use crate::delivery::socket::{HostSocket, Limits, OperatorSocket, SocketConfig};
use crate::telemetry::LogFormat;

/// The log levels.
const LEVELS: [(&str, &str); 5] = [
    ("trace", "trace"),
    ("debug", "debug"),
    ("info", "info"),
    ("warn", "warn"),
    ("error", "error"),
];
/// Where metrics are, unless another port is configured.
const METRICS_PORT: u16 = 9102;
/// The longest path that fits a socket address, without its final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

pub(super) fn agent(root: &Section) -> AgentConfig {
    let section = root.section("agent");
    let config = AgentConfig {
        runtime_dir: section.path("runtime_dir", "/run/secrets-broker"),
        log: section.choice("log", "info", &LEVELS).to_owned(),
        log_format: section.choice("log_format", LogFormat::Text, &LogFormat::NAMES),
        stop_grace: section.positive_duration("stop_grace", Duration::from_secs(20)),
    };
    section.finish();
    config
}

/// Paths that are not given lie in the runtime directory.
pub(super) fn sockets(root: &Section, runtime_dir: &Path) -> SocketConfig {
    let section = root.section("sockets");
    let operator = section.section("operator");
    let operator_default = runtime_dir.join("operator/operator.sock");
    let operator_path = operator.path("path", &operator_default.to_string_lossy());
    operator.finish();

    let host = section.section("host");
    let enabled = host.boolean("enabled", true);
    let host_path = host.path("path", &runtime_dir.join("broker.sock").to_string_lossy());
    let mode = host.mode("mode", 0o666, 0o777);
    let gid = host.get("group").and_then(|field| accounts::group(&field));
    if operator_path.parent() == host_path.parent() {
        let message =
            "the host socket lies in the operator socket's directory, which only root may enter";
        host.problem_at("path", message, "give it another directory");
    }
    host.finish();
    let node_section = section.section("node");
    let taken = [operator_path.as_path(), host_path.as_path()];
    let node = node_socket::read(&node_section, runtime_dir, &taken);
    let node_path = node.as_ref().map(|node| (&node.path, &node_section));
    let all = [(&operator_path, &operator), (&host_path, &host)].into_iter().chain(node_path);
    for (path, section) in all {
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let message =
                format!("a socket's path cannot be longer than {SOCKET_PATH_BYTES_MAX} bytes");
            section.problem_at("path", message, "use a shorter path or runtime_dir");
        }
    }
    let metrics = metrics(&section.section("metrics"));
    section.finish();
    SocketConfig {
        operator: OperatorSocket { path: operator_path },
        host: HostSocket { enabled, path: host_path, mode, gid },
        node,
        metrics,
    }
}

/// `None` while it is not enabled, or after a problem.
fn metrics(section: &Section) -> Option<SocketAddr> {
    let enabled = section.boolean("enabled", false);
    let address = section.get("address").map_or(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), |field| {
        field.parsed("write an IP address of this host, or \"0.0.0.0\" for all of them")
    });
    let port = section.count("port", METRICS_PORT.into());
    let port = u16::try_from(port).ok();
    if port.is_none() {
        section.problem_at("port", "a port is at most 65535", "write another port");
    }
    section.finish();
    Some(SocketAddr::new(address?, port?)).filter(|_| enabled)
}

pub(super) fn audit(root: &Section) -> AuditConfig {
    let section = root.section("audit");
    let default = AuditConfig::default();
    let file = |name, otherwise: &str| {
        let field = section.get(name)?;
        let remedy = format!("write {otherwise:?}, or the absolute path of a file");
        if field.text()? == otherwise {
            return None;
        }
        field.convert(crate::config::values::absolute_path, &remedy)
    };
    let output = file("output", "stdout").map_or(Output::Stdout, Output::File);
    let anchor = file("anchor", "log");
    if let (Output::File(log), Some(anchor)) = (&output, &anchor)
        && log.parent() == anchor.parent()
    {
        let message =
            "the anchor lies in the directory of the log: who can change one can change both";
        section.problem_at("anchor", message, "give it another directory, best on another device");
    }
    let config = AuditConfig {
        output,
        per_read: section.boolean("per_read", default.per_read),
        anchor,
        anchor_interval: section.positive_duration("anchor_interval", default.anchor_interval),
        lines_per_second_per_caller: section
            .count("lines_per_second_per_caller", default.lines_per_second_per_caller),
    };
    section.finish();
    config
}

/// Reads the sockets' keys of `[limits]`.
pub(super) fn socket_limits(limits: &Section) -> Limits {
    let bytes = |name, default| usize::try_from(limits.size(name, default)).unwrap_or(usize::MAX);
    let count = |name, default| limits.count(name, default) as usize;
    let time = |name, default| limits.positive_duration(name, Duration::from_secs(default));
    let socket_limits = Limits {
        connections: count("connections", 512),
        connections_per_user: count("connections_per_user", 128),
        requests_per_second_per_user: limits.count("requests_per_second_per_user", 5000),
        header_bytes: bytes("request_header_bytes", 16 * 1024),
        body_bytes: bytes("request_body_bytes", 64 * 1024),
        header_timeout: time("request_header_timeout", 5),
        idle_timeout: time("idle_timeout", 60),
        write_timeout: time("write_timeout", 10),
    };
    if socket_limits.connections_per_user > socket_limits.connections {
        let message = format!(
            "connections_per_user ({}) is more than connections ({})",
            socket_limits.connections_per_user, socket_limits.connections
        );
        limits.problem_at(
            "connections_per_user",
            message,
            "lower connections_per_user or raise connections",
        );
    }
    if socket_limits.header_bytes < 8 * 1024 {
        let message = "request_header_bytes is below 8KiB, which the HTTP library needs";
        limits.problem_at("request_header_bytes", message, "write \"8KiB\" or more");
    }
    socket_limits
}
