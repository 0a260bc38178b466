//! What goes over the wire: paths, versions, headers, lease bodies; and settings that are refused.

use std::io::{Read, Write};
use std::num::NonZeroU64;
use std::time::Duration;

use secrets_broker::domain::{EngineKind, LeaseId, Mount, PathKind, SecretRef};
use secrets_broker::source::vault::{Vault, VaultConfig};
use secrets_broker::source::{LeaseTerms, Source};

use super::fake_vault::{Answer, FakeVault};
use super::{LEASE, Op, TOKEN, VALUE, config, connect, secret, token};

#[tokio::test]
async fn reads_ask_for_exactly_the_authorised_path_and_keep_the_bytes_of_data() {
    let server = FakeVault::start();
    let dir = tempfile::tempdir().unwrap();
    let vault = connect(config(&server.url(), dir.path()));
    let data = format!(r#"{{"data":{{ "p" : "{VALUE}" }},"metadata":{{"version":4}}}}"#);
    let body = format!(r#"{{"request_id":"id","lease_id":"","lease_duration":0,"data":{data}}}"#);
    server.answer("GET", "/v1/secret/data/k%C3%A4%20se;a=b+c", Answer::new(200, body.clone()));
    server.answer("GET", "/v1/database/creds/shop", Answer::new(200, body));
    let odd = secret("secret/data/kä se;a=b+c");

    let fetched = vault.fetch(&token(), &odd, PathKind::Kv).await.unwrap();
    assert_eq!(fetched.data.expose(), data.as_bytes());
    assert_eq!((fetched.version, fetched.request_id.as_str()), (Some(4), "id"));

    let version = NonZeroU64::new(2);
    let pinned = SecretRef { version, ..odd };
    vault.fetch(&token(), &pinned, PathKind::Kv).await.unwrap();
    let minted = SecretRef { version, ..secret("database/creds/shop") };
    vault.fetch(&token(), &minted, PathKind::Minting).await.unwrap();
    assert_eq!(
        server.seen(),
        [
            "GET /v1/secret/data/k%C3%A4%20se;a=b+c",
            "GET /v1/secret/data/k%C3%A4%20se;a=b+c?version=2",
            "GET /v1/database/creds/shop",
        ]
    );
}

#[tokio::test]
async fn every_request_carries_token_namespace_and_the_vault_header() {
    let server = FakeVault::start();
    let dir = tempfile::tempdir().unwrap();
    let mut with_namespace = config(&server.url(), dir.path());
    with_namespace.namespace = Some("team-a/shop".to_owned());
    let vault = connect(with_namespace);
    let all = [Op::RenewToken, Op::EndSession, Op::Probe, Op::Kv, Op::RenewLease, Op::RevokeLease];
    for op in all {
        let _ = op.run(&vault).await;
    }
    let _ = Op::Login.run(&vault).await;
    let requests = server.requests();
    assert_eq!(requests.len(), all.len() + 1);
    for (index, request) in requests.iter().enumerate() {
        assert_eq!(request.header("x-vault-request"), "true");
        assert_eq!(request.header("x-vault-namespace"), "team-a/shop");
        let expected = if index < all.len() { TOKEN } else { "" };
        assert_eq!(request.header("x-vault-token"), expected, "{}", request.target);
    }
    assert_eq!(vault.description().namespace.as_deref(), Some("team-a/shop"));
    assert_eq!(vault.description().address, server.url());
}

#[tokio::test]
async fn leases_are_read_renewed_and_revoked() {
    let server = FakeVault::start();
    let dir = tempfile::tempdir().unwrap();
    let vault = connect(config(&server.url(), dir.path()));
    let lease = serde_json::json!({ "lease_id": LEASE, "lease_duration": 20, "renewable": true,
        "data": { "username": "u", "password": VALUE } });
    server
        .answer("GET", Op::Mint.wire().1, Answer::envelope(lease))
        .answer(
            "POST",
            Op::RenewLease.wire().1,
            Answer::envelope(
                serde_json::json!({ "lease_id": LEASE, "lease_duration": 12, "renewable": true }),
            ),
        )
        .answer("POST", Op::RevokeLease.wire().1, Answer::new(202, ""));

    let secret = secret("database/creds/shop");
    let fetched = vault.fetch(&token(), &secret, PathKind::Minting).await.unwrap();
    let (id, terms) = fetched.lease.unwrap();
    assert_eq!(terms, LeaseTerms { duration: Duration::from_secs(20), renewable: true });
    let renewed = vault.renew_lease(&token(), &id, Duration::from_secs(20)).await.unwrap();
    assert_eq!(renewed, LeaseTerms { duration: Duration::from_secs(12), renewable: true });
    vault.revoke_lease(&token(), &LeaseId::new(LEASE.to_owned())).await.unwrap();

    let sent = |index: usize| -> serde_json::Value {
        serde_json::from_slice(&server.requests()[index].body).unwrap()
    };
    assert_eq!(sent(1), serde_json::json!({ "lease_id": LEASE, "increment": 20 }));
    assert_eq!(sent(2), serde_json::json!({ "lease_id": LEASE }));
}

#[tokio::test]
async fn mounts_come_from_the_configuration_and_their_kind_from_a_probe() {
    let server = FakeVault::start();
    let dir = tempfile::tempdir().unwrap();
    let vault = connect(config(&server.url(), dir.path()));
    let path = "secret/data/shop".parse().unwrap();
    let configured = vault.mount_of(&path).unwrap();
    assert_eq!((configured.path.as_str(), configured.kind), ("secret", Some(EngineKind::Kv2)));
    assert!(vault.mount_of(&"sys/health".parse().unwrap()).is_none());
    server.answer(
        "GET",
        Op::Probe.wire().1,
        Answer::envelope(serde_json::json!({ "data": {
            "accessor": "kv_1", "path": "secret/", "type": "kv", "options": { "version": "2" },
        }})),
    );
    let mount = vault.probe_mount(&token(), &path).await.unwrap();
    assert_eq!(mount, Mount { path: "secret".parse().unwrap(), kind: EngineKind::Kv2 });
}

#[test]
fn settings_that_cannot_be_used_safely_are_refused_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let good = config("http://127.0.0.1:8200", dir.path());
    type Change<'a> = &'a dyn Fn(&mut VaultConfig);
    let cases: [(&str, Change); 10] = [
        ("address", &|c| c.address = "https://127.0.0.1:8200/vault".into()),
        ("address", &|c| c.address = "http://10.0.0.1:8200".into()),
        ("ca_file", &|c| c.address = "https://127.0.0.1:8200".into()),
        ("namespace", &|c| c.namespace = Some("a\nb".into())),
        ("namespace", &|c| c.namespace = Some("/".into())),
        ("auth_mount", &|c| c.auth_mount = "kubernetes/".into()),
        ("auth_mount", &|c| c.auth_mount = "../sys".into()),
        ("role", &|c| c.role = " ".into()),
        ("server_name", &|c| c.server_name = Some("10.0.0.1".into())),
        ("server_name", &|c| c.server_name = Some("a b/c".into())),
    ];
    for (field, change) in cases {
        let mut bad = good.clone();
        change(&mut bad);
        let error = Vault::connect(bad).err().expect(field).to_string();
        assert!(error.starts_with(field) && error.contains("; "), "{field}: {error}");
    }
    assert!(Vault::connect(good).is_ok());
}

#[tokio::test]
async fn a_connection_that_carried_a_secret_is_soon_closed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (report, closed) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let read = stream.read(&mut [0; 4096]).unwrap();
        let body = r#"{"request_id":"id","data":{}}"#;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        // The end of the stream, or a time-out if the connection is kept.
        let end = stream.read(&mut [0; 1]);
        let _ = report.send((read, end));
    });
    let dir = tempfile::tempdir().unwrap();
    let vault = connect(config(&format!("http://{address}"), dir.path()));
    Op::Kv.run(&vault).await.unwrap();
    let (read, end) = closed.await.unwrap();
    assert!(read > 0);
    assert_eq!(end.unwrap(), 0);
}
