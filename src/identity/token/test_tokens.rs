//! Keys and tokens as an API server makes them, and as an attacker would like to.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::cluster_keys::ClusterKeys;
use super::{Algorithm, Expectations, PodInfo};
use crate::domain::Token;

pub(super) const NOW: u64 = 1_900_000_000;
pub(super) const ISSUER: &str = "https://kubernetes.default.svc";
pub(super) const POD_UID: &str = "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab";
pub(super) const ACCOUNT_UID: &str = "11111111-2222-4333-8444-555555555555";

pub(super) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// A key pair of a cluster.
pub(super) struct Signer {
    pub(super) algorithm: Algorithm,
    pub(super) kid: &'static str,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    Elliptic(EcdsaKeyPair),
}

/// The pair of this cluster for an algorithm; made once, because RSA takes its time.
pub(super) fn signer(algorithm: Algorithm) -> &'static Signer {
    static ALL: LazyLock<Vec<Signer>> = LazyLock::new(|| {
        let kids = ["key-rsa", "key-256", "key-384", "key-521"];
        Algorithm::ALL.into_iter().zip(kids).map(|(a, kid)| Signer::new(a, kid)).collect()
    });
    ALL.iter().find(|signer| signer.algorithm == algorithm).unwrap()
}

impl Signer {
    pub(super) fn new(algorithm: Algorithm, kid: &'static str) -> Self {
        let elliptic = |curve| Pair::Elliptic(EcdsaKeyPair::generate(curve).unwrap());
        let pair = match algorithm {
            Algorithm::Rs256 => Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
            Algorithm::Es256 => elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::Es384 => elliptic(&ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::Es512 => elliptic(&ECDSA_P521_SHA512_FIXED_SIGNING),
        };
        Self { algorithm, kid, pair }
    }

    /// As it is published.
    pub(super) fn jwk(&self) -> Value {
        let (kid, alg) = (self.kid, self.algorithm.as_str());
        let public = self.public();
        match self.algorithm {
            Algorithm::Rs256 => {
                let [n, e] = integers(&public);
                json!({ "use": "sig", "kty": "RSA", "kid": kid, "alg": alg,
                        "n": encode(n), "e": encode(e) })
            }
            elliptic => {
                let crv = match elliptic {
                    Algorithm::Es256 => "P-256",
                    Algorithm::Es384 => "P-384",
                    _ => "P-521",
                };
                let (x, y) = public[1..].split_at((public.len() - 1) / 2);
                json!({ "use": "sig", "kty": "EC", "kid": kid, "alg": alg, "crv": crv,
                        "x": encode(x), "y": encode(y) })
            }
        }
    }

    /// The public key's bytes: PKCS #1 for RSA, an uncompressed point for the others.
    pub(super) fn public(&self) -> Vec<u8> {
        match &self.pair {
            Pair::Rsa(pair) => pair.public_key().as_ref().to_vec(),
            Pair::Elliptic(pair) => pair.public_key().as_ref().to_vec(),
        }
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Pair::Elliptic(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
        }
    }

    /// The header an API server writes.
    pub(super) fn header(&self) -> Value {
        json!({ "alg": self.algorithm.as_str(), "kid": self.kid })
    }

    /// A token with this header and payload, whatever they are.
    pub(super) fn token_of(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", encode(header.as_bytes()), encode(payload.as_bytes()));
        let signature = encode(&self.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    /// A token with these claims.
    pub(super) fn token(&self, claims: &Value) -> String {
        self.token_of(&self.header().to_string(), &claims.to_string())
    }
}

pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn token(text: &str) -> Token {
    Token::new(text.as_bytes().to_vec()).unwrap()
}

/// What the API server signs for the pod of [`info`].
pub(super) fn claims() -> Value {
    json!({
        "aud": ["vault"],
        "exp": NOW + 600,
        "iat": NOW - 60,
        "iss": ISSUER,
        "jti": "0f7b8f3e-29a2-4a62-8a8c-6c2cb7ad2b8e",
        "kubernetes.io": {
            "namespace": "shop",
            "node": { "name": "node-1", "uid": "c0ffee00-0000-4000-8000-000000000000" },
            "pod": { "name": "web-0", "uid": POD_UID },
            "serviceaccount": { "name": "web", "uid": ACCOUNT_UID },
        },
        "nbf": NOW - 60,
        "sub": "system:serviceaccount:shop:web",
    })
}

/// [`claims`] with one of them changed, by its JSON pointer.
pub(super) fn claims_with(pointer: &str, value: Value) -> Value {
    let mut changed = claims();
    *changed.pointer_mut(pointer).unwrap() = value;
    changed
}

/// [`claims`] without one of them.
pub(super) fn claims_without(parent: &str, member: &str) -> Value {
    let mut changed = claims();
    changed.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(member).unwrap();
    changed
}

pub(super) fn info() -> PodInfo {
    PodInfo {
        namespace: "shop".parse().unwrap(),
        pod: "web-0".parse().unwrap(),
        uid: POD_UID.parse().unwrap(),
        service_account: "web".parse().unwrap(),
        account_uid_before: Some(ACCOUNT_UID.parse().unwrap()),
    }
}

pub(super) fn expectations() -> Expectations {
    Expectations {
        issuers: vec![ISSUER.to_owned()],
        audience: "vault".to_owned(),
        algorithms: Algorithm::ALL.to_vec(),
        node: "node-1".parse().unwrap(),
    }
}

pub(super) fn jwks(signers: &[&Signer]) -> String {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({ "keys": keys }).to_string()
}

/// The cluster with all four keys.
pub(super) fn cluster() -> &'static ClusterKeys {
    static CLUSTER: LazyLock<ClusterKeys> = LazyLock::new(|| {
        let all = Algorithm::ALL.map(signer);
        ClusterKeys::new(None, jwks(&all).as_bytes()).unwrap()
    });
    &CLUSTER
}

/// Modulus and exponent of a PKCS #1 public key.
fn integers(der: &[u8]) -> [&[u8]; 2] {
    let (n_and_e, _) = der_value(der);
    let (n, rest) = der_value(n_and_e);
    let (e, _) = der_value(rest);
    [n, e].map(|number| if number[0] == 0 { &number[1..] } else { number })
}

/// The value of the first DER element, and what follows it.
fn der_value(der: &[u8]) -> (&[u8], &[u8]) {
    let (head, len) = match usize::from(der[1]) {
        short @ ..0x80 => (2, short),
        long => {
            let bytes = &der[2..2 + (long & 0x7f)];
            (2 + bytes.len(), bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)))
        }
    };
    der[head..].split_at(len)
}
