//! Pure lease rules: when to renew, what a grant proves, how to retry and when to give up waiting.
//!
//! Renewal is due at 75 % of the current grant, measured from the moment the request left; jitter
//! only makes it earlier (down to 70 %) and is drawn once per grant.

use std::time::Duration;

use crate::clock::BootInstant;
use crate::source::LeaseTerms;

/// A grant shorter than the first by more than this proves the maximum TTL.
const TRUNCATION_TOLERANCE: Duration = Duration::from_secs(1);
/// Shortest pause between two renewal attempts' upper bounds.
const RETRY_CAP_MIN: Duration = Duration::from_millis(250);
/// First upper bound of a retry pause; doubles with each attempt.
const RETRY_BASE: Duration = Duration::from_millis(500);
/// No pause between retries is longer than this.
const RETRY_CAP_MAX: Duration = Duration::from_secs(30);
/// No pause between retries is shorter than this: full jitter alone may draw zero.
const RETRY_FLOOR: Duration = Duration::from_millis(100);
/// An overlap is at least this long where the old credential lives that long.
const OVERLAP_MIN: Duration = Duration::from_secs(60);

/// A lease as it was last granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// When the request for the first grant left.
    pub issued_at: BootInstant,
    /// When the request for the current grant left.
    pub granted_at: BootInstant,
    /// The first grant's duration: the increment every renewal asks for.
    pub first_duration: Duration,
    /// When the current grant ends.
    pub expires_at: BootInstant,
    /// When renewal is due.
    pub renew_at: BootInstant,
    /// Whether the source says it can be renewed.
    pub renewable: bool,
    /// Renewals that worked.
    pub renewals: u32,
}

/// What follows from a renewal that worked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// Granted in full: go on with this lease.
    Full(Lease),
    /// Granted short: its maximum TTL is near, replace it now.
    Truncated(Lease),
}

impl Lease {
    /// The lease as first granted for a request that left at `left_at`.
    pub fn granted(left_at: BootInstant, terms: LeaseTerms, rng: &mut fastrand::Rng) -> Self {
        Self {
            issued_at: left_at,
            granted_at: left_at,
            first_duration: terms.duration,
            expires_at: left_at + terms.duration,
            renew_at: left_at + renew_after(terms.duration, rng),
            renewable: terms.renewable,
            renewals: 0,
        }
    }

    /// The lease after a renewal whose request left at `left_at`.
    pub fn renewed(
        self,
        left_at: BootInstant,
        terms: LeaseTerms,
        rng: &mut fastrand::Rng,
    ) -> Renewed {
        let lease = Self {
            granted_at: left_at,
            expires_at: left_at + terms.duration,
            renew_at: left_at + renew_after(terms.duration, rng),
            renewable: terms.renewable,
            renewals: self.renewals.saturating_add(1),
            ..self
        };
        if terms.duration + TRUNCATION_TOLERANCE < self.first_duration {
            Renewed::Truncated(lease)
        } else {
            Renewed::Full(lease)
        }
    }

    /// Whether a holder that asks for a renewal gets a real one: from 60 % of the grant on. Vault's
    /// own clients renew at about 70 % of what they were told; they would often come just before us,
    /// be told the short rest, and take the credential for dying.
    pub fn may_renew_early(&self, now: BootInstant) -> bool {
        let duration = self.expires_at.since(self.granted_at);
        self.renewable && now.since(self.granted_at) >= duration / 5 * 3
    }

    /// Whether so little remains that a source which answers, but fails to renew, is asked for a
    /// replacement: at most a tenth of the first grant.
    pub fn is_last_chance(&self, now: BootInstant) -> bool {
        now.until(self.expires_at) <= self.first_duration / 10
    }

    /// How long the replaced credential is kept beside its successor.
    pub fn overlap(&self, configured: Option<Duration>, now: BootInstant) -> Duration {
        let wanted = configured.unwrap_or_else(|| (self.first_duration / 10).max(OVERLAP_MIN));
        wanted.min(now.until(self.expires_at))
    }
}

/// 75 % of a lifetime, less a jitter of up to 5 % of it, in integer arithmetic.
pub fn renew_after(lifetime: Duration, rng: &mut fastrand::Rng) -> Duration {
    let nanos = u64::try_from(lifetime.as_nanos()).unwrap_or(u64::MAX);
    let three_quarters = nanos / 4 * 3;
    let jitter = rng.u64(0..=nanos / 20);
    Duration::from_nanos(three_quarters - jitter.min(three_quarters))
}

/// Pause before the next attempt at something that still has `remaining` to live: full jitter,
/// never above max(250 ms, remaining/8).
pub fn retry_delay(attempts: u32, remaining: Duration, rng: &mut fastrand::Rng) -> Duration {
    let cap = (remaining / 8).max(RETRY_CAP_MIN).min(RETRY_CAP_MAX);
    full_jitter(attempts, cap, rng)
}

/// Pause before the next attempt where nothing is about to expire: full jitter up to 30 s.
pub fn backoff_delay(attempts: u32, rng: &mut fastrand::Rng) -> Duration {
    full_jitter(attempts, RETRY_CAP_MAX, rng)
}

fn full_jitter(attempts: u32, cap: Duration, rng: &mut fastrand::Rng) -> Duration {
    let doubled = RETRY_BASE.saturating_mul(1 << attempts.saturating_sub(1).min(10));
    let upper = u64::try_from(doubled.min(cap).as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(rng.u64(0..=upper)).max(RETRY_FLOOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn terms(duration: Duration) -> LeaseTerms {
        LeaseTerms { duration, renewable: true }
    }

    proptest! {
        #[test]
        fn renewal_is_due_between_70_and_75_percent(millis in 1_000u64..10_000_000_000, seed: u64) {
            let life = Duration::from_millis(millis);
            let after = renew_after(life, &mut fastrand::Rng::with_seed(seed));
            prop_assert!(after <= life * 3 / 4);
            prop_assert!(after >= life / 10 * 7 - Duration::from_micros(1));
        }

        #[test]
        fn a_retry_is_never_later_than_an_eighth_of_what_remains(
            attempts in 1u32..40, millis in 0u64..100_000_000, seed: u64,
        ) {
            let remaining = Duration::from_millis(millis);
            let delay = retry_delay(attempts, remaining, &mut fastrand::Rng::with_seed(seed));
            prop_assert!(delay <= (remaining / 8).max(RETRY_CAP_MIN));
            prop_assert!(delay >= RETRY_FLOOR);
        }
    }

    #[test]
    fn only_a_grant_more_than_a_second_short_proves_max_ttl() {
        let mut rng = fastrand::Rng::with_seed(1);
        let start = BootInstant::from_nanos(0);
        let lease = Lease::granted(start, terms(seconds(20)), &mut rng);
        for (granted, truncated) in [(20, false), (19, false), (18, true), (25, false), (0, true)] {
            let renewed = lease.renewed(start + seconds(15), terms(seconds(granted)), &mut rng);
            assert_eq!(matches!(renewed, Renewed::Truncated(_)), truncated, "{granted}");
        }
    }

    #[test]
    fn the_last_chance_is_the_last_tenth() {
        let lease = Lease::granted(
            BootInstant::from_nanos(0),
            terms(seconds(20)),
            &mut fastrand::Rng::new(),
        );
        assert!(!lease.is_last_chance(BootInstant::from_nanos(0) + seconds(17)));
        assert!(lease.is_last_chance(BootInstant::from_nanos(0) + seconds(18)));
    }

    #[test]
    fn an_overlap_never_outlives_the_old_credential() {
        let start = BootInstant::from_nanos(0);
        let lease = Lease::granted(start, terms(seconds(20)), &mut fastrand::Rng::new());
        assert_eq!(lease.overlap(None, start + seconds(15)), seconds(5));
        assert_eq!(lease.overlap(Some(seconds(2)), start + seconds(15)), seconds(2));
        let long = Lease::granted(start, terms(seconds(3600)), &mut fastrand::Rng::new());
        assert_eq!(long.overlap(None, start + seconds(100)), seconds(360));
    }
}
