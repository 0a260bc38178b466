//! A JSON Web Key Set: public keys by `kid`, each bound by its type to one algorithm.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::Algorithm;

/// Largest key set read: over a hundred RSA keys of 8192 bits.
pub(super) const JWKS_BYTES_MAX: usize = 256 * 1024;
/// An API server has one key, or a few while they are rotated.
const KEYS_MAX: usize = 64;
/// Sizes of RSA keys that verify anything.
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;

/// Why a key set was refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// Not a JWK set.
    #[error("is not a JSON Web Key Set; it must be what /openid/v1/jwks of the API server answers")]
    Format,
    /// Too many keys.
    #[error("holds more than {KEYS_MAX} keys; name this cluster's keys only")]
    TooMany,
    /// Two keys of one name.
    #[error("holds two keys of one kid; remove one")]
    DuplicateKid,
    /// Keys of other kinds, or weak ones, only.
    #[error(
        "holds no usable key; one of RSA (2048 to 8192 bits), P-256, P-384 or P-521 with a kid is \
         needed"
    )]
    NoUsableKey,
}

/// One public key and the only algorithm it may verify.
pub(super) struct Key {
    algorithm: Algorithm,
    public: ParsedPublicKey,
}

impl Key {
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether this key made the signature, in the fixed-length form for elliptic curves.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        self.public.verify_sig(message, signature).is_ok()
    }
}

/// Public keys by `kid`.
#[derive(Default)]
pub(super) struct KeySet(BTreeMap<String, Key>);

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

/// A key as it is written; which members it needs depends on its type.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a key set. Keys of unknown types, for other purposes, weak or damaged ones are left
    /// out; a set without a usable key is an error.
    pub(super) fn parse(json: &[u8]) -> Result<Self, JwksError> {
        let jwks: Jwks = serde_json::from_slice(json).map_err(|_| JwksError::Format)?;
        if jwks.keys.len() > KEYS_MAX {
            return Err(JwksError::TooMany);
        }
        let mut keys = BTreeMap::new();
        for jwk in &jwks.keys {
            let (Some(kid), Some(key)) = (&jwk.kid, usable(jwk)) else { continue };
            if keys.insert(kid.clone(), key).is_some() {
                return Err(JwksError::DuplicateKid);
            }
        }
        if keys.is_empty() { Err(JwksError::NoUsableKey) } else { Ok(Self(keys)) }
    }

    pub(super) fn get(&self, kid: &str) -> Option<&Key> {
        self.0.get(kid)
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn usable(jwk: &Jwk) -> Option<Key> {
    let key = match jwk.kty.as_str() {
        "RSA" => rsa(jwk)?,
        "EC" => elliptic(jwk)?,
        _ => return None,
    };
    let as_declared = |name: &String| name == key.algorithm.as_str();
    let for_signing = jwk.purpose.as_ref().is_none_or(|purpose| purpose == "sig");
    (for_signing && jwk.alg.as_ref().is_none_or(as_declared)).then_some(key)
}

fn rsa(jwk: &Jwk) -> Option<Key> {
    let (n, e) = (number(jwk.n.as_ref()?)?, number(jwk.e.as_ref()?)?);
    let bits = n.len() * 8 - usize::try_from(n.first()?.leading_zeros()).ok()?;
    // With the exponent 1 everything is its own signature.
    let odd_above_one = e.last()? % 2 == 1 && e != [1];
    if !RSA_BITS.contains(&bits) || !odd_above_one {
        return None;
    }
    let components = RsaPublicKeyComponents { n, e };
    let public = components.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).ok()?;
    Some(Key { algorithm: Algorithm::Rs256, public })
}

fn elliptic(jwk: &Jwk) -> Option<Key> {
    let (algorithm, bytes, verification): (_, usize, &'static dyn VerificationAlgorithm) =
        match jwk.crv.as_deref()? {
            "P-256" => (Algorithm::Es256, 32, &ECDSA_P256_SHA256_FIXED),
            "P-384" => (Algorithm::Es384, 48, &ECDSA_P384_SHA384_FIXED),
            "P-521" => (Algorithm::Es512, 66, &ECDSA_P521_SHA512_FIXED),
            _ => return None,
        };
    let (x, y) = (number(jwk.x.as_ref()?)?, number(jwk.y.as_ref()?)?);
    if x.len() != bytes || y.len() != bytes {
        return None;
    }
    // The uncompressed form; a point that is not on the curve is refused.
    let point = [&[4][..], &x, &y].concat();
    let public = ParsedPublicKey::new(verification, point).ok()?;
    Some(Key { algorithm, public })
}

fn number(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
#[path = "jwks_tests.rs"]
mod tests;
