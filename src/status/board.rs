//! Where volumes put their current state: the last write wins, status reads all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::broker::Problem;
use crate::clock::BootInstant;
use crate::domain::{SecretRef, VolumeName};
use crate::identity::Identity;

/// Where volumes put their current state for status; the last write wins. Cheap to clone.
#[derive(Clone, Default)]
pub struct VolumeBoard(Arc<Board>);

#[derive(Default)]
struct Board {
    volumes: Mutex<BTreeMap<VolumeName, VolumeStatus>>,
    interests: Mutex<BTreeMap<VolumeName, Interest>>,
    changes: watch::Sender<()>,
}

impl VolumeBoard {
    /// Replaces one volume's line.
    pub fn publish(&self, status: VolumeStatus) {
        self.lock().insert(status.name.clone(), status);
        self.0.changes.send_replace(());
    }

    /// One volume's line.
    pub fn get(&self, name: &VolumeName) -> Option<VolumeStatus> {
        self.lock().get(name).cloned()
    }

    /// Changes whenever any line does.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changes.subscribe()
    }

    /// Replaces what one volume reads.
    pub fn reads(&self, name: &VolumeName, interest: Interest) {
        self.lock_interests().insert(name.clone(), interest);
    }

    /// What every volume reads, in name order.
    pub fn interests(&self) -> Vec<(VolumeName, Interest)> {
        let interests = self.lock_interests();
        interests.iter().map(|(name, interest)| (name.clone(), interest.clone())).collect()
    }

    /// Forgets a volume.
    pub fn remove(&self, name: &VolumeName) {
        self.lock().remove(name);
        self.lock_interests().remove(name);
    }

    /// All volumes in name order.
    pub fn all(&self) -> Vec<VolumeStatus> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeName, VolumeStatus>> {
        self.0.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_interests(&self) -> MutexGuard<'_, BTreeMap<VolumeName, Interest>> {
        self.0.interests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a volume reads and as whom: what a changed policy has to be asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interest {
    /// Who the volume is to policy.
    pub identity: Identity,
    /// Its secrets whose API paths are known.
    pub secrets: BTreeSet<SecretRef>,
}

/// One volume as its task last saw it.
#[derive(Debug, Clone)]
pub struct VolumeStatus {
    /// Its name.
    pub name: VolumeName,
    /// Where applications find it.
    pub path: std::path::PathBuf,
    /// `tmpfs noswap`, `tmpfs (no noswap: kernel before 6.4)`, `existing tmpfs directory`.
    pub mount: String,
    /// Name of the published revision; `None` before the first.
    pub revision: Option<String>,
    /// When it was published.
    pub published_at: Option<BootInstant>,
    /// Whether names that applications use are still to be led to it.
    pub links_missing: bool,
    /// What is wrong with the volume as a whole, and what to do.
    pub alarm: Option<String>,
    /// Its items.
    pub items: Vec<ItemStatus>,
}

impl VolumeStatus {
    /// Whether applications find everything that the volume is to hold.
    pub fn is_filled(&self) -> bool {
        self.revision.is_some() && !self.links_missing
    }
}

/// One item of a volume.
#[derive(Debug, Clone)]
pub struct ItemStatus {
    /// File name, or `*` for one file per key.
    pub file: String,
    /// The secret it shows.
    pub secret: SecretRef,
    /// `fresh`, `stale`, `expired`, `denied`, `gone`, `forbidden`, `waiting`.
    pub state: &'static str,
    /// When the value in the file was requested.
    pub fetched_at: Option<BootInstant>,
    /// Until when it works or is served.
    pub works_until: Option<BootInstant>,
    /// KV 2's version.
    pub version: Option<u64>,
    /// What is wrong.
    pub problem: Option<Problem>,
}
