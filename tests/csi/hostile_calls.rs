//! Calls that no kubelet of this node would make, or not now: each is refused with a code and a
//! message that says what to do, gets nothing, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Pod, header, passed_on, signed};
use crate::csi_driver::{CsiDriver, NodePublishVolumeRequest, Refused, TOKENS};
use crate::support::process::eventually;
use crate::{LIMIT, Node, runtime};

const INVALID_ARGUMENT: u32 = 3;
const PERMISSION_DENIED: u32 = 7;
const RESOURCE_EXHAUSTED: u32 = 8;
const OUT_OF_RANGE: u32 = 11;
const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;
const SECRET: &[(&str, &str)] = &[("secret", "secret/shop/web#token")];

/// What is wrong with a call, how, and what it is answered.
type Row<'a> = (&'a str, Change<'a>, u32, &'a str);
type Change<'a> = Box<dyn Fn(&mut NodePublishVolumeRequest) + 'a>;

async fn driver(node: &Node) -> CsiDriver {
    CsiDriver::connect(&node.dir.path().join("kubelet")).await
}

/// Sends each call; then a good one, so that it is not all calls that are refused.
fn refuses(node: &Node, rows: &[Row<'_>]) {
    runtime().block_on(async {
        let driver = driver(node).await;
        for (what, change, code, says) in rows {
            let mut call = driver.request(&node.pod, "secrets", SECRET);
            change(&mut call);
            let refused = driver.send(&call).await.expect_err(what);
            let Refused { code: answered, message } = &refused;
            assert!(answered == code && message.contains(says), "{what}: {refused:?}");
            assert!(!message.contains("s3cr3t"), "{what}: {message}");
            for token in call.secrets.values() {
                let signature = token.rsplit('.').next().unwrap_or_default();
                let signature = signature.split('"').next().unwrap_or_default();
                assert!(signature.is_empty() || !message.contains(signature), "{what}: {message}");
            }
            assert_eq!(node.leftovers(), Vec::<String>::new(), "{what}");
        }
        driver.publish(&node.pod, "secrets", SECRET).await.expect("a good call");
        assert!(!node.leftovers().is_empty(), "nothing is mounted by a good call either");
        driver.unpublish(&node.pod, "secrets").await.expect("its end");
    });
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

fn attribute(name: &'static str, value: String) -> Change<'static> {
    Box::new(move |call| _ = call.volume_context.insert(name.to_owned(), value.clone()))
}

fn items(text: String) -> Change<'static> {
    Box::new(move |call| {
        call.volume_context.remove("secret");
        call.volume_context.insert("items".to_owned(), text.clone());
    })
}

fn target(change: impl Fn(&str) -> String + 'static) -> Change<'static> {
    Box::new(move |call| call.target_path = change(&call.target_path))
}

#[test]
fn a_call_that_asks_for_what_there_is_not_is_refused() {
    let node = Node::start();
    let other = Pod::new("shop", "other-0", "web").uid;
    let own = node.pod.uid.clone();
    let rows: Vec<Row<'_>> = vec![
        ("a writable mount", Box::new(|call| call.readonly = false), 3, "readOnly: true"),
        ("no volume", Box::new(|call| call.volume_id.clear()), 3, "volume_id"),
        ("no capability", Box::new(|call| call.volume_capability = None), 3, "volume_capability"),
        ("no token", Box::new(|call| call.secrets.clear()), 3, "tokenRequests"),
        ("another pod's target", target(move |path| path.replace(&own, &other)), 3, "another pod"),
        ("a step up", target(|path| path.replace("/mount", "/../mount")), 3, "target is not"),
        ("a relative target", target(|path| path[1..].to_owned()), 3, "target is not"),
        ("a target elsewhere", target(|_| "/etc".to_owned()), 3, "target is not"),
        ("no target", target(|_| String::new()), 3, "target is not"),
        ("a misspelt attribute", attribute("secrte", "x".to_owned()), 3, "secrte"),
        ("a step up in a file's name", attribute("path", "../token".to_owned()), 3, "path"),
        ("items that are no YAML", items("- {".to_owned()), 3, "items"),
        ("too long items", items("x".repeat(65 << 10)), 3, "longer than"),
        (
            "a pod's name with a step up",
            attribute("csi.storage.k8s.io/pod.name", "../x".to_owned()),
            INVALID_ARGUMENT,
            "pod.name",
        ),
        (
            "a volume that is no inline one",
            attribute("csi.storage.k8s.io/ephemeral", "false".to_owned()),
            INVALID_ARGUMENT,
            "ephemeral",
        ),
        ("a map that is too long", attribute("secret", "x".repeat(200 << 10)), 3, "put some of"),
        (
            "a map of two megabytes",
            Box::new(|call| {
                let many = (0..20_000).map(|number| (format!("a{number}"), "x".repeat(100)));
                call.volume_context.extend(many);
            }),
            OUT_OF_RANGE,
            "too large",
        ),
        (
            "a secret that no rule permits",
            attribute("secret", "secret/else/web#token".to_owned()),
            PERMISSION_DENIED,
            "no rule permits",
        ),
    ];
    refuses(&node, &rows);
}

/// A change of the pod's own token.
fn token(pod: &Pod, change: impl Fn(&mut Value, &mut Value)) -> Change<'static> {
    let (mut header, mut claims) = (header(), pod.claims());
    change(&mut header, &mut claims);
    bearing(signed(&header, &claims))
}

fn bearing(token: String) -> Change<'static> {
    Box::new(move |call| _ = call.secrets.insert(TOKENS.to_owned(), passed_on(&token)))
}

#[test]
fn a_token_of_somebody_else_is_refused() {
    let node = Node::start();
    let pod = &node.pod;
    let (other, elsewhere) = (Pod::new("shop", "web-1", "web"), Pod::new("else", "web-0", "web"));
    let rows: Vec<Row<'_>> = vec![
        ("another pod's", bearing(other.token()), 16, "pod name"),
        ("of another namespace", bearing(elsewhere.token()), 16, "namespace"),
        (
            "of a pod of the same name before it",
            token(pod, |_, claims| claims["kubernetes.io"]["pod"]["uid"] = json!(other.uid)),
            UNAUTHENTICATED,
            "uid",
        ),
        (
            "of another node",
            token(pod, |_, claims| claims["kubernetes.io"]["node"]["name"] = json!("node-2")),
            UNAUTHENTICATED,
            "node",
        ),
        (
            "for another audience",
            token(pod, |_, claims| claims["aud"] = json!(["somebody"])),
            UNAUTHENTICATED,
            "aud lacks",
        ),
        (
            "passed on for another audience only",
            Box::new(|call| {
                let tokens = call.secrets[TOKENS].replace("\"vault\"", "\"else\"");
                call.secrets.insert(TOKENS.to_owned(), tokens);
            }),
            INVALID_ARGUMENT,
            "tokenRequests",
        ),
        (
            "of another issuer",
            token(pod, |_, claims| claims["iss"] = json!("https://else")),
            UNAUTHENTICATED,
            "iss",
        ),
    ];
    refuses(&node, &rows);
}

#[test]
fn a_token_that_this_cluster_did_not_issue_for_now_is_refused() {
    let node = Node::start();
    let pod = &node.pod;
    let own = pod.token();
    let (unsigned, signature) = own.rsplit_once('.').expect("a signature");
    let shift = |claims: &mut Value, by: i64| {
        for claim in ["exp", "iat", "nbf"] {
            let time = claims[claim].as_i64().expect("a time");
            claims[claim] = json!(time + by);
        }
    };
    let signed_by = |name: &'static str| token(pod, move |head, _| head["alg"] = json!(name));
    let other_key = format!("{unsigned}.{}", "A".repeat(86));
    let rows: Vec<Row<'_>> = vec![
        ("that is over", token(pod, |_, claims| shift(claims, -7200)), 16, "expired"),
        ("of tomorrow", token(pod, |_, claims| shift(claims, 7200)), 16, "valid only in"),
        ("without algorithm", signed_by("none"), 16, "alg"),
        ("with a secret's algorithm", signed_by("HS256"), 16, "alg"),
        ("with another key's algorithm", signed_by("RS256"), 16, "alg"),
        ("of an unknown key", token(pod, |head, _| head["kid"] = json!("else")), 16, "kid"),
        ("with no signature", bearing(format!("{unsigned}.")), 16, "token"),
        ("with somebody else's signature", bearing(other_key), 16, "signature"),
        ("that is none", bearing("s3cr3t".to_owned()), 16, "token"),
        (
            "among what no kubelet sends",
            Box::new(|call| _ = call.secrets.insert(TOKENS.to_owned(), "{".to_owned())),
            INVALID_ARGUMENT,
            "kubelet",
        ),
    ];
    refuses(&node, &rows);
    let log = node.agent.process.stderr();
    assert!(!log.contains(signature) && !log.contains("s3cr3t"), "{log}");
    let metrics = node.agent.operator("GET", "/agent/v1/metrics", None).body;
    let counted = |code: &str, count: usize| {
        let line = format!("secrets_broker_csi_publishes_total{{code=\"{code}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    };
    let refused = rows.iter().filter(|row| row.2 == UNAUTHENTICATED).count();
    counted("UNAUTHENTICATED", refused);
    counted("OK", 1);
    // Each is in the audit log, under the pod's name.
    let is_refusal = |line: &&Value| {
        let named = line["identity"].as_str().unwrap_or_default();
        (&line["event"], &line["listener"]) == (&json!("proof"), &json!("csi"))
            && named == format!("pod:shop/web-0@{}", node.pod.uid)
    };
    eventually(LIMIT / 10, "the audit log has each", || {
        node.agent.audit().iter().filter(is_refusal).count() == refused
    });
}

#[test]
fn calls_out_of_order_again_and_of_a_kubelet_that_goes_away_leave_nothing() {
    let node = Node::start();
    let pod = &node.pod;
    runtime().block_on(async {
        let driver = driver(&node).await;
        // Nothing is there yet, and to take nothing away is done at once.
        driver.unpublish(pod, "secrets").await.expect("unpublish before publish");
        for _ in 0..3 {
            driver.publish(pod, "secrets", SECRET).await.expect("publish");
        }
        let changed = [("secret", "secret/shop/web#token"), ("path", "renamed")];
        let refused = driver.publish(pod, "secrets", &changed).await.expect_err("other attributes");
        assert!(refused.message.contains("published already"), "{refused:?}");
        // After a final code the kubelet might forget what is there.
        assert_eq!(refused.code, UNAVAILABLE, "{refused:?}");
        let mut call = driver.request(pod, "secrets", SECRET);
        bearing(Pod::new("shop", "web-1", "web").token())(&mut call);
        let refused = driver.send(&call).await.expect_err("another pod's token");
        assert!(refused.message.contains("pod name"), "{refused:?}");
        assert_eq!(refused.code, UNAVAILABLE, "{refused:?}");
        call = driver.request(pod, "secrets", &[("secrte", "x")]);
        let refused = driver.send(&call).await.expect_err("what is no attribute");
        assert_eq!(refused.code, UNAVAILABLE, "{refused:?}");
        let file = fs::read_to_string(node.volume().join("mount/token"));
        assert_eq!(file.expect("what runs goes on"), "s3cr3t");
        for _ in 0..2 {
            driver.unpublish(pod, "secrets").await.expect("unpublish");
        }
    });
    assert_eq!(node.leftovers(), Vec::<String>::new());

    // The kubelet is gone at some moment of each call; its successor knows the pod is gone as well.
    let mut cut = 0;
    for moment in 0..20 {
        let runtime = runtime();
        let gone = runtime.block_on(async {
            let driver = driver(&node).await;
            let call = driver.request(pod, "secrets", SECRET);
            let moment = Duration::from_micros(200 * moment);
            tokio::time::timeout(moment, driver.send(&call)).await.is_err()
        });
        // With the runtime goes the connection.
        drop(runtime);
        cut += usize::from(gone);
        crate::runtime().block_on(async {
            let driver = driver(&node).await;
            driver.unpublish(pod, "secrets").await.unwrap_or_else(|e| panic!("{gone}: {e:?}"));
        });
        // A call that was given up may still be on its way when the next one is answered.
        eventually(LIMIT / 10, "nothing is left", || node.leftovers().is_empty());
    }
    assert!(cut > 0, "every call was answered in time");
    // Nor does any of them still have its share of the node's memory.
    crate::runtime().block_on(async {
        let driver = driver(&node).await;
        fill(&driver, pod).await;
        for number in 0..8 {
            driver.unpublish(pod, &volume(number)).await.expect("unpublish");
        }
    });
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

/// Eight volumes of a megabyte each fill the node.
async fn fill(driver: &CsiDriver, pod: &Pod) {
    for number in 0..8 {
        driver.publish(pod, &volume(number), SECRET).await.expect("there is room");
    }
}

fn volume(number: usize) -> String {
    format!("volume-{number}")
}

#[test]
fn links_and_a_full_node_are_refused() {
    let node = Node::start();
    let outside = node.dir.path().join("outside");
    fs::create_dir(&outside).expect("create a directory");
    let volumes = node.volume().parent().expect("a parent").to_owned();
    symlink(&outside, volumes.join("linked")).expect("link");
    runtime().block_on(async {
        let driver = driver(&node).await;
        let calls = ["linked", "file"].map(|name| driver.request(&node.pod, name, SECRET));
        fs::remove_dir(volumes.join("file")).expect("remove the kubelet's directory");
        fs::write(volumes.join("file"), "").expect("write a file");
        for call in calls {
            let refused = driver.send(&call).await.expect_err("in the way");
            assert_eq!(refused.code, INTERNAL, "{refused:?}");
            let says = "a symbolic link or a file stands in the way; remove it";
            assert!(refused.message.contains(says), "{refused:?}");
            assert!(is_empty(&outside), "{refused:?}");
            assert_eq!(node.leftovers(), Vec::<String>::new(), "{refused:?}");
        }

        fill(&driver, &node.pod).await;
        let refused = driver.publish(&node.pod, &volume(8), SECRET).await.expect_err("a full node");
        assert_eq!(refused.code, RESOURCE_EXHAUSTED, "{refused:?}");
        assert!(refused.message.contains("raise [csi] volume_bytes_total"), "{refused:?}");
        // What is there is published again all the same, and room that is given back is room.
        driver.publish(&node.pod, &volume(0), SECRET).await.expect("it has its room");
        driver.unpublish(&node.pod, &volume(0)).await.expect("unpublish");
        driver.publish(&node.pod, &volume(8), SECRET).await.expect("there is room again");
        for number in 1..9 {
            driver.unpublish(&node.pod, &volume(number)).await.expect("unpublish");
        }
    });
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).expect("read a directory").next().is_none()
}
