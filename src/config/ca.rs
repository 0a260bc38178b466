//! Whether a CA bundle can verify anything now: PEM, real certificates, not all of them over.

use std::time::UNIX_EPOCH;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::field::Field;

/// What a bundle's certificates are good for at one time.
#[derive(Debug, PartialEq, Eq)]
enum Bundle {
    Usable,
    Empty,
    Malformed,
    SomeExpired(usize),
    AllExpired,
}

/// Notes a problem for a bundle that verifies nothing, a warning for one that is partly over.
pub(super) fn check(field: &Field, pem: &[u8]) {
    let now = field.document().host.now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let path = field.quoted();
    let remedy = "put the PEM certificate of the CA that signs Vault's certificate there";
    match judge(pem, i64::try_from(now.as_secs()).unwrap_or(i64::MAX)) {
        Bundle::Usable => {}
        Bundle::Empty => field.problem(format!("{path} holds no PEM certificate"), remedy),
        Bundle::Malformed => field.problem(format!("{path} holds a damaged certificate"), remedy),
        Bundle::AllExpired => {
            field.problem(format!("every certificate in {path} has expired"), remedy);
        }
        Bundle::SomeExpired(count) => {
            field.warning(format!("{count} certificates in {path} have expired"), "remove them");
        }
    }
}

fn judge(pem: &[u8], now: i64) -> Bundle {
    let (mut all, mut expired) = (0, 0);
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let Ok(certificate) = certificate else { return Bundle::Malformed };
        let Ok((_, parsed)) = X509Certificate::from_der(&certificate) else {
            return Bundle::Malformed;
        };
        all += 1;
        expired += usize::from(parsed.validity().not_after.timestamp() < now);
    }
    match (all, expired) {
        (0, _) => Bundle::Empty,
        (_, 0) => Bundle::Usable,
        (all, expired) if all == expired => Bundle::AllExpired,
        (_, expired) => Bundle::SomeExpired(expired),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(not_after_year: i32) -> String {
        let mut params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(not_after_year, 1, 1);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn a_bundle_needs_one_certificate_that_is_not_over() {
        let (old, new) = (certificate(2001), certificate(2090));
        let now = 1_800_000_000;
        assert_eq!(judge(new.as_bytes(), now), Bundle::Usable);
        assert_eq!(judge(old.as_bytes(), now), Bundle::AllExpired);
        assert_eq!(judge(format!("{old}{new}").as_bytes(), now), Bundle::SomeExpired(1));
        assert_eq!(judge(b"hello", now), Bundle::Empty);
        let damaged = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(judge(damaged, now), Bundle::Malformed);
    }
}
