//! A container that mounts one file of a volume by `subPath`.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::ground::SERVE;
use crate::product::{leftovers, pod, product, root_of, unlinked};
use crate::support::node::{BUSYBOX, SOON};
use crate::support::process::eventually;
use crate::support::shared::node;

#[test]
fn a_sub_path_keeps_the_file_it_started_with_and_does_not_hinder_removal() {
    let product = product();
    let node = node();
    product.account("sub", "web");
    product.let_in("sub", "web");
    let put = |value: &str| {
        product.bed.vault.put_kv2("shop/sub", json!({ "token": value, "other": value }));
    };
    put("first");
    let mut app = pod("sub", "app", "web", BUSYBOX, json!({ "secret": "secret/shop/sub" }));
    let containers = app["spec"]["containers"].as_array_mut().expect("containers");
    containers.push(json!({
        "name": "file",
        "image": BUSYBOX,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", SERVE],
        "volumeMounts": [{ "name": "secrets", "mountPath": "/token", "subPath": "token" }],
    }));
    let uid = node.apply(&app)["metadata"]["uid"].as_str().expect("a uid").to_owned();
    node.wait_until_ready("sub", "app");
    let process = |container: &str| {
        let process = node.container_process("sub", "app", container).expect("its process");
        root_of(process)
    };
    let (volume, file) = (process("main").join("secrets"), process("file").join("token"));
    let first = fs::read_link(volume.join("..data")).expect("the first revision");
    let of = |path: &PathBuf| fs::read_to_string(path).unwrap_or_default();

    put("second");
    eventually(SOON, "the directory has the new value", || {
        product.command(&["refresh", "secret/shop/sub"]);
        of(&volume.join("token")) == "second"
    });
    // Of the old revision all is wiped but what is mounted.
    eventually(SOON, "the old revision's other file is wiped", || {
        !fs::exists(volume.join(&first).join("other")).expect("look at the file")
    });
    assert_eq!(of(&file), "first");
    assert_eq!(of(&volume.join("other")), "second");

    let (old, new) = (unlinked(&file), unlinked(&volume.join("token")));
    assert_eq!((old(), new()), (b"first".to_vec(), b"second".to_vec()));
    node.delete_pod("sub", "app");
    assert_eq!(leftovers(&uid), Vec::<String>::new());
    assert!([old(), new()].concat().iter().all(|byte| *byte == 0), "{:?} {:?}", old(), new());
}
