//! The node's one socket for all of its pods: the kernel says which pod a caller is in, the
//! directory says which one that is, and the pod's own token proves it once more.
//!
//! The token (`Authorization: Bearer`) is bound to the pod and meant for this agent alone, so a
//! placement that was got by a trick fails without it, and a stolen token fails without the
//! placement. Tokens of Vault prove nothing here and are not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};

use super::request::Refusal;
use crate::broker::Broker;
use crate::clock::{BootInstant, Human};
use crate::domain::{ConsumerId, Pod, PodUid, ServiceAccount, Token};
use crate::identity::lock_out::{LockOut, LockedPod};
use crate::identity::peer::Peer;
use crate::identity::pods::{DirectoryPod, FindError, PodDirectory};
use crate::identity::token::{PodInfo, TokenRefused, Verifier};
use crate::identity::{Identity, ProofStrength, Subject};
use crate::telemetry::{Chain, Hits, Limit, Metrics};

/// How long a caller waits for its pod to be known: the watch is that far behind the kubelet.
const DIRECTORY_WAIT: Duration = Duration::from_secs(2);
/// Tokens that are judged at once, each of another pod: the API server may have to be asked.
const JUDGED_AT_ONCE: usize = 16;
/// When to ask again after the directory could not help.
const RETRY_AFTER_SECONDS: u64 = 2;

/// When a caller must show its pod's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofToken {
    /// Always.
    Required,
    /// Where the kernel has no handle on callers (before Linux 6.5). Elsewhere a grant may ask for
    /// it with `min_proof = "token"`.
    BelowPidFd,
}

/// Whom the node's socket lets in.
pub struct NodeDoor {
    directory: PodDirectory,
    verifier: Verifier,
    proof: ProofToken,
    lock_out: Mutex<LockOut>,
    /// Pods that were named since they were last seen to be gone.
    named: Mutex<BTreeMap<PodUid, ConsumerId>>,
    /// Pods whose tokens are being judged.
    judging: Arc<Mutex<BTreeSet<PodUid>>>,
    not_judged: Hits,
}

/// A pod's turn at the judge; dropping it ends the turn.
struct Turn<'a> {
    judging: &'a Mutex<BTreeSet<PodUid>>,
    uid: PodUid,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.judging.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.uid);
    }
}

/// A caller that was named.
pub(super) struct Introduced {
    pub(super) identity: Identity,
    /// The pod as the directory has it, by which it is locked out.
    pub(super) pod: Arc<Pod>,
    /// When its token ends, and with it the proof.
    pub(super) until: Option<BootInstant>,
}

/// Why a caller has no name yet.
#[derive(Debug)]
pub(super) enum NotIntroduced {
    Find(FindError),
    LockedOut(Duration),
    /// Another token of this pod, or too many of all pods, are being judged.
    Busy,
    /// No token came, and one is due for this audience.
    TokenDue(String),
    /// What came is no token.
    NotAToken,
    /// The token proves nothing. The identity is who sent it, for the audit log.
    Refused(Box<Identity>, TokenRefused),
}

impl NodeDoor {
    /// Names callers by `directory`, and has `verifier` judge their tokens; shows in status and
    /// metrics how many at once. Call once per process.
    pub fn new(
        directory: PodDirectory,
        verifier: Verifier,
        proof: ProofToken,
        metrics: &Metrics,
    ) -> Self {
        let (lock_out, named, judging) = Default::default();
        let not_judged = Hits::default();
        let (watched, hits) = (Arc::<Mutex<BTreeSet<PodUid>>>::clone(&judging), not_judged.clone());
        metrics.watch_limit(move || {
            let used = watched.lock().unwrap_or_else(PoisonError::into_inner).len();
            Limit::shared("proofs_judged", used, JUDGED_AT_ONCE, hits.total())
        });
        Self { directory, verifier, proof, lock_out, named, judging, not_judged }
    }

    /// Ends the interest of pods that are gone, until the agent takes no more requests.
    pub(super) async fn release_gone(&self, broker: &Broker) -> Infallible {
        let mut changes = self.directory.changes();
        // The directory lives as long as this borrow of it, so there is always somebody who tells.
        while changes.changed().await.is_ok() {
            for consumer in self.take_gone() {
                broker.consumer_gone(consumer).await;
            }
        }
        std::future::pending().await
    }

    /// With a token or without, a pod is one consumer. Whoever went in between is released by
    /// nobody any more, so it is not named.
    fn note(&self, uid: &PodUid, identity: &Identity) -> Result<(), NotIntroduced> {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.entry(uid.clone()).or_insert_with(|| identity.consumer().clone());
        match self.directory.why_unknown(uid) {
            Some(FindError::Gone) => Err(NotIntroduced::Find(FindError::Gone)),
            _ => Ok(()),
        }
    }

    fn take_gone(&self) -> Vec<ConsumerId> {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let is_gone = |uid: &PodUid| self.directory.why_unknown(uid) == Some(FindError::Gone);
        let gone: Vec<PodUid> = named.keys().filter(|uid| is_gone(uid)).cloned().collect();
        gone.iter().filter_map(|uid| named.remove(uid)).collect()
    }

    /// Names a caller that was placed in the pod `uid`. Waits at most two seconds for the
    /// directory, and for the API server where it has to be asked about the token. Dropped, nothing
    /// is lost.
    pub(super) async fn introduce(
        &self,
        peer: &Peer,
        uid: &PodUid,
        headers: &HeaderMap,
    ) -> Result<Introduced, NotIntroduced> {
        let found = self.directory.find(uid, DIRECTORY_WAIT).await.map_err(NotIntroduced::Find)?;
        let unproved = Arc::new(unproved(&found));
        self.check_locked_out(&unproved, BootInstant::now())?;
        let placed = Identity::on_node_socket(Arc::clone(&unproved), peer.strength());
        self.note(uid, &placed)?;
        let Some(token) = bearer(headers)? else {
            let due = match self.proof {
                ProofToken::Required => true,
                ProofToken::BelowPidFd => peer.strength() < ProofStrength::PidFd,
            };
            return match due {
                true => Err(NotIntroduced::TokenDue(self.verifier.audience().to_owned())),
                false => Ok(Introduced { identity: placed, pod: unproved, until: None }),
            };
        };
        let _turn = self.turn(uid)?;
        let proved = self.verifier.verify(&token, SystemTime::now()).await;
        match proved.and_then(|claims| claims.matches(&said_of(&found)).map(|()| claims)) {
            Ok(claims) => {
                let left = claims.expires_at().duration_since(SystemTime::now());
                let left = left.unwrap_or_default();
                let left = self.verifier.holds_for().map_or(left, |most| left.min(most));
                let until = Some(BootInstant::now() + left);
                let proved = Arc::new(claims.pod().clone());
                let identity = Identity::on_node_socket(proved, ProofStrength::Token);
                Ok(Introduced { identity, pod: unproved, until })
            }
            Err(refused) => Err(NotIntroduced::Refused(Box::new(placed), refused)),
        }
    }

    /// Counts a forged token of this caller's pod; whether the pod is locked out by it. Without a
    /// handle on the process its place may be that of another one, so nobody is blamed.
    pub(super) fn forged(&self, identity: &Identity, now: BootInstant) -> bool {
        match identity.subject() {
            Subject::Pod(pod) if identity.strength() >= ProofStrength::PidFd => {
                self.lock_out().forged(pod, now)
            }
            _ => false,
        }
    }

    /// Refuses a pod that is locked out.
    pub(super) fn check_locked_out(
        &self,
        pod: &Pod,
        now: BootInstant,
    ) -> Result<(), NotIntroduced> {
        self.lock_out().left(pod, now).map_or(Ok(()), |left| Err(NotIntroduced::LockedOut(left)))
    }

    /// A turn at the judge: one token of a pod at a time, and few of all together.
    fn turn(&self, uid: &PodUid) -> Result<Turn<'_>, NotIntroduced> {
        let mut judging = self.judging.lock().unwrap_or_else(PoisonError::into_inner);
        if judging.len() >= JUDGED_AT_ONCE {
            self.not_judged.count();
            return Err(NotIntroduced::Busy);
        }
        if !judging.insert(uid.clone()) {
            return Err(NotIntroduced::Busy);
        }
        Ok(Turn { judging: &self.judging, uid: uid.clone() })
    }

    /// Pods that are locked out now.
    pub fn locked_out(&self, now: BootInstant) -> Vec<LockedPod> {
        self.lock_out().locked(now)
    }

    /// Lets pods in again, by `namespace/name` or by uid; how many were locked out.
    pub fn unlock(&self, named: &str, now: BootInstant) -> usize {
        let matches = |pod: &Pod| pod.uid.as_str() == named || pod.to_string() == named;
        self.lock_out().unlock(matches, now)
    }

    fn lock_out(&self) -> MutexGuard<'_, LockOut> {
        self.lock_out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pod as the directory knows it: which account of that name it runs as is not proved.
fn unproved(found: &DirectoryPod) -> Pod {
    let (namespace, name) = (found.namespace.clone(), found.service_account.clone());
    let account = ServiceAccount::unproved(namespace, name, &found.uid);
    Pod { uid: found.uid.clone(), name: found.name.clone(), account }
}

/// What the token must say, beside being good.
fn said_of(found: &DirectoryPod) -> PodInfo {
    PodInfo {
        namespace: found.namespace.clone(),
        pod: found.name.clone(),
        uid: found.uid.clone(),
        service_account: found.service_account.clone(),
        account_uid_before: None,
    }
}

/// The token of the request, if it brings one.
fn bearer(headers: &HeaderMap) -> Result<Option<Token>, NotIntroduced> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(NotIntroduced::NotAToken);
    }
    let (_, token) = value
        .as_bytes()
        .split_at_checked(b"Bearer ".len())
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
        .ok_or(NotIntroduced::NotAToken)?;
    Token::new(token.to_vec()).map(Some).map_err(|_| NotIntroduced::NotAToken)
}

impl From<&NotIntroduced> for Refusal {
    fn from(why: &NotIntroduced) -> Self {
        let forbidden =
            |why: String| Self::new(StatusCode::FORBIDDEN, format!("permission denied: {why}"));
        match why {
            NotIntroduced::Find(error @ (FindError::Unreachable(_) | FindError::Busy)) => {
                Self::unavailable(error.to_string(), RETRY_AFTER_SECONDS)
            }
            NotIntroduced::Find(error) => forbidden(error.to_string()),
            NotIntroduced::Busy => Self::unavailable("tokens are being judged: ask again", 1),
            NotIntroduced::LockedOut(left) => forbidden(format!(
                "this pod sent forged tokens and is locked out for {}; an operator ends that with \
                 secrets-broker unlock",
                Human(*left)
            )),
            NotIntroduced::TokenDue(audience) => forbidden(format!(
                "send this pod's own token, projected for the audience '{audience}', as \
                 Authorization: Bearer"
            )),
            NotIntroduced::NotAToken => {
                Self::bad_request("the Authorization header is not one Bearer token")
            }
            NotIntroduced::Refused(_, error) if error.may_pass() => {
                Self::unavailable(Chain(error).to_string(), RETRY_AFTER_SECONDS)
            }
            NotIntroduced::Refused(_, error) => forbidden(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn sent(values: &[&'static str]) -> Result<Option<String>, u16> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_static(value));
        }
        match bearer(&headers) {
            Ok(token) => Ok(token.map(|token| token.expose().to_owned())),
            Err(why) => Err(Refusal::from(&why).status.as_u16()),
        }
    }

    #[test]
    fn a_proof_is_one_bearer_token_or_none_at_all() {
        assert_eq!(sent(&[]), Ok(None));
        assert_eq!(sent(&["Bearer a.b.c"]), Ok(Some("a.b.c".to_owned())));
        assert_eq!(sent(&["bearer a.b.c"]), Ok(Some("a.b.c".to_owned())));
        for bad in ["", "Bearer", "Bearer ", "Bearer a b", "Basic eDp5", "a.b.c", "Bearer\ta"] {
            assert_eq!(sent(&[bad]), Err(400), "{bad}");
        }
        assert_eq!(sent(&["Bearer a", "Bearer a"]), Err(400));
    }

    #[test]
    fn a_caller_is_told_what_to_do_and_whether_to_come_back() {
        let told = |why: NotIntroduced| {
            let refusal = Refusal::from(&why);
            let message = refusal.message.unwrap_or_default().into_owned();
            (refusal.status.as_u16(), refusal.retry_after.is_some(), message)
        };
        let unreachable = FindError::Unreachable("pods are being listed".to_owned());
        assert_eq!(told(NotIntroduced::Find(unreachable)).0, 503);
        assert!(told(NotIntroduced::Find(FindError::Busy)).1);
        assert_eq!(told(NotIntroduced::Find(FindError::Unknown)).0, 403);
        let (code, again, message) = told(NotIntroduced::TokenDue("secrets-broker".to_owned()));
        assert_eq!((code, again), (403, false));
        assert!(message.contains("'secrets-broker'") && message.contains("Bearer"), "{message}");
        let (code, _, message) = told(NotIntroduced::LockedOut(Duration::from_secs(600)));
        assert!(code == 403 && message.contains("10m") && message.contains("unlock"), "{message}");
    }
}
