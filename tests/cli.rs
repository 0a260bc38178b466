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
        "check-config",
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
