//! What of a TokenReview's answer is believed.

use serde_json::{Value, json};

use super::super::test_tokens::{ACCOUNT_UID, POD_UID};
use super::*;

fn answer() -> Value {
    json!({
        "authenticated": true,
        "audiences": ["vault"],
        "user": {
            "username": "system:serviceaccount:shop:web",
            "uid": ACCOUNT_UID,
            "groups": ["system:serviceaccounts"],
            "extra": { POD_NAME: ["web-0"], POD_UID_KEY: [POD_UID], NODE_NAME: ["node-1"] },
        },
    })
}

const POD_UID_KEY: &str = super::POD_UID;

fn judged(answer: &Value) -> Result<(Pod, NodeName), TokenRefused> {
    vouched_for(&serde_json::from_value(answer.clone()).unwrap(), "vault")
}

#[test]
fn an_answer_that_says_yes_names_the_pod_its_account_and_its_node() {
    let (pod, node) = judged(&answer()).unwrap();
    assert_eq!((pod.to_string().as_str(), node.as_str()), ("shop/web-0", "node-1"));
    assert_eq!((pod.uid.as_str(), pod.account.uid.as_str()), (POD_UID, ACCOUNT_UID));
}

#[test]
fn an_answer_that_lacks_anything_proves_nothing() {
    let with = |pointer: &str, value: Value| {
        let mut changed = answer();
        *changed.pointer_mut(pointer).unwrap() = value;
        judged(&changed).err().unwrap_or_else(|| panic!("{pointer} was believed"))
    };
    use TokenRefused as T;
    assert!(matches!(with("/authenticated", json!(false)), T::NotAuthenticated));
    assert!(matches!(with("/authenticated", Value::Null), T::NotAuthenticated));
    let mut failed = answer();
    failed["error"] = json!("service account has been deleted");
    assert!(matches!(judged(&failed), Err(T::NotAuthenticated)));
    for audiences in [json!(null), json!([]), json!(["https://kubernetes.default.svc"])] {
        assert!(matches!(with("/audiences", audiences), T::Audience(_)));
    }
    for user in
        ["admin", "system:node:node-1", "system:serviceaccount:shop", "system:serviceaccount:a:b:c"]
    {
        assert!(matches!(with("/user/username", json!(user)), T::Claims(_)), "{user}");
    }
    assert!(matches!(with("/user/uid", Value::Null), T::Claims(_)));
    assert!(matches!(with("/user", Value::Null), T::Review(_)));
    for key in [POD_NAME, POD_UID_KEY, NODE_NAME] {
        let pointer = format!("/user/extra/{}", key.replace('/', "~1"));
        for value in [json!([]), json!(["a", "b"]), json!(["../a"])] {
            assert!(matches!(with(&pointer, value), T::Claims(_)), "{key}");
        }
    }
}
