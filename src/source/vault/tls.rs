//! Trust in Vault's certificate: one exclusive CA bundle and full verification, without a switch.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, RootCertStore};

use super::VaultError;

/// TLS settings that trust the bundle in `ca_file` alone.
///
/// Certificates outside their validity are left out; a bundle of only such ones is an error.
pub(super) fn trusting(ca_file: &Path) -> Result<ClientConfig, VaultError> {
    let file = || ca_file.to_path_buf();
    let pem = std::fs::read(ca_file)
        .map_err(|source| VaultError::CaUnreadable { file: file(), source })?;
    let now = UnixTime::now();
    let mut roots = RootCertStore::empty();
    let mut left_out = None;
    for (index, certificate) in CertificateDer::pem_slice_iter(&pem).enumerate() {
        let invalid = |problem| VaultError::CaInvalid { file: file(), number: index + 1, problem };
        let certificate = match certificate {
            Ok(certificate) => certificate,
            Err(PemError::NoItemsFound) => break,
            Err(_) => return Err(invalid("is not PEM")),
        };
        if let Some(problem) = outside_validity(&certificate, now) {
            left_out = Some(problem);
            continue;
        }
        roots.add(certificate).map_err(|_| invalid("is not an X.509 certificate"))?;
    }
    match left_out {
        _ if !roots.is_empty() => config(roots),
        Some(problem) => Err(VaultError::CaNotValid { file: file(), problem }),
        None => Err(VaultError::CaEmpty(file())),
    }
}

/// TLS settings under which no certificate is ever accepted, for addresses without TLS.
pub(super) fn trusting_nobody() -> Result<ClientConfig, VaultError> {
    config(RootCertStore::empty())
}

/// The provider is named here, so no process-wide default has to be installed first.
fn config(roots: RootCertStore) -> Result<ClientConfig, VaultError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| VaultError::Stack(error.to_string()))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    // Only HTTP/1.1 is spoken; saying so keeps a proxy in front of Vault from choosing HTTP/2.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// webpki does not look at the validity of trust anchors, but it does so first for a leaf: the
/// certificate is verified as one, and every other complaint is expected and ignored.
fn outside_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Option<String> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let nobody = RootCertStore::empty();
    let verdict = verify_server_cert_signed_by_trust_anchor(&parsed, &nobody, &[], now, algorithms);
    match verdict {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after,
            ..
        })) => Some(format!("the CA certificate expired at {}", date(not_after))),
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            not_before,
            ..
        })) => Some(format!("the CA certificate is not valid before {}", date(not_before))),
        _ => None,
    }
}

fn date(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| "an unknown time".to_owned(), |time| time.to_string())
}

/// Leads every name to one host, so that connecting to `server_name` reaches the address.
///
/// The URL then carries `server_name`: SNI and verification use it with no verifier of our own.
pub(super) struct OneHost(String);

impl OneHost {
    /// Checks that `server_name` is a DNS name: an IP address would be connected to, not resolved.
    pub(super) fn behind(server_name: &str, host: &str) -> Result<Self, VaultError> {
        let is_dns = matches!(ServerName::try_from(server_name), Ok(ServerName::DnsName(_)));
        if !is_dns || server_name.parse::<IpAddr>().is_ok() {
            return Err(VaultError::ServerName(server_name.to_owned()));
        }
        Ok(Self(host.to_owned()))
    }
}

impl Resolve for OneHost {
    fn resolve(&self, _: Name) -> Resolving {
        let host = self.0.clone();
        Box::pin(async move {
            let addresses: Vec<_> = tokio::net::lookup_host((host, 0)).await?.collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
