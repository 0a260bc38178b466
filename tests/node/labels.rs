//! Pods chosen by their labels, which the agent has from the API server.

use std::fs;

use serde_json::{Value, json};

use crate::api_server_alone;
use crate::load::{self, Target};
use crate::product::{Product, pod, product, product_alone, root_of};
use crate::support::node::{BUSYBOX, SOON};
use crate::support::process::eventually;
use crate::support::shared::{NAMESPACE, node};

/// The namespace that the product's rules about labels are for.
const LABELS: &str = "labels";

/// A pod of this tier whose volume has these attributes.
fn labelled(name: &str, image: &str, tier: &str, attributes: Value) -> Value {
    let mut pod = pod(LABELS, name, "web", image, attributes);
    pod["metadata"]["labels"] = json!({ "tier": tier });
    pod
}

/// Only the agent may read it, and only a rule about labels lets it do that for a pod.
fn prepare(product: &Product, secret: &str) -> Value {
    product.account(LABELS, "web");
    product.bed.vault.put_kv2(&format!("agent/{secret}"), json!({ "token": "s3cr3t" }));
    json!({ "secret": format!("secret/agent/{secret}#token") })
}

#[test]
fn a_label_opens_a_secret_and_its_change_takes_it_away_and_gives_it_back() {
    let product = product();
    let node = node();
    let attributes = prepare(&product, "chosen");
    node.apply(&labelled("front", BUSYBOX, "front", attributes.clone()));
    node.apply(&labelled("back", BUSYBOX, "back", attributes.clone()));
    node.apply(&pod(LABELS, "without", "web", BUSYBOX, attributes));
    node.wait_until_ready(LABELS, "front");
    for name in ["back", "without"] {
        product.wait_for_event(LABELS, name, "rule 'labels-others' forbids", "s3cr3t");
        assert_eq!(node.pod(LABELS, name)["status"]["phase"], "Pending", "{name}");
    }
    // Nobody logged in as the pods' own account, which has no role in Vault.
    assert_eq!(product.logins_of(LABELS), 0);
    let explain = ["explain", "secret/agent/chosen", "--as", "pod:labels/web"];
    let explained = product.command(&explain).stdout;
    let explained = String::from_utf8_lossy(&explained);
    for line in [
        "pod:labels/web, pod front (csi, token): yes, by rule ",
        "pod:labels/web, pod back (csi, token): no by rule labels-others",
        "pod:labels/web, pod without (csi, token): no by rule labels-others",
    ] {
        assert!(explained.contains(line), "{line}\n{explained}");
    }

    let process = node.container_process(LABELS, "front", "main").expect("its process");
    let token = root_of(process).join("secrets/token");
    let is_there = || fs::read_to_string(&token).is_ok_and(|text| text == "s3cr3t");
    assert!(is_there());
    let label = |name: &str, tier: &str| {
        let tier = format!("tier={tier}");
        node.kubectl(&["label", "pod", name, &tier, "--overwrite", "--namespace", LABELS]);
    };
    label("front", "back");
    eventually(SOON, "the file is gone", || !fs::exists(&token).expect("look at the file"));
    label("front", "front");
    eventually(SOON, "the file is back", is_there);
    // One that waits is let in as well.
    label("back", "front");
    node.wait_until_ready(LABELS, "back");
    assert_eq!(product.logins_of(LABELS), 0);
    for name in ["front", "back", "without"] {
        node.delete_pod(LABELS, name);
    }
}

#[test]
fn a_known_pod_is_served_while_the_api_server_is_away_and_status_says_so() {
    let product = product_alone();
    let (_alone, node) = (api_server_alone(), node());
    let attributes = prepare(&product, "away");
    node.apply(&labelled("files", BUSYBOX, "front", attributes));
    let socket = json!({ "deliver": "socket" });
    node.apply(&labelled("asks", load::image(), "front", socket));
    for name in ["files", "asks"] {
        node.wait_until_ready(LABELS, name);
    }
    let process = node.container_process(LABELS, "files", "main").expect("its process");
    let token = root_of(process).join("secrets/token");
    let asks = node.container_id(LABELS, "asks", "main");
    let agent = node.container_id(NAMESPACE, &product.pod_name(), "agent");
    let run = |arguments: &[&str]| {
        let output = node.exec_in(&agent, &[&["secrets-broker"], arguments].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let directory = || {
        let status: Value = serde_json::from_str(&run(&["status", "-o", "json"])).expect("JSON");
        status["pod_directory"].clone()
    };
    let fails = || !directory()["failing_since"].is_null();
    let read = || load::measure_in(&asks, Target::Own("agent/away")).refused;
    assert!(!fails(), "{}", directory());
    assert_eq!(read(), 0);

    node.kubernetes.stop();
    eventually(SOON, "status says so", fails);
    assert!(run(&["status"]).contains("no news of this node's pods"), "{}", run(&["status"]));
    // Decided anew, by labels that nobody can ask for now.
    product.bed.vault.put_kv2("agent/away", json!({ "token": "second" }));
    eventually(SOON, "the file is current", || {
        run(&["refresh", "secret/data/agent/away"]);
        fs::read_to_string(&token).is_ok_and(|text| text == "second")
    });
    assert_eq!(read(), 0);
    assert!(fails(), "{}", directory());

    node.kubernetes.start_again();
    eventually(SOON, "there is news again", || !fails());
    assert_eq!(directory()["synced"], true, "{}", directory());
    for name in ["files", "asks"] {
        node.delete_pod(LABELS, name);
    }
}
