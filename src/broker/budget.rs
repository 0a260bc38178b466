//! The node's budget towards its sources: a cap on calls in flight, a token bucket, and per-source
//! health with a circuit breaker. Pure: told the time, never asks for it.

use std::time::Duration;

use crate::broker::lease::backoff_delay;
use crate::broker::settings::Limits;
use crate::clock::BootInstant;

/// Failed calls in a row after which ordinary calls fail fast until the next attempt is due.
const BREAKER_FAILURES: u32 = 3;

/// What a call is for, as far as the budget distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Keeps something alive that expires: leases and tokens. One slot is kept for these.
    Renewal,
    /// Everything else.
    Ordinary,
}

/// What a call must wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Another call's return.
    Slot,
    /// This moment.
    Until(BootInstant),
}

/// Node-wide concurrency and rate.
#[derive(Debug)]
pub struct Budget {
    in_flight: usize,
    in_flight_max: usize,
    /// Nanoseconds one call costs; the bucket is a point in time that each call moves on.
    interval: Duration,
    burst: Duration,
    spent_until: BootInstant,
    /// Calls that had to wait for another to return.
    pub slot_waits: u64,
    /// Calls that had to wait for the rate.
    pub rate_waits: u64,
}

impl Budget {
    /// A full bucket.
    pub fn new(limits: &Limits) -> Self {
        let per_second = limits.upstream_per_second.max(1);
        Self {
            in_flight: 0,
            in_flight_max: limits.upstream_in_flight.max(2),
            interval: Duration::from_secs(1) / per_second,
            burst: Duration::from_secs(1),
            spent_until: BootInstant::from_nanos(0),
            slot_waits: 0,
            rate_waits: 0,
        }
    }

    /// Takes a slot and a token, or says what to wait for before trying again.
    pub fn take(&mut self, now: BootInstant, urgency: Urgency) -> Result<(), Wait> {
        let kept = usize::from(urgency == Urgency::Ordinary);
        if self.in_flight + kept >= self.in_flight_max {
            return Err(Wait::Slot);
        }
        let spent = self.spent_until.max(now - self.burst) + self.interval;
        // A renewal must not wait behind a herd of ordinary reads: it may overdraw the bucket.
        if spent > now && urgency == Urgency::Ordinary {
            return Err(Wait::Until(spent));
        }
        // Whatever renewals overdraw, ordinary work goes on a second after the last of them.
        self.spent_until = spent.min(now + self.burst);
        self.in_flight += 1;
        Ok(())
    }

    /// Counts a call that has to wait; once, however often it is tried.
    pub fn count(&mut self, wait: Wait) {
        match wait {
            Wait::Slot => self.slot_waits += 1,
            Wait::Until(_) => self.rate_waits += 1,
        }
    }

    /// Gives a slot back.
    pub fn give_back(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Calls of the last second's worth; renewals may make it more than the rate.
    pub fn spent(&self, now: BootInstant) -> usize {
        let spent = self.spent_until.since(now - self.burst).as_nanos();
        // A rate beyond one call a nanosecond is none.
        let calls = spent.checked_div(self.interval.as_nanos()).unwrap_or_default();
        usize::try_from(calls).unwrap_or(usize::MAX)
    }

    /// Calls running now.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The cap on calls running at once.
    pub fn in_flight_max(&self) -> usize {
        self.in_flight_max
    }
}

/// How a source is doing.
#[derive(Debug, Clone)]
pub struct Health {
    /// Whether the last call was answered.
    pub reachable: bool,
    /// Since when.
    pub since: BootInstant,
    /// The last failure's message.
    pub last_error: Option<String>,
    /// Failed calls in a row.
    pub failures: u32,
    /// While the breaker is open: when an ordinary call is tried again.
    pub open_until: Option<BootInstant>,
    /// Calls running now.
    pub in_flight: usize,
}

impl Health {
    /// Assumed reachable until a call says otherwise.
    pub fn new(now: BootInstant) -> Self {
        Self {
            reachable: true,
            since: now,
            last_error: None,
            failures: 0,
            open_until: None,
            in_flight: 0,
        }
    }

    /// The source answered, whatever it said. True if the breaker was open: one path that fails
    /// between others that are answered is no outage, and its pauses are its own.
    pub fn answered(&mut self, now: BootInstant) -> bool {
        if !self.reachable {
            self.since = now;
            self.last_error = None;
        }
        self.reachable = true;
        self.failures = 0;
        self.open_until.take().is_some()
    }

    /// The source did not answer usably.
    pub fn unanswered(
        &mut self,
        now: BootInstant,
        message: &str,
        retry_after: Option<Duration>,
        rng: &mut fastrand::Rng,
    ) {
        if self.reachable {
            self.since = now;
        }
        self.reachable = false;
        self.last_error = Some(message.to_owned());
        self.failures = self.failures.saturating_add(1);
        if self.failures >= BREAKER_FAILURES || retry_after.is_some() {
            let delay = backoff_delay(self.failures, rng).max(retry_after.unwrap_or_default());
            self.open_until = Some(now + delay);
        }
    }

    /// Whether an ordinary call should fail fast, and until when.
    pub fn is_open(&self, now: BootInstant) -> Option<BootInstant> {
        self.open_until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(in_flight: usize, per_second: u32) -> Budget {
        let mut limits = crate::broker::settings::Settings::default().limits;
        limits.upstream_in_flight = in_flight;
        limits.upstream_per_second = per_second;
        Budget::new(&limits)
    }

    #[test]
    fn one_slot_is_kept_for_renewals() {
        let mut budget = budget(3, 1000);
        let now = BootInstant::from_nanos(10_000_000_000);
        assert!(budget.take(now, Urgency::Ordinary).is_ok());
        assert!(budget.take(now, Urgency::Ordinary).is_ok());
        assert_eq!(budget.take(now, Urgency::Ordinary), Err(Wait::Slot));
        assert!(budget.take(now, Urgency::Renewal).is_ok());
        assert_eq!(budget.take(now, Urgency::Renewal), Err(Wait::Slot));
        budget.give_back();
        assert!(budget.take(now, Urgency::Renewal).is_ok());
    }

    #[test]
    fn the_bucket_holds_one_second_and_refills_evenly() {
        let mut budget = budget(1000, 10);
        let now = BootInstant::from_nanos(10_000_000_000);
        for spent in 0..10 {
            assert_eq!(budget.spent(now), spent);
            assert!(budget.take(now, Urgency::Ordinary).is_ok());
        }
        let retry = budget.take(now, Urgency::Ordinary);
        assert_eq!(retry, Err(Wait::Until(now + Duration::from_millis(100))));
        assert!(budget.take(now, Urgency::Renewal).is_ok());
        assert!(budget.take(now + Duration::from_millis(200), Urgency::Ordinary).is_ok());
    }

    #[test]
    fn the_breaker_opens_after_three_failures_and_closes_with_any_answer() {
        let mut rng = fastrand::Rng::with_seed(7);
        let now = BootInstant::from_nanos(1);
        let mut health = Health::new(now);
        for _ in 0..2 {
            health.unanswered(now, "refused", None, &mut rng);
            assert_eq!(health.is_open(now), None);
        }
        health.unanswered(now, "refused", None, &mut rng);
        assert!(health.is_open(now).is_some());
        health.answered(now);
        assert_eq!(health.is_open(now), None);
    }

    #[test]
    fn retry_after_opens_the_breaker_at_once() {
        let mut health = Health::new(BootInstant::from_nanos(1));
        let now = BootInstant::from_nanos(1);
        let wait = Duration::from_secs(90);
        health.unanswered(now, "quota", Some(wait), &mut fastrand::Rng::with_seed(1));
        assert!(health.is_open(now).unwrap() >= now + wait);
    }
}
