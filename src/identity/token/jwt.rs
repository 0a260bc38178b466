//! A compact JWS from bytes to a checked signature: no claim exists before the signature holds.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::claims::Claims;
use super::jwks::KeySet;
use super::{Algorithm, TokenRefused};
use crate::domain::Token;

/// Ten times what the API server issues for one audience.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Longest `kid`, as the API server bounds those of its external signers.
const KID_BYTES_MAX: usize = 1024;

/// What the API server writes in front, and nothing else: a `crit`, a key or a place to fetch one
/// from is an unknown field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
    typ: Option<String>,
}

/// A token that was taken apart and proves nothing.
pub(super) struct Unverified<'a> {
    /// The very bytes the signature is over: header, dot and payload as they came.
    signed: &'a [u8],
    payload: &'a str,
    signature: Vec<u8>,
    algorithm: Algorithm,
    kid: String,
}

/// The payload of a token whose signature holds.
pub(super) struct Verified {
    payload: Vec<u8>,
}

impl<'a> Unverified<'a> {
    /// Takes the token apart and reads its header.
    pub(super) fn parse(token: &'a Token) -> Result<Self, TokenRefused> {
        let text = token.expose();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenRefused::TooLong(TOKEN_BYTES_MAX));
        }
        let mut parts = text.split('.');
        let three = (parts.next(), parts.next(), parts.next(), parts.next());
        let (Some(header), Some(payload), Some(signature), None) = three else {
            return Err(TokenRefused::Malformed("does not have three parts"));
        };
        let header: Header = object(&decode(header)?)
            .ok_or(TokenRefused::Malformed("has a header that is not alg, kid and typ alone"))?;
        let algorithm = header.alg.parse().map_err(|_| TokenRefused::Algorithm)?;
        if header.typ.is_some_and(|typ| typ != "JWT") {
            return Err(TokenRefused::Malformed("is of another typ than JWT"));
        }
        if header.kid.len() > KID_BYTES_MAX {
            return Err(TokenRefused::Malformed("has an over-long kid"));
        }
        let signature = decode(signature)?;
        let signed = &text.as_bytes()[..text.rfind('.').unwrap_or_default()];
        Ok(Self { signed, payload, signature, algorithm, kid: header.kid })
    }

    /// Checks the signature with the key its `kid` names.
    pub(super) fn verify(
        self,
        keys: &KeySet,
        accepted: &[Algorithm],
    ) -> Result<Verified, TokenRefused> {
        if !accepted.contains(&self.algorithm) {
            return Err(TokenRefused::Algorithm);
        }
        let key = keys.get(&self.kid).ok_or(TokenRefused::UnknownKey)?;
        if key.algorithm() != self.algorithm {
            return Err(TokenRefused::KeyOfAnotherType(key.algorithm()));
        }
        if !key.signed(self.signed, &self.signature) {
            return Err(TokenRefused::Signature);
        }
        self.trusted()
    }

    /// For a token that the API server itself has just authenticated, whole, in a TokenReview.
    pub(super) fn reviewed(self) -> Result<Verified, TokenRefused> {
        self.trusted()
    }

    fn trusted(self) -> Result<Verified, TokenRefused> {
        Ok(Verified { payload: decode(self.payload)? })
    }
}

impl Verified {
    /// What the issuer says.
    pub(super) fn claims(&self) -> Result<Claims, TokenRefused> {
        object(&self.payload)
            .ok_or(TokenRefused::Claims("are not those of a pod's service-account token"))
    }
}

/// One spelling only: no padding, no line ends, no stray bits at the end.
fn decode(part: &str) -> Result<Vec<u8>, TokenRefused> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| TokenRefused::Malformed("is not base64url without padding"))
}

/// A JSON object; serde would also fill a struct from an array.
fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    if json.first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice(json).ok()
}
