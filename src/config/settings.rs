//! The validated configuration: plain data that the modules it is for take over as it is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::audit::AuditConfig;
use crate::broker::settings::Settings;
use crate::config::Problem;
use crate::delivery::csi::CsiConfig;
use crate::delivery::files::DeclaredVolume;
use crate::delivery::socket::{Limits, SocketConfig};
use crate::domain::{PodUid, SourceName};
use crate::identity::pods::WatchedNode;
use crate::identity::token::{Expectations, Verification};
use crate::policy::PolicyConfig;
use crate::source::vault::VaultConfig;
use crate::telemetry::LogFormat;

/// A configuration that passed every check.
#[derive(Debug)]
pub struct Config {
    /// `[agent]`.
    pub agent: AgentConfig,
    /// `[encryption]`: the key that opens `ENC:` values.
    pub encryption: Option<KeySource>,
    /// `[sources.*]`, at least one.
    pub sources: BTreeMap<SourceName, SourceConfig>,
    /// The source that items, grants and sockets mean when they name none.
    pub default_source: SourceName,
    /// `[cache]` and the cache's part of `[limits]`.
    pub broker: Settings,
    /// `[sockets]`.
    pub sockets: SocketConfig,
    /// The sockets' part of `[limits]`.
    pub socket_limits: Limits,
    /// `[audit]`.
    pub audit: AuditConfig,
    /// `[policy]` and `[[grants]]`.
    pub policy: PolicyConfig,
    /// `[[volumes]]`, in the order they are written.
    pub volumes: Vec<DeclaredVolume>,
    /// `[csi]`, when it is enabled.
    pub csi: Option<CsiSettings>,
    /// `[placement]`, when the agent knows its own pod.
    pub placement: Option<PlacementSettings>,
    /// `[pods]`, unless there is no directory.
    pub pods: Option<WatchedNode>,
    /// What does not stop the agent but deserves a look; `check-config` prints it, `run` logs it.
    pub warnings: Vec<Problem>,
}

/// `[agent]`.
#[derive(Debug)]
pub struct AgentConfig {
    /// Where the agent keeps what lives as long as it does.
    pub runtime_dir: PathBuf,
    /// The least level that is logged, or a `tracing` filter directive.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// How long a stop may take before tasks are aborted.
    pub stop_grace: Duration,
}

/// Where a 32-byte AES key, 64 hex digits, comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file that holds the hex digits.
    File(PathBuf),
    /// The environment variable of this name.
    Variable(String),
}

/// `[sources.NAME]`.
#[derive(Debug)]
pub enum SourceConfig {
    /// `kind = "vault"`.
    Vault(VaultConfig),
    /// `kind = "local"`.
    Local(LocalSettings),
}

/// A local source.
#[derive(Debug)]
pub struct LocalSettings {
    /// The TOML file.
    pub file: PathBuf,
    /// Its own key, else `[encryption]`'s; `None` when there is neither.
    pub key: Option<KeySource>,
}

/// `[csi]`.
#[derive(Debug, Clone)]
pub struct CsiSettings {
    /// The driver.
    pub driver: CsiConfig,
    /// What a pod's token must say.
    pub expectations: Expectations,
    /// Who judges its signature.
    pub verification: Verification,
    /// Who mounts.
    pub mounter: MounterPlace,
}

/// `[placement]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementSettings {
    /// The pod the agent itself runs in.
    pub pod: PodUid,
    /// The kubelet's cgroup root, where it cannot be learned from the agent's own.
    pub cgroup_root: Option<String>,
}

/// Where the privileged half is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MounterPlace {
    /// In this process, which needs the right to mount.
    InProcess,
    /// A process of its own, `secrets-broker mounter`, listening on this socket.
    Socket(PathBuf),
}
