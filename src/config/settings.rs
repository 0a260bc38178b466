//! The validated configuration: plain data that the modules it is for take over as it is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::broker::settings::Settings;
use crate::config::Problem;
use crate::domain::{PathPattern, RuleName, SourceName, Spelling, VolumeName};
use crate::identity::ProofStrength;
use crate::policy::Share;
use crate::source::vault::VaultConfig;

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
    pub sockets: SocketsConfig,
    /// The sockets' part of `[limits]`.
    pub socket_limits: SocketLimits,
    /// `[audit]`.
    pub audit: AuditSettings,
    /// `[policy]` and `[[grants]]`.
    pub policy: PolicySettings,
    /// `[[volumes]]`, in the order they are written.
    pub volumes: Vec<VolumeSettings>,
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

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
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

/// `[sockets]`.
#[derive(Debug)]
pub struct SocketsConfig {
    /// The operator socket.
    pub operator: OperatorSocket,
    /// The host socket.
    pub host: HostSocket,
}

/// `[sockets.operator]`. Its directory is always 0700.
#[derive(Debug)]
pub struct OperatorSocket {
    /// Where it is bound.
    pub path: PathBuf,
}

/// `[sockets.host]`.
#[derive(Debug)]
pub struct HostSocket {
    /// Whether there is one.
    pub enabled: bool,
    /// Where it is bound.
    pub path: PathBuf,
    /// Its mode; connecting needs the write bit.
    pub mode: u32,
    /// Its group; `None` leaves the agent's own.
    pub gid: Option<u32>,
}

/// The sockets' part of `[limits]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketLimits {
    /// Connections open at once, per socket.
    pub connections: usize,
    /// Connections of one user open at once, per socket.
    pub connections_per_user: usize,
    /// Requests of one user per second, with a burst of the same size.
    pub requests_per_second_per_user: u32,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// How long a client may take to send a request's head.
    pub header_timeout: Duration,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// How long a client may take to read a reply.
    pub write_timeout: Duration,
}

/// `[audit]`.
#[derive(Debug, PartialEq, Eq)]
pub struct AuditSettings {
    /// Where records go.
    pub output: AuditOutput,
    /// One record per read instead of summaries.
    pub per_read: bool,
}

/// Where audit records go.
#[derive(Debug, PartialEq, Eq)]
pub enum AuditOutput {
    /// Standard output; logs go to standard error.
    Stdout,
    /// A file that is appended to.
    File(PathBuf),
}

/// `[policy]` and `[[grants]]`.
#[derive(Debug)]
pub struct PolicySettings {
    /// The rules, in the order they are written.
    pub grants: Vec<GrantSettings>,
    /// More rules in Cedar's own language.
    pub cedar: Option<CedarFile>,
    /// How long a decision holds at most before it is made again.
    pub recheck: Duration,
}

/// A file of Cedar policies, already read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CedarFile {
    /// The file's name, for messages.
    pub name: String,
    /// Its content.
    pub text: String,
}

/// `[[grants]]`.
#[derive(Debug)]
pub struct GrantSettings {
    /// The rule's name, unique.
    pub name: RuleName,
    /// Whether it allows or forbids.
    pub effect: Effect,
    /// Whom it is about.
    pub who: WhoSettings,
    /// The source its paths are in.
    pub source: SourceName,
    /// API paths, at least one.
    pub paths: Vec<PathPattern>,
    /// Whose a dynamic credential is.
    pub share: Share,
    /// The weakest proof of identity it accepts.
    pub min_proof: ProofStrength,
    /// A Cedar condition.
    pub when: Option<String>,
}

/// Whether a rule allows or forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Allows, unless another rule forbids.
    Permit,
    /// Forbids, whatever other rules allow.
    Forbid,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhoSettings {
    /// Processes of this user of the host.
    User {
        /// The user.
        uid: u32,
    },
    /// Processes with this group among theirs.
    Group {
        /// The group.
        gid: u32,
    },
    /// A declared volume.
    Volume(VolumeName),
    /// Every user of the host.
    AnyHostUser,
}

/// `[[volumes]]`.
#[derive(Debug)]
pub struct VolumeSettings {
    /// Its name, unique.
    pub name: VolumeName,
    /// Where applications find it: absolute, normalised.
    pub path: PathBuf,
    /// What it lies on.
    pub backing: Backing,
    /// Owner and mode of files that say nothing else, `..status.json` among them.
    pub defaults: FileOwnership,
    /// Its items, at least one.
    pub items: Vec<ItemSettings>,
    /// What happens to a file past `max_stale`.
    pub on_stale: OnProblem,
    /// What happens to a file whose secret the source denies.
    pub on_denied: OnProblem,
    /// What happens to a file whose secret is no longer there.
    pub on_gone: OnProblem,
    /// How long files outlive a local rule that forbids them.
    pub forbid_grace: Duration,
    /// How long the previous revision is kept for readers that have it open.
    pub retire_grace: Duration,
    /// What is told about a new revision.
    pub on_change: Option<OnChange>,
    /// How long changes are collected before that.
    pub on_change_batch: Duration,
}

/// What a volume lies on.
#[derive(Debug, PartialEq, Eq)]
pub enum Backing {
    /// A tmpfs of its own, mounted by the agent.
    OwnTmpfs {
        /// Its bound.
        size_bytes: u64,
        /// Its bound on files and directories.
        inodes: u64,
        /// Mode of the volume's directory.
        directory_mode: u32,
    },
    /// A directory that is already on tmpfs: no privilege is needed.
    ExistingTmpfs,
}

/// Owner and mode of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileOwnership {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// `[[volumes.items]]`.
#[derive(Debug)]
pub struct ItemSettings {
    /// The source of all its secrets.
    pub source: SourceName,
    /// What is written where.
    pub content: ItemContent,
    /// Owner and mode of its files, the volume's defaults applied.
    pub ownership: FileOwnership,
}

/// What an item writes.
#[derive(Debug, PartialEq, Eq)]
pub enum ItemContent {
    /// A file per key, named as the key.
    EveryKey {
        /// The secret, without a key.
        secret: Spelling,
    },
    /// All keys in one file.
    Whole {
        /// The secret, without a key.
        secret: Spelling,
        /// The file's name.
        file: String,
        /// How keys and values are written.
        format: Format,
    },
    /// One key's value, as it is.
    Value {
        /// The secret with its key.
        secret: Spelling,
        /// The file's name.
        file: String,
    },
    /// Keys of several secrets in one file.
    Composed {
        /// Name in the file and the secret with its key.
        keys: BTreeMap<String, Spelling>,
        /// The file's name.
        file: String,
        /// How keys and values are written.
        format: Format,
    },
}

/// How keys and values are written into one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON object; values keep their types.
    Json,
    /// `KEY="value"` lines.
    Dotenv,
    /// A YAML mapping.
    Yaml,
    /// Java properties.
    Properties,
    /// The bytes as they are.
    Raw,
}

/// What happens to a file that can no longer be kept current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnProblem {
    /// It stays, marked in status and `..status.json`.
    Keep,
    /// It is overwritten and removed.
    Remove,
}

/// What is told about a new revision.
#[derive(Debug, PartialEq, Eq)]
pub enum OnChange {
    /// `systemctl reload` of this unit.
    SystemdReload(String),
    /// A signal to the process a file names.
    Signal {
        /// Its name without `SIG`: `HUP`.
        signal: String,
        /// The file with the process id.
        pid_file: PathBuf,
    },
    /// A program with its arguments; no shell.
    Command(Vec<String>),
}
