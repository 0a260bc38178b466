//! Redirects: one 307 of Vault's own is followed, everything else is not.

use secrets_broker::source::ErrorClass;

use super::fake_vault::{Answer, FakeVault};
use super::{Op, TOKEN, assert_clean, config, connect};

fn redirect(location: &str) -> Answer {
    Answer::new(307, "").header("Location", location)
}

fn kv() -> Answer {
    Answer::envelope(serde_json::json!({ "data": { "data": {}, "metadata": { "version": 1 } } }))
}

#[tokio::test]
async fn one_307_to_the_same_host_is_followed_with_token_and_body() {
    let (standby, active) = (FakeVault::start(), FakeVault::start());
    let dir = tempfile::tempdir().unwrap();
    let vault = connect(config(&standby.url(), dir.path()));
    for (op, answer) in [
        (Op::Kv, kv()),
        (Op::RenewLease, Answer::envelope(serde_json::json!({ "lease_duration": 60 }))),
    ] {
        let (method, path) = op.wire();
        standby.answer(method, path, redirect(&format!("{}{path}", active.url())));
        active.answer(method, path, answer);
        op.run(&vault).await.unwrap();
    }
    let (asked, carried_out) = (standby.requests(), active.requests());
    assert_eq!((asked.len(), carried_out.len()), (2, 2));
    for (first, second) in asked.iter().zip(&carried_out) {
        assert_eq!((&first.method, &first.target), (&second.method, &second.target));
        assert_eq!(first.body, second.body);
        assert_eq!(second.header("x-vault-token"), TOKEN);
    }
    assert!(!carried_out[1].body.is_empty());
}

#[tokio::test]
async fn a_second_307_is_not_followed() {
    let (one, two, three) = (FakeVault::start(), FakeVault::start(), FakeVault::start());
    let dir = tempfile::tempdir().unwrap();
    let vault = connect(config(&one.url(), dir.path()));
    let path = Op::Mint.wire().1;
    one.answer("GET", path, redirect(&format!("{}{path}", two.url())));
    two.answer("GET", path, redirect(&format!("{}{path}", three.url())));
    three.answer("GET", path, kv());
    let error = Op::Mint.run(&vault).await.unwrap_err();
    assert_eq!((error.class, error.ambiguous), (ErrorClass::Unreachable, false), "{error}");
    assert!(error.message.contains("redirect after another redirect"), "{error}");
    assert!(three.requests().is_empty());
}

#[tokio::test]
async fn a_foreign_307_is_not_followed_and_nothing_reaches_it() {
    let foreign = FakeVault::start();
    let dir = tempfile::tempdir().unwrap();
    let path = Op::Mint.wire().1;
    let port = foreign.url().rsplit(':').next().unwrap().to_owned();
    for (location, says) in [
        (format!("http://localhost:{port}{path}"), "another host"),
        (format!("http://127.0.0.2:{port}{path}"), "another host"),
        (format!("https://127.0.0.1:{port}{path}"), "another scheme"),
        (format!("http://127.0.0.1:{port}/v1/other"), "another path"),
        (format!("http://127.0.0.1:{port}{path}?version=1"), "another path"),
        (String::new(), "another path"),
    ] {
        let server = FakeVault::start();
        server.answer("GET", path, redirect(&location));
        let vault = connect(config(&server.url(), dir.path()));
        let error = Op::Mint.run(&vault).await.unwrap_err();
        assert_eq!((error.class, error.ambiguous), (ErrorClass::Unreachable, false), "{error}");
        assert!(error.message.contains(says), "{location}: {error}");
        assert_clean(&location, &error);
        assert_eq!(server.requests().len(), 1);
    }
    assert!(foreign.requests().is_empty());
}
