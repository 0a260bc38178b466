//! Published entries: written by the broker task alone, read by every connection.
//!
//! Sharded reader-writer locks, held for one table operation and never across an await. A key's
//! hash is worked out once per decision, so a hit costs one comparison and a reference count.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashTable;

use super::Entry;
use crate::broker::event::CacheKey;

/// Enough that readers on a few cores seldom meet, small enough to cost nothing when empty.
const SHARDS: usize = 16;

type Shard = RwLock<HashTable<(HashedKey, Arc<Entry>)>>;

/// A key with its hash.
#[derive(Clone)]
pub(super) struct HashedKey {
    key: CacheKey,
    hash: u64,
}

/// The read side of the cache.
pub(super) struct Snapshot {
    shards: [Shard; SHARDS],
    /// Keyed at random per process: paths are chosen by callers.
    hashes: RandomState,
}

impl Snapshot {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Shard::default()), hashes: RandomState::new() }
    }

    /// Readies a key for any number of look-ups.
    pub(super) fn hashed(&self, key: CacheKey) -> HashedKey {
        let hash = self.hashes.hash_one(&key);
        HashedKey { key, hash }
    }

    pub(super) fn get(&self, wanted: &HashedKey) -> Option<Arc<Entry>> {
        let shard = self.shard(wanted).read().unwrap_or_else(PoisonError::into_inner);
        let found = shard.find(wanted.hash, |(known, _)| known.key == wanted.key)?;
        Some(Arc::clone(&found.1))
    }

    pub(super) fn publish(&self, key: CacheKey, entry: Arc<Entry>) {
        let new = self.hashed(key);
        let mut shard = self.shard(&new).write().unwrap_or_else(PoisonError::into_inner);
        let known = shard.find_mut(new.hash, |(known, _)| known.key == new.key);
        match known {
            Some((_, published)) => *published = entry,
            None => {
                shard.insert_unique(new.hash, (new, entry), |(key, _)| key.hash);
            }
        }
    }

    pub(super) fn retract(&self, key: CacheKey) {
        let gone = self.hashed(key);
        let mut shard = self.shard(&gone).write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(found) = shard.find_entry(gone.hash, |(known, _)| known.key == gone.key) {
            found.remove();
        }
    }

    /// The table uses the hash's other bits.
    fn shard(&self, key: &HashedKey) -> &Shard {
        &self.shards[(key.hash >> 32) as usize % SHARDS]
    }
}

impl HashedKey {
    pub(super) fn key(&self) -> &CacheKey {
        &self.key
    }
}
