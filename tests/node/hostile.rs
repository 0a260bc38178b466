//! A root container that does all it can to its own volume harms itself.

use std::fs;

use serde_json::json;

use crate::product::{leftovers, pod, product, root_of};
use crate::support::node::{BUSYBOX, SOON};
use crate::support::process::eventually;
use crate::support::shared::{NAMESPACE, node};

/// What root can do without further rights: nothing.
const POWERLESS: &str = "
    for attempt in 'touch /secrets/planted' 'ln -s / /secrets/planted' 'rm /secrets/..data' \
        'chmod 777 /secrets/token' 'mount -o remount,bind,rw /secrets' 'umount /secrets'; do
        $attempt 2>/dev/null && echo \"$attempt worked\"
    done
    echo tried";

/// What it can do to its volume with the right to mount: write, plant links in the way of the
/// agent, fill it up, keep files open and open them again and again.
const HOSTILE: &str = "
    mount -o remount,bind,rw /secrets || exit 1
    exec 3</secrets/token
    cd /secrets
    ln -s /etc planted; ln -s / ..data_tmp; ln -s /run ..2099_01_01
    rm ..data; ln -s / ..data
    rm token; ln -s /etc/passwd token
    mkdir -p deep/er; mv ..20*_* deep 2>/dev/null
    trap '' TERM
    (while :; do find /secrets -type f -exec sh -c ': <\"$1\"' - {} \\; 2>/dev/null; done) &
    cat /dev/zero >big 2>/dev/null
    i=0; while touch fill-$i 2>/dev/null; do i=$((i + 1)); done
    echo \"full after $i files\"
    while :; do sleep 1; done";

/// What a volume has in it and nothing else.
const PLANTED: [&str; 2] = ["token", "other"];

/// Whoever had followed a link that was planted would have written there, as this process sees it.
fn nothing_is_behind_a_link(process: u32) {
    for directory in ["", "etc", "run"] {
        let names = fs::read_dir(root_of(process).join(directory)).into_iter().flatten();
        let names = names.flatten().map(|entry| entry.file_name());
        let names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        let strange = |name: &&String| name.starts_with("..") || PLANTED.contains(&name.as_str());
        let strange: Vec<_> = names.iter().filter(strange).collect();
        assert!(strange.is_empty(), "{process} {directory}: {strange:?}");
    }
    let passwd = fs::read_to_string(root_of(process).join("etc/passwd")).unwrap_or_default();
    assert!(!["second", "third"].contains(&passwd.as_str()), "{process}");
}

#[test]
fn a_hostile_root_container_harms_only_its_own_volume() {
    let product = product();
    let node = node();
    product.account("hostile", "web");
    product.let_in("hostile", "web");
    let put = |value: &str| {
        let data = json!({ "token": value, "other": value });
        product.bed.vault.put_kv2("shop/hostile", data);
    };
    put("first");
    let attributes = json!({ "secret": "secret/shop/hostile" });
    let start = |name: &str, script: &str| {
        let mut pod = pod("hostile", name, "web", BUSYBOX, attributes.clone());
        pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", script]);
        pod
    };
    node.apply(&start("powerless", POWERLESS));
    node.wait_until_succeeded("hostile", "powerless");
    assert_eq!(node.pod_log("hostile", "powerless", "main"), "tried\n");
    node.delete_pod("hostile", "powerless");

    node.apply(&pod("hostile", "victim", "web", BUSYBOX, attributes.clone()));
    node.wait_until_ready("hostile", "victim");
    let mut hostile = start("hostile", HOSTILE);
    hostile["spec"]["containers"][0]["securityContext"] =
        json!({ "runAsUser": 0, "capabilities": { "add": ["SYS_ADMIN", "DAC_OVERRIDE"] } });
    let uid = node.apply(&hostile)["metadata"]["uid"].as_str().expect("a uid").to_owned();
    node.wait_until_ready("hostile", "hostile");
    eventually(SOON, "the volume is full", || {
        node.pod_log("hostile", "hostile", "main").contains("full after")
    });
    let planted = node.exec("hostile", "hostile", "main", &["readlink", "/secrets/planted"]);
    assert_eq!(planted.stdout, b"/etc\n", "it could not even write");
    let process = node.container_process("hostile", "hostile", "main").expect("its process");

    // The other pod's volume is complete and current, whatever becomes of the hostile one.
    let read = |file: &str| {
        let output = node.exec("hostile", "victim", "main", &["cat", &format!("/secrets/{file}")]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for value in ["second", "third"] {
        put(value);
        eventually(SOON, "the other pod's files are current", || {
            product.command(&["refresh", "secret/shop/hostile"]);
            read("token") == value && read("other") == value
        });
    }
    let ours = product.pod_name();
    let of_ours = |container| node.container_process(NAMESPACE, &ours, container).expect("it runs");
    for process in [of_ours("agent"), of_ours("mounter"), process, std::process::id()] {
        nothing_is_behind_a_link(process);
    }

    node.delete_pod("hostile", "hostile");
    assert_eq!(leftovers(&uid), Vec::<String>::new());
    let volumes = product.status()["volumes"].to_string();
    assert!(!volumes.contains("hostile/hostile"), "{volumes}");
    assert_eq!((read("token").as_str(), read("other").as_str()), ("third", "third"));
    node.delete_pod("hostile", "victim");
}
