//! Carries one request to Vault and its answer back: deadlines, bounds, at most one redirect.

use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{HOST, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, Url};
use zeroize::Zeroizing;

use super::VaultError;
use super::address::Address;
use super::classify::Failure;
use super::tls::{self, OneHost};

/// How long an idle connection that carried secrets is kept: its read buffer still holds them. The
/// pool looks once in this time, so it is closed within a second.
const SECRET_IDLE_MAX: Duration = Duration::from_millis(500);
/// How long an idle control connection is kept.
const CONTROL_IDLE_MAX: Duration = Duration::from_secs(30);
/// Largest answer to a read. The broker's own bound on values is far below.
const SECRET_BYTES_MAX: usize = 4 << 20;
/// Largest answer to anything else.
const CONTROL_BYTES_MAX: usize = 16 << 20;
const TEMPORARY_REDIRECT: u16 = 307;

/// How long to wait for Vault.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// For name resolution, TCP and TLS together.
    pub connect: Duration,
    /// For a whole request, its redirect and the last byte of its answer included.
    pub request: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { connect: Duration::from_secs(2), request: Duration::from_secs(10) }
    }
}

/// Which connections a request uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    /// Logins, renewals, probes: connections are kept.
    Control,
    /// Reads of secrets: connections are closed when idle for a second.
    SecretRead,
}

/// A whole answer, whatever its status.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<String>,
    pub(super) body: Zeroizing<Vec<u8>>,
}

/// Two HTTP clients for one address: no proxy, no redirects and no retries of their own.
pub(super) struct Transport {
    control: reqwest::Client,
    reads: reqwest::Client,
    address: Address,
    base: String,
    /// With `server_name`, the URL carries that name and this the configured one, as Go clients do.
    host: Option<HeaderValue>,
    deadlines: Deadlines,
}

impl Transport {
    /// Reads the CA bundle and builds the clients.
    pub(super) fn new(
        address: Address,
        ca_file: Option<&Path>,
        server_name: Option<&str>,
        deadlines: Deadlines,
    ) -> Result<Self, VaultError> {
        let tls = match (address.is_https(), ca_file) {
            (false, _) => tls::trusting_nobody()?,
            (true, None) => return Err(VaultError::CaMissing),
            (true, Some(file)) => tls::trusting(file)?,
        };
        let mut base = address.as_str().to_owned();
        let mut host = None;
        if let Some(name) = server_name {
            OneHost::behind(name, address.host())?;
            let url = address.with_host(name);
            base = url.ok_or_else(|| VaultError::ServerName(name.to_owned()))?.to_string();
            host = HeaderValue::from_str(address.authority()).ok();
        }
        let client = |idle: Duration| {
            let mut builder = reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .user_agent(concat!("secrets-broker/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(deadlines.connect)
                .pool_idle_timeout(idle);
            if let Some(name) = server_name {
                builder = builder.dns_resolver(OneHost::behind(name, address.host())?);
            }
            builder.build().map_err(|error| VaultError::Stack(reason(error)))
        };
        let control = client(CONTROL_IDLE_MAX)?;
        let reads = client(SECRET_IDLE_MAX)?;
        Ok(Self { control, reads, address, base, host, deadlines })
    }

    /// The address as configured.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// What request URLs start with.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Sends one request and waits for its whole answer. Dropped, its outcome is unknown.
    pub(super) async fn exchange(
        &self,
        request: http::Request<Vec<u8>>,
        channel: Channel,
    ) -> Result<Answer, Failure> {
        let within = self.deadlines.request;
        tokio::time::timeout(within, self.follow(request, channel))
            .await
            .unwrap_or(Err(Failure::Deadline(within)))
    }

    async fn follow(
        &self,
        request: http::Request<Vec<u8>>,
        channel: Channel,
    ) -> Result<Answer, Failure> {
        let (mut parts, body) = request.into_parts();
        let body = Zeroizing::new(body);
        let mut url = Url::parse(&parts.uri.to_string())
            .map_err(|_| Failure::Unsent("the path does not fit into a URL".to_owned()))?;
        if let Some(host) = &self.host {
            parts.headers.insert(HOST, host.clone());
        }
        let first = self.send(channel, &parts, &body, url.clone()).await?;
        if first.status().as_u16() != TEMPORARY_REDIRECT {
            return whole(first, channel).await;
        }
        let location = header(first.headers(), LOCATION.as_str()).unwrap_or_default();
        let port = self.address.redirect_port(&url, &location).map_err(Failure::Redirect)?;
        url.set_port(Some(port)).map_err(|()| Failure::Redirect("without a port"))?;
        let second = self.send(channel, &parts, &body, url).await?;
        if second.status().as_u16() == TEMPORARY_REDIRECT {
            return Err(Failure::Redirect("after another redirect"));
        }
        whole(second, channel).await
    }

    async fn send(
        &self,
        channel: Channel,
        parts: &http::request::Parts,
        body: &[u8],
        url: Url,
    ) -> Result<reqwest::Response, Failure> {
        let client = match channel {
            Channel::Control => &self.control,
            Channel::SecretRead => &self.reads,
        };
        let mut request = reqwest::Request::new(Method::clone(&parts.method), url);
        *request.headers_mut() = parts.headers.clone();
        if !body.is_empty() {
            *request.body_mut() = Some(body.to_vec().into());
        }
        client.execute(request).await.map_err(|error| {
            let unsent = error.is_connect() || error.is_builder();
            if unsent { Failure::Unsent(reason(error)) } else { Failure::Lost(reason(error)) }
        })
    }
}

async fn whole(mut response: reqwest::Response, channel: Channel) -> Result<Answer, Failure> {
    let cap = match channel {
        Channel::Control => CONTROL_BYTES_MAX,
        Channel::SecretRead => SECRET_BYTES_MAX,
    };
    let announced = response.content_length().and_then(|bytes| usize::try_from(bytes).ok());
    if announced.is_some_and(|bytes| bytes > cap) {
        return Err(Failure::TooLarge(cap));
    }
    let mut body = Zeroizing::new(Vec::with_capacity(announced.unwrap_or(0)));
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::Lost(reason(error)))? {
        if body.len() + chunk.len() > cap {
            return Err(Failure::TooLarge(cap));
        }
        append_wiping(&mut body, &chunk);
    }
    Ok(Answer {
        status: response.status().as_u16(),
        retry_after: header(response.headers(), RETRY_AFTER.as_str()),
        body,
    })
}

/// Grows by moving into a larger buffer and wiping the old one; `Vec` would leave its bytes behind.
fn append_wiping(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    let needed = body.len() + chunk.len();
    if needed > body.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.max(2 * body.capacity())));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(chunk);
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// The innermost cause: reqwest's outer layers only repeat the URL.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    if text.contains("certificate") {
        text.push_str("; check ca_file, server_name and the certificate's dates");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_grows_without_losing_bytes() {
        let mut body = Zeroizing::new(Vec::new());
        for byte in 0..=255u8 {
            append_wiping(&mut body, &[byte; 3]);
        }
        assert_eq!(body.len(), 768);
        assert!(
            body.chunks(3).enumerate().all(|(i, part)| part.iter().all(|b| usize::from(*b) == i))
        );
    }
}
