//! The local source: a TOML file with values in clear or encrypted, and generated credentials.
//!
//! It answers as Vault would (KV 1, KV 2, a database engine), so nothing above can tell. The file
//! is checked and every encrypted value opened when it is loaded; a bad new file leaves the last
//! good one in force and [`LocalSource::problem`] says so.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::content::{Content, Current};
use self::file::LocalFile;
use self::generated::Ledger;
use self::read::Stamp;
use super::{
    ConfiguredMount, ErrorClass, Fetched, LeaseTerms, Login, Source, SourceDescription,
    SourceError, TokenGrant, TokenKind,
};
use crate::clock::BootInstant;
use crate::domain::{
    EngineKind, LeaseId, LoginIdentity, Mount, PathKind, SecretBytes, SecretPath, SecretRef, Token,
};
use crate::encryption::{EncryptionError, Key, KeyError};
use crate::watch::FileWatcher;

mod content;
mod file;
mod generated;
mod read;
#[cfg(test)]
mod tests;
mod value;

pub use file::FileProblem;

/// What Vault says about KV 1 secrets by default: its default lease TTL of 32 days, in seconds.
const KV1_LEASE_DURATION: u64 = 2_764_800;

/// A validated local source.
pub struct LocalConfig {
    /// The TOML file.
    pub file: PathBuf,
    /// The AES-256 key that opens `ENC:` values, if one is configured: 32 raw bytes, as
    /// [`Key::shared`] gives them.
    pub key: Option<Arc<SecretBytes>>,
}

/// Why the file could not be loaded. No message holds a value.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The file cannot be read.
    #[error("local file '{}' cannot be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is too big.
    #[error("local file '{}' is larger than 16 MiB", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// What the file says is wrong; every problem, in the order of the file.
    #[error("{}", list(file, problems))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// At least one.
        problems: Vec<FileProblem>,
    },
    /// The configured key is no key, or the process's own key could not be drawn.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A value could not be encrypted for keeping in memory.
    #[error("a secret of local file '{}' {problem}", file.display())]
    Keep {
        /// The file.
        file: PathBuf,
        /// Why.
        problem: EncryptionError,
    },
}

fn list(file: &std::path::Path, problems: &[FileProblem]) -> String {
    let line = |problem: &FileProblem| format!("{}:{problem}", file.display());
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A local source: the last good content of its file, and the leases it gave.
pub struct LocalSource {
    file: PathBuf,
    file_key: Option<Key>,
    /// Drawn at start; keeps the secrets encrypted while nobody asks for them.
    memory_key: Key,
    content: ArcSwap<Content>,
    /// Of the file that was read last.
    read: Mutex<Option<Stamp>>,
    problem: Mutex<Option<String>>,
    ledger: Mutex<Ledger>,
    changes: watch::Sender<u64>,
}

impl LocalSource {
    /// Reads and checks the file. [`LocalSource::follow`] keeps it current afterwards.
    pub fn open(config: LocalConfig) -> Result<Self, LocalError> {
        let source = Self {
            file: config.file,
            file_key: config.key.map(Key::from_shared).transpose()?,
            memory_key: Key::generate()?,
            content: ArcSwap::default(),
            read: Mutex::default(),
            problem: Mutex::default(),
            ledger: Mutex::default(),
            changes: watch::Sender::new(0),
        };
        if let Some(content) = source.load()? {
            source.content.store(Arc::new(content));
        }
        Ok(source)
    }

    /// Reloads the file whenever it changes, until `stop`. One task per source runs this.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut watcher = FileWatcher::new(&self.file);
        // The file may have changed between `open` and the watch.
        let mut due = self.is_out_of_date();
        loop {
            // Reading and decrypting thousands of values is no work for an async worker.
            let source = Arc::clone(&self);
            if due && tokio::task::spawn_blocking(move || source.reload()).await.is_err() {
                tracing::error!(file = %self.file.display(), "reloading the local file panicked");
            }
            due = true;
            tokio::select! {
                () = stop.cancelled() => return,
                // Cancel-safe, and nothing is lost when we are stopping anyway.
                () = watcher.changed() => {}
            }
        }
    }

    /// Reads the file again. A bad one changes nothing but [`LocalSource::problem`].
    pub fn reload(&self) {
        let file = self.file.display();
        let outcome = self.load();
        let problem = outcome.as_ref().err().map(|error| match error {
            LocalError::Read { source, .. } => {
                format!("{error}: {source}; the last good one is in force")
            }
            _ => format!("{error}; the last good one is in force"),
        });
        if let Some(problem) = &problem {
            tracing::warn!(%file, problem, "local file not taken");
        }
        *lock(&self.problem) = problem;
        if let Ok(Some(content)) = outcome {
            self.content.store(Arc::new(content));
            self.changes.send_modify(|generation| *generation += 1);
            tracing::info!(%file, "local file reloaded");
        }
    }

    /// Whether the file is another than the one that was read last. One that cannot be looked at
    /// is: reading it will tell why.
    fn is_out_of_date(&self) -> bool {
        let now = Stamp::of(&self.file);
        now.is_none() || now != *lock(&self.read)
    }

    /// What is wrong with the file as it is now, while an older state of it is in force.
    pub fn problem(&self) -> Option<String> {
        lock(&self.problem).clone()
    }

    /// The content the file calls for, `None` if that is what we have.
    fn load(&self) -> Result<Option<Content>, LocalError> {
        let read::Text { text, written_at, stamp } = read::read(&self.file)?;
        *lock(&self.read) = Some(stamp);
        let file = LocalFile::parse(&text, self.file_key.as_ref())
            .map_err(|problems| LocalError::Invalid { file: self.file.clone(), problems })?;
        self.content
            .load()
            .next(file, written_at, &self.memory_key)
            .map_err(|problem| LocalError::Keep { file: self.file.clone(), problem })
    }

    fn read_kv(&self, secret: &SecretRef, mount: &Mount) -> Result<Fetched, SourceError> {
        let found = self.content.load().current(&secret.path, &self.memory_key);
        let found = found.map_err(|error| {
            let message = format!("'{}' {error}", secret.path);
            SourceError::new(ErrorClass::Unreachable, message)
        })?;
        let current = found.ok_or_else(|| self.not_found(&secret.path, mount))?;
        let pinned = secret.version.map(std::num::NonZeroU64::get);
        match mount.kind {
            EngineKind::Kv2 if pinned.is_some_and(|version| version != current.version) => {
                Err(SourceError::new(
                    ErrorClass::NotFound,
                    format!(
                        "version {} of '{}' is not there: the local source keeps the current \
                         version only, {}",
                        pinned.unwrap_or_default(),
                        secret.path,
                        current.version
                    ),
                ))
            }
            EngineKind::Kv2 => Ok(Fetched {
                data: kv2_data(&current),
                version: Some(current.version),
                ..fetched(0)
            }),
            _ if pinned.is_some() => Err(SourceError::new(
                ErrorClass::InvalidRequest,
                format!("'{}' is on a KV 1 mount, which has no versions", secret.path),
            )),
            _ => Ok(Fetched { data: current.json, ..fetched(KV1_LEASE_DURATION) }),
        }
    }

    fn not_found(&self, path: &SecretPath, mount: &Mount) -> SourceError {
        let mut message = format!("no secret at '{path}' in '{}'", self.file.display());
        let below = path.below(&mount.path).unwrap_or_default();
        if mount.kind == EngineKind::Kv2 && !below.starts_with("data/") {
            message.push_str(": KV 2 secrets are read below 'data/'");
        }
        SourceError::new(ErrorClass::NotFound, message)
    }

    fn mint(&self, path: &SecretPath, token: &Token) -> Result<Fetched, SourceError> {
        let content = self.content.load();
        let role = content.roles.get(path).ok_or_else(|| self.unknown_role(path))?;
        let data = role.generate(path)?;
        let mut ledger = lock(&self.ledger);
        let session = ledger.session(token)?;
        let lease = ledger.issue(session, path, role, BootInstant::now())?;
        Ok(Fetched { data, lease: Some(lease), ..fetched(0) })
    }

    fn unknown_role(&self, path: &SecretPath) -> SourceError {
        let message = format!(
            "no role at '{path}' in '{}': roles are read at <mount>/creds/<role>",
            self.file.display()
        );
        SourceError::new(ErrorClass::InvalidRequest, message)
    }
}

#[async_trait]
impl Source for LocalSource {
    fn description(&self) -> SourceDescription {
        SourceDescription {
            kind: "local",
            address: self.file.display().to_string(),
            namespace: None,
            generated: self.content.load().generates(),
        }
    }

    fn mount_of(&self, path: &SecretPath) -> Option<ConfiguredMount> {
        let Mount { path, kind } = self.content.load().mount_of(path)?;
        Some(ConfiguredMount { path, kind: Some(kind) })
    }

    /// A local file knows no identities: whoever policy lets in reads as the agent.
    async fn login(
        &self,
        _identity: &LoginIdentity,
        _account_token: Option<&Token>,
    ) -> Result<Login, SourceError> {
        let token = lock(&self.ledger).open_session()?;
        let terms = TokenGrant { ttl: Duration::ZERO, renewable: false };
        Ok(Login { token, terms, kind: TokenKind::Service })
    }

    async fn renew_token(
        &self,
        token: &Token,
        _increment: Duration,
    ) -> Result<TokenGrant, SourceError> {
        lock(&self.ledger).session(token)?;
        let message = "a token of the local source does not expire and cannot be renewed";
        Err(SourceError::new(ErrorClass::InvalidRequest, message))
    }

    async fn end_session(&self, token: &Token) -> Result<(), SourceError> {
        let mut ledger = lock(&self.ledger);
        let session = ledger.session(token)?;
        ledger.end_session(session);
        Ok(())
    }

    async fn probe_mount(&self, token: &Token, path: &SecretPath) -> Result<Mount, SourceError> {
        lock(&self.ledger).session(token)?;
        self.content.load().mount_of(path).ok_or_else(|| self.no_mount(path))
    }

    async fn fetch(
        &self,
        token: &Token,
        secret: &SecretRef,
        _kind: PathKind,
    ) -> Result<Fetched, SourceError> {
        lock(&self.ledger).session(token)?;
        let mount = self.content.load().mount_of(&secret.path);
        let mount = mount.ok_or_else(|| self.no_mount(&secret.path))?;
        match mount.kind {
            EngineKind::Kv1 | EngineKind::Kv2 => self.read_kv(secret, &mount),
            EngineKind::Database | EngineKind::Other => self.mint(&secret.path, token),
        }
    }

    async fn renew_lease(
        &self,
        token: &Token,
        lease: &LeaseId,
        increment: Duration,
    ) -> Result<LeaseTerms, SourceError> {
        let now = BootInstant::now();
        let mut ledger = lock(&self.ledger);
        ledger.session(token)?;
        let path = ledger.path_of(lease, now)?;
        let content = self.content.load();
        let role = content.roles.get(&path).ok_or_else(|| self.unknown_role(&path))?;
        ledger.renew(lease, role, increment, now)
    }

    async fn revoke_lease(&self, token: &Token, lease: &LeaseId) -> Result<(), SourceError> {
        let mut ledger = lock(&self.ledger);
        ledger.session(token)?;
        ledger.revoke(lease, BootInstant::now());
        Ok(())
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.changes.subscribe())
    }
}

impl LocalSource {
    fn no_mount(&self, path: &SecretPath) -> SourceError {
        let message = format!("no mount in '{}' covers '{path}'", self.file.display());
        SourceError::new(ErrorClass::NotFound, message)
    }
}

/// A reply without content.
fn fetched(lease_duration_hint: u64) -> Fetched {
    Fetched {
        data: SecretBytes::new(Vec::new()),
        lease: None,
        lease_duration_hint,
        rotates_in: None,
        version: None,
        request_id: request_id(),
    }
}

/// KV 2's `data`: the secret and its metadata, in one allocation of exact size.
fn kv2_data(current: &Current) -> SecretBytes {
    let head = b"{\"data\":";
    let tail = format!(
        ",\"metadata\":{{\"created_time\":\"{}\",\"custom_metadata\":null,\"deletion_time\":\"\",\
         \"destroyed\":false,\"version\":{}}}}}",
        current.created_at, current.version
    );
    SecretBytes::new([head, current.json.expose(), tail.as_bytes()].concat())
}

/// A random UUID, as Vault gives every request one. Only for correlation, so any randomness does.
fn request_id() -> String {
    let bits = fastrand::u128(..);
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
