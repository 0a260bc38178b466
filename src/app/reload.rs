//! Reload: a changed configuration file or SIGHUP puts new policy in force; a bad file changes
//! nothing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{compile, lifecycle};
use crate::audit::Audit;
use crate::config::Config;
use crate::policy::{Policy, PolicyConfig};
use crate::service_manager::ServiceManager;
use crate::watch::FileWatcher;

/// What status says about the configuration file.
#[derive(Default)]
pub(super) struct ReloadState {
    /// Why the newest file is not in force.
    pub problem: Option<String>,
    /// What of it waits for a restart.
    pub note: Option<String>,
    /// The policy in force since the last reload; `None` is the one from the start.
    pub policy: Option<PolicyConfig>,
}

/// Shared with status.
pub(super) type SharedReloadState = Arc<Mutex<ReloadState>>;

/// Follows the configuration file.
pub(super) struct Reloader {
    file: Option<PathBuf>,
    policy: Policy,
    audit: Audit,
    running: String,
    manager: ServiceManager,
    state: SharedReloadState,
}

/// Everything but the policy, as text to compare: it takes effect at the next start.
pub(super) fn fingerprint(config: &Config) -> String {
    let Config { agent, sources, default_source, broker, sockets, socket_limits, audit, .. } =
        config;
    let (volumes, csi) = (&config.volumes, &config.csi);
    format!(
        "{agent:?}{sources:?}{default_source}{broker:?}{sockets:?}{socket_limits:?}{audit:?}\
         {volumes:?}{csi:?}"
    )
}

impl Reloader {
    pub(super) fn new(
        file: Option<PathBuf>,
        policy: Policy,
        audit: Audit,
        running: String,
        manager: ServiceManager,
    ) -> Self {
        Self { file, policy, audit, running, manager, state: SharedReloadState::default() }
    }

    pub(super) fn state(&self) -> SharedReloadState {
        Arc::clone(&self.state)
    }

    /// Runs until the intake stops. Without a file only SIGHUP is listened to, for the audit log.
    pub(super) async fn run(self, intake: CancellationToken) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut watcher = self.file.as_deref().map(FileWatcher::new);
        loop {
            let changed = async {
                match &mut watcher {
                    Some(watcher) => watcher.changed().await,
                    None => std::future::pending().await,
                }
            };
            // Both waits are cancel-safe: an unseen change or signal stays pending.
            tokio::select! {
                () = intake.cancelled() => return Ok(()),
                _ = hangup.recv() => self.audit.reopen(),
                () = changed => {}
            }
            self.manager.reload(|| self.reload());
        }
    }

    /// One line on how it went.
    fn reload(&self) -> &'static str {
        let Some(file) = &self.file else { return "serving" };
        let outcome = Config::load(file).map_err(|error| error.to_string()).and_then(|config| {
            let compiled = compile(&config.policy).map_err(|error| format!("{error:#}"))?;
            Ok((config, compiled))
        });
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok((config, compiled)) => {
                state.problem = None;
                state.note = (fingerprint(&config) != self.running).then(|| {
                    "the configuration file changed outside [policy] and [[grants]]: \
                     restart the agent to put that in force"
                        .to_owned()
                });
                state.policy = Some(config.policy);
                self.policy.replace(compiled);
                tracing::info!("configuration reloaded: policy is in force");
                lifecycle(&self.audit, "policy reloaded by");
                "serving; policy reloaded"
            }
            Err(problem) => {
                tracing::error!(%problem, "the new configuration is bad; the old one stays");
                state.problem = Some(problem);
                "serving; the new configuration is bad, the old one stays"
            }
        }
    }
}
