//! What the sockets tell about the whole agent: status, leases and explanations.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use http::StatusCode;
use serde_json::value::RawValue;

use super::reload::{ReloadHandle, SharedReloadState};
use super::suppose::Doors;
use super::{SharedSources, clocks};
use crate::audit::Audit;
use crate::broker::report::Report;
use crate::broker::{Broker, ReadError, ResolveError};
use crate::clock::BootInstant;
use crate::delivery::csi::DriverState;
use crate::delivery::socket::{NodeDoor, OperatorApi, Refusal, Viewer};
use crate::domain::{
    EngineKind, LoginIdentity, Mount, SecretRef, SourceName, Spelling, VolumeName,
};
use crate::identity::pods::{DirectoryState, PodDirectory};
use crate::identity::{Identity, ProofStrength};
use crate::policy::{Policy, Who};
use crate::source::local::LocalSource;
use crate::status::{Access, ExplainView, Facts, StatusView, VolumeBoard, VolumeStatus};
use crate::telemetry::Metrics;

/// Everything status is made of.
pub(super) struct Operators {
    pub broker: Broker,
    pub policy: Policy,
    pub audit: Audit,
    pub board: VolumeBoard,
    pub sources: SharedSources,
    pub local: BTreeMap<SourceName, Arc<LocalSource>>,
    pub directory: PodDirectory,
    pub csi: DriverState,
    pub node_door: Option<Arc<NodeDoor>>,
    pub doors: Doors,
    pub metrics: Metrics,
    pub default_source: SourceName,
    pub volumes: Vec<VolumeName>,
    pub started_at: BootInstant,
    pub protections: Vec<String>,
    pub reload: SharedReloadState,
    pub reloads: ReloadHandle,
}

#[async_trait]
impl OperatorApi for Operators {
    /// Ready means "can serve", not "Vault is reachable": the sockets are bound before this runs,
    /// but for those of the kubelet.
    fn ready(&self) -> Result<(), String> {
        if !self.audit.is_healthy() {
            return Err("the audit log does not take records, so nothing new is served".to_owned());
        }
        match self.csi.waits_for() {
            Some(what) => Err(format!("the kubelet is not served, waiting for {what}")),
            None => Ok(()),
        }
    }

    fn pod_directory(&self) -> DirectoryState {
        self.directory.state()
    }

    fn unlock(&self, pod: &str) -> Result<usize, Refusal> {
        let missing = "there is no node socket, so no pod is locked out; see [sockets.node]";
        let door = self.node_door.as_ref();
        let door = door.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, missing))?;
        let unlocked = door.unlock(pod, BootInstant::now());
        if unlocked > 0 {
            super::lifecycle(&self.audit, &format!("pod {pod} unlocked by an operator"));
        }
        Ok(unlocked)
    }

    async fn status(&self, viewer: &Viewer) -> Result<Box<RawValue>, Refusal> {
        let (report, volumes) = self.seen_by(viewer).await?;
        to_json(&StatusView::new(&report, &volumes, &self.facts_for(viewer)))
    }

    async fn leases(&self, viewer: &Viewer) -> Result<Box<RawValue>, Refusal> {
        let (mut report, _) = self.seen_by(viewer).await?;
        report.secrets.retain(|secret| secret.lease.is_some());
        let view = StatusView::new(&report, &[], &self.facts_for(viewer));
        to_json(&BTreeMap::from([("leases", &view.secrets)]))
    }

    async fn explain(
        &self,
        viewer: &Viewer,
        path: &str,
        as_id: Option<&str>,
    ) -> Result<Box<RawValue>, Refusal> {
        let (report, volumes) = self.seen_by(viewer).await?;
        let secret = self.secret(path, viewer, &report).await?;
        let identities = match (viewer, as_id) {
            (Viewer::Caller(identity), _) => vec![(identity.to_string(), identity.clone())],
            (Viewer::Operator, Some(id)) => {
                let supposed = self.doors.supposed(id, &self.directory);
                supposed.map_err(|error| Refusal::bad_request(error.to_string()))?
            }
            (Viewer::Operator, None) => self.known_identities(),
        };
        let access = |(who, identity): (String, Identity)| self.access(who, &identity, &secret);
        let mut access: Vec<Access> = identities.into_iter().map(access).collect();
        if let Viewer::Caller(_) = viewer {
            // Which rules there are is the operators'.
            access.iter_mut().for_each(|access| (access.rule, access.reason) = (None, None));
        }
        to_json(&ExplainView::new(&secret, &report, &volumes, access, &self.facts_for(viewer)))
    }

    async fn reload(&self, accept: bool) -> Result<Box<RawValue>, Refusal> {
        let busy = "the agent is stopping, or several operators have it reload already";
        let view = self.reloads.reload(accept).await;
        to_json(&view.ok_or_else(|| Refusal::unavailable(busy, 1))?)
    }
}

impl Operators {
    async fn seen_by(&self, viewer: &Viewer) -> Result<(Report, Vec<VolumeStatus>), Refusal> {
        let mut report = self.broker.report().await.map_err(busy)?;
        let Viewer::Caller(identity) = viewer else {
            report.limits.extend(self.metrics.limits());
            return Ok((report, self.board.all()));
        };
        let consumer = identity.consumer().clone();
        report.sessions.clear();
        report.limits.clear();
        report.secrets.retain(|secret| {
            secret.consumers.contains(&consumer) || secret.consumer.as_ref() == Some(&consumer)
        });
        for secret in &mut report.secrets {
            secret.consumers.retain(|other| *other == consumer);
        }
        // What went wrong last may have been somebody else's secret.
        for source in &mut report.sources {
            source.last_error = None;
        }
        Ok((report, Vec::new()))
    }

    /// What a workload may know of the agent: nothing of others, or of how the node is run.
    fn facts_for(&self, viewer: &Viewer) -> Facts {
        let facts = self.facts();
        match viewer {
            Viewer::Operator => facts,
            Viewer::Caller(_) => Facts {
                config_problem: None,
                policy_held: None,
                csi_waits_for: None,
                pod_directory: PodDirectory::none().state(),
                locked_out: Vec::new(),
                hardening: Vec::new(),
                notes: Vec::new(),
                ..facts
            },
        }
    }

    fn facts(&self) -> Facts {
        let (now, wall_now) = clocks();
        let reload = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
        let problems = self.local.iter().filter_map(|(name, local)| {
            Some(format!(
                "source {name}: the new file is bad, the old content stays: {}",
                local.problem()?
            ))
        });
        let generated = self.sources.iter().filter(|(_, source)| source.description().generated);
        let generated = generated.map(|(name, _)| {
            format!("source {name}: credentials are generated locally, honoured by no server")
        });
        let locked_out = self.node_door.as_ref().map(|door| door.locked_out(now));
        Facts {
            version: env!("CARGO_PKG_VERSION"),
            started_at: self.started_at,
            now,
            wall_now,
            instance: self.audit.instance().to_owned(),
            config_problem: reload.problem.clone(),
            policy_held: reload.held.clone(),
            csi_waits_for: self.csi.waits_for(),
            audit_healthy: self.audit.is_healthy(),
            sources: self
                .sources
                .iter()
                .map(|(name, source)| (name.clone(), source.description()))
                .collect(),
            pod_directory: self.directory.state(),
            locked_out: locked_out.unwrap_or_default(),
            hardening: self.protections.clone(),
            notes: problems.chain(generated).chain(reload.note.clone()).collect(),
        }
    }

    /// The canonical reference. In an outage a mount of kind `auto` may not be known yet: then
    /// whichever reading is cached is meant, else the path as it is written.
    async fn secret(
        &self,
        path: &str,
        viewer: &Viewer,
        report: &Report,
    ) -> Result<SecretRef, Refusal> {
        let (source, path) = self.source_and_path(path);
        let spelling: Spelling =
            path.parse().map_err(|error| Refusal::bad_request(format!("{error}")))?;
        // What a workload asks is asked in its own name.
        let login = match viewer {
            Viewer::Operator => LoginIdentity::Agent,
            Viewer::Caller(identity) => self.policy.probing_login(identity, &source),
        };
        let resolved = self.broker.resolve(&source, &login, &spelling).await;
        match resolved {
            Ok(secret) => Ok(secret),
            Err(ResolveError::Read(error @ ReadError::NoMount { .. })) => {
                Err(Refusal::new(StatusCode::NOT_FOUND, error.to_string()))
            }
            Err(ResolveError::Read(ReadError::Source { .. })) => {
                let located = self.sources.get(&source).and_then(|s| s.mount_of(&spelling.path));
                let as_kv2 = located.and_then(|mount| {
                    let kv2 = Mount { path: mount.path, kind: EngineKind::Kv2 };
                    spelling.canonical(&kv2).ok()
                });
                let reference = |path| SecretRef { source: source.clone(), path, version: None };
                let cached =
                    |secret: &SecretRef| report.secrets.iter().any(|s| s.secret == *secret);
                let as_kv2 = as_kv2.map(reference).filter(cached);
                Ok(as_kv2.unwrap_or_else(|| reference(spelling.path.clone())))
            }
            Err(ResolveError::Read(error)) => Err(busy(error)),
            Err(ResolveError::Spelling(error)) => Err(Refusal::bad_request(error.to_string())),
        }
    }

    /// `source:path` as status prints it, or a path of the default source.
    fn source_and_path<'a>(&self, text: &'a str) -> (SourceName, &'a str) {
        let named = text.split_once(':').and_then(|(name, path)| {
            let name: SourceName = name.parse().ok()?;
            self.sources.contains_key(&name).then_some((name, path))
        });
        named.unwrap_or_else(|| (self.default_source.clone(), text))
    }

    /// Everybody the configuration names: its volumes and the users in its grants.
    fn known_identities(&self) -> Vec<(String, Identity)> {
        let reload = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
        let users = reload.policy.grants.iter().filter_map(|grant| match grant.who {
            Who::User { uid } => Some(Identity::supposed_user(uid, &[], ProofStrength::PidFd)),
            _ => None,
        });
        let volumes = self.volumes.iter().cloned().map(Identity::declared_volume);
        let mut all: Vec<Identity> = volumes.chain(users).collect();
        all.sort();
        all.dedup();
        all.into_iter().map(|identity| (identity.to_string(), identity)).collect()
    }

    fn access(&self, who: String, identity: &Identity, secret: &SecretRef) -> Access {
        match self.policy.authorize(identity, secret, BootInstant::now()) {
            Ok(authorized) => Access {
                who,
                allowed: true,
                rule: Some(authorized.rule().to_string()),
                reason: None,
            },
            Err(denied) => Access {
                who,
                allowed: false,
                rule: denied.rule.as_ref().map(ToString::to_string),
                reason: Some(denied.reason),
            },
        }
    }
}

fn busy(error: ReadError) -> Refusal {
    Refusal::unavailable(error.to_string(), 1)
}

fn to_json(view: &impl serde::Serialize) -> Result<Box<RawValue>, Refusal> {
    serde_json::value::to_raw_value(view).map_err(|_| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the view could not be written as JSON")
    })
}
