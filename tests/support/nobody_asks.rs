//! What an agent answers about itself, where nobody asks for it: sockets that serve secrets only.

use async_trait::async_trait;
use secrets_broker::delivery::socket::{OperatorApi, Refusal, Viewer};
use secrets_broker::identity::pods::DirectoryState;
use serde_json::value::RawValue;

/// It is ready, and has no answers.
pub struct NobodyAsks;

#[async_trait]
impl OperatorApi for NobodyAsks {
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn pod_directory(&self) -> DirectoryState {
        unreachable!("nobody asks")
    }

    async fn status(&self, _: &Viewer) -> Result<Box<RawValue>, Refusal> {
        unreachable!("nobody asks")
    }

    async fn leases(&self, _: &Viewer) -> Result<Box<RawValue>, Refusal> {
        unreachable!("nobody asks")
    }

    async fn explain(
        &self,
        _: &Viewer,
        _: &str,
        _: Option<&str>,
    ) -> Result<Box<RawValue>, Refusal> {
        unreachable!("nobody asks")
    }

    async fn reload(&self, _: bool) -> Result<Box<RawValue>, Refusal> {
        unreachable!("nobody asks")
    }

    fn unlock(&self, _: &str) -> Result<usize, Refusal> {
        unreachable!("nobody asks")
    }
}
