//! All published volumes: one task each, found by the volume's key.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::delivery::files;
use crate::delivery::socket::Server;
use crate::identity::pods::PodDirectory;
use crate::identity::token::PodClaims;
use crate::mounter::{Mounter, Target, TmpfsSize, VolumeKey};
use crate::shutdown::Stages;
use crate::telemetry::{Chain, Hits, Limit, Metrics};

use super::CsiConfig;
use super::begun::Begun;
use super::command::{Command, End, Reply};
use super::error::CsiError;
use super::records::Records;
use super::request::Publish;
use super::volume::Volume;

/// Commands that may wait for one volume's task: the kubelet has one call per volume under way, and
/// repeats what it gave up.
const COMMANDS_MAX: usize = 4;
/// Volumes of one pod: each takes of the memory that all pods of the node share.
const VOLUMES_OF_POD_MAX: usize = 16;

/// What every volume's task works with.
pub(super) struct Shared {
    pub(super) config: CsiConfig,
    pub(super) files: files::Deps,
    pub(super) server: Server,
    pub(super) pods: PodDirectory,
    pub(super) mounter: Arc<dyn Mounter>,
    pub(super) records: Records,
    pub(super) budget: Budget,
    pub(super) begun: Begun,
    /// A stop: `intake` ends the wait for a new volume's secrets, `work` every task.
    pub(super) stages: Stages,
}

/// Handle to all volumes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Volumes {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    running: Arc<Mutex<Running>>,
}

/// A task takes itself out when nothing of its volume is left. One that is here and closed has
/// panicked.
type Running = HashMap<VolumeKey, mpsc::Sender<Command>>;

impl Volumes {
    /// Tasks end when `work` is cancelled; [`Volumes::finished`] waits for them.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, tasks: TaskTracker::new(), running: Arc::default() }
    }

    /// Publishes a volume, or brings a published one its pod's new token. Runs to its end also when
    /// the future is dropped.
    pub(super) async fn publish(
        &self,
        publish: Publish,
        claims: PodClaims,
        patience: Duration,
    ) -> Result<(), CsiError> {
        let key = publish.target.key().clone();
        self.make_room_of_pod(&key)?;
        let publish = Box::new(publish);
        self.ask(&key, |reply| Command::Publish { publish, claims, patience, reply }).await
    }

    /// Whether something of the volume may be on the node.
    pub(super) fn has(&self, key: &VolumeKey) -> bool {
        self.lock().contains_key(key)
    }

    /// Gives the volume a task, if its pod may have one more.
    fn make_room_of_pod(&self, key: &VolumeKey) -> Result<(), CsiError> {
        let mut running = self.lock();
        let others = running.keys().filter(|other| other.pod == key.pod && *other != key).count();
        if others < VOLUMES_OF_POD_MAX || running.contains_key(key) {
            self.task_among(&mut running, key);
            return Ok(());
        }
        self.shared.budget.of_pod.count();
        Err(CsiError::TooManyOfPod { limit: VOLUMES_OF_POD_MAX })
    }

    /// Takes a volume away; one that is not there is away. Runs to its end also when the future is
    /// dropped.
    pub(super) async fn unpublish(&self, target: Target) -> Result<(), CsiError> {
        let key = target.key().clone();
        self.ask(&key, |reply| Command::Unpublish { target, reply }).await
    }

    /// Takes up what a predecessor published, and takes away what it left half done.
    pub(super) async fn adopt(&self) -> Result<(), CsiError> {
        let records = self.shared.records.clone();
        let records = tokio::task::spawn_blocking(move || records.all()).await;
        let mut records = records.map_err(|_| CsiError::Stopping)?.map_err(CsiError::Record)?;
        for mounted in self.shared.mounter.list().await? {
            let key = mounted.key;
            match records.remove(&key) {
                Some(record) if mounted.bound => {
                    let mut volume = Volume::left(Arc::clone(&self.shared), key.clone());
                    if let Err(error) = volume.adopt(record).await {
                        let error = Chain(&error);
                        tracing::error!(volume = %key, %error, "cannot take up a volume yet");
                    }
                    self.start(&mut self.lock(), key, volume);
                }
                // A pod may be using it: the kubelet's next call writes its record anew.
                None if mounted.bound => {
                    tracing::warn!(volume = %key, "a bound volume has no record");
                    let volume = Volume::left(Arc::clone(&self.shared), key.clone());
                    self.start(&mut self.lock(), key, volume);
                }
                // No call about it was answered: the kubelet publishes it anew if it is wanted.
                _ => {
                    tracing::info!(volume = %key, "taking away an unfinished volume");
                    self.take_away(&key).await;
                }
            }
        }
        for key in records.into_keys() {
            // The node restarted: the kubelet publishes what is still wanted.
            tracing::info!(volume = %key, "a record's volume is gone");
            self.take_away(&key).await;
        }
        Ok(())
    }

    /// Takes away what nobody asked to be taken away; what is left is tried again by its task.
    async fn take_away(&self, key: &VolumeKey) {
        let target = Target::of(&self.shared.config.kubelet_root, key);
        if let Err(error) = self.unpublish(target).await {
            tracing::warn!(volume = %key, %error, "cannot take away a volume");
        }
    }

    /// Waits until every task has ended, after `work` was cancelled.
    pub(super) async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn ask(
        &self,
        key: &VolumeKey,
        command: impl FnOnce(Reply) -> Command,
    ) -> Result<(), CsiError> {
        let (reply, answer): (Reply, _) = oneshot::channel();
        self.send(key, command(reply)).await;
        answer.await.unwrap_or(Err(CsiError::Stopping))
    }

    /// Has the volume's task carry a command out; one that ends meanwhile has a successor, unless
    /// all of them end.
    async fn send(&self, key: &VolumeKey, mut command: Command) {
        while let Err(refused) = self.task_of(key).send(command).await {
            if self.shared.stages.work.is_cancelled() {
                return;
            }
            command = refused.0;
        }
    }

    /// The volume's task; a new one if there is none.
    fn task_of(&self, key: &VolumeKey) -> mpsc::Sender<Command> {
        self.task_among(&mut self.lock(), key)
    }

    fn task_among(&self, running: &mut Running, key: &VolumeKey) -> mpsc::Sender<Command> {
        let volume = match running.get(key) {
            Some(sender) if !sender.is_closed() => return sender.clone(),
            // What it knew is lost: a pod may be using the volume.
            Some(_) => Volume::left(Arc::clone(&self.shared), key.clone()),
            None => Volume::new(Arc::clone(&self.shared), key.clone()),
        };
        self.start(running, key.clone(), volume)
    }

    fn start(
        &self,
        running: &mut Running,
        key: VolumeKey,
        volume: Volume,
    ) -> mpsc::Sender<Command> {
        let (sender, mut commands) = mpsc::channel(COMMANDS_MAX);
        running.insert(key.clone(), sender.clone());
        let (shared, tasks) = (Arc::clone(&self.shared), self.tasks.clone());
        let running = Arc::downgrade(&self.running);
        self.tasks.spawn(async move {
            let End::Nothing(last) = volume.run(&mut commands).await else { return };
            let all = running.upgrade().map(|running| Self { shared, tasks, running });
            // Before the channel closes, else the next call would think that this panicked.
            if let Some(all) = &all {
                all.lock().remove(&key);
            }
            if let Some((caller, outcome)) = last {
                // A caller that is gone asks again.
                let _ = caller.send(outcome);
            }
            // What came meanwhile is about the next volume of this key.
            commands.close();
            while let (Some(all), Some(command)) = (&all, commands.recv().await) {
                all.send(&key, command).await;
            }
        });
        sender
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of memory that all volumes together may use: a tmpfs's pages are charged to the agent.
pub(super) struct Budget {
    limit: u64,
    used: Arc<AtomicU64>,
    refused: Hits,
    /// Refused since the pod had too many.
    of_pod: Hits,
}

/// A part of the budget, given back when it is dropped.
pub(super) struct Reservation {
    bytes: u64,
    used: Arc<AtomicU64>,
}

impl Budget {
    /// Has it shown in status and metrics; call once per process.
    pub(super) fn new(limit: u64, metrics: &Metrics) -> Self {
        let (used, refused) = (Arc::<AtomicU64>::default(), Hits::default());
        let of_pod = Hits::default();
        metrics.watch_each("volumes_per_pod", VOLUMES_OF_POD_MAX, &of_pod);
        let (watched, hits) = (Arc::clone(&used), refused.clone());
        metrics.watch_limit(move || {
            let used = Some(watched.load(Ordering::Relaxed));
            Limit { name: "volume_bytes_total", used, cap: limit, hits: hits.total() }
        });
        Self { limit, used, refused, of_pod }
    }

    pub(super) fn reserve(&self, size: TmpfsSize) -> Result<Reservation, CsiError> {
        let bytes = size.bytes();
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map_err(|_| {
            self.refused.count();
            CsiError::Full { limit: self.limit }
        })?;
        Ok(Reservation { bytes, used: Arc::clone(&self.used) })
    }

    /// Counts what is used already, also beyond the limit: then nothing new is let in.
    pub(super) fn count(&self, size: TmpfsSize) -> Reservation {
        let bytes = size.bytes();
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Reservation { bytes, used: Arc::clone(&self.used) }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fault, Rig, claims, pod, publish, target};
    use super::*;

    #[tokio::test]
    async fn a_panic_and_a_failed_call_after_it_cost_a_pod_nothing() {
        let rig = Rig::new();
        let volumes = Volumes::new(Arc::clone(&rig.shared));
        let call = || volumes.publish(publish(), claims(pod()), Duration::from_secs(1));
        call().await.unwrap();
        rig.mounter.fault("bind", Fault::Panic);
        let panicked = call().await;
        assert!(matches!(panicked, Err(CsiError::Stopping)), "{panicked:?}");
        rig.mounter.fail("bind");
        let failed = call().await;
        assert!(matches!(failed, Err(CsiError::Mounter(_))), "{failed:?}");
        let key = target().key().clone();
        assert!(rig.mounter.bound.lock().unwrap().contains(&key), "the pod runs");
        assert!(rig.socket().exists() && rig.shared.records.all().unwrap().contains_key(&key));
        call().await.unwrap();
        volumes.unpublish(target()).await.unwrap();
        assert!(!rig.mounter.root(&key).exists());
        // Its successor is new, and is taken back.
        rig.mounter.fail("bind");
        call().await.unwrap_err();
        assert!(!rig.mounter.root(&key).exists());
    }

    #[tokio::test]
    async fn a_pod_has_a_bounded_number_of_volumes_and_keeps_those_it_has() {
        let rig = Rig::new();
        let volumes = Volumes::new(Arc::clone(&rig.shared));
        let key = |number: usize| format!("{}~v{number}", target().key().pod).parse().unwrap();
        for number in 0..VOLUMES_OF_POD_MAX {
            volumes.task_of(&key(number));
        }
        let call = || volumes.publish(publish(), claims(pod()), Duration::from_secs(1));
        let refused = call().await;
        assert!(matches!(refused, Err(CsiError::TooManyOfPod { .. })), "{refused:?}");
        assert_eq!(rig.shared.budget.of_pod.total(), 1);
        volumes.lock().remove(&key(0));
        call().await.unwrap();
        volumes.task_of(&key(0));
        call().await.expect("the kubelet brings a token");
    }

    #[tokio::test]
    async fn calls_at_the_same_time_have_one_task() {
        let rig = Rig::new();
        let runtime = tokio::runtime::Handle::current();
        for _ in 0..1000 {
            let volumes = Volumes::new(Arc::clone(&rig.shared));
            let arrived = AtomicU64::new(0);
            let first = || {
                let _entered = runtime.enter();
                arrived.fetch_add(1, Ordering::SeqCst);
                // A barrier would wake one after the other.
                while arrived.load(Ordering::SeqCst) < 2 {
                    std::hint::spin_loop();
                }
                volumes.task_of(target().key())
            };
            let (one, other) = std::thread::scope(|scope| {
                let other = scope.spawn(first);
                (first(), other.join().unwrap())
            });
            assert!(one.same_channel(&other));
        }
    }

    #[test]
    fn the_budget_is_never_exceeded_and_comes_back() {
        let metrics = Metrics::new();
        let budget = Budget::new(256 * 1024, &metrics);
        let shown = |used, hits| {
            let limit =
                Limit { name: "volume_bytes_total", used: Some(used), cap: 256 * 1024, hits };
            let of_pod = Limit::each("volumes_per_pod", VOLUMES_OF_POD_MAX, 0);
            assert_eq!(metrics.limits(), [of_pod, limit]);
        };
        let size = TmpfsSize::new(100 * 1024, 64).unwrap();
        let first = budget.reserve(size).ok().unwrap();
        let _second = budget.reserve(size).ok().unwrap();
        assert!(matches!(budget.reserve(size), Err(CsiError::Full { limit: 262_144 })));
        shown(2 * size.bytes(), 1);
        drop(first);
        shown(size.bytes(), 1);
        let third = budget.count(size);
        assert!(budget.reserve(size).is_err());
        let fourth = budget.count(size);
        drop((third, fourth));
        assert!(budget.reserve(size).is_ok());
    }
}
