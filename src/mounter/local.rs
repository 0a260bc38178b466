//! The mounter inside this process: a plain host, where agent and mounter are one.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::MounterError;
use super::answer::answer;
use super::exchange::{Answer, Exchange};
use super::mounts::Mounts;
use super::protocol::Request;

/// Does the work itself, on the blocking pool. Needs `CAP_SYS_ADMIN`.
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

#[async_trait]
impl Exchange for LocalMounter {
    async fn exchange(&self, request: Request) -> Result<Answer, MounterError> {
        let asked = request.to_string();
        let mounts = Arc::clone(&self.mounts);
        tokio::task::spawn_blocking(move || {
            // Mounts hold no state of their own that a panic could leave half done.
            answer(&mounts.lock().unwrap_or_else(PoisonError::into_inner), &request)
        })
        .await
        .map_err(|_| MounterError::Interrupted { request: asked })
    }
}
