//! Logging in: what is sent, what is read from the answer, which tokens are refused.

use std::time::Duration;

use secrets_broker::domain::LoginIdentity;
use secrets_broker::source::{ErrorClass, Source, TokenGrant, TokenKind};

use super::fake_vault::{Answer, FakeVault};
use super::{JWT, Op, TOKEN, assert_clean, config, connect, token};

fn auth(fields: serde_json::Value) -> Answer {
    let mut auth = serde_json::json!({ "client_token": TOKEN, "lease_duration": 90,
        "renewable": true, "token_type": "service", "num_uses": 0, "mfa_requirement": null });
    auth.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    Answer::envelope(serde_json::json!({ "auth": auth }))
}

#[tokio::test]
async fn a_login_sends_the_file_as_it_is_now_and_reads_the_token_kind() {
    let server = FakeVault::start();
    let dir = tempfile::tempdir().unwrap();
    let config = config(&server.url(), dir.path());
    let file = config.token_file.clone();
    let vault = connect(config);
    let path = Op::Login.wire().1;
    server.answer("POST", path, auth(serde_json::json!({}))).answer(
        "POST",
        path,
        auth(serde_json::json!({ "token_type": "batch", "renewable": false })),
    );

    let first = vault.login(&LoginIdentity::Agent, None).await.unwrap();
    assert_eq!(first.token.expose(), TOKEN);
    assert_eq!(first.terms, TokenGrant { ttl: Duration::from_secs(90), renewable: true });
    assert_eq!(first.kind, TokenKind::Service);

    std::fs::write(&file, "rotated.token").unwrap();
    let second = vault.login(&LoginIdentity::Agent, None).await.unwrap();
    assert_eq!((second.kind, second.terms.renewable), (TokenKind::Batch, false));

    let sent: Vec<serde_json::Value> = server
        .requests()
        .iter()
        .map(|request| serde_json::from_slice(&request.body).unwrap())
        .collect();
    assert_eq!(sent[0], serde_json::json!({ "role": "shop", "jwt": JWT }));
    assert_eq!(sent[1], serde_json::json!({ "role": "shop", "jwt": "rotated.token" }));
    assert!(server.requests().iter().all(|request| request.header("x-vault-token").is_empty()));
}

#[tokio::test]
async fn a_role_whose_tokens_have_limited_uses_is_refused_and_the_token_is_ended() {
    let server = FakeVault::start();
    let dir = tempfile::tempdir().unwrap();
    let vault = connect(config(&server.url(), dir.path()));
    let (method, path) = Op::EndSession.wire();
    server.answer("POST", Op::Login.wire().1, auth(serde_json::json!({ "num_uses": 5 }))).answer(
        method,
        path,
        Answer::new(204, ""),
    );
    let error = Op::Login.run(&vault).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::InvalidRequest);
    assert!(error.message.contains("after 5 uses") && error.message.contains("token_num_uses=0"));
    assert_clean("num_uses", &error);
    let last = server.requests().pop().unwrap();
    assert_eq!((last.target.as_str(), last.header("x-vault-token")), (path, TOKEN));
}

#[tokio::test]
async fn a_login_that_wants_a_second_factor_is_refused() {
    let server = FakeVault::start();
    let dir = tempfile::tempdir().unwrap();
    let vault = connect(config(&server.url(), dir.path()));
    let mfa =
        serde_json::json!({ "client_token": "", "mfa_requirement": { "mfa_request_id": "x" } });
    server.answer("POST", Op::Login.wire().1, auth(mfa));
    let error = Op::Login.run(&vault).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::InvalidRequest);
    assert!(error.message.contains("second factor"), "{error}");
}

#[tokio::test]
async fn a_bad_token_file_is_named_and_nothing_is_sent() {
    let server = FakeVault::start();
    let dir = tempfile::tempdir().unwrap();
    let config = config(&server.url(), dir.path());
    let file = config.token_file.clone();
    let vault = connect(config);
    for (content, says) in [
        (Some(format!("{JWT}\n")), "line end"),
        (Some(format!("{JWT}\r\n")), "line end"),
        (Some(format!("{JWT} {JWT}")), "white space"),
        (Some(String::new()), "empty"),
        (None, "No such file"),
    ] {
        match content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let error = Op::Login.run(&vault).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Unreachable, "{error}");
        for part in [says, "token_file", file.to_str().unwrap(), "auth/kubernetes"] {
            assert!(error.message.contains(part), "{part}: {error}");
        }
        assert_clean(says, &error);
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_session_is_renewed_for_the_asked_time_and_ended() {
    let server = FakeVault::start();
    let dir = tempfile::tempdir().unwrap();
    let vault = connect(config(&server.url(), dir.path()));
    server.answer("POST", Op::RenewToken.wire().1, Answer::auth(TOKEN, 1_800)).answer(
        "POST",
        Op::EndSession.wire().1,
        Answer::new(204, ""),
    );
    let hour = Duration::from_secs(3_600);
    let grant = vault.renew_token(&token(), hour).await.unwrap();
    assert_eq!(grant, TokenGrant { ttl: Duration::from_secs(1_800), renewable: true });
    vault.end_session(&token()).await.unwrap();
    let requests = server.requests();
    let increment: serde_json::Value = serde_json::from_slice(&requests[0].body).unwrap();
    assert_eq!(increment, serde_json::json!({ "increment": "3600s" }));
    assert!(requests.iter().all(|request| request.header("x-vault-token") == TOKEN));
}
