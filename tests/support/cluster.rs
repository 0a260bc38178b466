//! What a cluster would give: its public keys, pods with their tokens, and what the kubelet says of
//! a pod's volume. Include it with `#[path = "support/cluster.rs"]`.
#![allow(dead_code, reason = "each user compiles this and uses a part of it")]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// Who issues pods' tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc";
/// Whom they are meant for.
pub const AUDIENCE: &str = "vault";
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

/// Whose token this is, `namespace:account`, if the cluster signed it.
pub fn reviewed(token: &str) -> Option<String> {
    let (signed, signature) = token.rsplit_once('.')?;
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, KEY.public_key().as_ref());
    key.verify(signed.as_bytes(), &decode(signature)?).ok()?;
    let claims: Value = serde_json::from_slice(&decode(signed.split_once('.')?.1)?).ok()?;
    claims["sub"].as_str()?.strip_prefix("system:serviceaccount:").map(str::to_owned)
}

/// Something that looks like a UUID.
pub fn uid() -> String {
    let digits = format!("{:032x}", fastrand::u128(..));
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    parts.join("-")
}

/// The head of every token.
pub fn header() -> Value {
    json!({ "alg": "ES256", "kid": KEY_ID })
}

/// A token with the cluster's signature, whatever it says.
pub fn signed(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = KEY.sign(&SystemRandom::new(), signed.as_bytes()).expect("sign");
    format!("{signed}.{}", encode(signature.as_ref()))
}

/// A token as the kubelet passes it on.
pub fn passed_on(token: &str) -> String {
    json!({ (AUDIENCE): { "token": token, "expirationTimestamp": "later" } }).to_string()
}

/// A pod of the node.
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub account: String,
    pub account_uid: String,
}

impl Pod {
    /// With an account that no other pod has.
    pub fn new(namespace: &str, name: &str, account: &str) -> Pod {
        let [namespace, name, account] = [namespace, name, account].map(str::to_owned);
        Pod { namespace, name, uid: uid(), account, account_uid: uid() }
    }

    /// The pod's token for Vault.
    pub fn token(&self) -> String {
        signed(&header(), &self.claims())
    }

    /// What the API server says of the pod in its token.
    pub fn claims(&self) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        json!({
            "aud": [AUDIENCE],
            "exp": now + 3600,
            "iat": now,
            "nbf": now,
            "iss": ISSUER,
            "sub": format!("system:serviceaccount:{}:{}", self.namespace, self.account),
            "kubernetes.io": {
                "namespace": self.namespace,
                "node": { "name": "node-1", "uid": "c0ffee00-0000-4000-8000-000000000000" },
                "pod": { "name": self.name, "uid": self.uid },
                "serviceaccount": { "name": self.account, "uid": self.account_uid },
            },
        })
    }

    /// How the kubelet passes tokens on.
    pub fn tokens(&self) -> String {
        passed_on(&self.token())
    }

    /// What the kubelet says of the pod's volume, with the attributes in the pod's manifest.
    pub fn volume_context(&self, attributes: &[(&str, &str)]) -> BTreeMap<String, String> {
        let kubelets = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", &self.name),
            ("csi.storage.k8s.io/pod.namespace", &self.namespace),
            ("csi.storage.k8s.io/pod.uid", &self.uid),
            ("csi.storage.k8s.io/serviceAccount.name", &self.account),
        ];
        let all = kubelets.iter().chain(attributes);
        all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }
}
