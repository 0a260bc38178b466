//! May this identity read this secret? Default deny, forbid wins, an evaluation error is a denial.
//! The only place that can construct an [`Authorized`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::clock::BootInstant;
use crate::domain::{ConsumerId, LoginIdentity, RuleName, SecretRef, SourceName};
use crate::identity::pods::{FindError, Labels, PodDirectory};
use crate::identity::{Identity, Subject};

mod cases;
mod engine;
mod grants;
#[cfg(test)]
mod label_tests;
mod labels;
#[cfg(test)]
mod pod_tests;
mod rules;
mod schema;
mod scope;
mod supposed;
#[cfg(test)]
mod tests;

pub use cases::{Case, Expected, Outcome};
pub use engine::CompiledPolicy;
pub use grants::{CedarFile, Effect, GrantConfig, GrantLogin, PolicyConfig, Share, Who};
pub use rules::PolicyError;
pub use supposed::Supposed;

/// Proof that policy allows this identity this secret, until a time and under one generation. Cheap
/// to clone.
#[derive(Debug, Clone)]
pub struct Authorized {
    generation: u64,
    valid_until: BootInstant,
    /// Shared by all who keep the proof: a caller may have it on many connections.
    what: Arc<Allowed>,
}

/// What is allowed, to whom, and how.
#[derive(Debug)]
struct Allowed {
    identity: Identity,
    secret: SecretRef,
    login: LoginIdentity,
    /// Worked out once: every read of a leased secret asks.
    dynamic_owner: Option<ConsumerId>,
    rule: RuleName,
    pods: PodDirectory,
}

impl Authorized {
    /// Who was authorised.
    pub fn identity(&self) -> &Identity {
        &self.what.identity
    }

    /// What they may read.
    pub fn secret(&self) -> &SecretRef {
        &self.what.secret
    }

    /// Whose identity is used upstream.
    pub fn login(&self) -> &LoginIdentity {
        &self.what.login
    }

    /// Whose a dynamic credential is: the caller's own or its service account's; `None` when the
    /// rule shares it with everybody who reads with this login identity.
    pub fn dynamic_owner(&self) -> Option<&ConsumerId> {
        self.what.dynamic_owner.as_ref()
    }

    /// Whether it stands for the very same read: of the same secret, with the same login, of the
    /// same consumer's.
    pub fn reads_like(&self, other: &Self) -> bool {
        self.secret() == other.secret()
            && self.login() == other.login()
            && self.dynamic_owner() == other.dynamic_owner()
    }

    /// The rule that decided.
    pub fn rule(&self) -> &RuleName {
        &self.what.rule
    }

    /// The policy generation this holds under.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When it must be asked again at the latest.
    pub fn valid_until(&self) -> BootInstant {
        self.valid_until
    }

    /// Whether a credential may be made for it now. A pod that is ending or has ended keeps and
    /// reads what it has, and gets no new one.
    pub fn may_mint(&self) -> bool {
        match self.identity().subject() {
            Subject::Pod(pod) => !self.what.pods.is_leaving(&pod.uid),
            Subject::HostUser { .. } | Subject::Volume(_) => true,
        }
    }
}

/// A refusal. `reason` is for operators and the audit log; a caller gets a terse 403.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("denied by {}: {reason}", rule.as_ref().map_or("default", RuleName::as_str))]
pub struct Denied {
    /// The forbidding rule; `None` when nothing matched (default deny).
    pub rule: Option<RuleName>,
    /// Why, for operators.
    pub reason: String,
    /// Knowing the pod's labels might have changed the answer: no decision to act upon.
    pub labels_unknown: bool,
}

/// What a positive decision says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Permit {
    rule: RuleName,
    share: Share,
    login: LoginIdentity,
}

/// The current policy, replaceable at run time. Cheap to clone.
#[derive(Clone)]
pub struct Policy {
    current: Arc<ArcSwap<CompiledPolicy>>,
    pods: PodDirectory,
    generation: Arc<Generation>,
}

/// How often decisions made earlier stopped to hold: the number every hit compares, and who is told
/// that it moved.
struct Generation {
    number: AtomicU64,
    followers: watch::Sender<()>,
}

impl Policy {
    /// Puts a compiled policy in force as generation 1. No pod's labels are known to it.
    pub fn new(compiled: CompiledPolicy) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(compiled)),
            pods: PodDirectory::none(),
            generation: Arc::new(Generation {
                number: AtomicU64::new(1),
                followers: watch::Sender::new(()),
            }),
        }
    }

    /// The same policy, which looks pods up there. Whoever follows it calls
    /// [`Policy::labels_changed`].
    pub fn with_directory(self, pods: PodDirectory) -> Self {
        Self { pods, ..self }
    }

    /// Decides. `now` bounds the proof's life; conditions on time use the wall clock inside.
    pub fn authorize(
        &self,
        identity: &Identity,
        secret: &SecretRef,
        now: BootInstant,
    ) -> Result<Authorized, Denied> {
        // The generation first: if a replacement comes between the two reads, the proof carries
        // the older number and does not hold.
        let generation = self.generation.number.load(Ordering::Acquire);
        let policy = self.current.load();
        let labels = self.labels_for(&policy, identity);
        let permit = policy.decide(identity, secret, labels.as_deref(), Timestamp::now());
        let permit = permit.map_err(|denied| self.explained(denied, identity))?;
        let what = Allowed {
            identity: identity.clone(),
            secret: secret.clone(),
            login: permit.login,
            dynamic_owner: owner_of(permit.share, identity),
            rule: permit.rule,
            pods: self.pods.clone(),
        };
        let valid_until = now + policy.recheck();
        Ok(Authorized { generation, valid_until, what: Arc::new(what) })
    }

    /// Decides; where that takes labels of a pod that is not known yet, waits for it first, at most
    /// for `wait`. Dropped, nothing is lost.
    ///
    /// # Errors
    /// As [`Policy::authorize`]. [`Denied::labels_unknown`] says whether asking again may help.
    pub async fn authorize_within(
        &self,
        wait: Duration,
        identity: &Identity,
        secret: &SecretRef,
    ) -> Result<Authorized, Denied> {
        let outcome = self.authorize(identity, secret, BootInstant::now());
        let (Err(Denied { labels_unknown: true, .. }), Subject::Pod(pod)) =
            (&outcome, identity.subject())
        else {
            return outcome;
        };
        let found = self.pods.find(&pod.uid, wait).await;
        let outcome = self.authorize(identity, secret, BootInstant::now());
        outcome.map_err(|denied| match found {
            Err(busy @ FindError::Busy) => {
                Denied { reason: format!("{}; {busy}", denied.reason), ..denied }
            }
            Err(error) if !error.may_pass() => Denied { labels_unknown: false, ..denied },
            _ => denied,
        })
    }

    /// What another policy would decide now, with the labels that are known here.
    pub fn suppose(
        &self,
        other: &CompiledPolicy,
        identity: &Identity,
        secret: &SecretRef,
    ) -> Result<Supposed, Denied> {
        let labels = self.labels_for(other, identity);
        let supposed = other.suppose(identity, secret, labels.as_deref(), Timestamp::now());
        supposed.map_err(|denied| self.explained(denied, identity))
    }

    /// The refusal, with why the pod's labels are not known if that is its reason.
    fn explained(&self, denied: Denied, identity: &Identity) -> Denied {
        let (true, Subject::Pod(pod)) = (denied.labels_unknown, identity.subject()) else {
            return denied;
        };
        match self.pods.why_unknown(&pod.uid) {
            Some(why) => Denied { reason: format!("{}: {why}", denied.reason), ..denied },
            None => denied,
        }
    }

    fn labels_for(&self, policy: &CompiledPolicy, identity: &Identity) -> Option<Arc<Labels>> {
        match identity.subject() {
            Subject::Pod(pod) if policy.uses_labels() => self.pods.labels(&pod.uid),
            _ => None,
        }
    }

    /// Whose identity asks a source what is mounted there, before any secret is known to decide
    /// about.
    pub fn probing_login(&self, identity: &Identity, source: &SourceName) -> LoginIdentity {
        self.current.load().probing_login(identity, source)
    }

    /// Whether a proof made earlier still holds, without deciding again.
    pub fn still_holds(&self, authorized: &Authorized, now: BootInstant) -> bool {
        now < authorized.valid_until
            && authorized.generation == self.generation.number.load(Ordering::Acquire)
    }

    /// Replaces the policy; every subscription is re-authorised by whoever holds it.
    pub fn replace(&self, compiled: CompiledPolicy) {
        self.current.store(Arc::new(compiled));
        self.generation.advance();
    }

    /// Has everything decided anew, if any rule asks for labels. Call it after the labels changed.
    pub fn labels_changed(&self) {
        if self.current.load().uses_labels() {
            self.generation.advance();
        }
    }

    /// Tells when decisions made earlier hold no longer.
    pub fn generations(&self) -> watch::Receiver<()> {
        self.generation.followers.subscribe()
    }
}

/// Who has a dynamic secret to itself; `None` where all of the agent's consumers share it.
fn owner_of(share: Share, identity: &Identity) -> Option<ConsumerId> {
    match (share, identity.subject()) {
        (Share::Agent, _) => None,
        (Share::ServiceAccount, Subject::Pod(pod)) => {
            Some(ConsumerId::service_account(&pod.account))
        }
        (Share::Consumer | Share::ServiceAccount, _) => Some(identity.consumer().clone()),
    }
}

impl Generation {
    fn advance(&self) {
        self.number.fetch_add(1, Ordering::AcqRel);
        self.followers.send_replace(());
    }
}
