//! Connections that are refused: told why without waiting for anybody.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use tokio::net::UnixStream;

use crate::clock::BootInstant;

/// How long a refused client may take to read why.
const READ_TIMEOUT: Duration = Duration::from_millis(250);
/// Processes that [`Lately`] knows, and for how long.
const LATELY_MAX: usize = 64;
const LATELY: Duration = Duration::from_millis(100);

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
            Self::Nobody(_) => "identity",
            Self::TooManyOfCaller => "connections_per_user",
            Self::TooOften => "requests_per_second_per_user",
            Self::TooMany => "connections",
        }
    }

    /// Says why without waiting: a fresh socket's send buffer is empty.
    pub(super) fn tell(&self, stream: &UnixStream) {
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

/// Processes that were refused a moment ago because they have or want too much. They are told the
/// same again without a look at who they are, which costs many times as much.
///
/// By number, which is no proof: whoever comes by the number of such a process meanwhile has to
/// come again.
#[derive(Debug, Default)]
pub(super) struct Lately(VecDeque<(i32, BootInstant, Refused)>);

impl Lately {
    /// What this process was told a moment ago.
    pub(super) fn told(&self, pid: i32, now: BootInstant) -> Option<&Refused> {
        let (.., told) =
            self.0.iter().find(|(known, at, _)| *known == pid && now.since(*at) < LATELY)?;
        Some(told)
    }

    /// Remembers what it is told now, in place of the oldest.
    pub(super) fn tell(&mut self, pid: i32, now: BootInstant, refused: &Refused) {
        if !matches!(refused, Refused::TooManyOfCaller | Refused::TooOften) {
            return;
        }
        self.0.retain(|(known, at, _)| *known != pid && now.since(*at) < LATELY);
        self.0.truncate(LATELY_MAX - 1);
        self.0.push_front((pid, now, refused.clone()));
    }
}

/// Reads the request away, so that closing does not destroy the reply that was written.
pub(super) async fn drain(stream: UnixStream) {
    let _ = rustix::net::shutdown(&stream, rustix::net::Shutdown::Write);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_process_is_told_the_same_for_a_moment_and_others_are_not() {
        let mut lately = Lately::default();
        lately.tell(7, at(0), &Refused::TooOften);
        assert_eq!(lately.told(7, at(99)), Some(&Refused::TooOften));
        assert_eq!(lately.told(8, at(99)), None);
        assert_eq!(lately.told(7, at(100)), None);
        lately.tell(7, at(100), &Refused::TooManyOfCaller);
        assert_eq!(lately.told(7, at(101)), Some(&Refused::TooManyOfCaller));
        assert_eq!(lately.0.len(), 1);
    }

    #[test]
    fn who_it_is_and_what_others_have_is_asked_each_time() {
        let mut lately = Lately::default();
        lately.tell(7, at(0), &Refused::Nobody("in another pod".to_owned()));
        lately.tell(7, at(0), &Refused::TooMany);
        assert_eq!(lately.told(7, at(0)), None);
    }

    #[test]
    fn the_oldest_is_forgotten_at_the_bound() {
        let mut lately = Lately::default();
        for pid in 0..=i32::try_from(LATELY_MAX).unwrap() {
            lately.tell(pid, at(0), &Refused::TooOften);
        }
        assert_eq!((lately.told(0, at(0)), lately.0.len()), (None, LATELY_MAX));
        assert!(lately.told(1, at(0)).is_some());
    }
}
