//! `[csi]`: the driver for pods' volumes, and how their tokens are judged.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::document::Section;
use crate::config::settings::{AgentConfig, CsiSettings, MounterPlace};
use crate::config::sources::Sources;
use crate::delivery::csi::CsiConfig;
use crate::domain::CsiDriverName;
use crate::identity::token::{Algorithm, ApiServer, Expectations, KeySource, Verification};
use crate::mounter::TmpfsSize;

/// What a driver is called if nothing else is configured.
const DRIVER: &str = "csi.secrets-broker.io";

/// `None` without `[csi]`, with `enabled = false`, or after a problem.
pub(super) fn read(
    root: &Section,
    sources: &Sources,
    agent: &AgentConfig,
    forbid_grace: Duration,
) -> Option<CsiSettings> {
    let section = root.section("csi");
    let enabled = section.boolean("enabled", false);
    let driver = driver(&section);
    let kubelet_root = section.get("kubelet_root").map_or_else(
        || "/var/lib/kubelet".parse().ok(),
        |field| field.parsed("write the kubelet's --root-dir"),
    );
    let node = match enabled {
        true => section.require("node", "write for example node = \"${NODE_NAME}\""),
        false => section.get("node"),
    };
    let node = node.and_then(|field| field.parsed("write the node's name as Kubernetes has it"));
    let source = sources.of(&section);
    let audience =
        section.get("audience").map_or_else(|| Some("vault".to_owned()), |field| non_empty(&field));
    let tenant_roles = section.get("tenant_roles").map_or_else(Vec::new, |field| {
        let remedy = "write for example \"{namespace}-*\"";
        field.elements().iter().filter_map(|one| one.parsed(remedy)).collect()
    });
    let state_dir = section.path("state_dir", &agent.runtime_dir.join("csi").to_string_lossy());
    let volume_size = volume_size(&section);
    let volume_bytes_total = section.size("volume_bytes_total", 256 << 20);
    if let Some(size) = volume_size.filter(|size| size.bytes() > volume_bytes_total) {
        let message = format!("is less than one volume's size ({} bytes)", size.bytes());
        section.problem_at("volume_bytes_total", message, "raise it, or lower volume_size");
    }
    let publish_timeout = section.positive_duration("publish_timeout", Duration::from_secs(30));
    let retire_grace = section.duration("retire_grace", Duration::from_secs(30));
    let mounter = mounter(&section);
    let verification = verification(&section, &state_dir);
    let issuers = issuers(&section);
    let algorithms = algorithms(&section);
    section.finish();
    if !enabled {
        return None;
    }
    let (node, audience): (crate::domain::NodeName, String) = (node?, audience?);
    let expectations =
        Expectations { issuers, audience: audience.clone(), algorithms, node: node.clone() };
    let driver = CsiConfig {
        driver: driver?,
        kubelet_root: kubelet_root?,
        node,
        source: source?,
        audience,
        tenant_roles,
        state_dir,
        volume_size: volume_size?,
        volume_bytes_total,
        publish_timeout,
        forbid_grace,
        retire_grace,
    };
    Some(CsiSettings { driver, expectations, verification: verification?, mounter })
}

fn driver(section: &Section) -> Option<CsiDriverName> {
    match section.get("driver") {
        Some(field) => field.parsed("write a domain name, as in the CSIDriver object"),
        None => DRIVER.parse().ok(),
    }
}

fn non_empty(field: &crate::config::field::Field) -> Option<String> {
    let text = |text: &str| if text.is_empty() { Err("is empty") } else { Ok(text.to_owned()) };
    field.convert(text, "write the text, or remove the key")
}

fn volume_size(section: &Section) -> Option<TmpfsSize> {
    let bytes = section.size("volume_size", 1 << 20);
    let inodes = u64::from(section.count("volume_inodes", 512));
    match TmpfsSize::new(bytes, inodes) {
        Ok(size) => Some(size),
        Err(error) => {
            let name = if section.has("volume_size") { "volume_size" } else { "volume_inodes" };
            section.problem_at(name, error.to_string(), "write a number within the bounds");
            None
        }
    }
}

fn mounter(section: &Section) -> MounterPlace {
    match section.get("mounter_socket").and_then(|field| field.absolute_path()) {
        Some(socket) => MounterPlace::Socket(socket),
        None => MounterPlace::InProcess,
    }
}

fn verification(section: &Section, state_dir: &std::path::Path) -> Option<Verification> {
    let review = section.choice("verify", false, &[("keys", false), ("tokenreview", true)]);
    let server = api_server(section);
    let file = section.get("keys_file").map(|field| field.absolute_path());
    if review {
        if let Some(field) = section.get("keys_file") {
            field.problem("keys_file has no effect with verify = \"tokenreview\"", "remove it");
        }
        return Some(Verification::TokenReview(server?));
    }
    Some(Verification::Keys(match file {
        Some(file) => {
            let remedy = "write the API server's --service-account-issuer: beside the keys in a \
                          file nothing says whose tokens they are";
            section.require("issuers", remedy);
            KeySource::File(file?)
        }
        None => KeySource::ApiServer { server: server?, directory: state_dir.join("keys") },
    }))
}

/// The pod's own by default.
pub(super) fn api_server(section: &Section) -> Option<ApiServer> {
    let Some(address) = section.get("api_server") else { return Some(ApiServer::InCluster) };
    let path = |name: &'static str, remedy: &str| -> Option<PathBuf> {
        section.require(name, remedy)?.absolute_path()
    };
    let ca_file = path("api_server_ca_file", "name the CA that signed its certificate");
    let token_file = path("api_server_token_file", "name a service-account token for it");
    let address = non_empty(&address)?;
    Some(ApiServer::At { address, ca_file: ca_file?, token_file: token_file? })
}

fn issuers(section: &Section) -> Vec<String> {
    let Some(field) = section.get("issuers") else { return Vec::new() };
    let elements = field.elements();
    if elements.is_empty() {
        field.problem("names no issuer", "name one, or leave issuers out");
    }
    elements.iter().filter_map(non_empty).collect()
}

fn algorithms(section: &Section) -> Vec<Algorithm> {
    let Some(field) = section.get("algorithms") else { return Algorithm::ALL.to_vec() };
    let elements = field.elements();
    if elements.is_empty() {
        field.problem("no algorithm is accepted, so no token is", "name one, or remove the key");
    }
    elements.iter().filter_map(|one| one.parsed("write RS256, ES256, ES384 or ES512")).collect()
}
