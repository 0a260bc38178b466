//! Tables for the request grammar: what is understood, and with which status everything else ends.

use super::*;

fn ask(method: &str, target: &str) -> Result<Route, Refusal> {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    parse(&method, &target.parse().unwrap(), &HeaderMap::new())
}

fn secret(path: &str, version: Option<u64>) -> Route {
    Route::Secret { path: path.parse().unwrap(), version: version.and_then(NonZeroU64::new) }
}

#[test]
fn what_official_clients_send_is_understood() {
    let lease = LocalLeaseId::from_client("database/creds/shop/0af3");
    let rows = [
        ("GET", "/v1/secret/data/shop/db", secret("secret/data/shop/db", None)),
        ("GET", "/v1/secret/data/shop/db?version=3", secret("secret/data/shop/db", Some(3))),
        ("GET", "/v1/secret/data/shop/db?", secret("secret/data/shop/db", None)),
        ("GET", "http://localhost/v1/kv/a", secret("kv/a", None)),
        ("GET", "/v1/system/a", secret("system/a", None)),
        ("GET", "/v1/sys/health", Route::Health),
        ("HEAD", "/v1/sys/health?standbyok=true", Route::Health),
        ("GET", "/v1/sys/seal-status", Route::SealStatus),
        ("GET", "/v1/sys/leader", Route::Leader),
        ("GET", "/v1/sys/init", Route::Initialized),
        (
            "GET",
            "/v1/sys/internal/ui/mounts/secret/shop/db",
            Route::MountInfo("secret/shop/db".parse().unwrap()),
        ),
        ("GET", "/v1/sys/internal/ui/mounts/secret/", Route::MountInfo("secret".parse().unwrap())),
        ("GET", "/v1/auth/token/lookup-self", Route::TokenLookup),
        ("PUT", "/v1/auth/token/renew-self", Route::TokenRenew),
        ("PUT", "/v1/sys/leases/lookup", Route::Lease(LeaseAction::Lookup, None)),
        ("POST", "/v1/sys/leases/renew", Route::Lease(LeaseAction::Renew, None)),
        (
            "PUT",
            "/v1/sys/leases/renew/database/creds/shop/0af3",
            Route::Lease(LeaseAction::Renew, Some(lease.clone())),
        ),
        (
            "PUT",
            "/v1/sys/leases/revoke/database/creds/shop/0af3",
            Route::Lease(LeaseAction::Revoke, Some(lease)),
        ),
        ("GET", "/agent/v1/health/live", Route::Agent(AgentRoute::Live)),
        ("GET", "/agent/v1/metrics", Route::Agent(AgentRoute::Metrics)),
        (
            "GET",
            "/agent/v1/explain?path=secret%2Fshop%23a&as=uid%3A1000",
            Route::Agent(AgentRoute::Explain {
                path: "secret/shop#a".into(),
                as_id: Some("uid:1000".into()),
            }),
        ),
        ("POST", "/agent/v1/refresh", Route::Agent(AgentRoute::Refresh)),
        ("POST", "/agent/v1/reload", Route::Agent(AgentRoute::Reload)),
        ("POST", "/agent/v1/unlock", Route::Agent(AgentRoute::Unlock)),
        ("GET", "/agent/v1/events", Route::Agent(AgentRoute::Events { since: None })),
        ("GET", "/agent/v1/events?since=7", Route::Agent(AgentRoute::Events { since: Some(7) })),
    ];
    for (method, target, expected) in rows {
        assert_eq!(ask(method, target), Ok(expected), "{method} {target}");
    }
}

#[test]
fn everything_else_is_refused_with_a_status_that_says_why() {
    let long = format!("/v1/secret/{}", "a".repeat(1100));
    let rows = [
        // Paths that something on the way to Vault would rewrite.
        ("GET", "/v1/", 400),
        ("GET", "/v1/secret//a", 400),
        ("GET", "/v1//secret/a", 400),
        ("GET", "/v1/secret/a/", 400),
        ("GET", "/v1/secret/./a", 400),
        ("GET", "/v1/secret/data/../../sys/raw", 400),
        ("GET", "/v1/secret/%2e%2e/a", 400),
        ("GET", "/v1/secret/a%2fb", 400),
        ("GET", "/v1/%73ys/health", 400),
        ("GET", "/v1/secret/a%00", 400),
        ("GET", "/v1/secret/a*", 400),
        ("GET", &long, 400),
        ("GET", "/v1/sys/internal/ui/mounts/", 400),
        ("GET", "/v1/sys/internal/ui/mounts/secret/../x", 400),
        // Queries.
        ("GET", "/v1/secret/data/a?version=0", 400),
        ("GET", "/v1/secret/data/a?version=03", 400),
        ("GET", "/v1/secret/data/a?version=", 400),
        ("GET", "/v1/secret/data/a?version=-1", 400),
        ("GET", "/v1/secret/data/a?version=%2b1", 400),
        ("GET", "/v1/secret/data/a?version=1&version=2", 400),
        ("GET", "/v1/secret/data/a?version=99999999999999999999", 400),
        ("GET", "/v1/secret/data/a?list=true", 400),
        ("GET", "/v1/secret/data/a?Version=1", 400),
        ("GET", "/agent/v1/explain", 400),
        ("GET", "/agent/v1/explain?path=a&path=b", 400),
        ("GET", "/agent/v1/status?x=1", 400),
        ("GET", "/agent/v1/events?since=soon", 400),
        // Never forwarded, whatever policy says.
        ("GET", "/v1/sys/raw/core/keyring", 403),
        ("GET", "/v1/sys/leases/lookup/database", 403),
        ("PUT", "/v1/sys/leases/revoke-prefix/database", 403),
        ("GET", "/v1/sys", 403),
        ("GET", "/v1/auth/token/lookup-accessor", 403),
        ("PUT", "/v1/auth/token/revoke-self", 403),
        ("POST", "/v1/auth/kubernetes/login", 403),
        ("GET", "/v1/identity/entity/id", 403),
        ("GET", "/v1/cubbyhole/response", 403),
        // Routes and methods that do not exist.
        ("GET", "/", 404),
        ("GET", "/v2/secret/a", 404),
        ("GET", "/agent/v1/quit", 404),
        ("LIST", "/v1/secret/metadata/a", 405),
        ("POST", "/v1/secret/data/a", 405),
        ("PUT", "/v1/secret/data/a", 405),
        ("DELETE", "/v1/secret/data/a", 405),
        ("PATCH", "/v1/secret/data/a", 405),
        ("HEAD", "/v1/secret/data/a", 405),
        ("get", "/v1/secret/data/a", 405),
        ("DELETE", "/v1/sys/health", 405),
        ("GET", "/v1/sys/leases/renew", 405),
        ("GET", "/agent/v1/refresh", 405),
        ("POST", "/agent/v1/status", 405),
    ];
    for (method, target, status) in rows {
        let refused = ask(method, target).expect_err(target);
        assert_eq!(refused.status.as_u16(), status, "{method} {target}: {refused:?}");
        assert!(refused.message.is_some_and(|text| !text.is_empty()), "{target}");
    }
}

#[test]
fn a_wrapped_reply_is_refused_on_every_route() {
    let mut headers = HeaderMap::new();
    headers.insert(WRAP_TTL.clone(), HeaderValue::from_static("60s"));
    for target in ["/v1/secret/data/a", "/v1/sys/health", "/agent/v1/status"] {
        let refused = parse(&Method::GET, &target.parse().unwrap(), &headers).unwrap_err();
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    }
}

#[test]
fn a_namespace_header_must_name_the_configured_namespace() {
    let fits = |asked: Option<&'static str>, configured| {
        let mut headers = HeaderMap::new();
        if let Some(asked) = asked {
            headers.insert("x-vault-namespace", HeaderValue::from_static(asked));
        }
        namespace_fits(&headers, configured)
    };
    assert!(fits(None, None) && fits(None, Some("team-a")));
    assert!(fits(Some("team-a"), Some("team-a")) && fits(Some("team-a/"), Some("/team-a")));
    assert!(fits(Some(""), None) && fits(Some("/"), None));
    assert!(!fits(Some("team-b"), Some("team-a")) && !fits(Some("team-a"), None));
    assert!(!fits(Some("team-a/child"), Some("team-a")));
}

#[test]
fn a_read_that_was_decided_is_recognised_by_its_target_and_its_headers() {
    let read = |target: &str| {
        let target: Uri = target.parse().unwrap();
        read_target(&target).map(|(path, version)| (path.to_owned(), version))
    };
    let version = NonZeroU64::new;
    assert_eq!(read("/v1/secret/data/a"), Some(("secret/data/a".to_owned(), None)));
    assert_eq!(read("/v1/secret/data/a?version=3").unwrap().1, version(3));
    for other in ["/agent/v1/status", "/v2/a", "/v1/a?version=03", "/v1/a?list=true", "/"] {
        assert_eq!(read(other), None, "{other}");
    }

    let asks = |headers: &[(&'static str, &str)], configured: Option<&str>| {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        !asks_for_nothing_else(&headers.collect(), configured)
    };
    assert!(!asks(&[], None));
    assert!(!asks(&[("host", "a"), ("x-vault-token", "b"), ("x-vault-request", "true")], None));
    assert!(asks(&[("host", "a"), ("x-vault-wrap-ttl", "60s")], None));
    assert!(asks(&[("x-vault-namespace", "team")], None));
    assert!(asks(&[("x-vault-namespace", "team")], Some("other")));
    assert!(!asks(&[("x-vault-namespace", "/team/")], Some("team")));
    assert!(!asks(&[("x-vault-namespace", "")], Some("team")));
}
