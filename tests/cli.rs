//! The command line as scripts meet it: output, exit codes, nothing secret echoed.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use assert_cmd::Command;

fn secrets_broker() -> Command {
    let mut command = Command::cargo_bin("secrets-broker").unwrap();
    for name in ["SECRETS_BROKER_CONFIG", "SECRETS_BROKER_SOCKET", "HINT"] {
        command.env_remove(name);
    }
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A directory with a configuration of a local source.
fn configuration(more: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    std::fs::write(path.join("secrets.toml"), "[mounts.secret]\n").unwrap();
    let source =
        format!("[sources.local]\nkind = \"local\"\nfile = \"{}/secrets.toml\"\n", path.display());
    std::fs::write(path.join("broker.toml"), format!("{source}{more}")).unwrap();
    directory
}

fn check_config(directory: &Path) -> (i32, String, String) {
    run(secrets_broker().arg("check-config").arg("--config").arg(directory.join("broker.toml")))
}

#[test]
fn a_configuration_in_order_is_summarised() {
    let directory = configuration("");
    let (code, out, _) = check_config(directory.path());
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("broker.toml: in order\n"), "{out}");
    assert!(out.contains("local (default): local file"), "{out}");
    assert!(out.contains("none: nobody may read anything"), "{out}");
}

#[test]
fn every_problem_has_file_line_key_and_remedy_and_no_expanded_value() {
    let directory = configuration(
        "[agent]\nlog = \"${HINT}\"\n[cache]\nttl = \"5 years\"\nmax_stal = \"1h\"\n",
    );
    let file = directory.path().join("broker.toml");
    let mut command = secrets_broker();
    command.env("HINT", "hunter2").env("SECRETS_BROKER_CONFIG", &file).arg("check-config");
    let (code, out, err) = run(&mut command);
    assert_eq!(code, 1);
    let file = file.display();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    assert!(
        lines[0].starts_with(&format!("{file}:5: [agent.log] \"${{HINT}}\" is not one of")),
        "{out}"
    );
    assert!(
        lines[1].starts_with(&format!("{file}:7: [cache.ttl] \"5 years\" is not a duration")),
        "{out}"
    );
    let unknown =
        format!("{file}:8: [cache.max_stal] unknown key \"max_stal\"; did you mean \"max_stale\"?");
    assert_eq!(lines[2], unknown);
    assert_eq!(lines[3], "3 problems");
    assert!(!format!("{out}{err}").contains("hunter2"));
}

#[test]
fn a_configuration_that_is_not_there_is_a_problem_too() {
    let directory = tempfile::tempdir().unwrap();
    let (code, out, _) = check_config(directory.path());
    assert_eq!(code, 1);
    assert!(out.contains("cannot read the configuration"), "{out}");
}

#[test]
fn without_an_agent_the_exit_code_is_two_and_the_socket_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("operator.sock");
    for arguments in [
        &["status"][..],
        &["status", "-o", "json"],
        &["status", "--watch"],
        &["explain", "secret/a"],
        &["refresh", "secret/a"],
        &["reload", "--accept"],
    ] {
        let (code, out, err) = run(secrets_broker().args(arguments).arg("--socket").arg(&socket));
        assert_eq!(code, 2, "{arguments:?}: {err}");
        assert_eq!(out, "");
        assert!(err.contains("operator.sock"), "{err}");
    }
}

#[test]
fn a_wrong_command_line_is_neither_degraded_nor_no_agent() {
    for arguments in
        [&["statsu"][..], &["status", "--nope"], &["explain"], &["status", "-o", "xml"]]
    {
        let (code, _, err) = run(secrets_broker().args(arguments));
        assert_eq!(code, 64, "{arguments:?}: {err}");
    }
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let (code, out, _) = run(secrets_broker().arg("--help"));
    assert_eq!(code, 0);
    let commands = [
        "run",
        "dev",
        "status",
        "explain",
        "refresh",
        "reload",
        "check-config",
        "check-volume",
        "policy",
        "encrypt",
        "decrypt",
        "audit",
    ];
    for word in commands.iter().chain(&["completions", "man", "no agent answers"]) {
        assert!(out.contains(word), "{word}: {out}");
    }
}

#[test]
fn completions_exist_for_every_shell_people_use() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = run(secrets_broker().args(["completions", shell]));
        assert_eq!(code, 0);
        assert!(out.contains("check-config"), "{shell}");
    }
}

#[test]
fn the_manual_has_a_page_for_all_and_for_each_command() {
    let (code, out, _) = run(secrets_broker().arg("man"));
    assert_eq!(code, 0);
    assert!(out.contains(".TH secrets"), "{out}");
    let (code, out, _) = run(secrets_broker().args(["man", "status"]));
    assert_eq!(code, 0);
    assert!(out.contains("watch"), "{out}");
    let (code, _, err) = run(secrets_broker().args(["man", "nothing"]));
    assert_eq!(code, 1);
    assert!(err.contains("no command is named 'nothing'"), "{err}");
}

#[test]
fn an_encrypted_setting_opens_with_its_key_and_names_its_line_with_another() {
    let directory = configuration("");
    let path = directory.path();
    let key = |name: &str| {
        let (_, key, _) = run(secrets_broker().args(["encrypt", "--generate-key"]));
        let file = path.join(name);
        std::fs::write(&file, key).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o400)).unwrap();
        file
    };
    let (right, wrong) = (key("right"), key("wrong"));
    let plain = format!("{}/secrets.toml", path.display());
    let sealed = secrets_broker()
        .args(["encrypt", "--key-file"])
        .arg(&right)
        .write_stdin(plain.clone())
        .output()
        .unwrap();
    let value = String::from_utf8(sealed.stdout).unwrap();
    let check = |key: &Path| {
        let text = format!(
            "[encryption]\nkey_file = \"{}\"\n[sources.local]\nkind = \"local\"\nfile = \"{}\"\n",
            key.display(),
            value.trim()
        );
        std::fs::write(path.join("broker.toml"), text).unwrap();
        check_config(path)
    };
    let (code, out, _) = check(&right);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains(&plain), "{out}");
    let (code, out, _) = check(&wrong);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("broker.toml:5: [sources.local.file]"), "{out}");
    assert!(out.contains("another key"), "{out}");
    assert!(!out.contains(value.trim()) && !out.contains(&plain), "{out}");
}

/// `check-volume` with a manifest on standard input.
fn check_volume(manifest: &str, arguments: &[&str]) -> (i32, String) {
    let mut command = secrets_broker();
    command.args(["check-volume", "-"]).args(arguments).write_stdin(manifest);
    let (code, out, err) = run(&mut command);
    assert_eq!(err, "", "{out}");
    (code, out)
}

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: shop }
spec:
  template:
    spec:
      serviceAccountName: web
      securityContext: { fsGroup: 1000 }
      containers:
        - name: web
          volumeMounts: [{ name: secrets, mountPath: /secrets }]
      volumes:
        - name: secrets
          csi:
            driver: csi.secrets-broker.io
            readOnly: true
            volumeAttributes: { secret: secret/shop/web#token, role: shop-reader }
"#;

#[test]
fn a_manifest_in_order_is_told_file_by_file() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: { name: web }\n---";
    let (code, out) = check_volume(&format!("{service}{DEPLOYMENT}"), &[]);
    assert_eq!(code, 0, "{out}");
    let line = "standard input: Deployment shop/web: volume 'secrets': token 0:1000 0440 \
                secret/shop/web#token";
    assert_eq!(out.lines().last(), Some(line));
    assert!(out.contains("hint: standard input:"), "{out}");
}

#[test]
fn a_manifests_problems_are_told_at_once_and_a_manifest_without_a_volume_is_one() {
    let wrong = DEPLOYMENT.replace("readOnly: true", "readOnly: false").replace("#token", "#");
    let (code, out) = check_volume(&wrong, &[]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("readOnly: the volume is writable"), "{out}");
    assert!(out.contains("the key after '#' is empty"), "{out}");
    assert_eq!(out.lines().last(), Some("2 problems"));
    let (code, out) = check_volume(DEPLOYMENT, &["--driver", "csi.example.com"]);
    assert_eq!(code, 1);
    assert!(out.contains("no pod has a volume of the driver csi.example.com"), "{out}");
    let (code, out) = check_volume("a: {{ .Values.x }}\n", &[]);
    assert_eq!(code, 1);
    assert!(out.contains("standard input:1: not YAML"), "{out}");
}

#[test]
fn a_manifest_is_compared_with_what_the_configuration_permits_whose_files_are_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("broker.toml");
    let config = r#"
[sources.vault]
kind = "vault"
address = "https://vault.example.com:8200"
ca_file = "/nowhere/ca.pem"
role = "secrets-broker"
mounts = { secret = "kv2" }
[csi]
enabled = true
node = "node-1"
tenant_roles = ["{namespace}-reader"]
"#;
    std::fs::write(&file, config).unwrap();
    let with = ["--config", file.to_str().unwrap()];
    let (code, out) = check_volume(DEPLOYMENT, &with);
    assert_eq!(code, 0, "{out}");
    assert!(out.ends_with("secret/data/shop/web#token\n"), "{out}");
    let (code, out) = check_volume(&DEPLOYMENT.replace("shop-reader", "admin"), &with);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("pods of shop/web may not choose 'admin'"), "{out}");
}

/// `policy test` of these cases against a source with a secret, a database and these grants.
fn policy_test(cases: &str) -> (i32, String) {
    let grants = r#"
[[grants]]
name = "pods"
who = { any_pod = true }
paths = ["secret/data/{namespace}/*"]
login = "agent"
[[grants]]
name = "root"
who = { user = 0 }
paths = ["database/creds/*"]
"#;
    let directory = configuration(grants);
    let path = directory.path();
    let secrets = "[mounts.secret]\n[mounts.database]\nkind = \"generated\"\n";
    std::fs::write(path.join("secrets.toml"), secrets).unwrap();
    std::fs::write(path.join("cases.toml"), cases).unwrap();
    let mut command = secrets_broker();
    command.current_dir(path).args(["policy", "test", "cases.toml", "--config", "broker.toml"]);
    let (code, out, err) = run(&mut command);
    assert_eq!(err, "", "{out}");
    (code, out)
}

const CASES: &str = r#"
[[case]]
who = { namespace = "shop", service_account = "web" }
secret = "secret/shop/web"
expect = "allow"
rule = "pods"
login = "agent"
[[case]]
name = "foreign"
who = { namespace = "shop", service_account = "web" }
secret = "secret/data/other/web"
expect = "deny"
[[case]]
who = { user = 0 }
secret = "database/creds/shop"
expect = "allow"
"#;

#[test]
fn cases_that_all_pass_end_with_code_zero_and_the_rules_that_decided() {
    let (code, out) = policy_test(CASES);
    assert_eq!(code, 0, "{out}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[0],
        "ok     cases.toml:2: pod:shop/web may read local:secret/data/shop/web: rule 'pods', as \
         agent"
    );
    let foreign = "ok     cases.toml:8: foreign: pod:shop/web may not read \
                   local:secret/data/other/web: denied by default: no rule permits";
    assert!(lines[1].starts_with(foreign), "{out}");
    assert_eq!(lines[3], "3 passed, 0 failed");
}

#[test]
fn a_case_that_fails_says_what_was_decided_and_ends_with_code_one() {
    let (code, out) = policy_test(&CASES.replace("other/web", "shop/db"));
    assert_eq!(code, 1, "{out}");
    let failed = "FAILED cases.toml:8: foreign: expected deny, but pod:shop/web may read \
                  local:secret/data/shop/db: rule 'pods', as agent";
    assert!(out.lines().any(|line| line == failed), "{out}");
    assert!(out.ends_with("2 passed, 1 failed\n"), "{out}");
}

#[test]
fn every_malformed_case_is_told_at_once_and_no_case_at_all_is_a_problem() {
    let cases = r#"
[[case]]
who = { namespace = "shop" }
secret = "secret/shop/web"
expect = "allow"
[[case]]
who = { user = 0, volume = "x" }
secret = "kv/shop"
expect = "maybe"
[[case]]
who = { namespace = "shop", service_account = "web", proof = "pidfd" }
secrets = "secret/shop/web"
expect = "deny"
login = "agent"
at = "noon"
"#;
    let (code, out) = policy_test(cases);
    assert_eq!(code, 1);
    for part in [
        "cases.toml:3: [case[1].who.service_account] \"service_account\" is missing",
        "cases.toml:7: [case[2].who] 2 of namespace, user, volume are given",
        "cases.toml:8: [case[2].secret] \"kv/shop\" lies below no mount",
        "cases.toml:9: [case[2].expect] \"maybe\" is not one of allow, deny",
        "cases.toml:11: [case[3].who.proof] \"pidfd\" is no proof that such a caller can have",
        "cases.toml:10: [case[3].secret] \"secret\" is missing",
        "cases.toml:12: [case[3].secrets] unknown key",
        "cases.toml:14: [case[3].login] what is denied is read by nobody",
        "cases.toml:15: [case[3].at] \"noon\" is refused",
        "9 problems",
    ] {
        assert!(out.contains(part), "{part} in\n{out}");
    }
    let (code, out) = policy_test("# nothing\n");
    assert_eq!(code, 1);
    assert!(out.contains("there is no case in it"), "{out}");
}
