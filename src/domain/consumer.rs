//! Who a secret is fetched for: the identity used upstream and the consumer that holds an interest.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::ServiceAccount;

/// Longest Vault role; Vault itself states no bound.
const ROLE_BYTES_MAX: usize = 255;

/// Whose identity is used upstream. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoginIdentity {
    /// The agent's own service account.
    Agent,
    /// A pod's service account: this node's pods of the same account share what is shared.
    ServiceAccount(Arc<AccountLogin>),
}

/// How a pod's service account logs in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountLogin {
    /// The account.
    pub account: ServiceAccount,
    /// The role its pod asked for and the configuration permits; `None` is the configured pattern.
    pub role: Option<VaultRole>,
}

impl LoginIdentity {
    /// The identity of a pod's service account.
    pub fn service_account(account: ServiceAccount, role: Option<VaultRole>) -> Self {
        Self::ServiceAccount(Arc::new(AccountLogin { account, role }))
    }
}

impl fmt::Display for LoginIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent => f.write_str("agent"),
            Self::ServiceAccount(login) => {
                write!(f, "service account {}", login.account)?;
                login.role.as_ref().map_or(Ok(()), |role| write!(f, " as role {role}"))
            }
        }
    }
}

/// The name of a role of Vault's Kubernetes auth method.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VaultRole(Arc<str>);

/// Why a role's name was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a Vault role has 1 to {ROLE_BYTES_MAX} letters, digits, '-', '_' and '.', none of '-' and '.' \
     at an end"
)]
pub struct VaultRoleError;

impl FromStr for VaultRole {
    type Err = VaultRoleError;

    /// What Vault's own `GenericNameRegex` accepts, in ASCII.
    fn from_str(name: &str) -> Result<Self, VaultRoleError> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let ends_well = name.starts_with(is_word) && name.ends_with(is_word);
        let allowed = name.chars().all(|c| is_word(c) || matches!(c, '-' | '.'));
        if ends_well && allowed && name.len() <= ROLE_BYTES_MAX {
            Ok(Self(Arc::from(name)))
        } else {
            Err(VaultRoleError)
        }
    }
}

impl VaultRole {
    /// The name as Vault knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VaultRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
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

    /// The consumer that is a pod on the node's socket.
    pub fn pod(pod: &super::Pod) -> Self {
        Self(Arc::from(format!("pod:{pod}@{}", pod.uid)))
    }

    /// Any pod of a service account, where somebody asks what policy would decide about one.
    pub fn supposed_pod(account: &ServiceAccount) -> Self {
        Self(Arc::from(format!("pod:{account}")))
    }

    /// Everybody on this node who runs as a service account, where a rule shares among them.
    pub fn service_account(account: &ServiceAccount) -> Self {
        Self(Arc::from(format!("serviceaccount:{account}@{}", account.uid)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_a_name_vault_would_route_to_the_role_itself() {
        for good in ["shop", "shop-web", "a.b_c", "7", "_x"] {
            assert!(good.parse::<VaultRole>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a/b", "a b", "../x", "a%2f", "é", &"a".repeat(256)] {
            assert!(bad.parse::<VaultRole>().is_err(), "{bad}");
        }
    }
}
