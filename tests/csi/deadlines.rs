//! Callers that do not wait for ever, and calls about one volume that come at the same time.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::json;

use crate::cluster::Pod;
use crate::fake_vault::{Answer, FakeVault};
use crate::pod_node::{PodNode, VAULT};
use crate::support::process::eventually;
use crate::{LIMIT, leftovers, runtime, with_secrets};

const SECRET: &[(&str, &str)] = &[("secret", "secret/shop/web#token")];
const UNAVAILABLE: u32 = 14;

#[test]
fn a_caller_hears_why_before_it_gives_up_and_nothing_is_left() {
    let vault = FakeVault::start();
    vault.answer("POST", "/v1/auth/kubernetes/login", Answer::hang());
    let node = PodNode::start("info", &VAULT.replace("{vault}", &vault.url()));
    let pod = Pod::new("shop", "web-0", "web");
    runtime().block_on(async {
        let driver = node.driver().await;
        let request = driver.request(&pod, "secrets", SECRET);
        let began = Instant::now();
        let refused = driver.send_within(&request, "5S").await.expect_err("Vault is silent");
        // Four fifths of its time are waited for the secret; the agent's own limit is 30 s.
        let waited = began.elapsed();
        assert!(waited > Duration::from_millis(3500), "{waited:?}: {refused:?}");
        assert!(waited < Duration::from_secs(15), "{waited:?}: {refused:?}");
        assert_eq!(refused.code, UNAVAILABLE, "{refused:?}");
        assert!(refused.message.contains("not all secrets could be had in time"), "{refused:?}");
    });
    assert_eq!(leftovers(&node.kubelet()), Vec::<String>::new());
}

#[test]
fn calls_about_one_volume_that_cross_each_other_end_as_the_last_one_says() {
    const CALLS: usize = 200;
    let (_dir, config) = with_secrets();
    let node = PodNode::start("info", &config);
    let pod = Pod::new("shop", "web-0", "web");
    runtime().block_on(async {
        let driver = node.driver().await;
        let call = |number: usize| {
            let (driver, pod) = (driver.clone(), &pod);
            async move {
                match number % 3 {
                    2 => driver.unpublish(pod, "secrets").await,
                    _ => driver.publish(pod, "secrets", SECRET).await,
                }
            }
        };
        let calls = futures_util::stream::iter((0..CALLS).map(call)).buffer_unordered(8);
        let refused: Vec<_> = calls.filter_map(async |answer| answer.err()).collect().await;
        assert!(refused.is_empty(), "{refused:?}");
        driver.publish(&pod, "secrets", SECRET).await.expect("the last word is publish");
        let file = std::fs::read_to_string(node.target(&pod, "secrets").join("token"));
        assert_eq!(file.expect("the secret's file"), "s3cr3t");
        driver.unpublish(&pod, "secrets").await.expect("the last word is unpublish");
    });
    eventually(LIMIT / 10, "nothing is left", || leftovers(&node.kubelet()).is_empty());
    let status = node.agent.status();
    assert_eq!(status["volumes"], json!([]), "{status:#}");
}
