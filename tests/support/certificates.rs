//! A certificate authority for one test.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Files of a server certificate and of the authority that signed it.
pub struct TlsFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A new authority and one certificate for `names` (DNS names or IP addresses), written to `dir`.
pub fn issue(dir: &Path, names: &[&str]) -> TlsFiles {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, key_pair()).expect("sign the CA");
    let key = key_pair();
    let certificate = CertificateParams::new(names)
        .and_then(|params| params.signed_by(&key, &authority))
        .expect("sign the server certificate");
    TlsFiles {
        ca: write(dir, "ca.crt", &authority.pem()),
        certificate: write(dir, "server.crt", &certificate.pem()),
        key: write(dir, "server.key", &key.serialize_pem()),
    }
}

/// A key pair for signing tokens: (public, private).
pub fn key_files(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    let key = key_pair();
    (
        write(dir, &format!("{name}.pub"), &key.public_key_pem()),
        write(dir, &format!("{name}.key"), &key.serialize_pem()),
    )
}

fn key_pair() -> KeyPair {
    KeyPair::generate().expect("generate a key")
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).expect("write a PEM file");
    path
}
