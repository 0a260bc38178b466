//! The configuration file: TOML in, a validated [`Config`] or every problem at once out.
//!
//! | part | what it is |
//! |---|---|
//! | [`settings`] | the result: plain data |
//! | [`problem`] | what is wrong, where and how to fix it |
//! | [`document`], [`field`], [`defaults`], [`values`] | reading TOML, beyond the first error |
//! | the others | one section of the file each |

use std::io;
use std::path::Path;
use std::time::SystemTime;

mod accounts;
mod agent;
mod ca;
mod cache;
mod cases;
mod csi;
mod defaults;
mod document;
mod encrypted;
mod field;
mod grants;
mod items;
mod node_socket;
mod on_change;
mod placement;
mod pods;
mod problem;
mod settings;
mod sources;
mod values;
mod vault;
mod volumes;

pub use cases::{MountOf, cases};
pub use problem::{ConfigError, Problem};
pub use settings::{
    AgentConfig, Config, CsiSettings, KeySource, LocalSettings, MounterPlace, PlacementSettings,
    SourceConfig,
};

use document::Document;

use crate::policy::PolicyConfig;

/// What validation asks of the machine; tests answer instead of it.
pub struct Host<'a> {
    /// An environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// A file's content, for files that are checked: CA bundles, `/etc/passwd`, tokens.
    pub read: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
    /// Whether a file can be opened, for files whose content is not looked at here.
    pub open: &'a dyn Fn(&Path) -> io::Result<()>,
    /// The agent's own user and group, which own what names no other.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// The time certificates are judged by.
    pub now: SystemTime,
}

impl Host<'static> {
    /// This machine, now.
    pub fn this() -> Self {
        Self {
            variable: &|name| std::env::var(name).ok(),
            read: &|path| std::fs::read(path),
            open: &|path| std::fs::File::open(path).map(drop),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            now: SystemTime::now(),
        }
    }
}

impl Config {
    /// Reads and validates a file. Blocks on small file reads; nothing is changed or contacted.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text =
            read_text(path, &file, "name the file with --config, and let this user read it")?;
        Self::parse(&text, &file, &Host::this())
    }

    /// Reads and validates a file on another machine than its node's, to ask what it would decide:
    /// CA bundles, keys and local sources need not be there. Cedar rules and variables do.
    pub fn load_elsewhere(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let host = Host { open: &|_| Ok(()), ..Host::this() };
        let text = read_text(path, &file, "name the configuration with --config")?;
        Self::validate(Document::new(&file, &text, &host).elsewhere())
    }

    /// Validates a configuration's text; `file` is what problems call it.
    pub fn parse(text: &str, file: &str, host: &Host) -> Result<Self, ConfigError> {
        Self::validate(Document::new(file, text, host))
    }

    fn validate(document: Document) -> Result<Self, ConfigError> {
        let tree = document.parse();
        let config = tree.as_ref().and_then(|tree| read(&document, tree.get_ref()));
        let (problems, warnings) = document.finish();
        match config {
            Some(config) if problems.is_empty() => Ok(Self { warnings, ..config }),
            _ => Err(ConfigError { problems }),
        }
    }
}

fn read_text(path: &Path, file: &str, remedy: &str) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| {
        let message = format!("cannot read the configuration: {error}");
        let (file, key) = (file.to_owned(), String::new());
        let problem = Problem { file, line: 0, key, message, remedy: remedy.to_owned() };
        ConfigError { problems: vec![problem] }
    })
}

/// Reads every section, whatever is wrong with the others. `None` only after a problem was noted.
fn read<'a>(document: &'a Document<'a>, tree: &'a toml::de::DeTable<'a>) -> Option<Config> {
    let root = document.root(tree);
    encrypted::read(document, &root);
    let agent = agent::agent(&root);
    let sources = sources::read(document, &root);
    let limits = root.section("limits");
    let broker = cache::read(&root, &limits, &sources);
    let sockets = agent::sockets(&root, &agent.runtime_dir);
    let socket_limits = agent::socket_limits(&limits);
    limits.finish();
    let audit = agent::audit(&root);
    let (forbid_grace, policy) = grants::policy(&root, &sources);
    let csi = csi::read(&root, &sources, &agent, forbid_grace);
    let placement = placement::read(&root);
    let pods = pods::read(&root, csi.as_ref());
    let node = sockets.node.as_ref();
    node_socket::check(
        &root,
        &agent.runtime_dir,
        node,
        csi.as_ref(),
        placement.as_ref(),
        pods.as_ref(),
    );
    let host = document.host;
    let places = volumes::Surroundings::new(host, &agent, &sockets, forbid_grace);
    let volumes = volumes::read(&root, &sources, &places);
    let grants = grants::read(document, &root, &sources, &volumes, policy.cedar.is_some());
    root.finish();
    Some(Config {
        encryption: document.key().cloned(),
        default_source: sources.default?,
        sources: sources.configs,
        agent,
        broker,
        sockets,
        socket_limits,
        audit,
        policy: PolicyConfig {
            grants,
            knows_labels: pods.is_some(),
            node: csi.as_ref().map(|csi| csi.driver.node.clone()),
            ..policy
        },
        volumes: volumes.settings,
        csi,
        placement,
        pods,
        warnings: Vec::new(),
    })
}
