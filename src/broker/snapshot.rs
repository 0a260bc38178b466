//! Published entries: written by the broker task alone, read by every connection.
//!
//! Sharded reader-writer locks, held for one table operation and never across an await. Each key
//! has a slot, which a reader keeps: from then on a hit costs no look at the table.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashTable;

use super::Entry;
use crate::broker::event::CacheKey;

/// Enough that readers on a few cores seldom meet, small enough to cost nothing when empty.
const SHARDS: usize = 16;

type Shard = RwLock<HashTable<(HashedKey, Arc<Slot>)>>;

/// A key with its hash.
struct HashedKey {
    key: CacheKey,
    hash: u64,
}

/// What is published under one key; emptied for good when it is retracted, so that whoever keeps it
/// keeps no value.
struct Slot(RwLock<Option<Arc<Entry>>>);

/// A reader's way to a key's entry.
pub(super) struct Reader {
    /// Apart: a reader with a slot does not look at it, and connections have many readers.
    wanted: Box<HashedKey>,
    slot: Option<Arc<Slot>>,
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
    pub(super) fn reader(&self, key: CacheKey) -> Reader {
        Reader { wanted: Box::new(self.hashed(key)), slot: None }
    }

    pub(super) fn get(&self, reader: &mut Reader) -> Option<Arc<Entry>> {
        if let Some(entry) = reader.slot.as_ref().and_then(|slot| slot.entry()) {
            return Some(entry);
        }
        let wanted = &reader.wanted;
        let shard = self.shard(wanted).read().unwrap_or_else(PoisonError::into_inner);
        let found = shard.find(wanted.hash, |(known, _)| known.key == wanted.key);
        reader.slot = found.map(|(_, slot)| Arc::clone(slot));
        drop(shard);
        reader.slot.as_ref()?.entry()
    }

    pub(super) fn publish(&self, key: CacheKey, entry: Arc<Entry>) {
        let new = self.hashed(key);
        let mut shard = self.shard(&new).write().unwrap_or_else(PoisonError::into_inner);
        match shard.find(new.hash, |(known, _)| known.key == new.key) {
            Some((_, slot)) => slot.set(Some(entry)),
            None => {
                let slot = Arc::new(Slot(RwLock::new(Some(entry))));
                shard.insert_unique(new.hash, (new, slot), |(key, _)| key.hash);
            }
        }
    }

    pub(super) fn retract(&self, key: CacheKey) {
        let gone = self.hashed(key);
        let mut shard = self.shard(&gone).write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(found) = shard.find_entry(gone.hash, |(known, _)| known.key == gone.key) {
            let ((_, slot), _) = found.remove();
            slot.set(None);
        }
    }

    fn hashed(&self, key: CacheKey) -> HashedKey {
        let hash = self.hashes.hash_one(&key);
        HashedKey { key, hash }
    }

    /// The table uses the hash's other bits.
    fn shard(&self, key: &HashedKey) -> &Shard {
        &self.shards[(key.hash >> 32) as usize % SHARDS]
    }
}

impl Reader {
    pub(super) fn key(&self) -> &CacheKey {
        &self.wanted.key
    }
}

impl Slot {
    fn entry(&self) -> Option<Arc<Entry>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, entry: Option<Arc<Entry>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = entry;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{DataView, shared_bytes};
    use crate::clock::BootInstant;
    use crate::domain::{LoginIdentity, PathKind, SecretBytes, SecretRef};

    fn key(path: &str) -> CacheKey {
        let (source, path) = ("vault".parse().unwrap(), path.parse().unwrap());
        let secret = SecretRef { source, path, version: None };
        CacheKey { secret, login: LoginIdentity::Agent, consumer: None }
    }

    fn entry(value: &str) -> Arc<Entry> {
        let bytes = shared_bytes(SecretBytes::new(value.into()));
        Arc::new(Entry {
            data: DataView::new(bytes, 0..value.len()),
            kind: PathKind::Kv,
            fetched_at: BootInstant::default(),
            fresh_until: BootInstant::default(),
            dead_at: BootInstant::default(),
            version: None,
            fingerprint: 0,
            interest: None,
        })
    }

    #[test]
    fn a_reader_follows_its_key_and_no_other() {
        let snapshot = Snapshot::new();
        let mut reader = snapshot.reader(key("secret/data/shop/web"));
        let mut read = || snapshot.get(&mut reader).map(|entry| entry.data.expose().to_vec());
        assert_eq!(read(), None);
        snapshot.publish(key("secret/data/shop/worker"), entry("another"));
        assert_eq!(read(), None);
        for value in ["first", "second"] {
            snapshot.publish(key("secret/data/shop/web"), entry(value));
            assert_eq!(read().as_deref(), Some(value.as_bytes()));
        }
        snapshot.retract(key("secret/data/shop/web"));
        assert_eq!(read(), None);
        snapshot.publish(key("secret/data/shop/web"), entry("third"));
        assert_eq!(read().as_deref(), Some(&b"third"[..]));
    }

    #[test]
    fn a_reader_keeps_no_value_that_was_retracted_or_replaced() {
        let snapshot = Snapshot::new();
        let mut reader = snapshot.reader(key("secret/data/shop/web"));
        let (first, second) = (entry("first"), entry("second"));
        let kept = [&first, &second].map(Arc::downgrade);
        snapshot.publish(key("secret/data/shop/web"), first);
        assert!(snapshot.get(&mut reader).is_some());
        snapshot.publish(key("secret/data/shop/web"), second);
        assert!(kept[0].upgrade().is_none());
        assert!(snapshot.get(&mut reader).is_some());
        snapshot.retract(key("secret/data/shop/web"));
        assert!(kept[1].upgrade().is_none());
    }
}
