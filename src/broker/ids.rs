//! The core's ids: stand-ins for entries, sessions, effects, bytes and tokens.

use crate::domain::{ConsumerId, LoginIdentity, SecretRef};

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);
    };
}

id_type!(
    /// A cache entry; never reused.
    EntryId
);
id_type!(
    /// A session; never reused.
    SessionId
);
id_type!(
    /// An effect; never reused.
    EffectId
);
id_type!(
    /// Somebody waiting for an answer.
    WaiterId
);
id_type!(
    /// A standing interest of a volume.
    SubscriptionId
);
id_type!(
    /// A local lease.
    LocalKey
);
id_type!(
    /// A token in the store.
    TokenId
);

/// Stands for fetched bytes in the store: their length and keyed fingerprint, never the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId {
    /// Unique in this process.
    pub id: u64,
    /// Length in bytes.
    pub len: usize,
    /// Keyed: equal means equal content within this process.
    pub fingerprint: u64,
}

/// What makes two reads the same read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey {
    /// Source, API path and pinned version.
    pub secret: SecretRef,
    /// Whose identity is used upstream.
    pub login: LoginIdentity,
    /// The owner of a dynamic credential; `None` for what is shared.
    pub consumer: Option<ConsumerId>,
}
