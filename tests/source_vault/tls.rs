//! Certificates: only the configured CA and name are accepted, and nothing is sent before that.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::PrivatePkcs8KeyDer;
use secrets_broker::source::ErrorClass;
use secrets_broker::source::vault::{Vault, VaultConfig, VaultError};

use super::{Op, config, connect};

const BODY: &str = r#"{"request_id":"id","data":{"data":{},"metadata":{"version":1}}}"#;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca(year_until: i32) -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(year_until, 1, 1);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A TLS server on loopback that keeps the request bytes it gets and answers every request.
struct TlsServer {
    address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
    handshakes: mpsc::Receiver<bool>,
}

impl TlsServer {
    fn start(ca: &Ca, name: &str, year_until: i32) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year_until, 1, 1);
        let certificate = params.signed_by(&key, ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let kept = received.clone();
        let (report, handshakes) = mpsc::sync_channel(16);
        std::thread::spawn(move || {
            let tls = Arc::new(tls);
            while let Ok((stream, _)) = listener.accept() {
                let served = serve(stream, tls.clone(), &kept);
                if report.send(served.is_ok()).is_err() {
                    return;
                }
            }
        });
        Self { address, received, handshakes }
    }

    /// What became of the connection: whether a request was answered, and all it received.
    fn outcome(&self) -> (bool, String) {
        let served = self.handshakes.recv_timeout(Duration::from_secs(5)).unwrap();
        (served, String::from_utf8(self.received.lock().unwrap().clone()).unwrap())
    }
}

fn serve(
    mut stream: TcpStream,
    tls: Arc<rustls::ServerConfig>,
    received: &Mutex<Vec<u8>>,
) -> std::io::Result<()> {
    let mut session = rustls::ServerConnection::new(tls).map_err(std::io::Error::other)?;
    let mut tls = rustls::Stream::new(&mut session, &mut stream);
    while !received.lock().unwrap().ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte)?;
        received.lock().unwrap().push(byte[0]);
    }
    let head =
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", BODY.len());
    tls.write_all(head.as_bytes())?;
    tls.write_all(BODY.as_bytes())?;
    tls.flush()
}

fn trusting(server: &TlsServer, pem: &str, dir: &Path) -> VaultConfig {
    let ca_file = dir.join("ca.pem");
    std::fs::write(&ca_file, pem).unwrap();
    let mut config = config(&format!("https://{}", server.address), dir);
    config.ca_file = Some(ca_file);
    config
}

#[tokio::test]
async fn a_certificate_of_the_configured_ca_for_the_address_is_accepted() {
    let ca = ca(2100);
    let server = TlsServer::start(&ca, "127.0.0.1", 2100);
    let dir = tempfile::tempdir().unwrap();
    let vault = connect(trusting(&server, &ca.pem(), dir.path()));
    Op::Kv.run(&vault).await.unwrap();
    assert!(server.outcome().0);
}

#[tokio::test]
async fn a_wrong_ca_name_or_date_is_refused_before_a_byte_is_sent() {
    let (ca, other) = (ca(2100), ca(2100));
    for (case, server, pem) in [
        ("wrong CA", TlsServer::start(&ca, "127.0.0.1", 2100), other.pem()),
        ("wrong name", TlsServer::start(&ca, "vault.internal", 2100), ca.pem()),
        ("expired", TlsServer::start(&ca, "127.0.0.1", 2021), ca.pem()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let vault = connect(trusting(&server, &pem, dir.path()));
        let error = Op::Mint.run(&vault).await.unwrap_err();
        assert_eq!((error.class, error.ambiguous), (ErrorClass::Unreachable, false), "{case}");
        for part in ["certificate", "ca_file", "server_name"] {
            assert!(error.message.contains(part), "{case}: {error}");
        }
        assert_eq!(server.outcome(), (false, String::new()), "{case}");
    }
}

#[tokio::test]
async fn server_name_is_verified_in_place_of_the_address() {
    let ca = ca(2100);
    for (name, accepted) in [("vault.internal", true), ("other.internal", false)] {
        let server = TlsServer::start(&ca, "vault.internal", 2100);
        let dir = tempfile::tempdir().unwrap();
        let mut config = trusting(&server, &ca.pem(), dir.path());
        config.server_name = Some(name.to_owned());
        let vault = connect(config);
        assert_eq!(Op::Kv.run(&vault).await.is_ok(), accepted, "{name}");
        let (served, request) = server.outcome();
        assert_eq!((served, !request.is_empty()), (accepted, accepted), "{name}");
        if accepted {
            // As Go's client does: the name is for TLS, the request is addressed as configured.
            let host = format!("host: {}\r\n", server.address);
            assert!(request.to_lowercase().contains(&host), "{request}");
        }
    }
    // The address alone is not enough when another name is asked for.
    let server = TlsServer::start(&ca, "127.0.0.1", 2100);
    let dir = tempfile::tempdir().unwrap();
    let mut config = trusting(&server, &ca.pem(), dir.path());
    config.server_name = Some("vault.internal".to_owned());
    assert!(Op::Kv.run(&connect(config)).await.is_err());
    assert_eq!(server.outcome(), (false, String::new()));
}

#[test]
fn a_bundle_that_cannot_be_trusted_is_named() {
    let (good, expired) = (ca(2100).pem(), ca(2021).pem());
    let broken = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let dir = tempfile::tempdir().unwrap();
    let mut config = config("https://127.0.0.1:8200", dir.path());
    let file = dir.path().join("bundle.pem");
    config.ca_file = Some(file.clone());
    for (content, says) in [
        (None, "No such file"),
        (Some(String::new()), "holds no certificate"),
        (Some("not PEM at all".to_owned()), "holds no certificate"),
        (Some(broken.to_owned()), "certificate 1 is not PEM"),
        (Some(format!("{good}{no_certificate}")), "certificate 2 is not an X.509"),
        (Some(expired.clone()), "expired at 2021-01-01"),
    ] {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let error = Vault::connect(config.clone()).err().expect(says);
        let text = error.to_string();
        assert!(text.contains(says) && text.contains("ca_file"), "{says}: {text}");
        assert!(text.contains(file.to_str().unwrap()) && text.contains("; "), "{text}");
    }
    std::fs::write(&file, format!("{expired}{good}")).unwrap();
    assert!(Vault::connect(config.clone()).is_ok(), "a rotated bundle keeps its old CA");
    config.ca_file = None;
    assert!(matches!(Vault::connect(config), Err(VaultError::CaMissing)));
}

/// Runs the tests above, and one over plain HTTP, in a process whose environment would divert
/// other clients.
#[test]
fn proxies_and_vault_variables_in_the_environment_change_nothing() {
    let tests = [
        "tls::a_certificate_of_the_configured_ca_for_the_address_is_accepted",
        "tls::a_wrong_ca_name_or_date_is_refused_before_a_byte_is_sent",
        "requests::every_request_carries_token_namespace_and_the_vault_header",
    ];
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.arg("--exact").args(tests);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
    {
        command.env(name, "http://127.0.0.1:1");
    }
    for (name, value) in [
        ("VAULT_SKIP_VERIFY", "1"),
        ("VAULT_ADDR", "http://127.0.0.1:1"),
        ("VAULT_TOKEN", "other"),
        ("VAULT_NAMESPACE", "other"),
        ("VAULT_CACERT", "/nonexistent"),
        ("SSL_CERT_FILE", "/nonexistent"),
    ] {
        command.env(name, value);
    }
    let output = command.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("3 passed"), "{text}");
}
