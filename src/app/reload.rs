//! Reload: a changed configuration file, SIGHUP or an operator puts new policy in force. A bad file
//! changes nothing; a policy that would take secrets from many volumes waits for an operator.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::impact::Impact;
use super::loss::{is_kept, loss, may_mint};
use super::{SharedSources, compile, lifecycle};
use crate::audit::Audit;
use crate::config::Config;
use crate::policy::{CompiledPolicy, Policy, PolicyConfig};
use crate::service_manager::ServiceManager;
use crate::status::{ReloadOutcome, ReloadView, VolumeBoard};
use crate::telemetry::{Hits, Metrics};
use crate::watch::FileWatcher;

/// Operators that may wait for a reload at once.
const REQUESTS_MAX: usize = 4;

/// What status says about the configuration file.
pub(super) struct ReloadState {
    /// Why the newest file is not in force.
    pub problem: Option<String>,
    /// What its policy would take away, if it is held.
    pub held: Option<String>,
    /// What of it waits for a restart.
    pub note: Option<String>,
    /// The policy in force.
    pub policy: PolicyConfig,
}

/// Shared with status.
pub(super) type SharedReloadState = Arc<Mutex<ReloadState>>;

/// An operator's wish to have the file read now.
struct Request {
    accept: bool,
    reply: oneshot::Sender<ReloadView>,
}

/// Asks the task that reloads.
#[derive(Clone)]
pub(super) struct ReloadHandle {
    requests: mpsc::Sender<Request>,
    refused: Hits,
}

impl ReloadHandle {
    /// Has the queue shown in status and metrics; call once per process.
    fn watched(requests: mpsc::Sender<Request>, metrics: &Metrics) -> Self {
        let refused = Hits::default();
        metrics.watch_queue("reload_queue", &requests, &refused);
        Self { requests, refused }
    }

    /// Has the file read now; `accept` puts its policy in force whatever it takes away. `None` if
    /// the agent is stopping or others wait already.
    pub(super) async fn reload(&self, accept: bool) -> Option<ReloadView> {
        let (reply, answer) = oneshot::channel();
        if let Err(error) = self.requests.try_send(Request { accept, reply }) {
            self.refused.count_full(&error);
            return None;
        }
        answer.await.ok()
    }
}

/// What reloading works with.
pub(super) struct Deps {
    pub policy: Policy,
    pub audit: Audit,
    pub board: VolumeBoard,
    pub sources: SharedSources,
    pub metrics: Metrics,
    pub manager: ServiceManager,
}

/// Follows the configuration file.
pub(super) struct Reloader {
    file: Option<PathBuf>,
    deps: Deps,
    running: String,
    state: SharedReloadState,
    requests: mpsc::Receiver<Request>,
    handle: ReloadHandle,
}

/// Everything but the policy, as text to compare: it takes effect at the next start.
pub(super) fn fingerprint(config: &Config) -> String {
    let Config { agent, sources, default_source, broker, sockets, socket_limits, audit, .. } =
        config;
    let (volumes, csi, placement, pods) =
        (&config.volumes, &config.csi, &config.placement, &config.pods);
    format!(
        "{agent:?}{sources:?}{default_source}{broker:?}{sockets:?}{socket_limits:?}{audit:?}\
         {volumes:?}{csi:?}{placement:?}{pods:?}"
    )
}

impl Reloader {
    /// `running` is the fingerprint of the configuration that runs, `policy` its policy.
    pub(super) fn new(
        file: Option<PathBuf>,
        running: String,
        policy: PolicyConfig,
        deps: Deps,
    ) -> Self {
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let state = ReloadState { problem: None, held: None, note: None, policy };
        let handle = ReloadHandle::watched(sender, &deps.metrics);
        let state = Arc::new(Mutex::new(state));
        Self { file, deps, running, state, requests, handle }
    }

    pub(super) fn state(&self) -> SharedReloadState {
        Arc::clone(&self.state)
    }

    pub(super) fn handle(&self) -> ReloadHandle {
        self.handle.clone()
    }

    /// Runs until the intake stops. Without a file only SIGHUP is listened to, for the audit log.
    pub(super) async fn run(mut self, intake: CancellationToken) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut watcher = self.file.as_deref().map(FileWatcher::new);
        loop {
            let changed = async {
                match &mut watcher {
                    Some(watcher) => watcher.changed().await,
                    None => std::future::pending().await,
                }
            };
            let mut request = None;
            // Every wait is cancel-safe: an unseen change, signal or request stays pending.
            tokio::select! {
                () = intake.cancelled() => return Ok(()),
                _ = hangup.recv() => self.deps.audit.reopen(),
                () = changed => {}
                asked = self.requests.recv() => request = asked,
            }
            let accept = request.as_ref().is_some_and(|request| request.accept);
            let mut view = None;
            self.deps.manager.reload(|| {
                let done = self.reload(accept);
                let line = status_line(done.outcome);
                view = Some(done);
                line
            });
            if let (Some(Request { reply, .. }), Some(view)) = (request, view) {
                // Who asked may be gone.
                let _ = reply.send(view);
            }
        }
    }

    fn reload(&self, accept: bool) -> ReloadView {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let percent = state.policy.hold_percent;
        let Some(file) = &self.file else {
            return ReloadView::without_losses(ReloadOutcome::NoFile, percent);
        };
        let outcome = Config::load(file).map_err(|error| error.to_string()).and_then(|config| {
            let compiled = compile(&config.policy).map_err(|error| format!("{error:#}"))?;
            Ok((config, compiled))
        });
        // Whatever was held was the policy of an earlier file.
        let was_held = state.held.take().is_some();
        self.deps.metrics.policy_held_volumes.set(0);
        self.deps.metrics.config_refused.set(i64::from(outcome.is_err()));
        match outcome {
            Ok((config, compiled)) => {
                state.problem = None;
                state.note = (fingerprint(&config) != self.running).then(|| {
                    "the configuration file changed outside [policy] and [[grants]]: \
                     restart the agent to put that in force"
                        .to_owned()
                });
                let view = self.judge(&compiled, accept, percent);
                let view = ReloadView { note: state.note.clone(), ..view };
                if view.outcome == ReloadOutcome::Held {
                    self.hold(&mut state, &view);
                } else {
                    self.put_in_force(&mut state, config.policy, compiled, accept && was_held);
                }
                view
            }
            Err(problem) => {
                tracing::error!(%problem, "the new configuration is bad; the old one stays");
                state.problem = Some(problem.clone());
                let view = ReloadView::without_losses(ReloadOutcome::Refused, percent);
                ReloadView { problem: Some(problem), ..view }
            }
        }
    }

    /// The share that holds a change is the one in force, not the change's own.
    fn judge(&self, proposed: &CompiledPolicy, accept: bool, percent: u32) -> ReloadView {
        let policy = &self.deps.policy;
        let impact = Impact::of(
            &self.deps.board.interests(),
            |identity, secret| is_kept(policy, identity, secret),
            |identity, secret| {
                loss(policy, proposed, identity, secret, may_mint(&self.deps.sources, secret))
            },
        );
        let held = !accept && impact.is_too_much(percent);
        let outcome = if held { ReloadOutcome::Held } else { ReloadOutcome::InForce };
        ReloadView {
            volumes: impact.volumes,
            volumes_hit: impact.volumes_hit,
            losses: impact.views(),
            ..ReloadView::without_losses(outcome, percent)
        }
    }

    fn hold(&self, state: &mut ReloadState, view: &ReloadView) {
        let summary = view.held_summary();
        tracing::error!(impact = %summary, "the changed policy is held; the old one stays");
        lifecycle(&self.deps.audit, &format!("changed policy held ({summary}) by"));
        let volumes = i64::try_from(view.volumes_hit).unwrap_or(i64::MAX);
        self.deps.metrics.policy_held_volumes.set(volumes);
        state.held = Some(summary);
    }

    fn put_in_force(
        &self,
        state: &mut ReloadState,
        config: PolicyConfig,
        compiled: CompiledPolicy,
        was_accepted: bool,
    ) {
        state.policy = config;
        self.deps.policy.replace(compiled);
        tracing::info!("configuration reloaded: policy is in force");
        let what = if was_accepted { "held policy accepted by an operator, " } else { "policy " };
        lifecycle(&self.deps.audit, &format!("{what}reloaded by"));
    }
}

/// What the service manager shows.
fn status_line(outcome: ReloadOutcome) -> &'static str {
    match outcome {
        ReloadOutcome::InForce => "serving; policy reloaded",
        ReloadOutcome::Held => "serving; the changed policy is held: secrets-broker reload",
        ReloadOutcome::Refused => "serving; the new configuration is bad, the old one stays",
        ReloadOutcome::NoFile => "serving",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use futures_util::FutureExt;

    use crate::telemetry::Limit;

    #[tokio::test]
    async fn operators_beyond_the_queue_are_refused_and_counted() {
        let (sender, _requests) = mpsc::channel(REQUESTS_MAX);
        let metrics = Metrics::new();
        let handle = ReloadHandle::watched(sender, &metrics);
        for _ in 0..REQUESTS_MAX {
            assert!(handle.reload(false).now_or_never().is_none(), "nobody reloads");
        }
        assert!(handle.reload(true).now_or_never().is_some_and(|view| view.is_none()));
        let full = Limit::shared("reload_queue", REQUESTS_MAX, REQUESTS_MAX, 1);
        assert_eq!(metrics.limits(), [full]);
    }
}
