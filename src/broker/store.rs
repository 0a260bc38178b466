//! The bytes, tokens and lease ids that the core's opaque ids stand for. Owned by the broker task.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use bytes::Bytes;

use super::{DataView, shared_bytes};
use crate::broker::event::{FetchedValue, TokenId, ValueId};
use crate::domain::{LeaseId, SecretBytes, Token};
use crate::source::Fetched;

/// What is held in clear, and nothing else is.
pub(super) struct Store {
    values: HashMap<u64, Stored>,
    tokens: HashMap<TokenId, Arc<Token>>,
    next_id: u64,
    /// Keyed at random per process: fingerprints tell nothing outside it.
    fingerprints: RandomState,
}

struct Stored {
    envelope: Bytes,
    data: std::ops::Range<usize>,
    lease: Option<Arc<LeaseId>>,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            values: HashMap::new(),
            tokens: HashMap::new(),
            next_id: 1,
            fingerprints: RandomState::new(),
        }
    }

    /// Takes a read secret in; the core gets its stand-in.
    pub(super) fn keep(&mut self, fetched: Fetched) -> FetchedValue {
        let id = self.next_id;
        self.next_id += 1;
        let value = ValueId {
            id,
            len: fetched.data.len(),
            fingerprint: self.fingerprints.hash_one(fetched.data.expose()),
        };
        let (envelope, data) = envelope_around(&fetched);
        let (lease, terms) =
            fetched.lease.map_or((None, None), |(id, terms)| (Some(Arc::new(id)), Some(terms)));
        self.values.insert(id, Stored { envelope: shared_bytes(envelope), data, lease });
        FetchedValue {
            value,
            lease: terms,
            rotates_in: fetched.rotates_in,
            version: fetched.version,
        }
    }

    pub(super) fn view(&self, value: ValueId) -> Option<DataView> {
        let stored = self.values.get(&value.id)?;
        Some(DataView::new(stored.envelope.clone(), stored.data.clone()))
    }

    pub(super) fn lease(&self, value: ValueId) -> Option<Arc<LeaseId>> {
        self.values.get(&value.id)?.lease.clone()
    }

    pub(super) fn drop_value(&mut self, value: ValueId) {
        self.values.remove(&value.id);
    }

    pub(super) fn keep_token(&mut self, token: Token) -> TokenId {
        let id = TokenId(self.next_id);
        self.next_id += 1;
        self.tokens.insert(id, Arc::new(token));
        id
    }

    pub(super) fn token(&self, id: TokenId) -> Option<Arc<Token>> {
        self.tokens.get(&id).cloned()
    }

    pub(super) fn drop_token(&mut self, id: TokenId) {
        self.tokens.remove(&id);
    }
}

/// Vault's reply envelope around `data`, as an unleased read has it; absent parts are null or zero.
fn envelope_around(fetched: &Fetched) -> (SecretBytes, std::ops::Range<usize>) {
    let head = format!(
        r#"{{"request_id":"{}","lease_id":"","renewable":false,"lease_duration":{},"data":"#,
        fetched.request_id.escape_default(),
        fetched.lease_duration_hint
    );
    let tail = r#","wrap_info":null,"warnings":null,"auth":null}"#;
    let data = fetched.data.expose();
    let mut body = Vec::with_capacity(head.len() + data.len() + tail.len() + 1);
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(data);
    body.extend_from_slice(tail.as_bytes());
    body.push(b'\n');
    (SecretBytes::new(body), head.len()..head.len() + data.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(data: &[u8]) -> Fetched {
        Fetched {
            data: SecretBytes::new(data.to_vec()),
            lease: None,
            lease_duration_hint: 7,
            rotates_in: None,
            version: None,
            request_id: "r-1".to_owned(),
        }
    }

    #[test]
    fn one_allocation_holds_the_envelope_and_the_data_inside_it() {
        let mut store = Store::new();
        let value = store.keep(fetched(br#"{"a":"b"}"#)).value;
        let view = store.view(value).unwrap();
        assert_eq!(view.expose(), br#"{"a":"b"}"#);
        let body: serde_json::Value = serde_json::from_slice(&view.body()).unwrap();
        assert_eq!(body["data"]["a"], "b");
        assert_eq!(body["lease_duration"], 7);
        assert_eq!(body["auth"], serde_json::Value::Null);
    }

    #[test]
    fn equal_content_has_equal_fingerprints_and_only_that() {
        let mut store = Store::new();
        let a = store.keep(fetched(b"{}")).value;
        let b = store.keep(fetched(b"{}")).value;
        let c = store.keep(fetched(b"[]")).value;
        assert_eq!(a.fingerprint, b.fingerprint);
        assert_ne!(a.fingerprint, c.fingerprint);
        store.drop_value(a);
        assert!(store.view(a).is_none() && store.view(b).is_some());
    }
}
