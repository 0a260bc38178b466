//! Permits of all connections: a caller that connects anew for each request is not decided about
//! anew each time. Denials are not kept; asking for what is forbidden is expensive on purpose.

use std::sync::{Mutex, PoisonError};

use hashbrown::{Equivalent, HashMap};

use crate::clock::BootInstant;
use crate::domain::SecretRef;
use crate::identity::Identity;
use crate::policy::{Authorized, Policy};

/// Permits kept; more callers and secrets than this are decided about per connection.
const PERMITS_MAX: usize = 1024;

/// Who may read what, as it was decided within the last moments.
#[derive(Default)]
pub(super) struct Decisions(Mutex<HashMap<Key, Authorized>>);

#[derive(PartialEq, Eq, Hash)]
struct Key(Identity, SecretRef);

#[derive(Hash)]
struct KeyRef<'a>(&'a Identity, &'a SecretRef);

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.0 == key.0 && *self.1 == key.1
    }
}

impl Decisions {
    /// An earlier permit for this very caller, if it still holds.
    pub(super) fn permit(
        &self,
        policy: &Policy,
        identity: &Identity,
        secret: &SecretRef,
        now: BootInstant,
    ) -> Option<Authorized> {
        let permits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let permit = permits.get(&KeyRef(identity, secret))?;
        policy.still_holds(permit, now).then(|| permit.clone())
    }

    /// Keeps a permit, in place of all others when there is no room.
    pub(super) fn keep(&self, permit: &Authorized) {
        let key = Key(permit.identity().clone(), permit.secret().clone());
        let mut permits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if permits.len() >= PERMITS_MAX {
            permits.clear();
        }
        permits.insert(key, permit.clone());
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
        let (policy, decisions) = (policy(), Decisions::default());
        let now = BootInstant::from_nanos(1);
        for uid in 0..3 * u32::try_from(PERMITS_MAX).unwrap() / 2 {
            let secret = SecretRef {
                source: "vault".parse().unwrap(),
                path: "secret/data/a".parse().unwrap(),
                version: None,
            };
            let permit = policy.authorize(&caller(uid, Listener::Host), &secret, now).unwrap();
            decisions.keep(&permit);
        }
        assert!(decisions.0.lock().unwrap().len() <= PERMITS_MAX);
    }
}
