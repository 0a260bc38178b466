//! What a successful answer says: the envelope's `data` byte for byte, leases and tokens. Pure.

use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::domain::{LeaseId, PathKind, SecretBytes, Token};
use crate::source::{Fetched, LeaseTerms, Login, TokenGrant, TokenKind};

/// Why a successful answer is of no use. Says nothing of its content: serde's own errors quote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Defect {
    /// Not JSON, cut short, or not Vault's envelope.
    NotVault,
    /// An envelope without a `data` object.
    NoData,
    /// A login that wants a second factor.
    Mfa,
    /// A token that ends after this many uses.
    LimitedUses(u64),
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    request_id: Cow<'a, str>,
    #[serde(borrow)]
    lease_id: Option<Cow<'a, str>>,
    lease_duration: Option<u64>,
    renewable: Option<bool>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    auth: Option<Auth<'a>>,
}

#[derive(Deserialize)]
struct Auth<'a> {
    #[serde(borrow)]
    client_token: Cow<'a, str>,
    lease_duration: u64,
    renewable: bool,
    token_type: Option<&'a str>,
    num_uses: Option<u64>,
    mfa_requirement: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct StaticData {
    ttl: Option<u64>,
}

#[derive(Deserialize)]
struct Kv2Data {
    metadata: Kv2Metadata,
}

#[derive(Deserialize)]
struct Kv2Metadata {
    version: u64,
    destroyed: Option<bool>,
}

impl Auth<'_> {
    fn grant(&self) -> TokenGrant {
        TokenGrant { ttl: Duration::from_secs(self.lease_duration), renewable: self.renewable }
    }
}

/// A secret that was read. `kv2` says that `data` may be KV 2's pair of data and metadata.
pub(super) fn fetched(body: &[u8], kind: PathKind, kv2: bool) -> Result<Fetched, Defect> {
    let envelope = envelope(body)?;
    let data = object(envelope.data)?;
    let seconds = envelope.lease_duration.unwrap_or(0);
    let renewable = envelope.renewable.unwrap_or(false);
    let terms = LeaseTerms { duration: Duration::from_secs(seconds), renewable };
    let lease = envelope
        .lease_id
        .filter(|id| !id.is_empty())
        .map(|id| (LeaseId::new(id.into_owned()), terms));
    let version = kv2.then(|| kv2_metadata(data)).flatten().map(|metadata| metadata.version);
    Ok(Fetched {
        lease_duration_hint: if lease.is_some() { 0 } else { seconds },
        lease,
        rotates_in: if kind == PathKind::Static { rotates_in(data) } else { None },
        version,
        request_id: envelope.request_id.into_owned(),
        data: SecretBytes::new(data.as_bytes().to_vec()),
    })
}

/// The new terms of a renewed lease.
pub(super) fn lease_terms(body: &[u8]) -> Result<LeaseTerms, Defect> {
    let envelope = envelope(body)?;
    let duration = envelope.lease_duration.ok_or(Defect::NotVault)?;
    let renewable = envelope.renewable.ok_or(Defect::NotVault)?;
    Ok(LeaseTerms { duration: Duration::from_secs(duration), renewable })
}

/// A session. When the role limits uses, the token comes back beside the defect so it can be ended.
pub(super) fn login(body: &[u8]) -> Result<Login, (Defect, Option<Token>)> {
    let envelope = envelope(body).map_err(|defect| (defect, None))?;
    let auth = envelope.auth.ok_or((Defect::NotVault, None))?;
    if auth.mfa_requirement.is_some() {
        return Err((Defect::Mfa, None));
    }
    let token =
        Token::new(auth.client_token.as_bytes().to_vec()).map_err(|_| (Defect::NotVault, None))?;
    if let Some(uses) = auth.num_uses.filter(|uses| *uses > 0) {
        return Err((Defect::LimitedUses(uses), Some(token)));
    }
    let kind = match auth.token_type {
        Some("batch") => TokenKind::Batch,
        _ => TokenKind::Service,
    };
    Ok(Login { token, terms: auth.grant(), kind })
}

/// The new life of a renewed token.
pub(super) fn token_grant(body: &[u8]) -> Result<TokenGrant, Defect> {
    envelope(body)?.auth.map(|auth| auth.grant()).ok_or(Defect::NotVault)
}

/// Whether an answer without content is Vault's: nothing at all, or its envelope.
pub(super) fn acknowledged(body: &[u8]) -> Result<(), Defect> {
    if body.is_empty() { Ok(()) } else { envelope(body).map(drop) }
}

/// The `data` object of an answer, as text.
pub(super) fn data(body: &[u8]) -> Result<&str, Defect> {
    object(envelope(body)?.data)
}

/// What a KV 2 "404 with data" is about: the version, and whether it was destroyed for good.
pub(super) fn deleted_version(body: &[u8]) -> Option<(u64, bool)> {
    let metadata = kv2_metadata(data(body).ok()?)?;
    Some((metadata.version, metadata.destroyed.unwrap_or(false)))
}

fn envelope(body: &[u8]) -> Result<Envelope<'_>, Defect> {
    serde_json::from_slice(body).map_err(|_| Defect::NotVault)
}

fn object(data: Option<&RawValue>) -> Result<&str, Defect> {
    data.map(RawValue::get).filter(|data| data.starts_with('{')).ok_or(Defect::NoData)
}

fn kv2_metadata(data: &str) -> Option<Kv2Metadata> {
    serde_json::from_str::<Kv2Data>(data).ok().map(|data| data.metadata)
}

fn rotates_in(data: &str) -> Option<Duration> {
    serde_json::from_str::<StaticData>(data).ok()?.ttl.map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(fields: &str) -> Vec<u8> {
        format!(r#"{{"request_id":"id-1","wrap_info":null,"warnings":null,{fields}}}"#).into_bytes()
    }

    #[test]
    fn data_comes_out_byte_for_byte() {
        let data = "{ \"b\" : 1.50,\n \"a\":\"\\u00e9\" }";
        let answer = body(&format!(r#""lease_id":"","lease_duration":2764800,"data":{data}"#));
        let secret = fetched(&answer, PathKind::Kv, false).ok().unwrap();
        assert_eq!(secret.data.expose(), data.as_bytes());
        assert_eq!(secret.lease_duration_hint, 2_764_800);
        assert_eq!(secret.request_id, "id-1");
        assert!(secret.lease.is_none() && secret.version.is_none());
    }

    #[test]
    fn kv2_gives_its_version_and_only_where_it_may_be_kv2() {
        let data = r#"{"data":{"a":"b"},"metadata":{"version":7,"created_time":"2026"}}"#;
        let answer = body(&format!(r#""data":{data}"#));
        let version = |kv2| fetched(&answer, PathKind::Kv, kv2).ok().unwrap().version;
        assert_eq!((version(true), version(false)), (Some(7), None));
    }

    #[test]
    fn a_lease_is_a_lease_only_with_an_id() {
        let fields = r#""lease_id":"db/creds/a/x","lease_duration":60,"renewable":true,"data":{}"#;
        let secret = fetched(&body(fields), PathKind::Minting, false).ok().unwrap();
        let (id, terms) = secret.lease.unwrap();
        assert_eq!(id.expose(), "db/creds/a/x");
        assert_eq!(terms, LeaseTerms { duration: Duration::from_secs(60), renewable: true });
        assert_eq!(secret.lease_duration_hint, 0);
    }

    #[test]
    fn a_static_credential_names_the_time_to_its_rotation() {
        let answer = body(r#""data":{"username":"u","password":"p","ttl":0}"#);
        let ttl = |kind| fetched(&answer, kind, false).ok().unwrap().rotates_in;
        assert_eq!(ttl(PathKind::Static), Some(Duration::ZERO));
        assert_eq!(ttl(PathKind::Minting), None);
    }

    #[test]
    fn what_is_not_an_envelope_is_told_from_an_envelope_without_data() {
        let defect = |body: &[u8]| fetched(body, PathKind::Kv, true).err();
        assert_eq!(defect(b"<html></html>"), Some(Defect::NotVault));
        assert_eq!(defect(b"{\"hello\":1}"), Some(Defect::NotVault));
        assert_eq!(defect(b"{\"request_id\":\"a\",\"data\":{\"a\":\"b"), Some(Defect::NotVault));
        assert_eq!(defect(b""), Some(Defect::NotVault));
        assert_eq!(defect(&body(r#""data":null"#)), Some(Defect::NoData));
        assert_eq!(defect(&body(r#""data":["a"]"#)), Some(Defect::NoData));
    }

    #[test]
    fn a_deleted_version_is_told_from_a_destroyed_one() {
        let answer = |destroyed: bool| {
            let metadata = format!(r#"{{"version":3,"destroyed":{destroyed}}}"#);
            body(&format!(r#""data":{{"data":null,"metadata":{metadata}}}"#))
        };
        assert_eq!(deleted_version(&answer(false)), Some((3, false)));
        assert_eq!(deleted_version(&answer(true)), Some((3, true)));
        assert_eq!(deleted_version(b"{\"errors\":[]}"), None);
    }
}
