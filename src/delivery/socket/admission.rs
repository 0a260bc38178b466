//! Who may connect how often and ask how much: a cap on connections, and a budget per caller.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::caps::{Caps, DENIAL_RECORDS_PER_SECOND, REFRESHES_PER_SECOND};
use crate::clock::BootInstant;
use crate::domain::PodUid;
use crate::telemetry::{Hits, Metrics};

/// Callers remembered before idle ones are forgotten.
const CALLERS_MAX: usize = 1024;
/// The part of a socket's places that pods have as their first one only.
const FIRST_PLACES: usize = 4;
/// Refused connections that are kept until their request is read away.
const REFUSED_MAX: usize = 64;
/// Requests that a denial counts for: unlike a permit it is decided anew each time, which costs
/// many times a read.
const REQUESTS_PER_DENIAL: u64 = 20;
/// Requests that a report counts for: the broker makes it of all its secrets.
const REQUESTS_PER_REPORT: u64 = 100;

/// A rate limit with a burst of one second's worth: the generic cell rate algorithm in one word.
#[derive(Debug)]
pub struct Rate {
    nanos_per_request: u64,
    nanos_burst: u64,
    /// When the bucket is full again, in boot nanoseconds.
    full_at: AtomicU64,
}

impl Rate {
    /// Admits `per_second` requests a second on average.
    pub fn new(per_second: u32) -> Self {
        let nanos_per_request = 1_000_000_000 / u64::from(per_second.max(1));
        let nanos_burst = nanos_per_request * u64::from(per_second.max(1));
        Self { nanos_per_request, nanos_burst, full_at: AtomicU64::new(0) }
    }

    /// Takes one request out of the budget, or tells how long until there is one. Never blocks.
    pub fn take(&self, now: BootInstant) -> Result<(), Duration> {
        let now = now.as_nanos();
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let next = full_at.max(now) + self.nanos_per_request;
            let over = next.saturating_sub(now + self.nanos_burst);
            if over > 0 {
                return Err(Duration::from_nanos(over));
            }
            let order = Ordering::Relaxed;
            match self.full_at.compare_exchange_weak(full_at, next, order, order) {
                Ok(_) => return Ok(()),
                Err(changed) => full_at = changed,
            }
        }
    }

    /// Takes `more` requests out of the budget, whether they are there or not. Never blocks.
    fn charge(&self, more: u64, now: BootInstant) {
        let later = |full_at: u64| {
            Some(full_at.max(now.as_nanos()).saturating_add(more * self.nanos_per_request))
        };
        // It always has a next value.
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
    }

    fn is_full(&self, now: BootInstant) -> bool {
        self.full_at.load(Ordering::Relaxed) <= now.as_nanos()
    }
}

/// Whose budget a connection takes from: a user's of the host, whatever processes it has, or a
/// pod's, whatever users it has. Who is neither at this door pays with all others in its cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Payer {
    /// By its number.
    User(u32),
    /// By its uid.
    Pod(PodUid),
    /// By a hash of its cgroup's paths, which may be long.
    Cgroup(u64),
    /// With all others whose place cannot be told.
    Unplaced,
}

/// One caller's budget over all connections.
#[derive(Debug)]
pub struct Budget {
    caps: Arc<Caps>,
    connections: AtomicUsize,
    requests: Rate,
    refreshes: Rate,
    denial_records: Rate,
}

impl Budget {
    fn new(caps: Arc<Caps>) -> Self {
        let requests = Rate::new(caps.limits.requests_per_second_per_user);
        Self {
            caps,
            connections: AtomicUsize::new(0),
            requests,
            refreshes: Rate::new(REFRESHES_PER_SECOND),
            denial_records: Rate::new(DENIAL_RECORDS_PER_SECOND),
        }
    }

    /// Takes one request out of the budget, or tells how long until there is one.
    pub fn take_request(&self, now: BootInstant) -> Result<(), Duration> {
        self.requests.take(now).inspect_err(|_| self.caps.requests.count())
    }

    /// Takes one refresh out of the budget, or tells how long until there is one.
    pub fn take_refresh(&self, now: BootInstant) -> Result<(), Duration> {
        self.refreshes.take(now).inspect_err(|_| self.caps.refreshes.count())
    }

    /// Takes what a denial costs beside the request it answers.
    pub fn charge_denial(&self, now: BootInstant) {
        self.requests.charge(REQUESTS_PER_DENIAL - 1, now);
    }

    /// Takes what a report costs beside the request it answers.
    pub fn charge_report(&self, now: BootInstant) {
        self.requests.charge(REQUESTS_PER_REPORT - 1, now);
    }

    /// Whether this denial gets a record of its own.
    pub fn take_denial_record(&self, now: BootInstant) -> bool {
        self.denial_records.take(now).inspect_err(|_| self.caps.denial_records.count()).is_ok()
    }
}

/// The caps of one socket.
#[derive(Debug)]
pub struct Admission {
    connections: Arc<Semaphore>,
    places: usize,
    refusals: Arc<Semaphore>,
    refused: Hits,
    caps: Arc<Caps>,
    payers: Mutex<HashMap<Payer, Arc<Budget>>>,
}

/// One caller's place among the connections; dropping it frees the place.
#[derive(Debug)]
pub struct Admitted(Arc<Budget>);

impl Admitted {
    /// What the caller may still ask for.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.0
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    /// Caps all connections at `connections`, which status and metrics show as `name`, and each
    /// caller by `caps`.
    pub fn new(
        name: &'static str,
        connections: usize,
        caps: &Arc<Caps>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let (places, refused) = (Arc::new(Semaphore::new(connections)), Hits::default());
        metrics.watch_places(name, connections, &places, &refused);
        let refusals = Arc::new(Semaphore::new(REFUSED_MAX));
        let (caps, payers) = (Arc::clone(caps), Mutex::default());
        Arc::new(Self { connections: places, places: connections, refusals, refused, caps, payers })
    }

    /// A place for a connection, before anything is known about the peer.
    pub fn connection(&self) -> Option<OwnedSemaphorePermit> {
        let place = self.connections.clone().try_acquire_owned();
        place.inspect_err(|_| self.refused.count()).ok()
    }

    /// A place for a connection that was refused, beside all others.
    pub fn refusal(&self) -> Option<OwnedSemaphorePermit> {
        self.refusals.clone().try_acquire_owned().ok()
    }

    /// A place for a connection of this caller, unless it has too many. A quarter of the places are
    /// for pods that have none: a few pods that take all they can leave the others theirs.
    pub fn admit(&self, payer: Payer, now: BootInstant) -> Option<Admitted> {
        let scarce = matches!(payer, Payer::Pod(_))
            && self.connections.available_permits() < self.places / FIRST_PLACES;
        let mut payers = self.payers.lock().unwrap_or_else(PoisonError::into_inner);
        let budget = self.entry(&mut payers, payer, now);
        let held = budget.connections.load(Ordering::Relaxed);
        if held >= self.caps.limits.connections_per_user || (scarce && held > 0) {
            self.caps.connections.count();
            return None;
        }
        budget.connections.fetch_add(1, Ordering::Relaxed);
        Some(Admitted(budget.clone()))
    }

    /// What somebody may ask for who is not let in.
    pub fn budget(&self, payer: Payer, now: BootInstant) -> Arc<Budget> {
        let mut payers = self.payers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(self.entry(&mut payers, payer, now))
    }

    fn entry<'a>(
        &self,
        payers: &'a mut HashMap<Payer, Arc<Budget>>,
        payer: Payer,
        now: BootInstant,
    ) -> &'a Arc<Budget> {
        if payers.len() >= CALLERS_MAX && !payers.contains_key(&payer) {
            // A caller whose budget is untouched is indistinguishable from one never seen.
            payers.retain(|_, budget| {
                budget.connections.load(Ordering::Relaxed) > 0 || !budget.requests.is_full(now)
            });
        }
        payers.entry(payer).or_insert_with(|| Arc::new(Budget::new(Arc::clone(&self.caps))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::socket::Limits;
    use crate::telemetry::Limit;

    fn user(uid: u32) -> Payer {
        Payer::User(uid)
    }

    fn admission(connections: usize, limits: Limits) -> (Arc<Admission>, Metrics) {
        let metrics = Metrics::new();
        let caps = Caps::new(limits, &metrics);
        (Admission::new("connections", connections, &caps, &metrics), metrics)
    }

    fn budget() -> (Budget, Metrics) {
        let metrics = Metrics::new();
        (Budget::new(Caps::new(Limits::default(), &metrics)), metrics)
    }

    fn hits(metrics: &Metrics, name: &str) -> u64 {
        metrics.limits().iter().find(|limit| limit.name == name).unwrap().hits
    }

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    #[test]
    fn a_rate_admits_a_burst_of_one_second_and_then_one_at_a_time() {
        let rate = Rate::new(4);
        let burst = (0..10).filter(|_| rate.take(at(0)).is_ok()).count();
        assert_eq!(burst, 4);
        assert_eq!(rate.take(at(0)), Err(Duration::from_millis(250)));
        assert!(rate.take(at(249)).is_err());
        assert!(rate.take(at(250)).is_ok());
        assert!(rate.take(at(251)).is_err());
        assert!((0..4).all(|_| rate.take(at(10_000)).is_ok()));
        assert!(rate.take(at(10_000)).is_err());
    }

    #[test]
    fn one_user_cannot_take_the_places_of_another() {
        let limits = Limits { connections_per_user: 2, ..Limits::default() };
        let (admission, metrics) = admission(3, limits);
        let places: Vec<_> = (0..3).map(|_| admission.admit(user(1), at(0))).collect();
        assert_eq!(places.iter().flatten().count(), 2);
        assert_eq!(hits(&metrics, "connections_per_user"), 1);
        assert!(admission.admit(user(2), at(0)).is_some());
        drop(places);
        assert!(admission.admit(user(1), at(0)).is_some());
    }

    #[test]
    fn pods_that_take_all_they_can_leave_places_to_the_next_one() {
        let limits = Limits { connections_per_user: 16, ..Limits::default() };
        let (admission, _) = admission(64, limits);
        let mut held = Vec::new();
        let pod = |n: usize| Payer::Pod(format!("{n:032x}").parse().unwrap());
        let mut take = |n: usize| {
            let place = admission.connection();
            let admitted = place.is_some().then(|| admission.admit(pod(n), at(0))).flatten();
            let got = admitted.is_some();
            if got {
                held.push((place, admitted));
            }
            got
        };
        for greedy in 0..8 {
            while take(greedy) {}
        }
        assert!(take(100), "nothing is left");
    }

    #[test]
    fn reconnecting_does_not_refill_a_budget() {
        let limits = Limits { requests_per_second_per_user: 1, ..Limits::default() };
        let (admission, metrics) = admission(3, limits);
        let take = || admission.admit(user(1), at(0)).unwrap().budget().take_request(at(0));
        assert!(take().is_ok());
        assert!(take().is_err());
        assert_eq!(hits(&metrics, "requests_per_second_per_user"), 1);
    }

    #[test]
    fn a_sockets_places_are_counted_while_they_are_held() {
        let (admission, metrics) = admission(2, Limits::default());
        let places = || metrics.limits().into_iter().find(|limit| limit.name == "connections");
        let full = [admission.connection(), admission.connection()];
        assert!(full.iter().all(Option::is_some) && admission.connection().is_none());
        assert_eq!(places(), Some(Limit::shared("connections", 2, 2, 1)));
        drop(full);
        assert_eq!(places(), Some(Limit::shared("connections", 0, 2, 1)));
    }

    #[test]
    fn a_refresh_too_many_is_counted() {
        let (budget, metrics) = budget();
        assert!(budget.take_refresh(at(0)).is_ok() && budget.take_refresh(at(0)).is_err());
        assert_eq!(hits(&metrics, "refreshes_per_second_per_user"), 1);
    }

    #[test]
    fn callers_with_an_untouched_budget_are_forgotten_at_the_bound() {
        let (admission, _) = admission(3, Limits::default());
        let busy = admission.admit(user(0), at(0)).unwrap();
        for uid in 1..=2 * u32::try_from(CALLERS_MAX).unwrap() {
            admission.admit(user(uid), at(0)).unwrap();
        }
        assert!(admission.payers.lock().unwrap().len() <= CALLERS_MAX);
        assert!(Arc::ptr_eq(busy.budget(), admission.admit(user(0), at(0)).unwrap().budget()));
    }

    #[test]
    fn a_denial_costs_as_much_as_many_reads() {
        let (budget, _) = budget();
        let denied = |count: u64, now: BootInstant| {
            let ask = |_: &u64| {
                let admitted = budget.take_request(now).is_ok();
                if admitted {
                    budget.charge_denial(now);
                }
                admitted
            };
            (0..count).filter(ask).count()
        };
        let per_second = Limits::default().requests_per_second_per_user as usize;
        let denials = per_second / usize::try_from(REQUESTS_PER_DENIAL).unwrap();
        let first = denied(10_000, at(0));
        assert!((denials..=denials + 1).contains(&first), "{first}");
        let second = denied(10_000, at(1000));
        assert!((denials - 1..=denials + 1).contains(&second), "{second}");
    }

    #[test]
    fn denials_over_the_budget_get_no_record_of_their_own() {
        let (budget, metrics) = budget();
        let records = (0..25).filter(|_| budget.take_denial_record(at(0))).count();
        assert_eq!(records, 10);
        assert_eq!(hits(&metrics, "denial_records_per_second_per_user"), 15);
        assert!(budget.take_denial_record(at(1000)));
    }
}
