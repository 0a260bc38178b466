//! The configuration file: the example proves itself, and every bad input is named with its remedy.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use secrets_broker::config::{Config, Host, Problem};

mod pods;
mod refused;

/// A host with two accounts, a key variable and every file except those called `missing`.
fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    let ca = certificate(2090);
    let old_ca = certificate(2001);
    let read = |path: &Path| match path.to_str().unwrap() {
        "/etc/passwd" => Ok(b"root:x:0:0::/:/bin/sh\nshop:x:1007:1008::/:/bin/sh\n".to_vec()),
        "/etc/group" => Ok(b"root:x:0:\nshop:x:1008:\nsecrets:x:1009:\n".to_vec()),
        path if path.contains("missing") => Err(io::Error::from(io::ErrorKind::NotFound)),
        path if path.ends_with("empty") => Ok(Vec::new()),
        path if path.ends_with("token-with-newline") => Ok(b"abc\n".to_vec()),
        path if path.ends_with("old-ca.pem") => Ok(old_ca.clone().into_bytes()),
        path if path.ends_with("ca.pem") => Ok(ca.clone().into_bytes()),
        _ => Ok(b"eyJhbGciOi.token".to_vec()),
    };
    let open = |path: &Path| read(path).map(drop);
    let variable = |name: &str| match name {
        "SECRETS_BROKER_KEY" => Some("0".repeat(64)),
        "VAULT_HOST" => Some("vault.example.com".to_owned()),
        "NODE_NAME" => Some("node-1".to_owned()),
        "PASSWORD" => Some("hunter2".to_owned()),
        _ => None,
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let host = Host { variable: &variable, read: &read, open: &open, uid: 0, gid: 0, now };
    Config::parse(text, "broker.toml", &host).map_err(|error| error.problems)
}

fn certificate(not_after_year: i32) -> String {
    let mut params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(not_after_year, 1, 1);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

const EXAMPLE: &str = include_str!("../../config.example.toml");

/// The least that is valid.
const VAULT: &str = r#"
[sources.vault]
kind = "vault"
address = "https://vault.example.com:8200"
ca_file = "/etc/ca.pem"
role = "agent"
mounts = { secret = "kv2", database = "database", auto = "auto" }
"#;

#[test]
fn what_the_example_does_not_comment_out_is_the_default() {
    let minimal = parse(VAULT).unwrap();
    let example = parse(&format!("{EXAMPLE}\n{VAULT}")).unwrap();
    assert_eq!(format!("{example:#?}"), format!("{minimal:#?}"));
    for section in
        ["[agent]", "[cache]", "[limits]", "[sockets.host]", "[audit]", "[policy]", "[pods]"]
    {
        assert!(EXAMPLE.lines().any(|line| line == section), "{section}");
    }
}

#[test]
fn the_example_with_everything_uncommented_is_valid_and_uses_every_part() {
    let uncommented = EXAMPLE.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting,
        _ => line,
    });
    let text = uncommented.collect::<Vec<_>>().join("\n");
    let config = parse(&text).unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert_eq!(config.warnings, []);
    assert_eq!(config.sources.len(), 2);
    assert_eq!(config.policy.grants.len(), 3);
    assert_eq!(config.broker.rules.len(), 1);
    assert_eq!(config.volumes[0].config.items.len(), 4);
    assert!(config.encryption.is_some());
    assert_eq!(config.volumes[0].config.items[1].ownership.mode, 0o400);
    assert_eq!(config.volumes[0].config.defaults.uid, 1007);
}

#[test]
fn a_token_that_cannot_be_used_is_a_warning_because_it_may_come_later() {
    for (file, message) in [
        ("/missing", "cannot read \"/missing\""),
        ("/empty", "token is empty"),
        ("/token-with-newline", "line end"),
    ] {
        let config = parse(&format!("{VAULT}token_file = {file:?}\n")).unwrap();
        let [warning] = config.warnings.as_slice() else { panic!("{:?}", config.warnings) };
        assert_eq!(warning.key, "sources.vault.token_file");
        assert!(warning.message.contains(message), "{warning}");
    }
}

#[test]
fn every_problem_is_reported_at_once_in_the_order_of_the_file() {
    let text = "[agent]\nlog = \"loud\"\nlgo = 1\n[cache]\nttl = \"x\"\n[[grants]]\n[[volumes]]\n";
    let problems = parse(&format!("{text}{VAULT}")).unwrap_err();
    let found: Vec<(usize, &str)> = problems.iter().map(|p| (p.line, p.key.as_str())).collect();
    assert_eq!(
        found,
        [
            (2, "agent.log"),
            (3, "agent.lgo"),
            (5, "cache.ttl"),
            (6, "grants[1].name"),
            (6, "grants[1].who"),
            (6, "grants[1].paths"),
            (7, "volumes[1].name"),
            (7, "volumes[1].path"),
            (7, "volumes[1].items"),
        ],
        "{problems:#?}"
    );
}

#[test]
fn every_syntax_error_is_reported_with_its_line() {
    let problems = parse("[agent]\nlog = \nlog_format = [\n").unwrap_err();
    assert!(problems.iter().any(|problem| problem.line == 2), "{problems:#?}");
    assert!(problems.iter().all(|problem| problem.message.starts_with("not valid TOML")));
}

#[test]
fn a_source_with_a_problem_of_its_own_still_checks_the_paths_of_grants() {
    let text = VAULT.replace("https://vault.example.com:8200", "nonsense");
    let grant = "[[grants]]\nname = \"g\"\nwho = { usr = 1 }\npaths = [\"secret/shop/*\"]\n";
    let problems = parse(&format!("{text}{grant}")).unwrap_err();
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["sources.vault.address", "grants[1].who.usr", "grants[1].paths[1]"]);
}
