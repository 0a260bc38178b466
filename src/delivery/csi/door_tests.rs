//! What becomes of a pod's volumes when nothing of the pod is left, before the kubelet takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use async_trait::async_trait;

use super::records::VolumeRecord;
use super::*;
use crate::delivery::socket::client;
use crate::delivery::testing::{Rig, get, listed, pod};
use crate::domain::{PodUid, VolumeName};
use crate::identity::pods::{FindError, Presence};
use crate::mounter::{Mounted, Prepared, Target, VolumeKey};
use crate::shutdown::Stages;

/// Keeps volumes in plain directories.
struct Directories {
    dir: PathBuf,
    keys: Mutex<Vec<VolumeKey>>,
}

#[async_trait]
impl Mounter for Directories {
    async fn prepare(&self, key: &VolumeKey, _: TmpfsSize) -> Result<Prepared, MounterError> {
        let root = fs::File::open(self.dir.join(key.volume.as_str())).unwrap().into();
        Ok(Prepared { root, description: "a directory" })
    }

    async fn bind(&self, _: &VolumeKey, _: &Target) -> Result<(), MounterError> {
        Ok(())
    }

    async fn unbind(&self, _: &Target) -> Result<(), MounterError> {
        Ok(())
    }

    async fn discard(&self, _: &VolumeKey) -> Result<(), MounterError> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Mounted>, MounterError> {
        let keys = self.keys.lock().unwrap().clone();
        Ok(keys.into_iter().map(|key| Mounted { key, bound: true }).collect())
    }

    fn mounted_below(&self, _: &VolumeKey) -> Result<BTreeSet<u64>, MounterError> {
        Ok(BTreeSet::new())
    }
}

fn config(dir: &Path) -> CsiConfig {
    CsiConfig {
        driver: "csi.secrets-broker.io".parse().unwrap(),
        kubelet_root: "/var/lib/kubelet".parse().unwrap(),
        node: "node-1".parse().unwrap(),
        source: "local".parse().unwrap(),
        audience: "vault".to_owned(),
        tenant_roles: Vec::new(),
        state_dir: dir.join("state"),
        volume_size: TmpfsSize::new(1024 * 1024, 64).unwrap(),
        volume_bytes_total: 1024 * 1024 * 1024,
        publish_timeout: Duration::from_secs(10),
        forbid_grace: Duration::ZERO,
        retire_grace: Duration::ZERO,
    }
}

fn key(volume: &str) -> VolumeKey {
    format!("{}~{volume}", pod().uid).parse().unwrap()
}

/// The volumes of a predecessor, one with a socket and one with files.
async fn adopted(rig: &Rig) -> Volumes {
    let (dir, config) = (rig.dir.path(), config(rig.dir.path()));
    let records = Records::open(&config.state_dir).unwrap();
    let own = rustix::process::geteuid().as_raw().to_string();
    let group = rustix::process::getegid().as_raw().to_string();
    for (volume, (name, value)) in
        [("door", ("deliver", "socket")), ("files", ("secret", "secret/shop/web"))]
    {
        let written = [(name, value), ("owner", own.as_str()), ("group", group.as_str())];
        let written = written.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let record = VolumeRecord {
            volume_id: format!("csi-{volume}"),
            pod: pod(),
            attributes: BTreeMap::from(written),
            fs_group: None,
        };
        fs::create_dir(dir.join(volume)).unwrap();
        records.write(&key(volume), &record).unwrap();
    }
    let keys = Mutex::new(vec![key("door"), key("files")]);
    let shared = Shared {
        budget: Budget::new(config.volume_bytes_total, &rig.server.deps.metrics),
        config,
        files: rig.files.clone(),
        server: rig.server.clone(),
        pods: rig.pods.clone(),
        mounter: Arc::new(Directories { dir: dir.to_owned(), keys }),
        records,
        begun: Begun::default(),
        stages: Stages { work: rig.stop.clone(), ..Stages::default() },
    };
    let volumes = Volumes::new(shared.into());
    volumes.adopt().await.unwrap();
    volumes
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect(what);
}

async fn leases(rig: &Rig) -> usize {
    let report = rig.files.broker.report().await.unwrap();
    report.secrets.iter().filter(|secret| secret.lease.is_some()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gone_pods_socket_closes_and_its_files_wait_for_the_kubelet() {
    let rig = Rig::start();
    rig.pods.tell(listed(false));
    let volumes = adopted(&rig).await;
    let uid: PodUid = pod().uid;
    let socket = rig.dir.path().join("door/broker.sock");
    let file = rig.dir.path().join("files/token");
    let (status, body) = get(socket.clone(), "database/creds/shop").await;
    assert_eq!(status, 200, "{body}");
    let shown = |volume: &str| {
        let line = rig.files.board.get(&VolumeName::of_pod(&pod(), &key(volume).volume));
        line.map(|line| (line.revision.is_some(), line.alarm.is_some()))
    };
    // Status hears of a revision after the files are there.
    eventually("the files are published", async || shown("files") == Some((true, false))).await;
    assert_eq!(leases(&rig).await, 1);

    // The kubelet still has volumes of it, which says nothing: somebody must see that it is gone.
    rig.pods.tell_deleted(&uid, Presence::Unknown);
    assert!(rig.pods.find(&uid, Duration::ZERO).await.is_ok());
    assert_eq!(get(socket.clone(), "database/creds/shop").await.0, 200, "it may still run");
    rig.pods.tell_gone(&uid);
    rig.files.policy.labels_changed();
    eventually("the socket is closed", async || {
        matches!(client::get(&socket, "/v1/sys/health").await, Err(client::ClientError::NoAgent(_)))
    })
    .await;
    eventually("what was read there ends", async || leases(&rig).await == 0).await;
    eventually("status knows", async || shown("door") == Some((false, true))).await;
    assert_eq!(shown("files"), Some((true, false)));
    assert_eq!(fs::read_to_string(&file).unwrap(), "t");

    let take_away = async |volume| {
        let target = Target::of(&config(rig.dir.path()).kubelet_root, &key(volume));
        volumes.unpublish(target).await.unwrap();
    };
    take_away("door").await;
    assert!(file.exists(), "another volume's files");
    take_away("files").await;
    assert!(!file.exists());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directory_hears_when_the_kubelet_takes_a_pods_last_volume() {
    let rig = Rig::start();
    rig.pods.tell(listed(false));
    let volumes = adopted(&rig).await;
    let uid: PodUid = pod().uid;
    for (volume, outcome) in [("door", true), ("files", false)] {
        let target = Target::of(&config(rig.dir.path()).kubelet_root, &key(volume));
        volumes.unpublish(target).await.unwrap();
        rig.pods.tell_deleted(&uid, Presence::Unknown);
        let found = rig.pods.find(&uid, Duration::ZERO).await;
        assert_eq!(found.is_ok(), outcome, "{volume}: {found:?}");
    }
    assert_eq!(rig.pods.find(&uid, Duration::ZERO).await, Err(FindError::Gone));
    rig.stop().await;
}
