//! Decisions about a caller that are remembered, with where what was permitted is and how often it
//! was served.

use std::hash::BuildHasher;
use std::num::NonZeroU64;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::served::Served;
use crate::broker::Place;
use crate::clock::BootInstant;
use crate::domain::SecretRef;

/// Decisions remembered per caller; one that asks for more is decided about again.
const MEMOS_MAX: usize = 512;

/// Decisions about one caller, by path and version.
#[derive(Default)]
pub(super) struct Memos {
    table: HashTable<Memo>,
    hasher: DefaultHashBuilder,
}

/// One remembered decision.
pub(super) struct Memo {
    /// The decision, and what was served by it and by those before.
    pub(super) served: Served,
    pub(super) place: Place,
    /// The namespace it is read from.
    pub(super) namespace: Option<Box<str>>,
}

impl Memo {
    fn secret(&self) -> &SecretRef {
        self.served.authorized().secret()
    }

    fn is_of(&self, path: &str, version: Option<NonZeroU64>) -> bool {
        let secret = self.secret();
        secret.version == version && secret.path.as_str() == path
    }
}

impl Memos {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// What was decided about this path and version.
    pub(super) fn get_mut(&mut self, path: &str, version: Option<NonZeroU64>) -> Option<&mut Memo> {
        let hash = self.hasher.hash_one((path, version));
        self.table.find_mut(hash, |memo| memo.is_of(path, version))
    }

    /// Keeps the first decision about a secret, in place of any other one when there is no room;
    /// what was served by that one is recorded.
    pub(super) fn insert(&mut self, memo: Memo) -> &mut Memo {
        let Self { table, hasher } = self;
        let rehash = |memo: &Memo| {
            let secret = memo.secret();
            hasher.hash_one((secret.path.as_str(), secret.version))
        };
        let hash = rehash(&memo);
        if table.len() >= MEMOS_MAX {
            // Not the first one, which was the newest: what is read now and then would never stay.
            let mut before = hash % MEMOS_MAX as u64;
            let is_it = |_: &mut Memo| {
                let is_it = before == 0;
                before = before.wrapping_sub(1);
                is_it
            };
            drop(table.extract_if(is_it).next());
        }
        table.insert_unique(hash, memo, rehash).into_mut()
    }

    /// Records what was served a while ago, in no more than `most` lines; tells how many.
    pub(super) fn record_due(&mut self, now: BootInstant, most: usize) -> usize {
        let lines = self.table.iter_mut().map(|memo| memo.served.record_due(now));
        lines.filter(|made| *made).take(most).count()
    }

    /// Reads that no line says yet.
    #[cfg(test)]
    pub(super) fn unrecorded(&self) -> u64 {
        self.table.iter().map(|memo| memo.served.unrecorded()).sum()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::delivery::testing::{Rig, pod};
    use crate::identity::Identity;
    use crate::policy::Authorized;

    /// Remembers a decision of the rig's policy.
    pub(in super::super) fn remember<'a>(
        rig: &Rig,
        memos: &'a mut Memos,
        authorized: Authorized,
        now: BootInstant,
    ) -> &'a mut Memo {
        let place = rig.files.broker.place(&authorized);
        let served = Served::new(rig.files.audit.clone(), false, authorized, now);
        memos.insert(Memo { served, place, namespace: None })
    }

    fn insert(rig: &Rig, memos: &mut Memos, path: &str, version: Option<u64>) {
        let identity = Identity::published_pod(Arc::new(pod()), &"web".parse().unwrap(), None);
        let (source, path) = ("local".parse().unwrap(), path.parse().unwrap());
        let secret = SecretRef { source, path, version: version.and_then(NonZeroU64::new) };
        let now = BootInstant::from_nanos(1);
        let authorized = rig.files.policy.authorize(&identity, &secret, now).unwrap();
        remember(rig, memos, authorized, now);
    }

    #[tokio::test]
    async fn a_decision_is_found_by_path_and_version() {
        let (rig, mut memos) = (Rig::start(), Memos::default());
        for (path, version) in [("a", None), ("a", Some(1)), ("a", Some(2)), ("b", None)] {
            insert(&rig, &mut memos, &format!("secret/data/open/{path}"), version);
        }
        for (path, version, found) in [
            ("secret/data/open/a", None, true),
            ("secret/data/open/a", Some(2), true),
            ("secret/data/open/a", Some(3), false),
            ("secret/data/open/b", Some(1), false),
            ("secret/data/open", None, false),
        ] {
            let version = version.and_then(NonZeroU64::new);
            let secret = memos.get_mut(path, version).map(|memo| memo.secret().clone());
            assert_eq!(secret.is_some(), found, "{path} {version:?}");
            assert!(secret.is_none_or(|it| it.path.as_str() == path && it.version == version));
        }
    }

    #[tokio::test]
    async fn one_decision_makes_room_for_another_and_what_is_read_often_stays() {
        let (rig, mut memos) = (Rig::start(), Memos::default());
        let path = |number: usize| format!("secret/data/open/{number}");
        for number in 0..4 * MEMOS_MAX {
            insert(&rig, &mut memos, &path(number), None);
            assert_eq!(memos.len(), (number + 1).min(MEMOS_MAX));
            assert!(memos.get_mut(&path(number), None).is_some());
        }
        // Some that were not read since: each may put out another one, and soon none does.
        let mut missed = Vec::new();
        for _ in 0..20 {
            let mut read = |number: &usize| {
                let is_missed = memos.get_mut(&path(*number), None).is_none();
                if is_missed {
                    insert(&rig, &mut memos, &path(*number), None);
                }
                is_missed
            };
            missed.push((0..20).filter(|number| read(number)).count());
        }
        assert!(missed[10..].iter().sum::<usize>() < 20, "{missed:?}");
    }
}
