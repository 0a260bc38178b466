//! The agent and the mounter end and come back; pods that run notice nothing.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::database::credential;
use crate::product::{leftovers, pod, product_alone, root_of};
use crate::support::node::{BUSYBOX, SOON};
use crate::support::process::eventually;
use crate::support::shared::node;

#[test]
fn files_stay_while_agent_and_mounter_are_replaced_and_the_successor_keeps_them_current() {
    let product = product_alone();
    let node = node();
    product.account("stay", "web");
    product.let_in("stay", "web");
    product.bed.vault.put_kv2("shop/stay", json!({ "token": "first" }));
    // A file that the agent, without the right to read everything, cannot read again.
    let attributes = json!({ "secret": "secret/shop/stay#token", "owner": "1000", "mode": "0400" });
    node.apply(&pod("stay", "app", "web", BUSYBOX, attributes));
    node.wait_until_ready("stay", "app");
    let read = || {
        let output = node.exec("stay", "app", "main", &["cat", "/secrets/token"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(read(), "first");

    let app = node.container_process("stay", "app", "main").expect("its process");
    let file = root_of(app).join("secrets/token");
    let read_on = || assert_eq!(fs::read_to_string(&file).expect("the file is there"), "first");
    while_reading(read_on, |meanwhile| product.replace_pod(meanwhile));
    assert_eq!(read(), "first");
    // The kubelet brings the pod's token again within two minutes; then the agent can log in.
    product.bed.vault.put_kv2("shop/stay", json!({ "token": "second" }));
    eventually(Duration::from_secs(180), "the successor writes the new value", || {
        product.command(&["refresh", "secret/shop/stay"]);
        read() == "second"
    });
    let volumes = product.status()["volumes"].to_string();
    assert!(volumes.contains("stay/app"), "{volumes}");
    node.delete_pod("stay", "app");
}

/// Is set when this is dropped, by a failure too: a scope waits for its threads.
struct AtTheEnd<'a>(&'a AtomicBool);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads every few milliseconds while `act` acts; what it is given fails once a read has failed.
fn while_reading(read: impl Fn() + Sync, act: impl FnOnce(&dyn Fn())) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let at_the_end = AtTheEnd(&over);
        let reader = scope.spawn(|| {
            let mut reads = 0_u32;
            while !over.load(Ordering::Relaxed) {
                read();
                reads += 1;
                thread::sleep(Duration::from_millis(5));
            }
            reads
        });
        act(&|| assert!(!reader.is_finished(), "a read failed"));
        drop(at_the_end);
        let reads = reader.join().expect("no read failed");
        assert!(reads > 100, "{reads} reads");
    });
}

#[test]
fn no_read_fails_while_agent_and_mounter_are_killed_and_start_again() {
    let product = product_alone();
    let node = node();
    product.account("kill", "web");
    product.let_in("kill", "web");
    product.bed.vault.put_kv2("shop/kill", json!({ "token": "s3cr3t" }));
    // Longer than all of it takes: who is killed renews nothing, its successor waits for a token.
    let minutes = json!({ "default_ttl": "10m", "max_ttl": "20m" });
    product.bed.write_database_role("kill", minutes);
    let items =
        "- secret: secret/shop/kill#token\n- secret: database/creds/kill\n  path: db.json\n";
    let app = node.apply(&pod("kill", "app", "web", BUSYBOX, json!({ "items": items })));
    let uid = app["metadata"]["uid"].as_str().expect("a uid");
    node.wait_until_ready("kill", "app");
    let app = node.container_process("kill", "app", "main").expect("its process");
    let volume = root_of(app).join("secrets");

    let ours = product.pod_name();
    let read = || {
        let token = fs::read_to_string(volume.join("token"));
        assert_eq!(token.expect("the file is there"), "s3cr3t");
        let database = fs::read(volume.join("db.json")).expect("the file is there");
        assert!(!database.is_empty());
    };
    while_reading(read, |meanwhile| {
        for containers in [&["agent"][..], &["mounter"], &["agent", "mounter"]] {
            product.kill(containers, meanwhile);
        }
    });
    let (user, password) = credential(&volume.join("db.json")).expect("the file is there");
    product.bed.postgres.login(&user, &password).expect("the credential works");
    eventually(SOON, "the volume is kept again", || {
        product.status()["volumes"].to_string().contains("kill/app")
    });
    // The same pod of ours: nothing but its containers was replaced.
    assert_eq!(product.pods(), [ours]);
    node.delete_pod("kill", "app");
    assert_eq!(leftovers(uid), Vec::<String>::new());
}
