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
