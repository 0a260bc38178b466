//! What a cluster would give: its public keys, a pod's token, and what the kubelet says of the pod.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

pub const POD_UID: &str = "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab";
const KEY_ID: &str = "tests";

static KEY: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("make a key"));

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The cluster's public keys, as its API server publishes them.
pub fn key_set() -> Value {
    // An uncompressed point: a byte that says so, then both coordinates.
    let (x, y) = KEY.public_key().as_ref()[1..].split_at(32);
    json!({ "keys": [{
        "use": "sig", "kty": "EC", "kid": KEY_ID, "alg": "ES256", "crv": "P-256",
        "x": encode(x), "y": encode(y),
    }] })
}

/// The pod's token for Vault.
pub fn token() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let header = json!({ "alg": "ES256", "kid": KEY_ID });
    let claims = json!({
        "aud": ["vault"],
        "exp": now + 3600,
        "iat": now,
        "nbf": now,
        "iss": "https://kubernetes.default.svc",
        "sub": "system:serviceaccount:shop:web",
        "kubernetes.io": {
            "namespace": "shop",
            "node": { "name": "node-1", "uid": "c0ffee00-0000-4000-8000-000000000000" },
            "pod": { "name": "web-0", "uid": POD_UID },
            "serviceaccount": { "name": "web", "uid": "11111111-2222-4333-8444-555555555555" },
        },
    });
    let part = |value: Value| encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = KEY.sign(&SystemRandom::new(), signed.as_bytes()).expect("sign");
    format!("{signed}.{}", encode(signature.as_ref()))
}

/// What the kubelet and the pod's manifest say of its volume, which holds this secret.
pub fn volume_context(secret: &str) -> Value {
    json!({
        "csi.storage.k8s.io/ephemeral": "true",
        "csi.storage.k8s.io/pod.name": "web-0",
        "csi.storage.k8s.io/pod.namespace": "shop",
        "csi.storage.k8s.io/pod.uid": POD_UID,
        "csi.storage.k8s.io/serviceAccount.name": "web",
        "secret": secret,
    })
}
