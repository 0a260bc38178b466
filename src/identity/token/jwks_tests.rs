//! Which keys of a set may verify anything.

use serde_json::{Value, json};

use super::super::Algorithm;
use super::super::test_tokens::{Signer, encode, jwks, signer};
use super::*;

fn set(keys: &[Value]) -> Result<KeySet, JwksError> {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
}

fn with(mut jwk: Value, member: &str, value: Value) -> Value {
    jwk[member] = value;
    jwk
}

#[test]
fn each_type_of_key_is_bound_to_its_algorithm_and_verifies_only_its_own_signatures() {
    let all = Algorithm::ALL.map(signer);
    let keys = KeySet::parse(jwks(&all).as_bytes()).ok().unwrap();
    assert_eq!(keys.len(), 4);
    for by in all {
        let signature = by.sign(b"message");
        for key in all {
            let verified = keys.get(key.kid).unwrap().signed(b"message", &signature);
            assert_eq!(verified, key.kid == by.kid, "{} by {}", key.kid, by.kid);
        }
        let key = keys.get(by.kid).unwrap();
        assert_eq!(key.algorithm(), by.algorithm);
        assert!(!key.signed(b"Message", &signature));
        assert!(!key.signed(b"message", &signature[1..]) && !key.signed(b"message", &[]));
        // Zero is a signature of everything where r and s are not checked.
        assert!(!key.signed(b"message", &vec![0; signature.len()]));
    }
}

#[test]
fn keys_that_are_weak_damaged_or_for_something_else_are_left_out() {
    let rsa = signer(Algorithm::Rs256).jwk();
    let elliptic = signer(Algorithm::Es256).jwk();
    let mut short = vec![0xff; 256];
    short[0] = 0x7f;
    let left_out = [
        with(rsa.clone(), "n", json!(encode(&short))),
        with(rsa.clone(), "n", json!(encode(&[0xff; 128]))),
        with(rsa.clone(), "n", json!("")),
        with(rsa.clone(), "n", json!("not base64!")),
        with(rsa.clone(), "e", json!(encode(&[1]))),
        with(rsa.clone(), "alg", json!("RS512")),
        with(rsa.clone(), "alg", json!("HS256")),
        with(rsa.clone(), "use", json!("enc")),
        with(rsa.clone(), "kty", json!("EC")),
        with(rsa, "kid", Value::Null),
        with(elliptic.clone(), "crv", json!("P-384")),
        with(elliptic.clone(), "crv", json!("secp256k1")),
        with(elliptic.clone(), "x", json!(encode(&[7; 32]))),
        with(elliptic.clone(), "y", json!(encode(&[7; 33]))),
        with(elliptic.clone(), "alg", json!("ES384")),
        json!({ "kty": "oct", "kid": "secret", "k": encode(b"secret"), "alg": "HS256" }),
        json!({ "kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": encode(&[7; 32]) }),
    ];
    for key in &left_out {
        assert_eq!(set(std::slice::from_ref(key)).err(), Some(JwksError::NoUsableKey), "{key}");
        let other = signer(Algorithm::Es384).jwk();
        assert_eq!(set(&[key.clone(), other]).ok().unwrap().len(), 1, "{key}");
    }
    assert_eq!(set(&[with(elliptic, "alg", Value::Null)]).ok().unwrap().len(), 1);
}

#[test]
fn a_set_that_is_ambiguous_huge_or_none_is_refused() {
    let key = signer(Algorithm::Es256).jwk();
    let twin = Signer::new(Algorithm::Es256, signer(Algorithm::Es256).kid).jwk();
    assert_eq!(set(&[key.clone(), twin]).err(), Some(JwksError::DuplicateKid));
    let many: Vec<Value> =
        (0..=KEYS_MAX).map(|kid| with(key.clone(), "kid", json!(kid.to_string()))).collect();
    assert_eq!(set(&many[1..]).ok().unwrap().len(), KEYS_MAX);
    assert_eq!(set(&many).err(), Some(JwksError::TooMany));
    for none in ["", "[]", "{}", "{\"keys\":{}}", "{\"keys\":[1]}", "<html>"] {
        assert_eq!(KeySet::parse(none.as_bytes()).err(), Some(JwksError::Format), "{none}");
    }
    assert_eq!(set(&[]).err(), Some(JwksError::NoUsableKey));
}
