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
use crate::shutdown::Stages;
use crate::status::VolumeBoard;
use crate::telemetry::Metrics;

use super::CsiConfig;
use super::attributes::Attributes;
use super::begun::Begun;
use super::records::{Records, VolumeRecord};
use super::request::Publish;
use super::volumes::{Budget, Shared};

const KUBELET: &str = "/var/lib/kubelet";

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is refused.
    Refused,
    /// It is carried out, and nobody hears so.
    Lost,
    /// Whoever calls panics.
    Panic,
}

/// Makes a directory where a mounter makes a tmpfs.
pub(super) struct FakeMounter {
    dir: PathBuf,
    /// The calls that fail next, by name.
    pub(super) failing: Mutex<BTreeMap<&'static str, Fault>>,
    pub(super) bound: Mutex<BTreeSet<VolumeKey>>,
}

impl FakeMounter {
    /// The next call of this name fails.
    pub(super) fn fail(&self, call: &'static str) {
        self.fault(call, Fault::Refused);
    }

    /// This becomes of the next call of this name.
    pub(super) fn fault(&self, call: &'static str, fault: Fault) {
        self.failing.lock().unwrap().insert(call, fault);
    }

    /// An error if the call is not to be carried out; else what it answers.
    fn answer(&self, call: &'static str) -> Result<Result<(), MounterError>, MounterError> {
        let fault = self.failing.lock().unwrap().remove(call);
        match fault {
            None => Ok(Ok(())),
            Some(Fault::Refused) => Err(refused(call, Failure::NotPrepared)),
            Some(Fault::Lost) => Ok(Err(unreachable(call))),
            Some(Fault::Panic) => panic!("{call} was told to"),
        }
    }

    pub(super) fn root(&self, key: &VolumeKey) -> PathBuf {
        self.dir.join(key.directory())
    }
}

fn unreachable(call: &str) -> MounterError {
    let source = std::io::ErrorKind::TimedOut.into();
    MounterError::Unreachable { request: call.to_owned(), socket: "mounter.sock".into(), source }
}

fn refused(call: &str, failure: Failure) -> MounterError {
    MounterError::Failed { request: call.to_owned(), failure }
}

#[async_trait]
impl Mounter for FakeMounter {
    async fn prepare(&self, key: &VolumeKey, _: TmpfsSize) -> Result<Prepared, MounterError> {
        self.answer("prepare")??;
        std::fs::create_dir_all(self.root(key)).unwrap();
        let root: OwnedFd = std::fs::File::open(self.root(key)).unwrap().into();
        Ok(Prepared { root, description: "a directory" })
    }

    async fn bind(&self, key: &VolumeKey, _: &Target) -> Result<(), MounterError> {
        let answer = self.answer("bind")?;
        self.bound.lock().unwrap().insert(key.clone());
        answer
    }

    async fn unbind(&self, target: &Target) -> Result<(), MounterError> {
        let answer = self.answer("unbind")?;
        self.bound.lock().unwrap().remove(target.key());
        answer
    }

    async fn discard(&self, key: &VolumeKey) -> Result<(), MounterError> {
        let answer = self.answer("discard")?;
        if self.bound.lock().unwrap().contains(key) {
            return Err(refused("discard", Failure::StillBound));
        }
        let _ = std::fs::remove_dir_all(self.root(key));
        answer
    }

    async fn list(&self) -> Result<Vec<Mounted>, MounterError> {
        let bound = self.bound.lock().unwrap();
        let Ok(roots) = std::fs::read_dir(&self.dir) else { return Ok(Vec::new()) };
        let key = |name: std::ffi::OsString| name.to_str().unwrap().parse::<VolumeKey>().unwrap();
        let keys = roots.map(|root| key(root.unwrap().file_name()));
        Ok(keys.map(|key| Mounted { bound: bound.contains(&key), key }).collect())
    }

    fn mounted_below(&self, _: &VolumeKey) -> Result<BTreeSet<u64>, MounterError> {
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
            begun: Begun::default(),
            stages: Stages::default(),
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
