//! A certificate authority for one test.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};

/// Files of a certificate and of the authority that signed it.
pub struct TlsFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A new authority and one certificate for `names` (DNS names or IP addresses), written to `dir`.
pub fn issue(dir: &Path, names: &[&str]) -> TlsFiles {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    sign(dir, ["ca", "server"], &CertificateParams::new(names).expect("names"))
}

/// A new authority, `<name>-ca.crt`, and a client's certificate `<name>` that names this user and
/// group of Kubernetes'.
pub fn issue_client(dir: &Path, name: &str, user: &str, group: &str) -> TlsFiles {
    let mut client = CertificateParams::default();
    client.distinguished_name.push(DnType::CommonName, user);
    client.distinguished_name.push(DnType::OrganizationName, group);
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    sign(dir, [&format!("{name}-ca"), name], &client)
}

fn sign(dir: &Path, [ca, name]: [&str; 2], params: &CertificateParams) -> TlsFiles {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, key_pair()).expect("sign the CA");
    let key = key_pair();
    let certificate = params.signed_by(&key, &authority).expect("sign the certificate");
    TlsFiles {
        ca: write(dir, &format!("{ca}.crt"), &authority.pem()),
        certificate: write(dir, &format!("{name}.crt"), &certificate.pem()),
        key: write(dir, &format!("{name}.key"), &key.serialize_pem()),
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
