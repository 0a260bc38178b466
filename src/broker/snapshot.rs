//! Published entries: written by the broker task alone, read by every connection.
//!
//! Sharded reader-writer locks, held for one map operation and never across an await, so a hit
//! costs a hash and a reference count.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::Entry;
use crate::broker::event::CacheKey;

/// Enough that readers on a few cores seldom meet, small enough to cost nothing when empty.
const SHARDS: usize = 16;

type Shard = RwLock<HashMap<CacheKey, Arc<Entry>>>;

/// The read side of the cache.
pub(super) struct Snapshot {
    shards: [Shard; SHARDS],
}

impl Snapshot {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Shard::default()) }
    }

    pub(super) fn get(&self, key: &CacheKey) -> Option<Arc<Entry>> {
        self.shard(key).read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub(super) fn publish(&self, key: CacheKey, entry: Arc<Entry>) {
        let shard = self.shard(&key);
        shard.write().unwrap_or_else(PoisonError::into_inner).insert(key, entry);
    }

    pub(super) fn retract(&self, key: &CacheKey) {
        self.shard(key).write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    fn shard(&self, key: &CacheKey) -> &Shard {
        // This only spreads keys, and the map hashes the whole key anyway; paths differ at the end.
        let end = key.secret.path.as_str().bytes().rev().take(4);
        &self.shards[end.fold(0, |sum, byte| sum * 3 + usize::from(byte)) % SHARDS]
    }
}
