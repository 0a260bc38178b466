//! Grants for labels and the directory they come from: what is refused.

use super::refused::check;
use super::{VAULT, parse};

#[test]
fn labels_need_a_namespace_and_are_those_of_kubernetes() {
    let cases = [
        ("{ labels = { app = 'a' } }", "labels", "anywhere chooses its labels", "add namespace"),
        ("{ namespace = 'shop', labels = {} }", "labels", "no label", "app = \"shop\""),
        (
            "{ namespace = 'shop', labels = { 'a b' = 'c' } }",
            "labels.a b",
            "the key is refused",
            "metadata",
        ),
        ("{ namespace = 'shop', labels = { app = '-' } }", "labels.app", "is refused", "metadata"),
    ];
    for (who, key, message, remedy) in cases {
        let grant =
            format!("{VAULT}[[grants]]\nname = \"g\"\npaths = [\"secret/data/a\"]\nwho = {who}\n");
        let problems = parse(&grant).err().unwrap_or_default();
        let [problem] = problems.as_slice() else { panic!("{who}: {problems:#?}") };
        assert_eq!(problem.key, format!("grants[1].who.{key}"), "{problem}");
        assert!(problem.message.contains(message) && problem.remedy.contains(remedy), "{problem}");
    }
}

#[test]
fn a_directory_is_that_of_the_driver() {
    check(&[
        (
            "[pods]\ndirectory = \"kubelet\"",
            2,
            "pods.directory",
            "not one of none, apiserver",
            "write one",
        ),
        (
            "[pods]\ndirectory = \"apiserver\"",
            2,
            "pods.directory",
            "[csi] is not enabled",
            "enabled = true",
        ),
        ("[pods]\nnode = \"a\"", 2, "pods.node", "unknown key", "known here: directory"),
    ]);
    let csi = "[csi]\nenabled = true\nnode = \"node-1\"\nkubelet_root = \"/k\"\n";
    let config = parse(&format!("{VAULT}{csi}[pods]\ndirectory = \"apiserver\"\n")).unwrap();
    let pods = config.pods.expect("a directory");
    assert_eq!((pods.node.as_str(), pods.kubelet_root.as_str()), ("node-1", "/k"));
    assert!(config.policy.knows_labels);
}

#[test]
fn keys_from_a_file_come_with_their_issuers() {
    let csi = "[csi]\nenabled = true\nnode = \"node-1\"\nkeys_file = \"/k.json\"\n";
    let problems = parse(&format!("{VAULT}{csi}")).err().unwrap_or_default();
    let [problem] = problems.as_slice() else { panic!("{problems:#?}") };
    assert_eq!(problem.key, "csi.issuers");
    assert!(problem.remedy.contains("--service-account-issuer"), "{problem}");
    let with = |issuers: &str| parse(&format!("{VAULT}{csi}issuers = {issuers}\n"));
    assert!(with("[\"https://cluster\"]").is_ok());
    let problems = with("[]").err().unwrap_or_default();
    assert!(problems.len() == 1 && problems[0].message == "names no issuer", "{problems:#?}");
}

#[test]
fn the_nodes_socket_names_what_it_lacks() {
    let csi = "[csi]\nenabled = true\nnode = \"node-1\"\nissuers = [\"https://cluster\"]\n";
    let placed = "[placement]\npod_uid = \"8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab\"\n";
    let pods = "[pods]\ndirectory = \"apiserver\"\n";
    let socket = |more: &str| format!("[sockets.node]\nenabled = true\n{more}");
    let problems = |text: String| {
        let problems = parse(&format!("{VAULT}{text}")).err().unwrap_or_default();
        problems.iter().map(|problem| (problem.key.clone(), problem.remedy.clone())).collect()
    };
    let lacking: Vec<(String, String)> = problems(socket(""));
    let [placement, directory] = lacking.as_slice() else { panic!("{lacking:?}") };
    assert_eq!(
        (placement.0.as_str(), directory.0.as_str()),
        ("sockets.node.enabled", "sockets.node.enabled")
    );
    assert!(placement.1.contains("POD_UID") && directory.1.contains("apiserver"), "{lacking:?}");
    let whole = |more: &str| format!("{csi}{placed}{pods}{}", socket(more));
    for (setting, key) in [
        ("proof_audience = \"vault\"", "proof_audience"),
        ("proof_audience = \"https://cluster\"", "proof_audience"),
        ("proof_audience = \"https://kubernetes.default.svc\"", "proof_audience"),
        ("proof_audience = \"\"", "proof_audience"),
        ("proof_token = \"never\"", "proof_token"),
        ("path = \"/run/secrets-broker/x.sock\"", "path"),
        ("path = \"/run/secrets-broker/csi/x.sock\"", "path"),
        ("path = \"/run/x.sock\"", "path"),
    ] {
        let found: Vec<(String, String)> = problems(whole(setting));
        let [(problem, _)] = found.as_slice() else { panic!("{setting}: {found:?}") };
        assert_eq!(*problem, format!("sockets.node.{key}"), "{setting}");
    }
    let config = parse(&format!("{VAULT}{}", whole(""))).unwrap();
    let node = config.sockets.node.expect("a socket");
    assert_eq!(node.path.to_str(), Some("/run/secrets-broker/node/node.sock"));
    assert_eq!(node.proof_audience, "secrets-broker");
}
