//! Reading a secret: policy once, remembered per caller; then the snapshot; then the broker.

use std::num::NonZeroU64;
use std::sync::MutexGuard;
use std::time::Duration;

use http::{HeaderMap, Method, Request, StatusCode};
use hyper::body::Incoming;

use super::answer;
use super::callers::locked;
use super::directory::Located;
use super::memos::{Memo, Memos};
use super::request::{self, Refusal};
use super::routes::Connection;
use super::served::Served;
use super::transport::Answer;
use crate::audit::{AuditEvent, NotRecorded};
use crate::broker::{Freshness, Reply};
use crate::clock::BootInstant;
use crate::domain::{SecretPath, SecretRef};
use crate::identity::Listener;
use crate::policy::{Authorized, Denied};

/// Headers whose memory is kept while a connection is idle.
const HEADERS_USUAL: usize = 24;
/// How long a decision waits for the labels of a pod that is not known yet.
const LABELS_WAIT: Duration = Duration::from_secs(2);
/// When a pod that is still not known may ask again, in seconds.
const UNKNOWN_RETRY: u64 = 1;

impl Connection {
    /// The hit path: a decision that still holds and a value in the snapshot. Everything else, also
    /// everything that will be refused, is `None` and takes the long way.
    #[inline]
    pub(super) fn hit(&self, request: &mut Request<Incoming>, now: BootInstant) -> Option<Answer> {
        if request.method() != Method::GET {
            return None;
        }
        let (path, version) = request::read_target(request.uri())?;
        let mut memos = self.memos();
        let memo = memos.get_mut(path, version)?;
        if !request::asks_for_nothing_else(request.headers(), memo.namespace.as_deref())
            || !self.deps.policy.still_holds(memo.served.authorized(), now)
        {
            return None;
        }
        let reply = self.deps.broker.lookup(&mut memo.place, now)?;
        memo.served.note(now).ok()?;
        match reply.freshness {
            Freshness::Hit => _ = self.deps.metrics.hits.inc(),
            other => self.deps.metrics.count("secret", 200, answer::cache_label(other)),
        }
        // Hyper takes the headers' memory back for the next request: none is made for a reply.
        let mut headers = std::mem::take(request.headers_mut());
        headers.clear();
        if headers.capacity() > HEADERS_USUAL {
            headers = HeaderMap::new();
        }
        Some(answer::secret(&reply, headers, now))
    }

    /// The long way: decide unless decided, then the snapshot, then the broker.
    pub(super) async fn secret(
        &self,
        path: SecretPath,
        version: Option<NonZeroU64>,
        headers: &HeaderMap,
    ) -> Result<(Answer, &'static str), Refusal> {
        if self.caller.identity.listener() == Listener::Operator {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "permission denied: the operator socket serves no values; use the host socket",
            ));
        }
        let located = self.located(self.deps.sources.mount_of(&path), &path, headers)?;
        let now = BootInstant::now();
        let secret = SecretRef { source: located.source, path, version };
        let authorized = match self.remembered(&secret, now) {
            Some(authorized) => authorized,
            None => self.decided(&secret, now).await?,
        };
        let (reply, authorized) = self.read(&secret, authorized).await?;
        // Waiting may have outlived the process that asked.
        self.check_alive()?;
        let now = BootInstant::now();
        self.note(authorized, located.namespace, now)?;
        let answer = answer::secret(&reply, HeaderMap::new(), now);
        Ok((answer, answer::cache_label(reply.freshness)))
    }

    /// From the snapshot or the broker, and by which decision. A read upstream takes its time, and
    /// who lost the right meanwhile does not get what it brought.
    async fn read(
        &self,
        secret: &SecretRef,
        mut authorized: Authorized,
    ) -> Result<(Reply, Authorized), Refusal> {
        loop {
            let (broker, now) = (&self.deps.broker, BootInstant::now());
            if let Some(reply) = broker.lookup(&mut broker.place(&authorized), now) {
                return Ok((reply, authorized));
            }
            let reply = broker.read(authorized.clone()).await?;
            let now = BootInstant::now();
            if self.deps.policy.still_holds(&authorized, now) {
                return Ok((reply, authorized));
            }
            let again = self.decided(secret, now).await?;
            if again.reads_like(&authorized) {
                return Ok((reply, again));
            }
            authorized = again;
        }
    }

    /// A path's source, if there is one and the caller's namespace header does not contradict.
    pub(super) fn located(
        &self,
        located: Option<Located>,
        path: &SecretPath,
        headers: &HeaderMap,
    ) -> Result<Located, Refusal> {
        let located = located.ok_or_else(|| {
            let message = format!("no handler for route \"{path}\". route entry not found.");
            Refusal::new(StatusCode::NOT_FOUND, message)
        })?;
        if !request::namespace_fits(headers, located.namespace.as_deref()) {
            return Err(Refusal::bad_request(
                "the namespace header does not name the namespace this agent reads from; omit it",
            ));
        }
        Ok(located)
    }

    /// The same, unless this caller was permitted this secret a moment ago, on whichever
    /// connection.
    async fn decided(&self, secret: &SecretRef, now: BootInstant) -> Result<Authorized, Refusal> {
        let (policy, identity) = (&self.deps.policy, &self.caller.identity);
        if let Some(permit) = self.decisions.permit(policy, identity, secret, now) {
            return Ok(permit);
        }
        let permit = self.decide(secret).await?;
        self.decisions.keep(&permit);
        Ok(permit)
    }

    /// Asks policy and records the decision before anything it allows is served.
    pub(super) async fn decide(&self, secret: &SecretRef) -> Result<Authorized, Refusal> {
        self.check_alive()?;
        let authorized = self.permitted(secret).await?;
        self.deps.audit.record(AuditEvent::Decision {
            identity: self.caller.identity.clone(),
            secret: secret.clone(),
            allowed: true,
            rule: Some(authorized.rule().clone()),
            reason: None,
        })?;
        Ok(authorized)
    }

    /// Asks policy, once the pod is known where that matters; only a denial is recorded.
    pub(super) async fn permitted(&self, secret: &SecretRef) -> Result<Authorized, Refusal> {
        let (policy, identity) = (&self.deps.policy, &self.caller.identity);
        let denied = match policy.authorize_within(LABELS_WAIT, identity, secret).await {
            Ok(authorized) => return Ok(authorized),
            Err(denied) => denied,
        };
        let refusal = if denied.labels_unknown {
            Refusal::unavailable("the pod is not known yet: ask again", UNKNOWN_RETRY)
        } else {
            Refusal::denied()
        };
        self.record_denial(secret, denied, BootInstant::now());
        Err(refusal)
    }

    fn record_denial(&self, secret: &SecretRef, denied: Denied, now: BootInstant) {
        self.deps.metrics.denied.inc();
        self.caller.admitted.budget().charge_denial(now);
        if !self.caller.admitted.budget().take_denial_record(now) {
            self.deps.metrics.denials_coalesced.inc();
            self.deps.audit.count_denial(&self.caller.identity);
            return;
        }
        let recorded = self.deps.audit.record(AuditEvent::Decision {
            identity: self.caller.identity.clone(),
            secret: secret.clone(),
            allowed: false,
            rule: denied.rule,
            reason: Some(denied.reason),
        });
        if recorded.is_err() {
            tracing::warn!(
                identity = %self.caller.identity, %secret,
                "audit log is not accepting records: a denial is not recorded"
            );
        }
    }

    /// The descriptor may have been passed on; its new holder was never identified. That the
    /// connection ends with its connector is no substitute: a busy agent hears of an exit and of
    /// what was asked after it at the same time.
    pub(super) fn check_alive(&self) -> Result<(), Refusal> {
        if self.caller.peer.still_alive() {
            return Ok(());
        }
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "permission denied: the process that connected has exited",
        ))
    }

    fn remembered(&self, secret: &SecretRef, now: BootInstant) -> Option<Authorized> {
        let mut memos = self.memos();
        let authorized = memos.get_mut(secret.path.as_str(), secret.version)?.served.authorized();
        self.deps.policy.still_holds(authorized, now).then(|| authorized.clone())
    }

    /// Notes a read, and remembers the decision that allowed it.
    fn note(
        &self,
        authorized: Authorized,
        namespace: Option<String>,
        now: BootInstant,
    ) -> Result<(), NotRecorded> {
        let (broker, policy) = (&self.deps.broker, &self.deps.policy);
        let mut memos = self.memos();
        let SecretRef { path, version, .. } = authorized.secret();
        let memo = match memos.get_mut(path.as_str(), *version) {
            Some(memo) => {
                if !policy.still_holds(memo.served.authorized(), now) {
                    memo.place = broker.place(&authorized);
                    memo.served.renew(authorized);
                }
                memo
            }
            None => {
                let (audit, per_read) = (self.deps.audit.clone(), self.deps.audit_per_read);
                let (place, namespace) = (broker.place(&authorized), namespace.map(Into::into));
                let served = Served::new(audit, per_read, authorized, now);
                memos.insert(Memo { served, place, namespace })
            }
        };
        memo.served.note(now)
    }

    fn memos(&self) -> MutexGuard<'_, Memos> {
        locked(&self.memos)
    }
}
