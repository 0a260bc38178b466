//! What a cluster signs its tokens with: its public keys and its issuer's name.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::jwks::{JwksError, KeySet};

/// Keys and issuer, replaced together.
#[derive(Default)]
pub(super) struct ClusterKeys {
    issuer: Option<String>,
    keys: KeySet,
}

impl ClusterKeys {
    /// From a key set and the issuer the API server names.
    pub(super) fn new(issuer: Option<String>, jwks: &[u8]) -> Result<Self, JwksError> {
        Ok(Self { issuer, keys: KeySet::parse(jwks)? })
    }

    /// The issuer as the API server named it.
    pub(super) fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }

    pub(super) fn keys(&self) -> &KeySet {
        &self.keys
    }
}

/// The same as it lies on disk. The key set is kept as the API server wrote it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document<'a> {
    issuer: Option<String>,
    #[serde(borrow)]
    jwks: &'a RawValue,
}

impl<'a> Document<'a> {
    /// Of what was fetched.
    pub(super) fn new(issuer: Option<String>, jwks: &'a [u8]) -> Result<Self, JwksError> {
        let jwks = serde_json::from_slice(jwks).map_err(|_| JwksError::Format)?;
        Ok(Self { issuer, jwks })
    }

    /// Of what was kept.
    pub(super) fn parse(json: &'a [u8]) -> Result<Self, JwksError> {
        serde_json::from_slice(json).map_err(|_| JwksError::Format)
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, JwksError> {
        serde_json::to_vec(self).map_err(|_| JwksError::Format)
    }

    pub(super) fn keys(self) -> Result<ClusterKeys, JwksError> {
        ClusterKeys::new(self.issuer, self.jwks.get().as_bytes())
    }
}
