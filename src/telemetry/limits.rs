//! Caps: what each part bounds, how far that is used, and how often it was not enough.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};

use super::Metrics;

/// One cap at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Its name: that of its setting, where it has one.
    pub name: &'static str,
    /// How much is used; `None` for what every caller or request has for itself.
    pub used: Option<u64>,
    /// The cap.
    pub cap: u64,
    /// How often something was refused, left out or made to wait for it since the start.
    pub hits: u64,
}

impl Limit {
    /// A cap that everybody shares.
    pub fn shared(name: &'static str, used: usize, cap: usize, hits: u64) -> Self {
        Self { name, used: Some(used as u64), cap: cap as u64, hits }
    }

    /// A cap that every caller or request has for itself.
    pub fn each(name: &'static str, cap: usize, hits: u64) -> Self {
        Self { name, used: None, cap: cap as u64, hits }
    }
}

/// Counts how often a cap was reached. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Hits(Arc<AtomicU64>);

impl Hits {
    /// Counts once more.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a message that found its queue full; one that found it closed met no cap.
    pub fn count_full<T>(&self, error: &TrySendError<T>) {
        if matches!(error, TrySendError::Full(_)) {
            self.count();
        }
    }

    /// How often so far.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Metrics {
    /// Has a cap shown in status and metrics; `probe` reads it where it is enforced, whenever
    /// somebody looks. Each name is watched once.
    pub fn watch_limit(&self, probe: impl Fn() -> Limit + Send + Sync + 'static) {
        self.limits.add(probe);
    }

    /// The same for a cap that every caller or request has for itself.
    pub fn watch_each(&self, name: &'static str, cap: usize, hits: &Hits) {
        let hits = hits.clone();
        self.watch_limit(move || Limit::each(name, cap, hits.total()));
    }

    /// The same for `cap` places in a semaphore.
    pub fn watch_places(
        &self,
        name: &'static str,
        cap: usize,
        places: &Arc<Semaphore>,
        hits: &Hits,
    ) {
        let (places, hits) = (Arc::clone(places), hits.clone());
        self.watch_limit(move || {
            Limit::shared(name, cap - places.available_permits(), cap, hits.total())
        });
    }

    /// The same for a queue, which this does not keep open.
    pub fn watch_queue<T: Send + 'static>(
        &self,
        name: &'static str,
        queue: &mpsc::Sender<T>,
        hits: &Hits,
    ) {
        let (cap, queue, hits) = (queue.max_capacity(), queue.downgrade(), hits.clone());
        self.watch_limit(move || {
            let used = queue.upgrade().map_or(0, |queue| cap - queue.capacity());
            Limit::shared(name, used, cap, hits.total())
        });
    }

    /// The caps that are watched, as they are now.
    pub fn limits(&self) -> Vec<Limit> {
        self.limits.read()
    }
}

/// Reads a cap where it is enforced.
type Probe = Box<dyn Fn() -> Limit + Send + Sync>;

/// The caps of all parts, in the order in which they were made known.
#[derive(Clone, Default)]
pub(super) struct Probes(Arc<Mutex<Vec<Probe>>>);

impl Probes {
    pub(super) fn add(&self, probe: impl Fn() -> Limit + Send + Sync + 'static) {
        debug_assert!(
            self.read().iter().all(|known| known.name != probe().name),
            "two caps have one name"
        );
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(probe));
    }

    pub(super) fn read(&self) -> Vec<Limit> {
        let probes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        probes.iter().map(|probe| probe()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watched_cap_is_read_when_somebody_looks() {
        let (metrics, hits) = (Metrics::new(), Hits::default());
        metrics.clone().watch_each("lines", 3, &hits);
        assert_eq!(metrics.limits(), [Limit { name: "lines", used: None, cap: 3, hits: 0 }]);
        hits.count();
        assert_eq!(metrics.limits(), [Limit::each("lines", 3, 1)]);
    }

    #[test]
    fn what_is_used_is_what_the_semaphore_or_the_queue_says() {
        let (metrics, hits) = (Metrics::new(), Hits::default());
        let places = Arc::new(Semaphore::new(2));
        let (queue, mut end) = mpsc::channel(3);
        metrics.watch_places("places", 2, &places, &hits);
        metrics.watch_queue("queue", &queue, &hits);
        let used = || metrics.limits().iter().map(|limit| limit.used).collect::<Vec<_>>();
        assert_eq!(used(), [Some(0), Some(0)]);
        let place = places.try_acquire().unwrap();
        queue.try_send("a").unwrap();
        queue.try_send("b").unwrap();
        assert_eq!(used(), [Some(1), Some(2)]);
        drop(place);
        end.try_recv().unwrap();
        assert_eq!(used(), [Some(0), Some(1)]);
        // Watching keeps nothing open: the receiver learns that the last sender is gone.
        drop(queue);
        assert_eq!(end.try_recv(), Ok("b"));
        assert_eq!(end.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        assert_eq!(used(), [Some(0), Some(0)]);
    }

    #[test]
    fn a_full_queue_is_a_hit_and_a_closed_one_is_not() {
        let hits = Hits::default();
        let (queue, end) = mpsc::channel(1);
        queue.try_send("a").unwrap();
        hits.count_full(&queue.try_send("b").unwrap_err());
        assert_eq!(hits.total(), 1);
        drop(end);
        hits.count_full(&queue.try_send("c").unwrap_err());
        assert_eq!(hits.total(), 1);
    }

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "two caps have one name")]
    fn two_caps_with_one_name_are_a_defect() {
        let metrics = Metrics::new();
        metrics.watch_each("lines", 3, &Hits::default());
        metrics.watch_each("lines", 4, &Hits::default());
    }
}
