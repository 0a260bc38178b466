//! The mounter inside this process: a plain host, where agent and mounter are one.

use std::sync::{Arc, Mutex, PoisonError};

use super::MounterError;
use super::answer::answer;
use super::exchange::{Answer, Exchange};
use super::mounts::Mounts;
use super::protocol::Request;

/// Does the work itself. Needs `CAP_SYS_ADMIN`.
#[derive(Clone)]
pub struct LocalMounter {
    mounts: Arc<Mutex<Mounts>>,
}

impl LocalMounter {
    /// Works on these mounts.
    pub fn new(mounts: Mounts) -> Self {
        Self { mounts: Arc::new(Mutex::new(mounts)) }
    }
}

impl Exchange for LocalMounter {
    fn exchange(&self, request: &Request) -> Result<Answer, MounterError> {
        // Mounts hold no state of their own that a panic could leave half done.
        Ok(answer(&self.mounts.lock().unwrap_or_else(PoisonError::into_inner), request))
    }
}
