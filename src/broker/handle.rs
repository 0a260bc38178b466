//! The handle others hold: hits from the snapshot, everything else by message to the task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, oneshot, watch};

use super::calls::ValueCap;
use super::report::Report;
use super::request::Request;
use super::snapshot::{Reader, Snapshot};
use super::{
    Entry, Freshness, LocalLease, LocalLeaseError, LoginTokens, ReadError, Reply, ResolveError,
    Subscription,
};
use crate::audit::Audit;
use crate::broker::event::{CacheKey, LocalOperation, Want};
use crate::clock::BootInstant;
use crate::domain::{
    ConsumerId, LocalLeaseId, LoginIdentity, Mount, PathKind, SecretPath, SecretRef, SourceName,
    Spelling,
};
use crate::policy::Authorized;
use crate::source::{ConfiguredMount, SharedSource};
use crate::telemetry::{Hits, Metrics};

/// Handle to the broker task. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) queue_full: Hits,
    pub(super) value_cap: ValueCap,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) sources: Arc<BTreeMap<SourceName, SharedSource>>,
    pub(super) audit: Audit,
    pub(super) changes: watch::Receiver<u64>,
    pub(super) login_tokens: LoginTokens,
}

/// Where the snapshot has what was authorised; worked out once per decision, since copying the
/// names for every read would make readers on several cores wait for each other. It holds no value.
pub struct Place {
    shared: Reader,
    own: Option<Reader>,
    /// The last hit was the caller's own credential: it is looked for first.
    is_own: bool,
}

impl Broker {
    /// The place of what was authorised.
    pub fn place(&self, authorized: &Authorized) -> Place {
        let reader = |consumer| {
            let (secret, login) = (authorized.secret().clone(), authorized.login().clone());
            self.snapshot.reader(CacheKey { secret, login, consumer })
        };
        let own = authorized.dynamic_owner().cloned();
        let own = own.map(|consumer| reader(Some(consumer)));
        Place { shared: reader(None), own, is_own: false }
    }

    /// The hit path: the current entry for what was authorised, if it may be served as fresh now.
    /// Never enters the task and never waits. Extends the caller's local lease on a leased secret.
    pub fn lookup(&self, place: &mut Place, now: BootInstant) -> Option<Reply> {
        let entry = self.entry(place)?;
        if now >= entry.fresh_until || now >= entry.dead_at {
            return None;
        }
        let local_lease = match (entry.kind, &entry.interest) {
            (PathKind::Kv | PathKind::Static, _) => None,
            (PathKind::Minting, None) => return None,
            (PathKind::Minting, Some(interest)) => {
                let until = entry.dead_at.as_nanos();
                // Nearly always it is told already; to write all the same would have readers on
                // several cores wait for each other.
                if interest.told_until.load(Ordering::Acquire) < until {
                    interest.told_until.fetch_max(until, Ordering::AcqRel);
                }
                Some(LocalLease {
                    id: interest.id.clone(),
                    path: place.shared.key().secret.path.clone(),
                    issued_at: interest.issued_at,
                    duration: now.until(entry.dead_at),
                    renewable: true,
                })
            }
        };
        Some(Reply { entry, freshness: Freshness::Hit, local_lease })
    }

    fn entry(&self, place: &mut Place) -> Option<Arc<Entry>> {
        if place.is_own
            && let Some(entry) = place.own.as_mut().and_then(|own| self.snapshot.get(own))
        {
            return Some(entry);
        }
        // What is shared by login identity is never a dynamic credential of somebody else's.
        let shared = self.snapshot.get(&mut place.shared);
        if let Some(entry) = shared.filter(|entry| entry.kind != PathKind::Minting) {
            return Some(entry);
        }
        let entry = self.snapshot.get(place.own.as_mut()?)?;
        place.is_own = true;
        Some(entry)
    }

    /// Reads through the task: joins a running fetch or starts one. Dropping the future only
    /// gives up waiting; the fetch goes on for others.
    pub async fn read(&self, authorized: Authorized) -> Result<Reply, ReadError> {
        self.audited()?;
        let want = self.want(&authorized)?;
        self.ask(|reply| Request::Read { want, reply }).await.unwrap_or(Err(ReadError::Busy))
    }

    /// Subscribes: the secret is kept fresh or renewed until the subscription is dropped.
    /// Returns at once; the first value or problem arrives as an update.
    pub async fn subscribe(&self, authorized: Authorized) -> Result<Subscription, ReadError> {
        self.audited()?;
        let want = self.want(&authorized)?;
        self.ask(|reply| Request::Subscribe { want, reply }).await.ok_or(ReadError::Busy)
    }

    /// Turns a spelling into the canonical reference, probing the mount if its kind is `auto`.
    pub async fn resolve(
        &self,
        source: &SourceName,
        login: &LoginIdentity,
        spelling: &Spelling,
    ) -> Result<SecretRef, ResolveError> {
        let mount = self.mount(source, login, &spelling.path).await?;
        let path = spelling.canonical(&mount)?;
        Ok(SecretRef { source: source.clone(), path, version: None })
    }

    /// The engine mount a path lies below, probing its kind if the configuration says `auto`.
    pub async fn mount(
        &self,
        source: &SourceName,
        login: &LoginIdentity,
        path: &SecretPath,
    ) -> Result<Mount, ReadError> {
        let mount = self.configured_mount(source, path)?;
        if let Some(kind) = mount.kind {
            return Ok(Mount { path: mount.path, kind });
        }
        let (source, login, path) = (source.clone(), login.clone(), path.clone());
        self.ask(|reply| Request::Resolve { source, login, mount, path, reply })
            .await
            .unwrap_or(Err(ReadError::Busy))
    }

    /// Fetches every cached KV or static entry of this secret again now; leased secrets are
    /// renewed now. With a `login` that is only what was read with this identity. Returns how many
    /// entries that concerned.
    pub async fn refresh(
        &self,
        secret: SecretRef,
        login: Option<LoginIdentity>,
    ) -> Result<usize, ReadError> {
        self.ask(|reply| Request::Refresh { secret, login, reply }).await.ok_or(ReadError::Busy)
    }

    /// Ends every local lease of a consumer that is gone for good. Waits for room in the queue:
    /// this must not be lost.
    pub async fn consumer_gone(&self, consumer: ConsumerId) {
        // A broker that has ended holds no interest.
        let _ = self.requests.send(Request::Gone { consumer }).await;
    }

    /// Looks a local lease of this consumer up.
    pub async fn lookup_local(
        &self,
        consumer: ConsumerId,
        id: LocalLeaseId,
    ) -> Result<LocalLease, LocalLeaseError> {
        self.local(consumer, id, LocalOperation::Lookup).await
    }

    /// Renews a local lease: its holder's interest lasts as long as the real lease now does.
    /// Never causes an upstream call.
    pub async fn renew_local(
        &self,
        consumer: ConsumerId,
        id: LocalLeaseId,
    ) -> Result<LocalLease, LocalLeaseError> {
        self.local(consumer, id, LocalOperation::Renew).await
    }

    /// Ends a local lease and with it this consumer's interest.
    pub async fn revoke_local(
        &self,
        consumer: ConsumerId,
        id: LocalLeaseId,
    ) -> Result<(), LocalLeaseError> {
        self.local(consumer, id, LocalOperation::Revoke).await.map(|_| ())
    }

    /// Everything operators may know, as plain data without a secret byte.
    pub async fn report(&self) -> Result<Report, ReadError> {
        self.ask(|reply| Request::Report { reply }).await.ok_or(ReadError::Busy)
    }

    /// Where deliveries bring the tokens that pods' accounts log in with.
    pub fn login_tokens(&self) -> &LoginTokens {
        &self.login_tokens
    }

    /// Has the caps around the task shown in status and metrics, beside those of its report; call
    /// once per process.
    pub fn watch_limits(&self, metrics: &Metrics) {
        metrics.watch_queue("broker_queue", &self.requests, &self.queue_full);
        metrics.watch_each("value_bytes", self.value_cap.bytes, &self.value_cap.refused);
    }

    /// Bumps with every published change, for the event stream.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    async fn local(
        &self,
        consumer: ConsumerId,
        id: LocalLeaseId,
        operation: LocalOperation,
    ) -> Result<LocalLease, LocalLeaseError> {
        self.ask(|reply| Request::Local { consumer, id, operation, reply })
            .await
            .unwrap_or(Err(LocalLeaseError::Busy))
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        // A full queue is an answer, not a reason to buffer.
        if let Err(error) = self.requests.try_send(request(reply)) {
            self.queue_full.count_full(&error);
            return None;
        }
        answer.await.ok()
    }

    fn audited(&self) -> Result<(), ReadError> {
        if self.audit.is_healthy() { Ok(()) } else { Err(ReadError::AuditDown) }
    }

    fn want(&self, authorized: &Authorized) -> Result<Want, ReadError> {
        let secret = authorized.secret().clone();
        Ok(Want {
            mount: self.configured_mount(&secret.source, &secret.path)?,
            secret,
            login: authorized.login().clone(),
            consumer: authorized.identity().consumer().clone(),
            owner: authorized.dynamic_owner().cloned(),
            may_mint: authorized.may_mint(),
        })
    }

    fn configured_mount(
        &self,
        source: &SourceName,
        path: &SecretPath,
    ) -> Result<ConfiguredMount, ReadError> {
        let found = self.sources.get(source).and_then(|known| known.mount_of(path));
        found.ok_or_else(|| ReadError::NoMount { source_name: source.clone(), path: path.clone() })
    }
}
