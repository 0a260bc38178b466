//! The other end of a socket, for the command line: one request, one connection.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Longer than an event request waits.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(40);
/// Far more than the status of a full agent.
const REPLY_BYTES_MAX: usize = 256 * 1024 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there: the command line's exit code 2.
    #[error("no agent answers on '{}'; is it running, and is this its socket?", .0.display())]
    NoAgent(PathBuf),
    /// The socket's or its directory's mode keeps this user out.
    #[error(
        "no permission to connect to '{}'; run this as root or as the agent's user",
        .0.display()
    )]
    Forbidden(PathBuf),
    /// Anything else on the way there.
    #[error("cannot connect to '{}'", .0.display())]
    Connect(PathBuf, #[source] io::Error),
    /// The request or the reply broke off.
    #[error("the agent on '{}' did not answer properly", .0.display())]
    Exchange(PathBuf, #[source] BoxError),
    /// No reply in time.
    #[error("the agent on '{}' did not answer within {REQUEST_TIMEOUT:?}", .0.display())]
    Timeout(PathBuf),
}

/// GETs `path` (with its query) and returns status and body, whatever the status is.
pub async fn get(socket: &Path, path: &str) -> Result<(StatusCode, Vec<u8>), ClientError> {
    exchange(socket, Method::GET, path, Bytes::new()).await
}

/// POSTs a JSON body.
pub async fn post(
    socket: &Path,
    path: &str,
    body: &serde_json::Value,
) -> Result<(StatusCode, Vec<u8>), ClientError> {
    exchange(socket, Method::POST, path, Bytes::from(body.to_string())).await
}

/// A path with an encoded query: `with_query("/agent/v1/explain", &[("path", "secret/a#b")])`.
pub fn with_query(path: &str, parameters: &[(&str, &str)]) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Vec<u8>), ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|error| connect_error(socket, error))?;
    match tokio::time::timeout(REQUEST_TIMEOUT, speak(stream, method, path, body)).await {
        Ok(reply) => reply.map_err(|error| ClientError::Exchange(socket.to_owned(), error)),
        Err(_) => Err(ClientError::Timeout(socket.to_owned())),
    }
}

fn connect_error(socket: &Path, error: io::Error) -> ClientError {
    let socket = socket.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoAgent(socket),
        io::ErrorKind::PermissionDenied => ClientError::Forbidden(socket),
        _ => ClientError::Connect(socket, error),
    }
}

async fn speak(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Vec<u8>), BoxError> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("x-vault-request", "true")
        .header("content-type", "application/json")
        .body(Full::new(body))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let talk = async move {
        let reply = sender.send_request(request).await?;
        let status = reply.status();
        let body = Limited::new(reply.into_body(), REPLY_BYTES_MAX).collect().await?;
        Ok::<_, BoxError>((status, body.to_bytes().to_vec()))
    };
    // The connection ends when `talk` drops its sender; how it ends does not matter after a reply.
    let (reply, _) = tokio::join!(talk, connection);
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_and_a_dead_socket_are_both_no_agent() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing.sock");
        let dead = directory.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        for socket in [missing, dead] {
            let error = get(&socket, "/agent/v1/status").await.unwrap_err();
            assert!(matches!(error, ClientError::NoAgent(_)), "{error}");
        }
    }

    #[test]
    fn queries_are_encoded() {
        let target = with_query("/agent/v1/explain", &[("path", "secret/a#b c"), ("as", "uid:1")]);
        assert_eq!(target, "/agent/v1/explain?path=secret%2Fa%23b+c&as=uid%3A1");
        assert_eq!(with_query("/x", &[]), "/x");
    }
}
