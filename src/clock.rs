//! Time that counts suspend: boot-time instants for deadlines, the wall clock only for display.
//!
//! `std::time::Instant` and tokio's timers stop while a machine sleeps (rust-lang/rust#87906), so a
//! lease would look alive long after Vault ended it. Everything that decides uses [`BootInstant`].

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime};

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// A point on `CLOCK_BOOTTIME`, in nanoseconds since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootInstant(u64);

impl BootInstant {
    /// Reads the clock. Only shells call this; the pure core is told the time.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    /// An instant from nanoseconds since boot, for tests and stored records.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to here, zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Time left until `later`, zero if it has passed.
    pub fn until(self, later: Self) -> Duration {
        later.since(self)
    }

    /// The wall-clock time of this instant, given a matching pair of now-readings.
    pub fn to_wall(self, now: Self, wall_now: SystemTime) -> SystemTime {
        if self >= now { wall_now + self.since(now) } else { wall_now - now.since(self) }
    }
}

impl std::ops::Add<Duration> for BootInstant {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl std::ops::Sub<Duration> for BootInstant {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A `CLOCK_BOOTTIME` alarm: one timerfd, re-armed by its owner.
pub struct BootTimer(AsyncFd<OwnedFd>);

impl BootTimer {
    /// Creates a disarmed timer; must be called inside a tokio runtime.
    pub fn new() -> std::io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(crate::sys::watch_owned(timerfd_create(TimerfdClockId::Boottime, flags)?)?))
    }

    /// Arms the timer for `deadline` (a past one fires at once); `None` disarms it.
    pub fn arm(&self, deadline: Option<BootInstant>) -> std::io::Result<()> {
        // Zero would disarm, and the first nanosecond after boot is never wanted.
        let nanos = deadline.map_or(0, |at| at.as_nanos().max(1));
        let value = Timespec {
            tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(nanos % 1_000_000_000).unwrap_or(0),
        };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(self.0.as_fd(), TimerfdTimerFlags::ABSTIME, &spec)?;
        Ok(())
    }

    /// Waits for the alarm. Cancel-safe: an unread expiry stays readable.
    pub async fn fired(&self) -> std::io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            let mut count = [0u8; 8];
            match rustix::io::read(guard.get_inner().as_fd(), &mut count) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Sleeps on `CLOCK_BOOTTIME`, for shells that pace themselves outside the broker.
pub async fn sleep(duration: Duration) -> std::io::Result<()> {
    let timer = BootTimer::new()?;
    timer.arm(Some(BootInstant::now() + duration))?;
    timer.fired().await
}

/// A duration in the one or two largest units a person needs: `4m12s`, `3h05m`, `850ms`.
pub struct Human(pub Duration);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0 => write!(f, "{}ms", self.0.as_millis()),
            1..60 => write!(f, "{seconds}s"),
            60..3_600 => write!(f, "{}m{:02}s", seconds / 60, seconds % 60),
            3_600..86_400 => write!(f, "{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
            _ => write!(f, "{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_never_wrap() {
        let early = BootInstant::from_nanos(5);
        let late = BootInstant::from_nanos(9);
        assert_eq!(late.since(early), Duration::from_nanos(4));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!((early - Duration::from_secs(1)).as_nanos(), 0);
    }

    #[test]
    fn people_read_at_most_two_units() {
        let human = |ms| Human(Duration::from_millis(ms)).to_string();
        assert_eq!(human(850), "850ms");
        assert_eq!(human(252_000), "4m12s");
        assert_eq!(human(11_100_000), "3h05m");
        assert_eq!(human(90_000_000), "1d01h");
    }

    #[tokio::test]
    async fn a_deadline_in_the_past_fires_at_once() {
        let timer = BootTimer::new().unwrap();
        timer.arm(Some(BootInstant::from_nanos(1))).unwrap();
        timer.fired().await.unwrap();
    }
}
