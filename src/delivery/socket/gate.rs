//! A future polled only when it was woken itself, beside another that is polled for every request.
//!
//! Polling exit, stop and clock beside each reply would cost a tenth of it; so would asking a
//! general set of futures each time.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Passes wakes on to the task, and remembers that there was one.
struct Gate {
    woken: AtomicBool,
    task: Mutex<Waker>,
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).clone();
        task.wake();
    }
}

/// A future behind its gate.
pub(super) struct Gated<F> {
    inner: Pin<Box<F>>,
    gate: Arc<Gate>,
    /// The gate as the inner future's waker.
    inner_waker: Waker,
    /// The task's waker as the gate has it.
    task_waker: Waker,
}

impl<F: Future> Gated<F> {
    /// The inner future is polled first when this one is.
    pub(super) fn new(inner: F) -> Self {
        let task_waker = Waker::noop().clone();
        let task = Mutex::new(task_waker.clone());
        let gate = Arc::new(Gate { woken: AtomicBool::new(true), task });
        let inner_waker = Waker::from(Arc::clone(&gate));
        Self { inner: Box::pin(inner), gate, inner_waker, task_waker }
    }
}

impl<F: Future> Future for Gated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if !this.task_waker.will_wake(cx.waker()) {
            this.task_waker.clone_from(cx.waker());
            // Before `woken` is read: a wake that still saw the old waker is seen below.
            let mut task = this.gate.task.lock().unwrap_or_else(PoisonError::into_inner);
            task.clone_from(cx.waker());
        }
        if !this.gate.woken.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        // Before polling: a wake during it must not be forgotten.
        this.gate.woken.swap(false, Ordering::AcqRel);
        this.inner.as_mut().poll(&mut Context::from_waker(&this.inner_waker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::sync::Notify;

    #[tokio::test]
    async fn the_inner_future_is_polled_once_and_then_when_it_was_woken() {
        let polls = Arc::new(AtomicUsize::new(0));
        let notify = Arc::new(Notify::new());
        let (counted, awaited) = (Arc::clone(&polls), Arc::clone(&notify));
        let mut gated = Gated::new(async move {
            let mut notified = std::pin::pin!(awaited.notified());
            std::future::poll_fn(|cx| {
                counted.fetch_add(1, Ordering::Relaxed);
                notified.as_mut().poll(cx)
            })
            .await;
        });
        for _ in 0..100 {
            let pending =
                std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut gated).poll(cx).is_pending()));
            assert!(pending.await);
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        notify.notify_one();
        // From here on the task is woken through the gate.
        gated.await;
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_is_lost_whichever_thread_it_comes_from() {
        for _ in 0..2_000 {
            let notify = Arc::new(Notify::new());
            let waker = Arc::clone(&notify);
            let mut tasks = tokio::task::JoinSet::new();
            tasks.spawn(async move { waker.notify_one() });
            Gated::new(async move { notify.notified().await }).await;
            tasks.join_next().await;
        }
    }
}
