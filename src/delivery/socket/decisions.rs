//! Permits of all callers: who asks again for what could not be read, or for more than is
//! remembered of one caller, is not decided about anew each time. Denials are not kept; asking for
//! what is forbidden is expensive on purpose.

use std::hash::BuildHasher;
use std::sync::{Mutex, PoisonError};

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::clock::BootInstant;
use crate::domain::SecretRef;
use crate::identity::Identity;
use crate::policy::{Authorized, Policy};

/// Permits kept, of all callers. Beside them each caller has its own, of what it has read.
const PERMITS_MAX: usize = 1024;

/// Who may read what, as it was decided within the last moments.
pub(super) struct Decisions(Mutex<Permits>);

struct Permits {
    table: HashTable<Authorized>,
    hasher: DefaultHashBuilder,
    most: usize,
}

impl Default for Decisions {
    fn default() -> Self {
        Self::at_most(PERMITS_MAX)
    }
}

fn hash(hasher: &DefaultHashBuilder, identity: &Identity, secret: &SecretRef) -> u64 {
    hasher.hash_one((identity, secret))
}

impl Decisions {
    fn at_most(most: usize) -> Self {
        let (table, hasher) = (HashTable::new(), DefaultHashBuilder::default());
        Self(Mutex::new(Permits { table, hasher, most }))
    }

    /// An earlier permit for this very caller, if it still holds.
    pub(super) fn permit(
        &self,
        policy: &Policy,
        identity: &Identity,
        secret: &SecretRef,
        now: BootInstant,
    ) -> Option<Authorized> {
        let permits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = hash(&permits.hasher, identity, secret);
        let same = |permit: &Authorized| permit.identity() == identity && permit.secret() == secret;
        let permit = permits.table.find(hash, same)?;
        policy.still_holds(permit, now).then(|| permit.clone())
    }

    /// Keeps a permit, in place of all others when there is no room.
    pub(super) fn keep(&self, permit: &Authorized) {
        let (identity, secret) = (permit.identity(), permit.secret());
        let mut permits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Permits { table, hasher, most } = &mut *permits;
        let same = |other: &Authorized| other.identity() == identity && other.secret() == secret;
        let rehash = |other: &Authorized| hash(hasher, other.identity(), other.secret());
        let hash = hash(hasher, identity, secret);
        if table.len() >= *most && table.find(hash, same).is_none() {
            table.clear();
        }
        match table.entry(hash, same, rehash) {
            Entry::Occupied(mut earlier) => *earlier.get_mut() = permit.clone(),
            Entry::Vacant(free) => _ = free.insert(permit.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Listener, ProofStrength};
    use crate::policy::{CompiledPolicy, PolicyConfig};

    fn caller(uid: u32, listener: Listener) -> Identity {
        Identity::host_user(uid, uid, &[], ProofStrength::PidFd, listener)
    }

    fn policy() -> Policy {
        let paths = vec!["secret/**".parse().unwrap()];
        let grants = vec![crate::policy::GrantConfig {
            name: "all".parse().unwrap(),
            effect: crate::policy::Effect::Permit,
            who: crate::policy::Who::AnyHostUser,
            source: "vault".parse().unwrap(),
            paths,
            share: crate::policy::Share::Consumer,
            login: crate::policy::GrantLogin::ServiceAccount,
            min_proof: ProofStrength::PeerCred,
            when: None,
        }];
        let config = PolicyConfig { grants, ..PolicyConfig::default() };
        Policy::new(CompiledPolicy::compile(&config).ok().unwrap())
    }

    #[test]
    fn a_permit_is_for_one_caller_and_secret_until_it_ends_or_policy_changes() {
        let (policy, decisions) = (policy(), Decisions::default());
        let now = BootInstant::from_nanos(1);
        let secret = |path: &str| SecretRef {
            source: "vault".parse().unwrap(),
            path: path.parse().unwrap(),
            version: None,
        };
        let (user, a) = (caller(1, Listener::Host), secret("secret/data/a"));
        let permit = policy.authorize(&user, &a, now).unwrap();
        let found = |identity: &Identity, secret: &SecretRef, now| {
            decisions.permit(&policy, identity, secret, now).is_some()
        };
        assert!(!found(&user, &a, now));
        decisions.keep(&permit);
        assert!(found(&user, &a, now));
        assert!(!found(&user, &a, permit.valid_until()));
        assert!(!found(&user, &secret("secret/data/b"), now));
        // The same user through another door, or proved otherwise, is another caller.
        assert!(!found(&caller(1, Listener::Operator), &a, now));
        assert!(!found(&caller(2, Listener::Host), &a, now));
        policy.replace(CompiledPolicy::compile(&PolicyConfig::default()).ok().unwrap());
        assert!(!found(&user, &a, now));
    }

    #[test]
    fn permits_are_bounded() {
        let (policy, decisions) = (policy(), Decisions::at_most(8));
        let now = BootInstant::from_nanos(1);
        for uid in 0..12 {
            let secret = SecretRef {
                source: "vault".parse().unwrap(),
                path: "secret/data/a".parse().unwrap(),
                version: None,
            };
            let permit = policy.authorize(&caller(uid, Listener::Host), &secret, now).unwrap();
            decisions.keep(&permit);
            decisions.keep(&permit);
        }
        assert_eq!(decisions.0.lock().unwrap().table.len(), 12 - 8);
    }
}
