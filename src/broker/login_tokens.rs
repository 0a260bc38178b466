//! Service-account tokens that pods have delivered, to log in with as their account.
//!
//! An account's session outlives each of its pods, so any living member's token will do. The
//! delivery that verified a token brings it here and takes it away with its volume.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::domain::{ConsumerId, ServiceAccount, Token};

/// What living members of each account have delivered. Cheap to clone.
#[derive(Clone, Default)]
pub struct LoginTokens(Arc<Mutex<HashMap<ServiceAccount, Members>>>);

type Members = BTreeMap<ConsumerId, Delivered>;

struct Delivered {
    token: Arc<Token>,
    expires_at: SystemTime,
    /// The source refused it: tried again only when no other member has one.
    refused: bool,
}

impl LoginTokens {
    /// Takes a member's newest token, verified by the caller, in place of its last one.
    pub fn deliver(
        &self,
        account: &ServiceAccount,
        member: ConsumerId,
        token: Token,
        expires_at: SystemTime,
    ) {
        let delivered = Delivered { token: Arc::new(token), expires_at, refused: false };
        self.lock().entry(account.clone()).or_default().insert(member, delivered);
    }

    /// Forgets a member that is gone.
    pub fn withdraw(&self, account: &ServiceAccount, member: &ConsumerId) {
        let mut accounts = self.lock();
        if let Some(members) = accounts.get_mut(account) {
            members.remove(member);
            if members.is_empty() {
                accounts.remove(account);
            }
        }
    }

    /// The token to log in with: one that was not refused before one that was, then the one that
    /// lives longest; `None` when no member has one that still lives.
    pub(super) fn best(&self, account: &ServiceAccount, now: SystemTime) -> Option<Arc<Token>> {
        let accounts = self.lock();
        let living = accounts.get(account)?.values().filter(|one| one.expires_at > now);
        let best = living.max_by_key(|one| (!one.refused, one.expires_at))?;
        Some(Arc::clone(&best.token))
    }

    /// The source refused this token: its pod may be gone although nobody said so here.
    pub(super) fn refuse(&self, account: &ServiceAccount, token: &Arc<Token>) {
        let mut accounts = self.lock();
        let members = accounts.get_mut(account).into_iter().flat_map(BTreeMap::values_mut);
        for one in members.filter(|one| Arc::ptr_eq(&one.token, token)) {
            one.refused = true;
        }
    }

    /// Whether nobody has delivered one that is still here.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServiceAccount, Members>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn account(uid: &str) -> ServiceAccount {
        let (namespace, name) = ("shop".parse().unwrap(), "web".parse().unwrap());
        ServiceAccount { namespace, name, uid: uid.parse().unwrap() }
    }

    fn member(uid: u32) -> ConsumerId {
        ConsumerId::host_user(uid)
    }

    fn token(text: &str) -> Token {
        Token::new(text.into()).unwrap()
    }

    fn best(tokens: &LoginTokens, uid: &str, now: SystemTime) -> Option<String> {
        tokens.best(&account(uid), now).map(|token| token.expose().to_owned())
    }

    #[test]
    fn the_longest_living_token_of_the_same_account_is_used_and_a_refused_one_last() {
        let tokens = LoginTokens::default();
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        tokens.deliver(&account("a"), member(1), token("short"), now + hour);
        tokens.deliver(&account("a"), member(2), token("long"), now + 2 * hour);
        // A re-created account of the same name is another account.
        tokens.deliver(&account("b"), member(3), token("other"), now + 3 * hour);
        assert_eq!(best(&tokens, "a", now).as_deref(), Some("long"));
        let refused = tokens.best(&account("a"), now).unwrap();
        tokens.refuse(&account("a"), &refused);
        assert_eq!(best(&tokens, "a", now).as_deref(), Some("short"));
        tokens.withdraw(&account("a"), &member(1));
        assert_eq!(best(&tokens, "a", now).as_deref(), Some("long"));
        // Its member delivers anew, and the refusal is over.
        tokens.deliver(&account("a"), member(1), token("new"), now + hour);
        tokens.deliver(&account("a"), member(2), token("newer"), now + 2 * hour);
        assert_eq!(best(&tokens, "a", now).as_deref(), Some("newer"));
    }

    #[test]
    fn nothing_is_left_of_a_member_that_is_gone_or_a_token_that_has_ended() {
        let tokens = LoginTokens::default();
        let now = SystemTime::now();
        tokens.deliver(&account("a"), member(1), token("t"), now);
        assert_eq!(best(&tokens, "a", now), None);
        assert_eq!(best(&tokens, "a", now - Duration::from_secs(1)).as_deref(), Some("t"));
        tokens.withdraw(&account("a"), &member(1));
        assert!(tokens.is_empty());
    }
}
