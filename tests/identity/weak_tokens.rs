//! Verifiers of tokens with the usual mistakes: each leaves one thing out and judges all the rest
//! as it should be, so it believes a forged token only if nothing else is wrong with that.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::cluster;
use crate::place::{NODE, victim};
use crate::weak::Weakness;

/// Beside them: who is placed in the victim's container needs no token there.
pub(crate) const NEEDS_NONE: Weakness = "needs no token";
pub(crate) const UNSIGNED: Weakness = "reads claims without a signature";
pub(crate) const ALGORITHM: Weakness = "lets the token choose its algorithm";
pub(crate) const KEY: Weakness = "takes any kid";
pub(crate) const POD: Weakness = "takes any pod's token";
pub(crate) const UID: Weakness = "knows pods by their names";
pub(crate) const NAMESPACE: Weakness = "knows no namespaces";
pub(crate) const ACCOUNT: Weakness = "knows no accounts";
pub(crate) const ACCOUNT_UID: Weakness = "knows accounts by their names";
pub(crate) const SUBJECT: Weakness = "reads no sub";
pub(crate) const NODES: Weakness = "takes any node's token";
pub(crate) const AUDIENCE: Weakness = "takes tokens for anybody";
pub(crate) const ISSUER: Weakness = "takes any issuer's token";
pub(crate) const CLOCK: Weakness = "has no clock";

/// How a signature is judged.
#[derive(Clone, Copy)]
enum Signature {
    /// By the key's own algorithm and under its own name, as it should be.
    Checked,
    NotAsked,
    AsTheTokenSays,
    OfAnyName,
}

/// A mistake: how it judges signatures, and the claims that it does not compare.
type Mistake = (Weakness, Signature, &'static [&'static str]);

const MISTAKES: [Mistake; 13] = [
    (UNSIGNED, Signature::NotAsked, &[]),
    (ALGORITHM, Signature::AsTheTokenSays, &[]),
    (KEY, Signature::OfAnyName, &[]),
    (POD, Signature::Checked, &["pod name", "pod uid", "namespace", "account"]),
    (UID, Signature::Checked, &["pod uid"]),
    (NAMESPACE, Signature::Checked, &["namespace"]),
    (ACCOUNT, Signature::Checked, &["account"]),
    (ACCOUNT_UID, Signature::Checked, &["account uid"]),
    (SUBJECT, Signature::Checked, &["sub"]),
    (NODES, Signature::Checked, &["node"]),
    (AUDIENCE, Signature::Checked, &["aud"]),
    (ISSUER, Signature::Checked, &["iss"]),
    (CLOCK, Signature::Checked, &["exp", "nbf"]),
];

/// Which mistakes take the token for the victim's.
pub(crate) fn believed(token: &str) -> Vec<Weakness> {
    let falls = |(_, signature, ignored): &&Mistake| holds(token, *signature, ignored);
    MISTAKES.iter().filter(falls).map(|(name, ..)| *name).collect()
}

/// Whether it is the victim's, with no mistake made.
pub(crate) fn is_the_victims(token: &str) -> bool {
    holds(token, Signature::Checked, &[])
}

fn holds(token: &str, signature: Signature, ignored: &[&str]) -> bool {
    let Some(claims) = authentic(token, signature) else { return false };
    let (kubernetes, pod) = (&claims["kubernetes.io"], victim());
    let (namespace, account) = (&kubernetes["namespace"], &kubernetes["serviceaccount"]);
    let named = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let subject = format!("system:serviceaccount:{}:{}", named(namespace), named(&account["name"]));
    let audiences = claims["aud"].as_array();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let comparisons = [
        ("aud", audiences.is_some_and(|all| all.contains(&json!(cluster::AUDIENCE)))),
        ("iss", claims["iss"] == cluster::ISSUER),
        ("exp", claims["exp"].as_u64().is_some_and(|at| now < at)),
        ("nbf", claims["nbf"].as_u64().is_some_and(|at| at <= now)),
        ("sub", claims["sub"] == subject),
        ("node", kubernetes["node"]["name"] == NODE),
        ("pod name", kubernetes["pod"]["name"] == pod.name.as_str()),
        ("pod uid", kubernetes["pod"]["uid"] == pod.uid.as_str()),
        ("namespace", *namespace == pod.account.namespace.as_str()),
        ("account", account["name"] == pod.account.name.as_str()),
        ("account uid", account["uid"] == pod.account.uid.as_str()),
    ];
    comparisons.into_iter().all(|(claim, same)| same || ignored.contains(&claim))
}

/// The claims, if the signature is good enough.
fn authentic(token: &str, judged: Signature) -> Option<Value> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
    let (signature, signed) = (decode(signature)?, signed.as_bytes());
    let good = cluster::header();
    let (algorithm, kid) = (header["alg"] == good["alg"], header["kid"] == good["kid"]);
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public_key());
    let by_the_key = key.verify(signed, &signature).is_ok();
    let believed = match judged {
        Signature::Checked => algorithm && kid && by_the_key,
        Signature::NotAsked => true,
        Signature::OfAnyName => algorithm && by_the_key,
        Signature::AsTheTokenSays => match header["alg"].as_str()? {
            "none" => true,
            "HS256" => public_mac(signed) == signature,
            _ => kid && by_the_key,
        },
    };
    serde_json::from_slice(&decode(claims)?).ok().filter(|_| believed)
}

/// The cluster's public key, a point, from what everybody may read.
fn public_key() -> Vec<u8> {
    let keys = cluster::key_set();
    let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(keys["keys"][0][name].as_str().unwrap());
    // The byte says that both follow.
    [vec![4], coordinate("x").unwrap(), coordinate("y").unwrap()].concat()
}

/// What anybody can make who takes the public key for a secret.
pub(crate) fn public_mac(signed: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&public_key()).unwrap();
    mac.update(signed);
    mac.finalize().into_bytes().to_vec()
}
