//! One row for each answer of Vault, or of something that is not Vault, and the class it becomes.

use std::time::Duration;

use secrets_broker::source::ErrorClass::{
    self, Denied, InvalidRequest, LeaseEnded, NotFound, TokenEnded, Unreachable,
};
use secrets_broker::source::vault::Deadlines;
use secrets_broker::source::vault::Vault;

use super::fake_vault::{Answer, FakeVault};
use super::{JWT, LEASE, TOKEN, VALUE};
use super::{Op, assert_clean, config, connect};

const LOOKUP: &str = "/v1/auth/token/lookup-self";

struct Row {
    name: &'static str,
    op: Op,
    answer: Answer,
    lookup: Option<Answer>,
    class: ErrorClass,
    ambiguous: bool,
    retry_after: Option<u64>,
    says: &'static str,
}

fn row(name: &'static str, op: Op, answer: Answer, class: ErrorClass, says: &'static str) -> Row {
    Row { name, op, answer, lookup: None, class, ambiguous: false, retry_after: None, says }
}

impl Row {
    fn lookup(self, answer: Answer) -> Self {
        Self { lookup: Some(answer), ..self }
    }

    fn ambiguous(self) -> Self {
        Self { ambiguous: true, ..self }
    }

    fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }
}

/// Vault's error body; every secret that could be echoed is in it.
fn errors(status: u16, text: &str) -> Answer {
    Answer::errors(
        status,
        &[text, &format!("echo {TOKEN} jwt={JWT}, \"{LEASE}\" {}", &LEASE[20..])],
    )
}

fn alive() -> Answer {
    Answer::envelope(serde_json::json!({ "data": { "id": TOKEN, "ttl": 60 } }))
}

fn html(status: u16) -> Answer {
    let page = format!("<html><body>{status} {VALUE}</body></html>");
    Answer::new(status, page).header("content-type", "text/html")
}

fn secret_body() -> Answer {
    Answer::envelope(serde_json::json!({
        "lease_id": LEASE, "lease_duration": 60, "renewable": true,
        "data": { "username": VALUE, "password": VALUE },
    }))
}

fn deleted(destroyed: bool) -> Answer {
    let metadata = serde_json::json!({ "version": 3, "deletion_time": "2026-01-01T00:00:00Z",
        "created_time": "2025-01-01T00:00:00Z", "destroyed": destroyed, "custom_metadata": null });
    Answer::envelope(serde_json::json!({ "data": { "data": null, "metadata": metadata } }))
        .status(404)
}

fn unreachable_rows() -> Vec<Row> {
    let standby = "local node not active but active cluster node not found";
    vec![
        row("no active node", Op::Kv, errors(503, standby), Unreachable, "503"),
        row("no active node, mint", Op::Mint, errors(503, standby), Unreachable, "503"),
        row("sealed", Op::Kv, errors(503, "Vault is sealed"), Unreachable, "unseal"),
        row("sealed, mint", Op::Mint, errors(503, "Vault is sealed"), Unreachable, "unseal"),
        row("sealed, login", Op::Login, errors(503, "Vault is sealed"), Unreachable, "unseal"),
        row("uninitialised, mint", Op::Mint, errors(501, "not initialized"), Unreachable, "501"),
        row("index not yet there", Op::Kv, errors(412, "required index state"), Unreachable, "412"),
        row("quota", Op::Kv, errors(429, "rate limit quota exceeded"), Unreachable, "quota"),
        row(
            "quota with a time",
            Op::Mint,
            errors(429, "lease count quota exceeded").header("Retry-After", "7"),
            Unreachable,
            "quota",
        )
        .retry_after(7),
        row("a proxy's limit", Op::Mint, html(429).header("Retry-After", "3"), Unreachable, "429")
            .retry_after(3),
        row("DR secondary", Op::Kv, errors(472, ""), Unreachable, "472"),
        row("performance standby", Op::Kv, errors(473, ""), Unreachable, "473"),
        row("internal error", Op::Kv, errors(500, "internal error"), Unreachable, "500"),
        row("internal error, mint", Op::Mint, errors(500, "internal"), Unreachable, "500")
            .ambiguous(),
        row("upstream of Vault, mint", Op::Mint, errors(502, "bad gateway"), Unreachable, "502")
            .ambiguous(),
        row("a proxy's 502", Op::Kv, html(502), Unreachable, "proxy"),
        row("a proxy's 503, mint", Op::Mint, html(503), Unreachable, "proxy").ambiguous(),
        row("a proxy's 403", Op::Kv, html(403), Unreachable, "proxy"),
        row("a proxy's 404", Op::Kv, html(404), Unreachable, "proxy"),
        row("a proxy's 200", Op::Kv, html(200), Unreachable, "not Vault's"),
        row("a proxy's 200, mint", Op::Mint, html(200), Unreachable, "not Vault's").ambiguous(),
        row("a proxy's 200, revoke", Op::EndSession, html(200), Unreachable, "not Vault's"),
        row("half a body", Op::Kv, secret_body().close_after(150), Unreachable, "no whole answer"),
        row("half a body, mint", Op::Mint, secret_body().close_after(150), Unreachable, "whole")
            .ambiguous(),
        row(
            "cut JSON",
            Op::Kv,
            Answer::new(200, &b"{\"request_id\":\"a\",\"da"[..]),
            Unreachable,
            "cut",
        ),
        row(
            "wrong JSON",
            Op::Kv,
            Answer::new(200, format!("{{\"v\":\"{VALUE}\"}}")),
            Unreachable,
            "not",
        ),
        row("JSON of another type", Op::Mint, Answer::new(200, "[1]"), Unreachable, "not")
            .ambiguous(),
        row("wrong login", Op::Login, secret_body(), Unreachable, "not Vault's"),
        row("wrong renewal", Op::RenewToken, secret_body(), Unreachable, "not Vault's"),
        row("moved for good", Op::Kv, Answer::new(301, ""), Unreachable, "301"),
    ]
}

fn refused_rows() -> Vec<Row> {
    let denied = "permission denied";
    let trouble = "failed to renew entry: dial tcp 10.0.0.1:5432: connection refused";
    vec![
        row("deleted", Op::Kv, deleted(false), NotFound, "version 3 was deleted"),
        row("destroyed", Op::Kv, deleted(true), NotFound, "version 3 was destroyed"),
        row("nothing there", Op::Kv, Answer::errors(404, &[]), NotFound, "secret/data/shop"),
        row("unknown role", Op::Mint, errors(404, "unknown role"), NotFound, "unknown role"),
        row("lease gone", Op::RenewLease, errors(400, "lease not found"), LeaseEnded, "not found"),
        row("lease expired", Op::RenewLease, errors(400, "lease expired"), LeaseEnded, "expired"),
        row("invalid lease", Op::RevokeLease, errors(400, "invalid lease"), LeaseEnded, "invalid"),
        row(
            "lease at its end",
            Op::RenewLease,
            errors(400, "lease is not renewable"),
            LeaseEnded,
            "renewable",
        ),
        row("back end", Op::RenewLease, errors(400, trouble), InvalidRequest, "failed to renew"),
        row(
            "back end that speaks of leases",
            Op::RenewLease,
            errors(400, "failed to renew entry: plugin: lease not found"),
            InvalidRequest,
            "failed to renew",
        ),
        row("renewal of nothing", Op::RenewLease, errors(404, ""), InvalidRequest, "404"),
        row("bad read", Op::Kv, errors(400, "lease not found"), InvalidRequest, "400"),
        row("wrong method", Op::Kv, errors(405, "unsupported operation"), InvalidRequest, "405"),
        row("no data", Op::Kv, Answer::envelope(serde_json::json!({})), InvalidRequest, "without"),
        row("no such role", Op::Login, errors(400, "invalid role name"), InvalidRequest, "role"),
        row("no auth mount", Op::Login, errors(404, "no handler"), InvalidRequest, "auth_mount"),
        row("not bound", Op::Login, errors(403, "namespace not authorized"), Denied, "bind the"),
        row("auth method absent", Op::Login, errors(403, denied), Denied, "auth_mount"),
        row(
            "audience",
            Op::Login,
            errors(403, "invalid audience (aud) claim"),
            Denied,
            "audience of the projected token",
        ),
        row("old JWT", Op::Login, errors(403, "token is expired"), Denied, "token_file"),
        row("read, live token", Op::Kv, errors(403, denied), Denied, "allow `read`")
            .lookup(alive()),
        row("mint, live token", Op::Mint, errors(403, denied), Denied, "`read`").lookup(alive()),
        row("renew, live token", Op::RenewLease, errors(403, denied), Denied, "sys/leases/renew")
            .lookup(alive()),
        row("revoke, live token", Op::RevokeLease, errors(403, denied), Denied, "revoke")
            .lookup(alive()),
        row("probe, live token", Op::Probe, errors(403, denied), Denied, "`mounts`")
            .lookup(alive()),
        row("renew-self, live token", Op::RenewToken, errors(403, denied), Denied, "renew-self")
            .lookup(alive()),
        row("read, dead token", Op::Kv, errors(403, denied), TokenEnded, "token has ended")
            .lookup(errors(403, denied)),
        row("renew, dead token", Op::RenewLease, errors(403, denied), TokenEnded, "has ended")
            .lookup(errors(403, "bad token")),
        row("read, said to be dead", Op::Kv, errors(403, "invalid token"), TokenEnded, "has ended"),
        row("mint, said to be dead", Op::Mint, errors(403, "bad token"), TokenEnded, "has ended"),
        row("read, nobody knows", Op::Kv, errors(403, denied), Unreachable, "unknown")
            .lookup(errors(503, "Vault is sealed").header("Retry-After", "2"))
            .retry_after(2),
        row("read, a proxy knows", Op::Kv, errors(403, denied), Unreachable, "unknown")
            .lookup(html(200)),
    ]
}

async fn check(row: Row) {
    let server = FakeVault::start();
    let (method, path) = row.op.wire();
    server.answer(method, path, row.answer);
    let looks_up = row.lookup.is_some();
    server.answer("GET", LOOKUP, row.lookup.unwrap_or_else(alive));
    let dir = tempfile::tempdir().unwrap();
    let vault = connect(config(&server.url(), dir.path()));
    let name = row.name;

    let error = row.op.run(&vault).await.expect_err(name);

    assert_eq!(error.class, row.class, "{name}: {error}");
    assert_eq!(error.ambiguous, row.ambiguous, "{name}: {error}");
    assert_eq!(error.retry_after, row.retry_after.map(Duration::from_secs), "{name}: {error}");
    assert!(error.message.contains(row.says), "{name}: {error}");
    assert_clean(name, &error);
    let mut expected = vec![format!("{method} {path}")];
    if looks_up {
        expected.push(format!("GET {LOOKUP}"));
    }
    assert_eq!(server.seen(), expected, "{name}");
}

#[tokio::test]
async fn every_answer_that_is_no_answer_is_unreachable() {
    for row in unreachable_rows() {
        check(row).await;
    }
}

#[tokio::test]
async fn every_refusal_becomes_its_class_and_a_403_asks_for_the_token_once() {
    for row in refused_rows() {
        check(row).await;
    }
}

#[tokio::test]
async fn a_hang_ends_at_the_deadline_and_leaves_a_mint_ambiguous() {
    let server = FakeVault::start();
    let dir = tempfile::tempdir().unwrap();
    let short = Deadlines { connect: Duration::from_secs(1), request: Duration::from_millis(100) };
    let vault = Vault::connect_with_deadlines(config(&server.url(), dir.path()), short).unwrap();
    for (op, ambiguous) in [(Op::Mint, true), (Op::Kv, false), (Op::RenewLease, false)] {
        let (method, path) = op.wire();
        server.answer(method, path, Answer::hang());
        let error = op.run(&vault).await.unwrap_err();
        assert_eq!((error.class, error.ambiguous), (Unreachable, ambiguous), "{op:?}");
        assert!(error.message.contains("within 100 ms"), "{error}");
    }
}

#[tokio::test]
async fn a_refused_connection_is_unreachable_and_never_ambiguous() {
    let dir = tempfile::tempdir().unwrap();
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let vault = connect(config(&format!("http://{closed}"), dir.path()));
    let error = Op::Mint.run(&vault).await.unwrap_err();
    assert_eq!((error.class, error.ambiguous), (Unreachable, false));
    assert!(error.message.contains("cannot connect") && error.message.contains("refused"));
}

#[tokio::test]
async fn an_answer_over_the_bound_is_refused_unread() {
    let server = FakeVault::start();
    let dir = tempfile::tempdir().unwrap();
    let big = format!("{{\"request_id\":\"{}\"}}", "a".repeat(5 << 20));
    server.answer("GET", Op::Mint.wire().1, Answer::new(200, big));
    let vault = connect(config(&server.url(), dir.path()));
    let error = Op::Mint.run(&vault).await.unwrap_err();
    assert_eq!((error.class, error.ambiguous), (InvalidRequest, true), "{error}");
    assert!(error.message.contains("larger than 4194304 bytes"), "{error}");
}
