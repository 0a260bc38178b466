//! Replies: Vault's envelope and error body, and the headers every reply has.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AGE, CACHE_CONTROL, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::request::Refusal;
use super::transport::Answer;
use crate::audit::NotRecorded;
use crate::broker::{Entry, Freshness, ReadError, Reply};
use crate::clock::BootInstant;
use crate::domain::PathKind;
use crate::source::ErrorClass;

const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Ages, in seconds, below which nearly all secrets are fetched again.
const AGE_USUAL: u32 = 600;
/// Seconds a client is told to wait when nothing better is known.
const RETRY_SECONDS: u64 = 1;

/// JSON that holds no secret.
pub(super) fn json(status: StatusCode, value: &Value) -> Answer {
    with_body(status, Bytes::from(value.to_string()), HeaderMap::with_capacity(4))
}

/// The same, written already.
pub(super) fn json_text(text: Box<RawValue>) -> Answer {
    let body = Box::<str>::from(text).into_boxed_bytes();
    with_body(StatusCode::OK, Bytes::from(body), HeaderMap::with_capacity(4))
}

/// Text of another type.
pub(super) fn text(content_type: &'static str, text: String) -> Answer {
    let mut answer = with_body(StatusCode::OK, Bytes::from(text), HeaderMap::with_capacity(4));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// 204: done, nothing to say.
pub(super) fn no_content() -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer.headers_mut().insert(CACHE_CONTROL, NO_STORE);
    answer
}

/// Vault's error body.
pub(super) fn refusal(refusal: &Refusal) -> Answer {
    let errors: Vec<&str> = refusal.message.as_deref().into_iter().collect();
    let mut answer = json(refusal.status, &json!({ "errors": errors }));
    if let Some(seconds) = refusal.retry_after {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

/// Vault's envelope around data that holds no secret and has no lease.
pub(super) fn envelope(data: &Value) -> Value {
    json!({
        "request_id": "", "lease_id": "", "renewable": false, "lease_duration": 0,
        "data": data, "wrap_info": null, "warnings": null, "auth": null,
    })
}

/// `Age` in whole seconds; of those that are usual the text is at hand.
fn age(entry: &Entry, now: BootInstant) -> HeaderValue {
    static USUAL: LazyLock<Vec<String>> =
        LazyLock::new(|| (0..AGE_USUAL).map(|age| age.to_string()).collect());
    let seconds = now.since(entry.fetched_at).as_secs();
    let usual = usize::try_from(seconds).ok().and_then(|seconds| USUAL.get(seconds));
    usual.map_or_else(|| HeaderValue::from(seconds), |text| HeaderValue::from_static(text))
}

/// A secret, with its age and how it was come by, in `headers` without any. The body shares the
/// entry's wiped memory.
#[inline]
pub(super) fn secret(reply: &Reply, mut headers: HeaderMap, now: BootInstant) -> Answer {
    let body = match reply.entry.kind {
        PathKind::Minting => leased_envelope(reply),
        PathKind::Kv | PathKind::Static => reply.entry.data.body(),
    };
    headers.insert(X_CACHE, x_cache(reply.freshness));
    headers.insert(AGE, age(&reply.entry, now));
    with_body(StatusCode::OK, body, headers)
}

/// The label in metrics.
pub(super) fn cache_label(freshness: Freshness) -> &'static str {
    match freshness {
        Freshness::Hit => "hit",
        Freshness::Miss => "miss",
        Freshness::Stale => "stale",
    }
}

fn x_cache(freshness: Freshness) -> HeaderValue {
    HeaderValue::from_static(match freshness {
        Freshness::Hit => "HIT",
        Freshness::Miss => "MISS",
        Freshness::Stale => "STALE",
    })
}

#[inline]
fn with_body(status: StatusCode, body: Bytes, mut headers: HeaderMap) -> Answer {
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, NO_STORE);
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    answer
}

/// Vault's envelope with the caller's local lease; built in one allocation of exact size, so that
/// growing leaves no copy behind. It is for one reply only, and wiped as hyper's copy of it: by the
/// allocator.
fn leased_envelope(reply: &Reply) -> Bytes {
    let lease = reply.local_lease.as_ref();
    let id = in_json(lease.map_or("", |lease| lease.id.as_str()));
    let renewable = lease.is_some_and(|lease| lease.renewable);
    let duration = lease.map_or(0, |lease| lease.duration.as_secs()).to_string();
    let parts: [&[u8]; 8] = [
        br#"{"request_id":"","lease_id":""#,
        id.as_bytes(),
        if renewable { br#"","renewable":true"# } else { br#"","renewable":false"# },
        br#","lease_duration":"#,
        duration.as_bytes(),
        br#","data":"#,
        reply.entry.data.expose(),
        br#","wrap_info":null,"warnings":null,"auth":null}"#,
    ];
    Bytes::from(parts.concat())
}

/// Text as it stands between the quotes of a JSON string: nearly always as it is.
fn in_json(text: &str) -> Cow<'_, str> {
    // Without leaving early: so it takes many bytes at once.
    let plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    if text.bytes().fold(true, |so_far, byte| so_far & plain(byte)) {
        return text.into();
    }
    let quoted = json!(text).to_string();
    quoted[1..quoted.len() - 1].to_owned().into()
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        let retry = |after: Option<Duration>| after.map_or(RETRY_SECONDS, |d| d.as_secs().max(1));
        match &error {
            ReadError::Source { class, retry_after, .. } => match class {
                ErrorClass::Denied => {
                    Self::new(StatusCode::FORBIDDEN, "1 error occurred:\n\t* permission denied\n\n")
                }
                ErrorClass::NotFound => {
                    Self { status: StatusCode::NOT_FOUND, message: None, retry_after: None }
                }
                ErrorClass::InvalidRequest => Self::bad_request(error.to_string()),
                ErrorClass::Unreachable | ErrorClass::TokenEnded | ErrorClass::LeaseEnded => {
                    Self::unavailable(error.to_string(), retry(*retry_after))
                }
            },
            ReadError::NoMount { .. } => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            ReadError::Leaving => {
                Self::new(StatusCode::FORBIDDEN, format!("permission denied: {error}"))
            }
            ReadError::Full { .. } => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string())
            }
            ReadError::Busy | ReadError::AuditDown => {
                Self::unavailable(error.to_string(), RETRY_SECONDS)
            }
        }
    }
}

impl From<NotRecorded> for Refusal {
    fn from(error: NotRecorded) -> Self {
        Self::unavailable(error.to_string(), RETRY_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::broker::{DataView, LocalLease, shared_bytes};
    use crate::domain::{LocalLeaseId, SecretBytes};
    use http_body_util::BodyExt;

    fn reply(kind: PathKind, body: &str, local_lease: Option<LocalLease>) -> Reply {
        let entry = Entry {
            data: DataView::new(shared_bytes(SecretBytes::new(body.into())), 0..body.len()),
            kind,
            fetched_at: BootInstant::from_nanos(1_000_000_000),
            fresh_until: BootInstant::default(),
            dead_at: BootInstant::default(),
            version: None,
            fingerprint: 0,
            interest: None,
        };
        Reply { entry: Arc::new(entry), freshness: Freshness::Stale, local_lease }
    }

    async fn body(answer: Answer) -> Vec<u8> {
        answer.into_body().collect().await.unwrap().to_bytes().to_vec()
    }

    #[tokio::test]
    async fn a_cached_envelope_goes_out_byte_for_byte_with_age_and_state() {
        let answer = secret(
            &reply(PathKind::Kv, "{ \"data\" : 1 }", None),
            HeaderMap::new(),
            BootInstant::from_nanos(43_999_999_999),
        );
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("age"), "42");
        assert_eq!(header("x-cache"), "STALE");
        assert_eq!(header("cache-control"), "no-store");
        assert_eq!(header("content-type"), "application/json");
        assert_eq!(body(answer).await, b"{ \"data\" : 1 }");
    }

    #[test]
    fn an_age_is_in_whole_seconds_usual_or_not() {
        let reply = reply(PathKind::Kv, "{}", None);
        for seconds in [0, 1, 59, AGE_USUAL - 1, AGE_USUAL, AGE_USUAL + 1, 86_400] {
            let now =
                reply.entry.fetched_at + Duration::from_millis(u64::from(seconds) * 1000 + 999);
            assert_eq!(age(&reply.entry, now), seconds.to_string());
        }
    }

    #[tokio::test]
    async fn a_leased_secret_carries_the_callers_local_lease() {
        let path = "database/creds/shop".parse().unwrap();
        let lease = LocalLease {
            id: LocalLeaseId::new(&path, 7),
            path,
            issued_at: BootInstant::default(),
            duration: Duration::from_millis(59_900),
            renewable: true,
        };
        let answer = secret(
            &reply(PathKind::Minting, r#"{"password":"p\"1"}"#, Some(lease)),
            HeaderMap::new(),
            BootInstant::default(),
        );
        let value: Value = serde_json::from_slice(&body(answer).await).unwrap();
        assert_eq!(value["lease_id"], "database/creds/shop/00000000000000000000000000000007");
        assert_eq!(value["lease_duration"], 59);
        assert_eq!(value["renewable"], true);
        assert_eq!(value["data"]["password"], "p\"1");
        assert!(value["auth"].is_null() && value["wrap_info"].is_null());
    }

    #[test]
    fn a_lease_id_is_escaped_where_json_needs_it() {
        for text in ["database/creds/shop/0", "a\"b", "a\\b", "a\nb", "a\u{7f}é", ""] {
            let value: Value = serde_json::from_str(&format!("\"{}\"", in_json(text))).unwrap();
            assert_eq!(value, text);
        }
    }

    #[test]
    fn every_read_error_has_vaults_status() {
        let source = |class| ReadError::Source { class, message: "m".into(), retry_after: None };
        let path = "a/b".parse().unwrap();
        let rows = [
            (source(ErrorClass::Unreachable), 503),
            (source(ErrorClass::TokenEnded), 503),
            (source(ErrorClass::LeaseEnded), 503),
            (source(ErrorClass::Denied), 403),
            (source(ErrorClass::NotFound), 404),
            (source(ErrorClass::InvalidRequest), 400),
            (ReadError::NoMount { source_name: "vault".parse().unwrap(), path }, 404),
            (ReadError::Leaving, 403),
            (ReadError::Full { limit: "entries" }, 507),
            (ReadError::Busy, 503),
            (ReadError::AuditDown, 503),
        ];
        for (error, status) in rows {
            let answer = refusal(&Refusal::from(error.clone()));
            assert_eq!(answer.status().as_u16(), status, "{error}");
            assert_eq!(answer.headers().contains_key(RETRY_AFTER), status == 503, "{error}");
        }
    }

    #[tokio::test]
    async fn not_found_is_vaults_empty_error_list() {
        let class = ErrorClass::NotFound;
        let error = ReadError::Source { class, message: "no".into(), retry_after: None };
        assert_eq!(body(refusal(&error.into())).await, br#"{"errors":[]}"#);
    }
}
