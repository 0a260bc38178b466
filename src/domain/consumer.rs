//! Who a secret is fetched for: the identity used upstream and the consumer that holds an interest.

use std::fmt;
use std::sync::Arc;

/// Whose identity is used upstream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoginIdentity {
    /// The agent's own service account.
    Agent,
}

impl fmt::Display for LoginIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent => f.write_str("agent"),
        }
    }
}

/// Someone who can have a standing interest in a secret, as text for status: `volume:shop`,
/// `uid:1000`.
///
/// A dynamic credential belongs to exactly one consumer unless a rule shares it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId(Arc<str>);

impl ConsumerId {
    /// The consumer that is a declared volume.
    pub fn volume(name: &super::VolumeName) -> Self {
        Self(Arc::from(format!("volume:{name}")))
    }

    /// The consumer that is a user of this host.
    pub fn host_user(uid: u32) -> Self {
        Self(Arc::from(format!("uid:{uid}")))
    }

    /// The consumer as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ConsumerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
