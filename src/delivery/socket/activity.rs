//! What a connection is doing, noted without reading a clock, so that slow clients can be told from
//! idle ones: each phase has its own patience, and trickled bytes do not renew it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::Service;

/// What hyper writes while a request is still being answered, where the client asks whether it may
/// send the body. A reply is longer.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first byte of the next request.
    Idle,
    /// The rest of a request head.
    Head,
    /// Us: the request is being answered.
    Serving,
    /// The client to take its reply.
    Writing,
}

/// How long each phase may last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From the first byte of a request to the end of its head.
    pub head: Duration,
    /// Without a request.
    pub idle: Duration,
    /// For the client to take a reply.
    pub write: Duration,
}

impl Patience {
    fn of(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::Idle => Some(self.idle),
            Phase::Head => Some(self.head),
            // Bounded by what answers: body deadline, source deadlines, long-poll limit.
            Phase::Serving => None,
            Phase::Writing => Some(self.write),
        }
    }

    /// How often to look: a quarter of the shortest patience, at most once a second.
    pub(super) fn interval(&self) -> Duration {
        let shortest = self.head.min(self.idle).min(self.write);
        (shortest / 4).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}

/// The current phase and how many phases there have been, in one word: `count << 2 | phase`.
#[derive(Debug, Default)]
pub(super) struct Activity(AtomicU64);

impl Activity {
    /// Enters a phase. Only the connection's own task writes, so a load and a store are enough.
    pub(super) fn enter(&self, phase: Phase) {
        let count = self.0.load(Ordering::Relaxed) >> 2;
        self.0.store((count + 1) << 2 | phase as u64, Ordering::Relaxed);
    }

    /// The current phase.
    pub(super) fn phase(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) & 3 {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Serving,
            _ => Phase::Writing,
        }
    }
}

/// Measures how long a phase has lasted, as seen by whoever looks now and then.
#[derive(Debug)]
pub(super) struct Watchdog {
    seen: u64,
    lasted: Duration,
}

impl Watchdog {
    /// Starts watching.
    pub(super) fn new(activity: &Activity) -> Self {
        Self { seen: activity.0.load(Ordering::Relaxed), lasted: Duration::ZERO }
    }

    /// Looks again after `elapsed`; tells the phase whose patience has run out.
    pub(super) fn look(
        &mut self,
        activity: &Activity,
        elapsed: Duration,
        patience: &Patience,
    ) -> Option<Phase> {
        let now = activity.0.load(Ordering::Relaxed);
        if now != self.seen {
            (self.seen, self.lasted) = (now, Duration::ZERO);
            return None;
        }
        self.lasted += elapsed;
        let phase = activity.phase();
        patience.of(phase).is_some_and(|limit| self.lasted >= limit).then_some(phase)
    }
}

/// A connection's bytes, with its phases noted as they pass.
pub(super) struct Watched<T> {
    inner: T,
    activity: Arc<Activity>,
}

impl<T> Watched<T> {
    /// Wraps a stream.
    pub(super) fn new(inner: T, activity: Arc<Activity>) -> Self {
        Self { inner, activity }
    }

    /// A reply is there once it is written: hyper does both in one turn.
    fn note_write(&self, length: usize) {
        if self.activity.phase() == Phase::Serving && length != CONTINUE.len() {
            self.activity.enter(Phase::Writing);
        }
    }
}

impl<T: Read + Unpin> Read for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        if self.activity.phase() == Phase::Idle {
            self.activity.enter(Phase::Head);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.note_write(bytes.len());
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.note_write(parts.iter().map(|part| part.len()).sum());
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        // Hyper flushes the stream only when its own buffer is empty.
        if self.activity.phase() == Phase::Writing {
            self.activity.enter(Phase::Idle);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A service whose requests are noted.
pub(super) struct Noted<S> {
    inner: S,
    activity: Arc<Activity>,
}

impl<S> Noted<S> {
    /// Wraps a service.
    pub(super) fn new(inner: S, activity: Arc<Activity>) -> Self {
        Self { inner, activity }
    }
}

impl<R, S: Service<R>> Service<R> for Noted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    // Inlined, as what it calls: together that makes a hit 1 or 2 % faster.
    #[inline]
    fn call(&self, request: R) -> Self::Future {
        // Whoever asks again without having read is waited for as before.
        if self.activity.phase() != Phase::Writing {
            self.activity.enter(Phase::Serving);
        }
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Patience =
        Patience { head: SECOND, idle: Duration::from_secs(3), write: SECOND };

    #[test]
    fn each_phase_has_its_own_patience_and_serving_none() {
        let rows = [
            (Phase::Idle, [false, false, true]),
            (Phase::Head, [true, true, true]),
            (Phase::Serving, [false, false, false]),
            (Phase::Writing, [true, true, true]),
        ];
        for (phase, expected) in rows {
            let activity = Activity::default();
            activity.enter(phase);
            let mut watchdog = Watchdog::new(&activity);
            let over = [0; 3].map(|_| watchdog.look(&activity, SECOND, &PATIENCE).is_some());
            assert_eq!(over, expected, "{phase:?}");
        }
    }

    #[test]
    fn whoever_may_send_its_body_has_no_reply_yet() {
        let activity = Arc::new(Activity::default());
        let watched = Watched::new((), activity.clone());
        activity.enter(Phase::Serving);
        watched.note_write(CONTINUE.len());
        assert_eq!(activity.phase(), Phase::Serving);
        watched.note_write(2 * CONTINUE.len());
        assert_eq!(activity.phase(), Phase::Writing);
    }

    #[test]
    fn entering_the_same_phase_again_starts_its_time_anew() {
        let activity = Activity::default();
        activity.enter(Phase::Head);
        let mut watchdog = Watchdog::new(&activity);
        activity.enter(Phase::Idle);
        activity.enter(Phase::Head);
        assert_eq!(watchdog.look(&activity, SECOND, &PATIENCE), None);
        assert_eq!(watchdog.look(&activity, SECOND, &PATIENCE), Some(Phase::Head));
    }
}
