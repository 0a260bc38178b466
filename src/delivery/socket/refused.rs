//! Connections that are refused: told why without waiting for anybody.

use std::borrow::Cow;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net;
use std::time::Duration;

use tokio::net::UnixStream;

/// How long a refused client may take to read why.
const READ_TIMEOUT: Duration = Duration::from_millis(250);

/// What the metric calls callers without an identity.
pub(super) const NOBODY: &str = "identity";

/// Why a connection is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// The caller has no identity at this door.
    Nobody(String),
    /// The caller has all the connections that it may have.
    TooManyOfCaller,
    /// The caller connects more often than it may ask.
    TooOften,
    /// The door has all the connections that it may have.
    TooMany,
}

impl Refused {
    /// In the metric.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Nobody(_) => NOBODY,
            Self::TooManyOfCaller => "connections_per_user",
            Self::TooOften => "requests_per_second_per_user",
            Self::TooMany => "connections",
        }
    }

    /// Says why without waiting: a fresh socket's send buffer is empty.
    pub(super) fn tell(&self, stream: BorrowedFd<'_>) {
        // Best effort; the client is refused either way.
        let _ = rustix::io::write(stream, self.reply().as_bytes());
    }

    fn reply(&self) -> String {
        let (status, message): (_, Cow<'_, str>) = match self {
            Self::Nobody(why) => ("403 Forbidden", why.into()),
            Self::TooManyOfCaller => {
                ("429 Too Many Requests", "too many connections of this caller".into())
            }
            Self::TooOften => {
                ("429 Too Many Requests", "connection rate of this caller exceeded".into())
            }
            Self::TooMany => ("503 Service Unavailable", "too many connections".into()),
        };
        let body = serde_json::json!({ "errors": [message] }).to_string();
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

/// Reads the request away, so that closing does not destroy the reply that was written.
pub(super) async fn drain(stream: OwnedFd) {
    let _ = rustix::net::shutdown(&stream, rustix::net::Shutdown::Write);
    let Ok(stream) = UnixStream::from_std(net::UnixStream::from(stream)) else { return };
    let drained = async {
        while stream.readable().await.is_ok() {
            // Here, so that it is no part of every connection's future.
            let mut scrap = [0_u8; 4096];
            match stream.try_read(&mut scrap) {
                Ok(0) => return,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    };
    let _ = tokio::time::timeout(READ_TIMEOUT, drained).await;
}
