//! The kubelet's side of a CSI driver: gRPC calls on its socket, and the directories the kubelet
//! makes first. Include it with `#[path = "support/csi_driver.rs"]`, beside `cluster`.
#![allow(dead_code, reason = "each user compiles this and uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;

use crate::cluster::Pod;

/// Where the kubelet passes tokens on.
pub const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// Flags and length before each message.
const FRAME: usize = 5;

/// As in the CSI's `csi.proto`.
#[derive(Clone, PartialEq, Message)]
pub struct NodePublishVolumeRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "4")]
    pub target_path: String,
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    #[prost(btree_map = "string, string", tag = "7")]
    pub secrets: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "8")]
    pub volume_context: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct VolumeCapability {
    #[prost(message, optional, tag = "2")]
    mount: Option<MountVolume>,
}

#[derive(Clone, PartialEq, Message)]
pub struct MountVolume {}

#[derive(Clone, PartialEq, Message)]
struct NodeUnpublishVolumeRequest {
    #[prost(string, tag = "1")]
    volume_id: String,
    #[prost(string, tag = "2")]
    target_path: String,
}

/// A call that the driver refused.
#[derive(Debug)]
pub struct Refused {
    /// gRPC's number.
    pub code: u32,
    /// What the pod's events would show.
    pub message: String,
}

/// A connection as the kubelet's; clones share it.
#[derive(Clone)]
pub struct CsiDriver {
    calls: http2::SendRequest<Full<Bytes>>,
    kubelet: PathBuf,
}

impl CsiDriver {
    /// Connects to the driver below a kubelet's root. Its connection ends with the runtime.
    pub async fn connect(kubelet: &Path) -> CsiDriver {
        let stream = UnixStream::connect(socket(kubelet)).await.expect("connect to the driver");
        let executor = TokioExecutor::new();
        let (calls, connection) = http2::handshake(executor, TokioIo::new(stream))
            .await
            .expect("the driver speaks HTTP/2");
        tokio::spawn(connection);
        CsiDriver { calls, kubelet: kubelet.to_owned() }
    }

    /// Publishes the pod's volume of this name with the pod's own token.
    pub async fn publish(
        &self,
        pod: &Pod,
        volume: &str,
        attributes: &[(&str, &str)],
    ) -> Result<(), Refused> {
        self.publish_with(pod, volume, attributes, pod.tokens()).await
    }

    /// The same with any token.
    pub async fn publish_with(
        &self,
        pod: &Pod,
        volume: &str,
        attributes: &[(&str, &str)],
        tokens: String,
    ) -> Result<(), Refused> {
        let mut request = self.request(pod, volume, attributes);
        request.secrets.insert(TOKENS.to_owned(), tokens);
        self.send(&request).await
    }

    /// What a kubelet would send, once it has made the pod's directory.
    pub fn request(
        &self,
        pod: &Pod,
        volume: &str,
        attributes: &[(&str, &str)],
    ) -> NodePublishVolumeRequest {
        let target = target(&self.kubelet, pod, volume);
        fs::create_dir_all(target.parent().expect("a parent")).expect("make the pod's directory");
        NodePublishVolumeRequest {
            volume_id: id(pod, volume),
            target_path: text(&target),
            volume_capability: Some(VolumeCapability { mount: Some(MountVolume {}) }),
            readonly: true,
            secrets: BTreeMap::from([(TOKENS.to_owned(), pod.tokens())]),
            volume_context: pod.volume_context(attributes),
        }
    }

    /// Sends it, changed or not.
    pub async fn send(&self, request: &NodePublishVolumeRequest) -> Result<(), Refused> {
        self.call("NodePublishVolume", request, None).await
    }

    /// The same from a caller that says how long it waits, as gRPC spells it.
    pub async fn send_within(
        &self,
        request: &NodePublishVolumeRequest,
        timeout: &str,
    ) -> Result<(), Refused> {
        self.call("NodePublishVolume", request, Some(timeout)).await
    }

    /// Takes the volume away again.
    pub async fn unpublish(&self, pod: &Pod, volume: &str) -> Result<(), Refused> {
        let target_path = text(&target(&self.kubelet, pod, volume));
        let request = NodeUnpublishVolumeRequest { volume_id: id(pod, volume), target_path };
        self.call("NodeUnpublishVolume", &request, None).await
    }

    async fn call(
        &self,
        method: &str,
        message: &impl Message,
        timeout: Option<&str>,
    ) -> Result<(), Refused> {
        let length = u32::try_from(message.encoded_len()).expect("a short message");
        let mut frame = vec![0; FRAME];
        frame[1..].copy_from_slice(&length.to_be_bytes());
        message.encode(&mut frame).expect("a vector takes every message");
        let mut request = Request::post(format!("http://localhost/csi.v1.Node/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let request = request.body(Full::new(Bytes::from(frame))).expect("a request");
        let response = self.calls.clone().send_request(request).await.expect("an answer");
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("the whole answer");
        // A refusal may come without a body, its status among the headers.
        let trailers = body.trailers().cloned().unwrap_or_default();
        match outcome(&trailers).or_else(|| outcome(&head.headers)).expect("gRPC's status") {
            Refused { code: 0, .. } => Ok(()),
            refused => Err(refused),
        }
    }
}

fn outcome(headers: &HeaderMap) -> Option<Refused> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status")?.parse().ok()?;
    Some(Refused { code, message: decoded(text("grpc-message").unwrap_or_default()) })
}

/// Without percent-encoding.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The driver's socket.
pub fn socket(kubelet: &Path) -> PathBuf {
    kubelet.join("plugins/csi.secrets-broker.io/csi.sock")
}

/// Where a pod's volume appears.
pub fn target(kubelet: &Path, pod: &Pod, volume: &str) -> PathBuf {
    kubelet.join(format!("pods/{}/volumes/kubernetes.io~csi/{volume}/mount", pod.uid))
}

fn id(pod: &Pod, volume: &str) -> String {
    format!("csi-{}-{volume}", pod.uid)
}

fn text(path: &Path) -> String {
    path.to_str().expect("a readable path").to_owned()
}
