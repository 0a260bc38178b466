//! What is known of this node's pods, and when one is gone. Pure: events in, whether
//! anybody may notice out.
//!
//! That the API server no longer has a pod does not mean that it no longer runs: somebody may have
//! deleted the object by force, or the API server's own store may be an old copy. So a pod is gone
//! only when a second source on the node says so too. One of these is the kubelet, which takes a
//! pod's volumes away when its containers have ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::wire::Listed;
use super::{DirectoryPod, Labels, Presence};
use crate::clock::BootInstant;
use crate::domain::PodUid;

/// How many gone pods are remembered, to tell them from those not yet seen.
const REMEMBERED_MAX: usize = 1024;
/// A list in which at least so many known pods are missing, and more than half of them, is doubted.
const MISSING_MIN: usize = 3;
/// How long a deleted pod stays known where nothing on the node can tell whether it still runs.
pub(super) const LINGER: Duration = Duration::from_secs(5 * 60);
/// How long the node must show nothing of a missing pod: between two of its containers it may have
/// no process for a moment.
pub(super) const ABSENT_FOR: Duration = Duration::from_secs(30);

/// What is known of one uid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Pod(Arc<DirectoryPod>),
    Static,
    Gone,
}

#[derive(Debug)]
struct Entry {
    /// `None` is a static pod.
    pod: Option<Arc<DirectoryPod>>,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The API server has it.
    Listed,
    /// The API server has it no more since then, so it gets nothing new.
    Deleted(BootInstant),
    /// Missing together with most others, which is doubted: as if it were still there. Since when
    /// the node has shown nothing of it.
    Missing { absent_since: Option<BootInstant> },
}

/// The newest of some pods.
#[derive(Debug, Default)]
struct Remembered(VecDeque<PodUid>);

impl Remembered {
    fn has(&self, uid: &PodUid) -> bool {
        self.0.contains(uid)
    }

    fn add(&mut self, uid: &PodUid) {
        self.forget(uid);
        self.0.push_back(uid.clone());
        if self.0.len() > REMEMBERED_MAX {
            self.0.pop_front();
        }
    }

    /// Whether it was there.
    fn forget(&mut self, uid: &PodUid) -> bool {
        let before = self.0.len();
        self.0.retain(|known| known != uid);
        self.0.len() != before
    }
}

/// The pods of this node. Each change says whether anything is different for somebody who asks.
#[derive(Debug, Default)]
pub(super) struct Known {
    pods: BTreeMap<PodUid, Entry>,
    gone: Remembered,
    /// Volumes that the kubelet published, by pod.
    volumes: BTreeMap<PodUid, BTreeSet<String>>,
    /// Pods whose last volume the kubelet took away.
    emptied: Remembered,
    synced: bool,
}

impl Known {
    /// A whole list came.
    pub(super) fn list(&mut self, listed: Vec<Listed>, now: BootInstant) -> bool {
        let uids: BTreeSet<PodUid> = listed.iter().map(|pod| pod.uid().clone()).collect();
        let was_listed = |entry: &Entry| entry.standing == Standing::Listed;
        let before = self.pods.values().filter(|entry| was_listed(entry)).count();
        let missing: Vec<PodUid> = self
            .pods
            .iter()
            .filter(|(uid, entry)| was_listed(entry) && !uids.contains(*uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        let is_doubted = missing.len() >= MISSING_MIN && missing.len() * 2 > before;
        let mut changed = !std::mem::replace(&mut self.synced, true);
        for uid in missing {
            if is_doubted {
                self.set_standing(&uid, Standing::Missing { absent_since: None });
            } else {
                changed |= self.delete(&uid, now);
            }
        }
        for pod in listed {
            changed |= self.apply(pod);
        }
        changed
    }

    /// Those that are known and no static ones.
    pub(super) fn pods(&self) -> impl Iterator<Item = &Arc<DirectoryPod>> {
        self.pods.values().filter_map(|entry| entry.pod.as_ref())
    }

    /// A pod was added or changed.
    pub(super) fn apply(&mut self, listed: Listed) -> bool {
        let uid = listed.uid().clone();
        let pod = match listed {
            Listed::Pod(pod) => Some(Arc::new(pod)),
            Listed::Static(_) => None,
        };
        self.gone.forget(&uid);
        let entry = Entry { pod: pod.clone(), standing: Standing::Listed };
        let before = self.pods.insert(uid, entry);
        before.is_none_or(|before| before.pod != pod)
    }

    /// The API server has it no more.
    pub(super) fn delete(&mut self, uid: &PodUid, now: BootInstant) -> bool {
        let Some(entry) = self.pods.get_mut(uid) else { return false };
        if !matches!(entry.standing, Standing::Deleted(_)) {
            entry.standing = Standing::Deleted(now);
        }
        match &mut entry.pod {
            Some(pod) if !pod.leaving => {
                *pod = Arc::new(DirectoryPod { leaving: true, ..DirectoryPod::clone(pod) });
                true
            }
            _ => false,
        }
    }

    /// The kubelet publishes a volume of this pod, which is on the node then, whatever was thought.
    pub(super) fn published(&mut self, uid: &PodUid, volume: &str) -> bool {
        self.volumes.entry(uid.clone()).or_default().insert(volume.to_owned());
        self.emptied.forget(uid);
        self.gone.forget(uid)
    }

    /// The kubelet took a volume of this pod away. After the last one nothing of the pod runs: that
    /// is what a kubelet waits for. A volume nobody knew of says nothing.
    pub(super) fn unpublished(&mut self, uid: &PodUid, volume: &str) {
        let Some(volumes) = self.volumes.get_mut(uid) else { return };
        if volumes.remove(volume) && volumes.is_empty() {
            self.volumes.remove(uid);
            self.emptied.add(uid);
        }
    }

    /// The pods of which only the second source can say that they are gone.
    pub(super) fn doubtful(&self) -> Vec<PodUid> {
        let doubted = self.pods.iter().filter(|(_, entry)| entry.standing != Standing::Listed);
        doubted.map(|(uid, _)| uid.clone()).collect()
    }

    /// Takes in what the second source says about those. Where it cannot tell, a deleted pod is
    /// gone after [`LINGER`], and a missing one never: it waits for the next list.
    pub(super) fn confirm(
        &mut self,
        presence: &dyn Fn(&PodUid) -> Presence,
        now: BootInstant,
    ) -> bool {
        let emptied = &self.emptied;
        let presence = |uid: &PodUid| {
            let volumes = if emptied.has(uid) { Presence::Absent } else { Presence::Unknown };
            presence(uid).and(volumes)
        };
        let is_gone = |uid: &PodUid, entry: &mut Entry| match &mut entry.standing {
            Standing::Listed => false,
            Standing::Missing { absent_since } if presence(uid) == Presence::Absent => {
                now.since(*absent_since.get_or_insert(now)) >= ABSENT_FOR
            }
            Standing::Missing { absent_since } => {
                *absent_since = None;
                false
            }
            Standing::Deleted(since) => match presence(uid) {
                Presence::Absent => true,
                Presence::Present => false,
                Presence::Unknown => now.since(*since) >= LINGER,
            },
        };
        let gone =
            self.pods.iter_mut().filter_map(|(uid, entry)| is_gone(uid, entry).then_some(uid));
        let gone: Vec<PodUid> = gone.cloned().collect();
        for uid in &gone {
            self.pods.remove(uid);
            self.emptied.forget(uid);
            self.gone.add(uid);
        }
        !gone.is_empty()
    }

    pub(super) fn find(&self, uid: &PodUid) -> Option<Found> {
        match self.pods.get(uid) {
            Some(Entry { pod: Some(pod), .. }) => Some(Found::Pod(Arc::clone(pod))),
            Some(Entry { pod: None, .. }) => Some(Found::Static),
            None if self.gone.has(uid) => Some(Found::Gone),
            None => None,
        }
    }

    pub(super) fn labels(&self, uid: &PodUid) -> Option<Arc<Labels>> {
        Some(Arc::clone(&self.pods.get(uid)?.pod.as_ref()?.labels))
    }

    /// Whether a whole list came at least once.
    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }

    pub(super) fn count(&self) -> usize {
        self.pods.len()
    }

    fn set_standing(&mut self, uid: &PodUid, standing: Standing) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.standing = standing;
        }
    }
}

#[cfg(test)]
#[path = "known_tests.rs"]
mod tests;
