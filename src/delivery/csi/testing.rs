//! A driver without a node around it: a mounter that makes directories and fails when it is told
//! to, a broker without sources, and what a kubelet would say of one pod.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::audit::{Audit, AuditConfig, AuditWriter, Output};
use crate::broker::settings::Settings;
use crate::broker::task::BrokerTask;
use crate::delivery::files;
use crate::delivery::socket::{self, Limits, Server, SourceDirectory};
use crate::delivery::testing::NobodyAsks;
use crate::domain::{Pod, ServiceAccount, Token};
use crate::identity::pods::PodDirectory;
use crate::identity::self_test::NodeProof;
use crate::identity::token::{PodClaims, PodInfo};
use crate::mounter::{
    Failure, Mounted, Mounter, MounterError, Prepared, Target, TmpfsSize, VolumeKey,
};
use crate::policy::{CompiledPolicy, Policy, PolicyConfig};
use crate::status::VolumeBoard;
use crate::telemetry::Metrics;

use super::CsiConfig;
use super::attributes::Attributes;
use super::records::{Records, VolumeRecord};
use super::request::Publish;
use super::volumes::{Budget, Shared};

const KUBELET: &str = "/var/lib/kubelet";

/// Makes a directory where a mounter makes a tmpfs.
pub(super) struct FakeMounter {
    dir: PathBuf,
    /// The calls that fail next, by name.
    pub(super) failing: Mutex<BTreeSet<&'static str>>,
    pub(super) bound: Mutex<BTreeSet<VolumeKey>>,
}

impl FakeMounter {
    /// The next call of this name fails.
    pub(super) fn fail(&self, call: &'static str) {
        self.failing.lock().unwrap().insert(call);
    }

    fn answer(&self, call: &'static str) -> Result<(), MounterError> {
        if self.failing.lock().unwrap().remove(call) {
            return Err(refused(call, Failure::NotPrepared));
        }
        Ok(())
    }

    pub(super) fn root(&self, key: &VolumeKey) -> PathBuf {
        self.dir.join(key.directory())
    }
}

fn refused(call: &str, failure: Failure) -> MounterError {
    MounterError::Failed { request: call.to_owned(), failure }
}

#[async_trait]
impl Mounter for FakeMounter {
    async fn prepare(&self, key: &VolumeKey, _: TmpfsSize) -> Result<Prepared, MounterError> {
        self.answer("prepare")?;
        std::fs::create_dir_all(self.root(key)).unwrap();
        let root: OwnedFd = std::fs::File::open(self.root(key)).unwrap().into();
        Ok(Prepared { root, description: "a directory" })
    }

    async fn bind(&self, key: &VolumeKey, _: &Target) -> Result<(), MounterError> {
        self.answer("bind")?;
        self.bound.lock().unwrap().insert(key.clone());
        Ok(())
    }

    async fn unbind(&self, target: &Target) -> Result<(), MounterError> {
        self.answer("unbind")?;
        self.bound.lock().unwrap().remove(target.key());
        Ok(())
    }

    async fn discard(&self, key: &VolumeKey) -> Result<(), MounterError> {
        self.answer("discard")?;
        if self.bound.lock().unwrap().contains(key) {
            return Err(refused("discard", Failure::StillBound));
        }
        let _ = std::fs::remove_dir_all(self.root(key));
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Mounted>, MounterError> {
        let bound = self.bound.lock().unwrap();
        Ok(bound.iter().map(|key| Mounted { key: key.clone(), bound: true }).collect())
    }

    async fn mounted_below(&self, _: &VolumeKey) -> Result<BTreeSet<u64>, MounterError> {
        Ok(BTreeSet::new())
    }
}

/// What a volume's task works with, and what it must outlive.
pub(super) struct Rig {
    pub(super) shared: Arc<Shared>,
    pub(super) mounter: Arc<FakeMounter>,
    _audit: AuditWriter,
    _broker: BrokerTask,
    _dir: tempfile::TempDir,
}

impl Rig {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let output = Output::File(dir.path().join("audit.log"));
        let (audit, writer) =
            Audit::open(AuditConfig { output, ..AuditConfig::default() }).unwrap();
        let sources = BTreeMap::new();
        let directory = SourceDirectory::new(&"vault".parse().unwrap(), &sources);
        let (broker, task) = BrokerTask::new(Settings::default(), sources, audit.clone()).unwrap();
        let policy = Policy::new(CompiledPolicy::compile(&PolicyConfig::default()).unwrap());
        let board = VolumeBoard::default();
        let deps = socket::Deps {
            broker: broker.clone(),
            policy: policy.clone(),
            audit: audit.clone(),
            audit_per_read: false,
            sources: directory,
            volumes: board.clone(),
            operators: Arc::new(NobodyAsks),
            metrics: Metrics::new(),
        };
        let proof = Arc::new(NodeProof::not_asked());
        let server = Server::new(Limits::default(), deps, proof, CancellationToken::new());
        let mounter = Arc::new(FakeMounter {
            dir: dir.path().join("mounts"),
            failing: Mutex::default(),
            bound: Mutex::default(),
        });
        let shared = Arc::new(Shared {
            config: config(dir.path().join("state")),
            files: files::Deps { broker, policy, audit, board },
            server,
            pods: PodDirectory::none(),
            mounter: Arc::clone(&mounter) as Arc<dyn Mounter>,
            records: Records::open(&dir.path().join("state")).unwrap(),
            budget: Budget::new(1024 * 1024, &Metrics::new()),
        });
        Self { shared, mounter, _audit: writer, _broker: task, _dir: dir }
    }

    /// Where the pod would find its socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.mounter.root(target().key()).join("broker.sock")
    }
}

fn config(state_dir: PathBuf) -> CsiConfig {
    CsiConfig {
        driver: "csi.secrets-broker.io".parse().unwrap(),
        kubelet_root: KUBELET.parse().unwrap(),
        node: "node-1".parse().unwrap(),
        source: "vault".parse().unwrap(),
        audience: "vault".to_owned(),
        tenant_roles: Vec::new(),
        state_dir,
        volume_size: TmpfsSize::new(64 * 1024, 64).unwrap(),
        volume_bytes_total: 1024 * 1024,
        publish_timeout: Duration::from_secs(30),
        forbid_grace: Duration::from_secs(60),
        retire_grace: Duration::from_secs(30),
    }
}

pub(super) fn target() -> Target {
    let key: VolumeKey = "1b~secrets".parse().unwrap();
    Target::of(&KUBELET.parse().unwrap(), &key)
}

pub(super) fn pod() -> Pod {
    let account = ServiceAccount {
        namespace: "shop".parse().unwrap(),
        name: "web".parse().unwrap(),
        uid: "0a".parse().unwrap(),
    };
    Pod { uid: "1b".parse().unwrap(), name: "web-0".parse().unwrap(), account }
}

/// A volume that holds a socket of this process's own user.
fn attributes() -> Attributes {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let (uid, gid) = (uid.as_raw().to_string(), gid.as_raw().to_string());
    let written = [("deliver", "socket"), ("owner", uid.as_str()), ("group", gid.as_str())];
    Attributes::parse(written.into_iter()).unwrap()
}

/// The kubelet's call, each with a token of its own.
pub(super) fn publish() -> Publish {
    let Pod { uid, name, account } = pod();
    Publish {
        volume_id: "csi-1".to_owned(),
        target: target(),
        pod: PodInfo {
            namespace: account.namespace,
            pod: name,
            uid,
            service_account: account.name,
            account_uid_before: None,
        },
        token: Token::new(b"a.b.c".to_vec()).unwrap(),
        attributes: attributes(),
        fs_group: None,
    }
}

pub(super) fn claims(pod: Pod) -> PodClaims {
    let expires_at = SystemTime::now() + Duration::from_secs(3600);
    PodClaims::supposed(pod, "node-1".parse().unwrap(), expires_at)
}

/// What a predecessor would have written down.
pub(super) fn record() -> VolumeRecord {
    let attributes = attributes().written;
    VolumeRecord { volume_id: "csi-1".to_owned(), pod: pod(), attributes, fs_group: None }
}
