//! What tests of several deliveries stand on: a local source with a broker, policy and a server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use serde_json::value::RawValue;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::files;
use super::socket::{self, Limits, OperatorApi, Refusal, Server, SourceDirectory, Viewer, client};
use crate::audit::{Audit, AuditConfig, Output};
use crate::broker::settings::Settings;
use crate::broker::task::BrokerTask;
use crate::domain::{Pod, ServiceAccount, SourceName};
use crate::identity::ProofStrength;
use crate::identity::pods::{DirectoryPod, DirectoryState, PodDirectory};
use crate::identity::self_test::NodeProof;
use crate::policy::{
    CompiledPolicy, Effect, GrantConfig, GrantLogin, Policy, PolicyConfig, Share, Who,
};
use crate::source::SharedSource;
use crate::source::local::{LocalConfig, LocalSource};
use crate::status::VolumeBoard;
use crate::telemetry::Metrics;

const UID: &str = "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab";
const SECRETS: &str = r#"
[mounts.secret.secrets."shop/web"]
token = "t"
[mounts.secret.secrets."open/web"]
token = "o"
[mounts.database]
kind = "generated"
[mounts.database.roles.shop]
ttl = "1h"
max_ttl = "24h"
[mounts.database.roles.other]
ttl = "1h"
max_ttl = "24h"
"#;

/// Nobody asks it.
pub(super) struct NobodyAsks;

#[async_trait]
impl OperatorApi for NobodyAsks {
    fn ready(&self) -> Result<(), String> {
        unreachable!()
    }

    fn pod_directory(&self) -> DirectoryState {
        unreachable!()
    }

    async fn status(&self, _: &Viewer) -> Result<Box<RawValue>, Refusal> {
        unreachable!()
    }

    async fn leases(&self, _: &Viewer) -> Result<Box<RawValue>, Refusal> {
        unreachable!()
    }

    async fn explain(
        &self,
        _: &Viewer,
        _: &str,
        _: Option<&str>,
    ) -> Result<Box<RawValue>, Refusal> {
        unreachable!()
    }

    async fn reload(&self, _: bool) -> Result<Box<RawValue>, Refusal> {
        unreachable!()
    }

    fn unlock(&self, _: &str) -> Result<usize, Refusal> {
        unreachable!()
    }
}

/// The pod `shop/web-0`.
pub(super) fn pod() -> Pod {
    let account = ServiceAccount {
        namespace: "shop".parse().unwrap(),
        name: "web".parse().unwrap(),
        uid: "u-1".parse().unwrap(),
    };
    Pod { uid: UID.parse().unwrap(), name: "web-0".parse().unwrap(), account }
}

/// What the API server says of it: it has the label that a grant asks for.
pub(super) fn listed(leaving: bool) -> DirectoryPod {
    let Pod { uid, name, account } = pod();
    DirectoryPod {
        uid,
        name,
        namespace: account.namespace,
        service_account: account.name,
        labels: Arc::new([("app".to_owned(), "shop".to_owned())].into()),
        leaving,
    }
}

fn grant(name: &str, paths: &[&str], labels: &[(&str, &str)]) -> GrantConfig {
    let labels = labels.iter().map(|(key, value)| (key.parse().unwrap(), value.parse().unwrap()));
    GrantConfig {
        name: name.parse().unwrap(),
        effect: Effect::Permit,
        who: Who::Pods {
            namespace: "shop".parse().unwrap(),
            service_account: None,
            labels: labels.collect(),
        },
        source: "local".parse().unwrap(),
        paths: paths.iter().map(|path| path.parse().unwrap()).collect(),
        share: Share::Consumer,
        login: GrantLogin::Agent,
        min_proof: ProofStrength::SocketOnly,
        when: None,
    }
}

/// Everything behind a delivery. `secret/open/*` asks for no label, the rest does.
pub(super) struct Rig {
    pub(super) dir: TempDir,
    pub(super) pods: PodDirectory,
    pub(super) files: files::Deps,
    pub(super) server: Server,
    pub(super) stop: CancellationToken,
    pub(super) tasks: JoinSet<()>,
}

impl Rig {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let output = Output::File(dir.path().join("audit.log"));
        let (audit, writer) =
            Audit::open(AuditConfig { output, ..AuditConfig::default() }).unwrap();
        let file = dir.path().join("secrets.toml");
        std::fs::write(&file, SECRETS).unwrap();
        let name: SourceName = "local".parse().unwrap();
        let source = LocalSource::open(LocalConfig { file, key: None }).ok().unwrap();
        let source: SharedSource = Arc::new(source);
        let sources = BTreeMap::from([(name.clone(), source)]);
        let (broker, task) =
            BrokerTask::new(Settings::default(), sources.clone(), audit.clone()).unwrap();
        let pods = PodDirectory::told();
        let grants = vec![
            grant("by-label", &["secret/data/shop/*", "database/creds/*"], &[("app", "shop")]),
            grant("open", &["secret/data/open/*"], &[]),
        ];
        let config = PolicyConfig { grants, knows_labels: true, ..PolicyConfig::default() };
        let policy = Policy::new(CompiledPolicy::compile(&config).ok().unwrap());
        let policy = policy.with_directory(pods.clone());
        let board = VolumeBoard::default();
        let files = files::Deps { broker, policy, audit, board };
        let deps = socket::Deps {
            broker: files.broker.clone(),
            policy: files.policy.clone(),
            audit: files.audit.clone(),
            audit_per_read: false,
            sources: SourceDirectory::new(&name, &sources),
            volumes: files.board.clone(),
            operators: Arc::new(NobodyAsks),
            metrics: Metrics::new(),
        };
        let proof = Arc::new(NodeProof::not_asked());
        let server = Server::new(Limits::default(), deps, proof, stop.clone());
        let (work, evidence) = (stop.clone(), stop.clone());
        tasks.spawn(async move { writer.run(evidence).await.unwrap() });
        tasks.spawn(async move { task.run(work).await.unwrap() });
        Self { dir, pods, files, server, stop, tasks }
    }

    /// Ends it; what the audit log says.
    pub(super) async fn stop(mut self) -> String {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        std::fs::read_to_string(self.dir.path().join("audit.log")).unwrap()
    }
}

/// What a socket answers below `/v1/`.
pub(super) async fn get(socket: PathBuf, path: &str) -> (u16, Value) {
    let (status, body) = client::get(&socket, &format!("/v1/{path}")).await.unwrap();
    (status.as_u16(), serde_json::from_slice(&body).unwrap())
}
