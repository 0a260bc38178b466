//! Few, small requests to the Kubernetes API server: bounded in time and size, never repeated here.

use std::path::PathBuf;
use std::time::Duration;

use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use tokio::sync::OnceCell;

/// For name resolution, TCP and TLS together.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// For a whole request, the last byte of its answer included.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const JSON: &str = "application/json";
/// Key sets have a media type of their own, and asking for JSON alone is answered with 406.
const ACCEPTED: &str = "application/json, */*";
/// What requests to the API server say they come from.
pub(in crate::identity) const USER_AGENT: &str =
    concat!("secrets-broker/", env!("CARGO_PKG_VERSION"));

/// How to reach the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiServer {
    /// As every pod does: address from the environment, CA and token from the service-account
    /// volume.
    InCluster,
    /// From a host that is in no pod.
    At {
        /// `https://host:port`.
        address: String,
        /// PEM bundle, trusted alone and read again when it changes.
        ca_file: PathBuf,
        /// A service-account token for the API server, read again when it changes.
        token_file: PathBuf,
    },
}

/// Why the API server gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiServerError {
    /// Not in a pod, or without its service-account volume.
    #[error("this is no pod with a service-account volume; configure the API server's address")]
    InCluster(#[source] kube::config::InClusterError),
    /// Not a URL, or one without TLS.
    #[error("API server address is not https://host:port; tokens never travel in clear")]
    Address,
    /// CA or token file.
    #[error("API server's CA or token file cannot be used; check both paths")]
    Setup(#[source] Box<kube::Error>),
    /// Name, network or TLS.
    #[error("API server cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No whole answer in time.
    #[error("API server did not answer {path} within {}s", ANSWER_WITHIN.as_secs())]
    Deadline {
        /// What was asked.
        path: &'static str,
    },
    /// An answer that helps nobody.
    #[error(
        "API server answered {status} to {path}; 401 and 403 mean a missing right of the agent"
    )]
    Status {
        /// What was asked.
        path: &'static str,
        /// The answer.
        status: u16,
    },
}

/// One API server with its client, which is made at the first request.
pub(super) struct Connection {
    server: ApiServer,
    client: OnceCell<kube::Client>,
}

impl Connection {
    pub(super) fn new(server: ApiServer) -> Self {
        Self { server, client: OnceCell::new() }
    }

    /// Reads `path`, at most `bytes_max` of it. Dropped, nothing is lost.
    pub(super) async fn get(
        &self,
        path: &'static str,
        bytes_max: usize,
    ) -> Result<Vec<u8>, ApiServerError> {
        self.exchange(Method::GET, path, Vec::new(), bytes_max).await
    }

    /// Posts a JSON body that creates nothing lasting.
    pub(super) async fn post(
        &self,
        path: &'static str,
        body: Vec<u8>,
        bytes_max: usize,
    ) -> Result<Vec<u8>, ApiServerError> {
        self.exchange(Method::POST, path, body, bytes_max).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &'static str,
        body: Vec<u8>,
        bytes_max: usize,
    ) -> Result<Vec<u8>, ApiServerError> {
        let request = Request::builder()
            .method(method)
            .uri(Uri::from_static(path))
            .header(header::CONTENT_TYPE, JSON)
            .header(header::ACCEPT, ACCEPTED)
            .header(header::USER_AGENT, USER_AGENT)
            .body(Body::from(body))
            .expect("a constant path and constant headers make a request");
        let answer = async {
            let client = self.client.get_or_try_init(|| async { self.server.client() }).await?;
            let answer = client.send(request).await;
            let answer = answer.map_err(|error| ApiServerError::Unreachable(error.into()))?;
            if !answer.status().is_success() {
                return Err(ApiServerError::Status { path, status: answer.status().as_u16() });
            }
            let body = Limited::new(answer.into_body(), bytes_max).collect().await;
            body.map(|body| body.to_bytes().to_vec()).map_err(ApiServerError::Unreachable)
        };
        let late = |_| Err(ApiServerError::Deadline { path });
        tokio::time::timeout(ANSWER_WITHIN, answer).await.unwrap_or_else(late)
    }
}

impl ApiServer {
    /// Reads the files once; the client reads them again as they change.
    pub(in crate::identity) fn client(&self) -> Result<kube::Client, ApiServerError> {
        let mut config = match self {
            Self::InCluster => kube::Config::incluster_env().map_err(ApiServerError::InCluster)?,
            Self::At { address, ca_file, token_file } => {
                let uri: Uri = address.parse().map_err(|_| ApiServerError::Address)?;
                if uri.scheme() != Some(&http::uri::Scheme::HTTPS) {
                    return Err(ApiServerError::Address);
                }
                let mut config = kube::Config::new(uri);
                // Nobody beside the file: unset would mean the system's authorities.
                config.root_cert = Some(Vec::new());
                config.root_cert_file = Some(ca_file.clone());
                config.auth_info.token_file = Some(token_file.display().to_string());
                config
            }
        };
        config.connect_timeout = Some(CONNECT_WITHIN);
        config.default_retry = false;
        let client = kube::Client::try_from(config);
        client.map_err(|error| ApiServerError::Setup(Box::new(error)))
    }
}
