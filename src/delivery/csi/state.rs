//! Whether the kubelet is served, for readiness and status: a node whose agent only waits must not
//! look as if its pods got their volumes.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::gauge::Gauge;

/// What the driver waits for. Cheap to clone.
#[derive(Clone)]
pub struct DriverState {
    waits_for: Arc<Mutex<Option<String>>>,
    waiting: Gauge,
}

impl DriverState {
    /// Of a driver that is yet to be started, if there is to be one. `waiting` is 1 while it waits.
    pub fn new(is_wanted: bool, waiting: Gauge) -> Self {
        let state = Self { waits_for: Arc::default(), waiting };
        if is_wanted {
            state.wait_for("the start of the CSI driver".to_owned());
        }
        state
    }

    /// What it waits for; `None` when it serves, or when there is no driver.
    pub fn waits_for(&self) -> Option<String> {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says why the kubelet is not served; whether that is news.
    pub(super) fn wait_for(&self, what: String) -> bool {
        let mut waits_for = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.set(1);
        let is_news = waits_for.as_ref() != Some(&what);
        *waits_for = Some(what);
        is_news
    }

    /// Says that the kubelet is served.
    pub(super) fn serves(&self) {
        let mut waits_for = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.set(0);
        *waits_for = None;
    }
}
