//! Every bad input of a section is one problem: line, key, reason and remedy.

use super::{VAULT, parse};

/// One bad input: what is added to [`VAULT`], the line counted from the addition's first one, the
/// key, a piece of the message and a piece of the remedy.
pub type Case = (&'static str, usize, &'static str, &'static str, &'static str);

const VOLUME: &str = "[[volumes]]\nname = \"a\"\npath = \"/run/v/a\"\n";

pub fn check(cases: &[Case]) {
    let offset = VAULT.lines().count();
    for (text, line, key, message, remedy) in cases {
        let text = text.replace("VOLUME\n", VOLUME);
        let problems = parse(&format!("{VAULT}{text}")).err().unwrap_or_default();
        let [problem] = problems.as_slice() else {
            panic!("not one problem but {problems:#?}\nfor {text}");
        };
        assert_eq!(problem.file, "broker.toml");
        assert_eq!(problem.line, offset + line, "{problem}\nfor {text}");
        assert_eq!(problem.key, *key, "{problem}\nfor {text}");
        assert!(problem.message.contains(message), "{problem}\nfor {text}");
        assert!(problem.remedy.contains(remedy), "{problem}\nfor {text}");
    }
}

#[test]
fn an_audit_log_needs_files_and_an_anchor_elsewhere() {
    check(&[
        ("[audit]\noutput = \"file\"", 2, "audit.output", "not an absolute path", "\"stdout\""),
        ("[audit]\nanchor = \"file\"", 2, "audit.anchor", "not an absolute path", "\"log\""),
        (
            "[audit]\noutput = \"/var/log/audit\"\nanchor = \"/var/log/anchor\"",
            3,
            "audit.anchor",
            "lies in the directory of the log",
            "another directory",
        ),
    ]);
}

#[test]
fn unknown_keys_and_wrong_types_are_named_with_the_nearest_right_one() {
    check(&[
        (
            "[cache]\nmax_stal = \"1h\"",
            2,
            "cache.max_stal",
            "unknown key",
            "did you mean \"max_stale\"?",
        ),
        ("[cach]\nttl = \"1h\"", 1, "cach", "unknown key", "did you mean \"cache\"?"),
        (
            "[agent]\nlog = \"inf\"",
            2,
            "agent.log",
            "\"inf\" is not one of",
            "did you mean \"info\"?",
        ),
        ("[cache]\nttl = 300", 2, "cache.ttl", "300 has no unit", "\"300s\""),
        ("[cache]\nttl = \"-5m\"", 2, "cache.ttl", "is negative", "\"5m\""),
        ("[cache]\nttl = \"0s\"", 2, "cache.ttl", "zero makes no sense", "longer"),
        ("[cache]\nttl = \"2h\"", 2, "cache.ttl", "longer than max_stale", "raise max_stale"),
        ("[limits]\nentries = 0", 2, "limits.entries", "0 is not a number from 1", "20000"),
        ("[limits]\nbytes = \"1MB\"", 2, "limits.bytes", "unknown unit", "\"64MiB\""),
        ("[limits]\nvalue_bytes = \"1GiB\"", 2, "limits.value_bytes", "more than bytes", "lower"),
        (
            "[sockets.host]\nmode = \"0999\"",
            2,
            "sockets.host.mode",
            "not an octal mode",
            "\"0666\"",
        ),
        (
            "[sockets.host]\nenabled = \"yes\"",
            2,
            "sockets.host.enabled",
            "neither true nor false",
            "true",
        ),
        (
            "[sockets.host]\npath = \"run/x\"",
            2,
            "sockets.host.path",
            "not an absolute path",
            "absolute",
        ),
        ("[sockets.host]\ngroup = \"nobody-knows\"", 2, "sockets.host.group", "no group", "number"),
        ("[agent]\nlog = \"${NOT_SET}\"", 2, "agent.log", "needs the variable NOT_SET", "$${"),
        (
            "[policy]\ncedar_file = \"/missing\"",
            2,
            "policy.cedar_file",
            "cannot read \"/missing\"",
            "create",
        ),
        ("[agent]\nlog = \"ENC:00:00:00\"", 2, "agent.log", "no key is configured", "[encryption]"),
        ("[encryption]", 1, "encryption", "no key is named", "key_file or key_env"),
        (
            "[encryption]\nkey_env = \"NOT_SET\"",
            2,
            "encryption.key_env",
            "no environment variable",
            "--generate-key",
        ),
    ]);
}

#[test]
fn a_bad_volume_is_refused_before_anything_is_touched() {
    let item = "[[volumes.items]]\nsecret = \"secret/a\"";
    let with_path = |path: &str| format!("[[volumes]]\nname = \"a\"\npath = {path:?}\n{item}");
    let offset = VAULT.lines().count();
    for (path, message) in [
        ("volumes/a", "is not an absolute path"),
        ("/run/../etc/a", "holds '..'"),
        ("/run//a", "holds '.' or '//'"),
        ("/", "is a system directory"),
        ("/etc", "is a system directory"),
        ("/proc/1", "lies below /proc"),
        ("/run/secrets-broker", "would hide /run/secrets-broker"),
        ("/run/secrets-broker/operator/a", "lies in the operator socket's directory"),
    ] {
        let problems = parse(&format!("{VAULT}{}", with_path(path))).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert_eq!((problems[0].line, problems[0].key.as_str()), (offset + 3, "volumes[1].path"));
        assert!(problems[0].message.contains(message), "{}", problems[0]);
        assert!(!problems[0].remedy.is_empty());
    }
    let inside =
        "[[volumes]]\nname = \"b\"\npath = \"/run/v/a/b\"\nitems = [{ secret = \"secret/a\" }]";
    let same_name =
        "[[volumes]]\nname = \"a\"\npath = \"/run/v/b\"\nitems = [{ secret = \"secret/a\" }]";
    let first = format!("{VAULT}{VOLUME}items = [{{ secret = \"secret/a\" }}]\n");
    for (second, key, message) in [
        (inside, "volumes[2].path", "overlaps the volume at /run/v/a"),
        (same_name, "volumes[2].name", "another volume is named \"a\""),
    ] {
        let problems = parse(&format!("{first}{second}")).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert_eq!(problems[0].key, key);
        assert!(problems[0].message.contains(message), "{}", problems[0]);
    }
}

#[test]
fn a_bad_spelling_in_an_item_is_named() {
    let secret = "volumes[1].items[1].secret";
    check(&[
        ("VOLUME\n", 1, "volumes[1].items", "no items", "[[volumes.items]]"),
        ("VOLUME\nitems = [{ }]", 4, "volumes[1].items[1]", "names no secret", "secret ="),
        ("VOLUME\nitems = [{ secret = \"secret//a\" }]", 4, secret, "empty segment", "plain path"),
        ("VOLUME\nitems = [{ secret = \"secret/../a\" }]", 4, secret, "'.' or '..'", "plain path"),
        ("VOLUME\nitems = [{ secret = \"secret/%2e%2e/a\" }]", 4, secret, "'%'", "plain path"),
        ("VOLUME\nitems = [{ secret = \"secret/a\\u0000\" }]", 4, secret, "NUL", "plain path"),
        (
            "VOLUME\nitems = [{ secret = \"secret/a\\u202e\" }]",
            4,
            secret,
            "direction",
            "plain path",
        ),
        ("VOLUME\nitems = [{ secret = \"secret/a#\" }]", 4, secret, "key after '#'", "#key"),
        (
            "VOLUME\nitems = [{ secret = \"sys/mounts\" }]",
            4,
            secret,
            "no mount",
            "[sources.vault.mounts]",
        ),
        ("VOLUME\nitems = [{ secret = \"secret\" }]", 4, secret, "does not name", "below"),
        (
            "VOLUME\nitems = [{ secret = \"secret/metadata/a\" }]",
            4,
            secret,
            "ambiguous",
            "secret/data/metadata/a",
        ),
    ]);
}

#[test]
fn a_bad_item_is_named() {
    check(&[
        (
            "VOLUME\nitems = [{ secret = \"secret/a\", path = \"b\" }]",
            4,
            "volumes[1].items[1].path",
            "does not tell the file's format",
            "add format",
        ),
        (
            "VOLUME\nitems = [{ secret = \"secret/a\", path = \"../b.json\" }]",
            4,
            "volumes[1].items[1].path",
            "is '.' or '..'",
            "relative file name",
        ),
        (
            "VOLUME\n\
             items = [{ secret = \"secret/a#b\" }, { secret = \"secret/c#d\", path = \"b\" }]",
            4,
            "volumes[1].items[2].path",
            "both write 'b'",
            "another path",
        ),
        (
            "VOLUME\nitems = [{ path = \"a.json\", keys = { x = \"secret/a\" } }]",
            4,
            "volumes[1].items[1].keys.x",
            "names a whole secret",
            "path#key",
        ),
        (
            "VOLUME\nitems = [{ secret = \"secret/a\", keys = { x = \"secret/a#b\" } }]",
            4,
            "volumes[1].items[1].keys",
            "both given",
            "keep one",
        ),
        (
            "VOLUME\nitems = [{ secret = \"secret/a\", mode = \"0666\" }]",
            4,
            "volumes[1].items[1].mode",
            "not allowed",
            "\"0400\"",
        ),
        (
            "VOLUME\nitems = [{ secret = \"secret/a\", source = \"vlt\" }]",
            4,
            "volumes[1].items[1].source",
            "no source is named",
            "vault",
        ),
        (
            "VOLUME\non_change = { command = [\"reload\"] }\nitems = [{ secret = \"secret/a\" }]",
            4,
            "volumes[1].on_change.command[1]",
            "not an absolute path",
            "absolute",
        ),
    ]);
}

#[test]
fn a_bad_grant_is_named() {
    let grant = |rest: &str| format!("[[grants]]\nname = \"g\"\n{rest}");
    let cases = [
        ("paths = [\"secret/data/a\"]", "grants[1].who", "\"who\" is missing", "who = {"),
        ("who = { }\npaths = [\"secret/data/a\"]", "grants[1].who", "0 of user", "exactly one"),
        (
            "who = { user = 1, group = 1 }\npaths = [\"secret/data/a\"]",
            "grants[1].who",
            "2 of user",
            "exactly one",
        ),
        (
            "who = { user = \"nobody-knows\" }\npaths = [\"secret/data/a\"]",
            "grants[1].who.user",
            "no user",
            "number",
        ),
        (
            "who = { volume = \"shop\" }\npaths = [\"secret/data/a\"]",
            "grants[1].who.volume",
            "no volume is named",
            "there are none",
        ),
        ("who = { user = 1 }\npaths = []", "grants[1].paths", "no path", "add a path"),
        (
            "who = { user = 1 }\npaths = [\"secret/sh*p\"]",
            "grants[1].paths[1]",
            "'*' must stand alone",
            "whole segments",
        ),
        (
            "who = { user = 1 }\npaths = [\"secret/shop/*\"]",
            "grants[1].paths[1]",
            "CLI's spelling",
            "secret/data/shop/*",
        ),
        (
            "who = { user = 1 }\npaths = [\"sys/**\"]",
            "grants[1].paths[1]",
            "never forwarded",
            "remove",
        ),
        (
            "who = { user = 1 }\neffect = \"forbid\"\nshare = \"agent\"\n\
             paths = [\"secret/data/a\"]",
            "grants[1].share",
            "shares nothing",
            "remove share",
        ),
    ];
    for (rest, key, message, remedy) in cases {
        let problems = parse(&format!("{VAULT}{}", grant(rest))).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:#?}\nfor {rest}");
        assert_eq!(problems[0].key, key);
        assert!(problems[0].message.contains(message), "{}", problems[0]);
        assert!(problems[0].remedy.contains(remedy), "{}", problems[0]);
    }
}

#[test]
fn a_bad_source_is_named() {
    let vault = |from: &str, to: &str| VAULT.replace(from, to);
    let address = "https://vault.example.com:8200";
    let key = "sources.vault";
    let cases = [
        (String::new(), 1, "sources", "no source is configured", "[sources.vault]"),
        (vault(address, "http://vault.example.com"), 4, "address", "plain http", "loopback"),
        (
            vault(address, "https://a:${PASSWORD}@vault"),
            4,
            "address",
            "user name or password",
            "'@'",
        ),
        (vault(address, "https://vault/v1"), 4, "address", "path", "namespace"),
        (vault("ca_file = \"/etc/ca.pem\"", ""), 2, "ca_file", "https needs ca_file", "PEM"),
        (vault("/etc/ca.pem", "/missing/ca.pem"), 5, "ca_file", "cannot read", "correct the path"),
        (vault("/etc/ca.pem", "/etc/old-ca.pem"), 5, "ca_file", "has expired", "PEM"),
        (vault("/etc/ca.pem", "/etc/empty"), 5, "ca_file", "no PEM certificate", "PEM"),
        (vault("role = \"agent\"", ""), 2, "role", "\"role\" is missing", "role ="),
        (vault("secret = \"kv2\"", "secret = \"kv3\""), 7, "mounts.secret", "not one of", "kv"),
        (vault("secret = \"kv2\"", "sys = \"other\""), 7, "mounts.sys", "Vault's own", "remove"),
        (vault("kind = \"vault\"", "kind = \"valt\""), 3, "kind", "not one of", "vault"),
    ];
    for (text, line, name, message, remedy) in cases {
        let problems = parse(&text).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        let problem = &problems[0];
        let wanted = if name == "sources" { name.to_owned() } else { format!("{key}.{name}") };
        assert_eq!((problem.line, &problem.key), (line, &wanted), "{problem}");
        assert!(problem.message.contains(message), "{problem}");
        assert!(problem.remedy.contains(remedy), "{problem}");
        assert!(!problem.to_string().contains("hunter2"), "{problem}");
    }
    let two = format!("{VAULT}[sources.local]\nkind = \"local\"\nfile = \"/x\"\n");
    assert_eq!(parse(&two).unwrap_err()[0].message, "several sources and none is the default");
}

#[test]
fn a_port_for_metrics_is_an_address_and_a_number() {
    check(&[
        (
            "[sockets.metrics]\nport = 70000",
            2,
            "sockets.metrics.port",
            "at most 65535",
            "another port",
        ),
        (
            "[sockets.metrics]\naddress = \"localhost\"",
            2,
            "sockets.metrics.address",
            "is refused",
            "IP address",
        ),
    ]);
}
