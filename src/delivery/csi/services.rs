//! The driver's gRPC services, thin: read the call, verify its token, hand it to the volume's task.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::{Code, Request, Response, Status};

use crate::audit::{Audit, AuditEvent};
use crate::identity::supposed::SupposedPod;
use crate::identity::token::{PodInfo, TokenRefused, Verifier};
use crate::identity::{Listener, ProofStrength};
use crate::mounter::Target;
use crate::telemetry::{Chain, Metrics};

use super::CsiConfig;
use super::error::{CsiError, code_name};
use super::proto::csi::identity_server::Identity;
use super::proto::csi::node_server::Node;
use super::proto::csi::node_service_capability::rpc;
use super::proto::csi::{self, node_service_capability};
use super::proto::registration::registration_server::Registration;
use super::proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use super::request::Publish;
use super::state::DriverState;
use super::volumes::Volumes;

/// What the kubelet calls a CSI driver among its plugins.
const PLUGIN_TYPE: &str = "CSIPlugin";
/// The version of the CSI that is served.
const CSI_VERSION: &str = "1.0.0";
/// The kubelet's own node path for ids is bounded by this; a driver's name by the CSI, too.
const NODE_ID_BYTES_MAX: usize = 256;

/// All three services; the kubelet is the only caller.
#[derive(Clone)]
pub(super) struct Driver {
    pub(super) config: Arc<CsiConfig>,
    pub(super) volumes: Volumes,
    pub(super) verifier: Verifier,
    pub(super) metrics: Metrics,
    pub(super) audit: Audit,
    pub(super) state: DriverState,
}

impl Driver {
    fn target(&self, path: &str) -> Result<Target, CsiError> {
        Target::parse(&self.config.kubelet_root, path)
            .map_err(|error| CsiError::Invalid(vec![error.to_string()]))
    }

    async fn publish(
        &self,
        request: &csi::NodePublishVolumeRequest,
        patience: Duration,
    ) -> Result<(), CsiError> {
        let published = self.publish_verified(request, patience).await;
        // After a final code the kubelet may forget a volume that it is not sure of.
        published.map_err(|refused| match self.target(&request.target_path) {
            Ok(target) if self.volumes.has(target.key()) => refused.of_one_that_is_there(),
            _ => refused,
        })
    }

    async fn publish_verified(
        &self,
        request: &csi::NodePublishVolumeRequest,
        patience: Duration,
    ) -> Result<(), CsiError> {
        let CsiConfig { kubelet_root, audience, .. } = &*self.config;
        let publish = Publish::read(request, kubelet_root, audience).map_err(CsiError::Invalid)?;
        let pod = publish.pod.clone();
        let published = async {
            let claims = self.verifier.verify(&publish.token, SystemTime::now()).await?;
            claims.matches(&publish.pod)?;
            self.volumes.publish(publish, claims, patience).await
        };
        let published = published.await;
        if let Err(CsiError::Token(refused)) = &published {
            self.record_refusal(pod, refused);
        }
        published
    }

    /// Of a token that is not believed the audit log has the pod that the kubelet named.
    fn record_refusal(&self, pod: PodInfo, refused: &TokenRefused) {
        let identity = SupposedPod {
            namespace: pod.namespace,
            service_account: pod.service_account,
            listener: Listener::Csi,
            // That the kubelet said so is all there is.
            strength: ProofStrength::PeerCred,
            known: Some((pod.uid, pod.pod)),
        };
        let identity = crate::identity::Identity::supposed_pod(&identity);
        let reason = Chain(refused).to_string();
        let event = AuditEvent::Proof { identity, reason, locked_out: false };
        if self.audit.record(event).is_err() {
            tracing::warn!("audit log is not accepting records: a refused token is not recorded");
        }
    }
}

/// Counts a call when it ends, also one that its caller gives up: then its future is dropped.
struct Counted<'a> {
    metrics: &'a Metrics,
    code: Code,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.metrics.publishes.get_or_create(&[("code", code_name(self.code))]).inc();
    }
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: self.config.driver.to_string(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities: Vec::new() }))
    }

    async fn probe(
        &self,
        _: Request<csi::ProbeRequest>,
    ) -> Result<Response<csi::ProbeResponse>, Status> {
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let patience = patience(&request, self.config.publish_timeout);
        let request = request.into_inner();
        let mut counted = Counted { metrics: &self.metrics, code: Code::Cancelled };
        let published = self.publish(&request, patience).await.map_err(Status::from);
        counted.code = published.as_ref().map_or_else(Status::code, |()| Code::Ok);
        match published {
            Ok(()) => Ok(Response::new(csi::NodePublishVolumeResponse {})),
            Err(status) => {
                tracing::warn!(
                    target_path = request.target_path.escape_debug().to_string(),
                    error = status.message(),
                    "a volume was not published"
                );
                Err(status)
            }
        }
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        if request.volume_id.is_empty() {
            return Err(CsiError::Invalid(vec!["volume_id is missing".to_owned()]).into());
        }
        self.volumes.unpublish(self.target(&request.target_path)?).await?;
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        // The kubelet then passes the pod's fsGroup on instead of changing owners itself.
        let mount_group =
            node_service_capability::Rpc { r#type: rpc::Type::VolumeMountGroup.into() };
        let capability = csi::NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(mount_group)),
        };
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: vec![capability] }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let node_id: String = self.config.node.as_str().chars().take(NODE_ID_BYTES_MAX).collect();
        Ok(Response::new(csi::NodeGetInfoResponse { node_id, max_volumes_per_node: 0 }))
    }
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: PLUGIN_TYPE.to_owned(),
            name: self.config.driver.to_string(),
            endpoint: self.config.socket().to_string_lossy().into_owned(),
            supported_versions: vec![CSI_VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = status.into_inner();
        if status.plugin_registered {
            self.state.serves();
            tracing::info!(driver = %self.config.driver, "the kubelet registered the CSI driver");
        } else {
            self.state.wait_for(format!("the kubelet, which refuses it: {}", status.error));
            tracing::error!(
                driver = %self.config.driver,
                error = status.error,
                "the kubelet refuses the CSI driver"
            );
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// How long a publish may wait for its secrets: ours, or what is left of the caller's deadline less
/// the time to take everything back.
fn patience<T>(request: &Request<T>, ours: Duration) -> Duration {
    let deadline = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
    let theirs = deadline.and_then(grpc_timeout).map(|limit| limit.mul_f64(0.8));
    theirs.map_or(ours, |theirs| theirs.min(ours))
}

/// gRPC's spelling of a duration: at most eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_deadline_leaves_time_to_take_everything_back() {
        let ours = Duration::from_secs(30);
        let with = |timeout: Option<&str>| {
            let mut request = Request::new(());
            if let Some(timeout) = timeout {
                request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
            }
            patience(&request, ours)
        };
        assert_eq!(with(None), ours);
        assert_eq!(with(Some("2M")), ours);
        assert_eq!(with(Some("10S")), Duration::from_secs(8));
        assert_eq!(with(Some("500m")), Duration::from_millis(400));
        for odd in ["S", "-1S", "10", "123456789S", "1x"] {
            assert_eq!(with(Some(odd)), ours, "{odd}");
        }
    }
}
