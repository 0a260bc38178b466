//! Follows one secret of a volume: resolved, authorised, subscribed, and again after trouble.
//!
//! A follower only ever writes the [`Level`] of its secret; what that means for files is judged
//! elsewhere. It runs until it is dropped, and dropping it ends its interest in the secret.

use std::time::Duration;

use tokio::sync::watch;

use crate::audit::{Audit, AuditEvent};
use crate::broker::{Broker, Problem, ReadError, ResolveError, Subscription, Update};
use crate::clock::{self, BootInstant};
use crate::domain::{RuleName, SecretRef, Spelling};
use crate::identity::Identity;
use crate::policy::{Authorized, Policy};
use crate::source::ErrorClass;

use super::config::Reference;
use super::level::{Forbidden, Level, Levels, Seen};

/// First delay after a failure.
const BACKOFF_BASE: Duration = Duration::from_millis(500);
/// Longest delay after a failure.
const BACKOFF_CAP: Duration = Duration::from_secs(30);
/// How often a denial is asked about again: a rule may depend on the time of day.
const DENIED_RECHECK: Duration = Duration::from_secs(60);
/// How often it is asked again what could not be decided or recorded.
const OPEN_RECHECK: Duration = Duration::from_secs(5);
/// Least time between two decisions that nothing but the clock asks for.
const RECHECK_MIN: Duration = Duration::from_secs(1);

/// Follows one secret.
pub struct Follower {
    /// The secret.
    pub reference: Reference,
    /// The volume it is for.
    pub identity: Identity,
    /// How long the subscription outlives a local denial.
    pub forbid_grace: Duration,
    /// Where its level goes.
    pub levels: watch::Sender<Levels>,
    /// Subscribes.
    pub broker: Broker,
    /// Decides.
    pub policy: Policy,
    /// Hears of decisions.
    pub audit: Audit,
    /// The last decision that was recorded; repetitions are not.
    pub recorded: Option<(bool, Option<RuleName>)>,
}

enum Decision {
    Allowed(Authorized),
    Forbidden,
    /// It could not be recorded, or the pod's labels are not known: nothing new may be read, and
    /// nothing is taken away.
    Open,
}

/// Who ended a subscription.
enum HoldEnd {
    /// The broker, which refused it or let it go.
    Broker,
    /// Policy, which wants it otherwise or not at all.
    Policy,
}

impl Follower {
    /// Follows for ever.
    pub async fn run(mut self) -> std::convert::Infallible {
        let secret = self.resolve().await;
        let mut failures: u32 = 0;
        loop {
            let authorized = self.authorized(&secret).await;
            match self.broker.subscribe(authorized.clone()).await {
                Ok(subscription) => {
                    let since = BootInstant::now();
                    let end = self.hold(&secret, authorized, subscription).await;
                    // Whatever ends subscriptions at once must not make this a busy loop.
                    let at_once = BootInstant::now().since(since) <= BACKOFF_CAP;
                    failures = match end {
                        HoldEnd::Broker if at_once => failures.saturating_add(1),
                        HoldEnd::Broker | HoldEnd::Policy => 1,
                    };
                    pause(delay(failures)).await;
                }
                Err(error) => self.back_off(&error, &mut failures).await,
            }
        }
    }

    async fn resolve(&mut self) -> SecretRef {
        let Reference { source, path } = self.reference.clone();
        let login = self.policy.probing_login(&self.identity, &source);
        let spelling = Spelling { path, key: None };
        let mut failures = 0;
        loop {
            match self.broker.resolve(&source, &login, &spelling).await {
                Ok(secret) => match self.broker.mount(&source, &login, &secret.path).await {
                    Ok(mount) => {
                        let resolved = secret.clone();
                        self.level(|level| {
                            (level.secret, level.engine) = (Some(resolved), Some(mount.kind));
                        });
                        return secret;
                    }
                    Err(error) => self.back_off(&error, &mut failures).await,
                },
                Err(ResolveError::Read(error)) => self.back_off(&error, &mut failures).await,
                Err(ResolveError::Spelling(error)) => {
                    // Only another configuration of the mounts can change this.
                    self.obstacle(ErrorClass::InvalidRequest, error.to_string(), failures);
                    pause(BACKOFF_CAP).await;
                }
            }
        }
    }

    /// Waits until policy allows it and the decision is on record.
    async fn authorized(&mut self, secret: &SecretRef) -> Authorized {
        let mut generations = self.policy.generations();
        loop {
            generations.mark_unchanged();
            let delay = match self.decide(secret) {
                Decision::Allowed(authorized) => return authorized,
                Decision::Forbidden => DENIED_RECHECK,
                Decision::Open => OPEN_RECHECK,
            };
            tokio::select! {
                // Cancel-safe: the generation stays marked as changed.
                _ = generations.changed() => {}
                () = pause(delay) => {}
            }
        }
    }

    /// Holds a subscription until it ends by itself, has to be made anew, or stayed forbidden for
    /// the whole grace: until then an operator may correct a mistake without the credential ending.
    async fn hold(
        &mut self,
        secret: &SecretRef,
        mut proof: Authorized,
        mut subscription: Subscription,
    ) -> HoldEnd {
        let mut generations = self.policy.generations();
        let mut drop_at: Option<BootInstant> = None;
        // Nobody says of a change that came before this that there was one.
        let mut outdated = !self.policy.still_holds(&proof, BootInstant::now());
        loop {
            if !std::mem::take(&mut outdated) {
                let update = subscription.updates().borrow_and_update().clone();
                self.show(update);
                let now = BootInstant::now();
                let until = drop_at.unwrap_or(proof.valid_until());
                tokio::select! {
                    // Cancel-safe: an unseen change stays unseen.
                    changed = subscription.updates().changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return HoldEnd::Broker,
                    },
                    // Cancel-safe: the generation stays marked as changed.
                    _ = generations.changed() => {}
                    () = pause(now.until(until).clamp(RECHECK_MIN, DENIED_RECHECK)) => {}
                }
            }
            match self.decide(secret) {
                Decision::Allowed(again) if again.reads_like(&proof) => {
                    (proof, drop_at) = (again, None);
                }
                Decision::Allowed(_) => return HoldEnd::Policy,
                Decision::Forbidden => {
                    let now = BootInstant::now();
                    if now >= *drop_at.get_or_insert(now + self.forbid_grace) {
                        self.level(|level| level.entry = None);
                        return HoldEnd::Policy;
                    }
                }
                // What is being read goes on being kept fresh.
                Decision::Open => {}
            }
        }
    }

    fn decide(&mut self, secret: &SecretRef) -> Decision {
        let now = BootInstant::now();
        let outcome = self.policy.authorize(&self.identity, secret, now);
        let (allowed, rule, reason) = match &outcome {
            Ok(authorized) => (true, Some(authorized.rule().clone()), None),
            Err(denied) => (false, denied.rule.clone(), Some(denied.to_string())),
        };
        let decision = (allowed, rule.clone());
        if self.recorded.as_ref() != Some(&decision) {
            let (identity, secret) = (self.identity.clone(), secret.clone());
            let reason = reason.clone();
            let event = AuditEvent::Decision { identity, secret, allowed, rule, reason };
            match self.audit.record(event) {
                Ok(()) => self.recorded = Some(decision),
                Err(down) if allowed => {
                    self.obstacle(ErrorClass::Unreachable, down.to_string(), 0);
                    return Decision::Open;
                }
                // A denial is carried out whether or not it can be recorded.
                Err(_) => {}
            }
        }
        match outcome {
            Ok(authorized) => {
                self.level(|level| level.forbidden = None);
                Decision::Allowed(authorized)
            }
            // After a restart the directory may need the API server first: nothing is taken away.
            Err(denied) if denied.labels_unknown => {
                self.obstacle(ErrorClass::Unreachable, denied.reason, 0);
                Decision::Open
            }
            Err(_) => {
                let reason = reason.unwrap_or_default();
                self.level(|level| {
                    level.forbidden.get_or_insert(Forbidden { since: now, reason });
                });
                Decision::Forbidden
            }
        }
    }

    fn show(&self, update: Update) {
        self.level(|level| {
            level.seen = update.entry.as_deref().map(Seen::of).or(level.seen);
            (level.entry, level.problem) = (update.entry, update.problem);
            level.obstacle = None;
        });
    }

    async fn back_off(&self, error: &ReadError, failures: &mut u32) {
        let (class, retry_after) = match error {
            ReadError::Source { class, retry_after, .. } => (*class, *retry_after),
            ReadError::NoMount { .. } | ReadError::Leaving => (ErrorClass::InvalidRequest, None),
            ReadError::Full { .. } | ReadError::Busy | ReadError::AuditDown => {
                (ErrorClass::Unreachable, None)
            }
        };
        *failures = failures.saturating_add(1);
        self.obstacle(class, error.to_string(), *failures);
        pause(delay(*failures).max(retry_after.unwrap_or_default())).await;
    }

    fn obstacle(&self, class: ErrorClass, message: String, attempts: u32) {
        let now = BootInstant::now();
        self.level(|level| {
            let since = level.obstacle.as_ref().map_or(now, |earlier| earlier.since);
            level.obstacle = Some(Problem { class, message, since, attempts });
        });
    }

    fn level(&self, change: impl FnOnce(&mut Level)) {
        self.levels.send_modify(|levels| {
            change(levels.entry(self.reference.clone()).or_default());
        });
    }
}

/// Full jitter, but never none at all.
fn delay(failures: u32) -> Duration {
    let ceiling = BACKOFF_BASE.saturating_mul(1 << failures.min(6)).min(BACKOFF_CAP);
    ceiling.mul_f64(fastrand::f64()).max(BACKOFF_BASE / 5)
}

/// Counts suspend where timerfds are to be had; a process out of descriptors still paces itself.
async fn pause(duration: Duration) {
    if clock::sleep(duration).await.is_err() {
        tokio::time::sleep(duration).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_between_their_bounds() {
        for failures in [1, 2, 5, 40, u32::MAX] {
            for _ in 0..100 {
                let delay = delay(failures);
                assert!(delay >= BACKOFF_BASE / 5 && delay <= BACKOFF_CAP, "{delay:?}");
            }
        }
    }
}
