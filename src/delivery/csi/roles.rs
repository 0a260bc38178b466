//! Which Vault roles a pod may choose in place of the configured pattern. Pure.

use std::str::FromStr;

use super::attributes::Attributes;
use crate::domain::{ServiceAccount, VaultRole};

/// A pattern over role names: `*` is any run of characters, `{namespace}` and `{serviceaccount}`
/// are the pod's own names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRole(String);

/// Why a pattern was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no pattern over role names: write letters, digits, '-', '_', '.', '*', {{namespace}} and \
     {{serviceaccount}}"
)]
pub struct TenantRoleError;

impl FromStr for TenantRole {
    type Err = TenantRoleError;

    fn from_str(text: &str) -> Result<Self, TenantRoleError> {
        let sample = fill(text, "a", "a").replace('*', "a");
        sample.parse::<VaultRole>().map_err(|_| TenantRoleError)?;
        Ok(Self(text.to_owned()))
    }
}

impl TenantRole {
    /// Whether a pod of this account may log in with this role, if Vault agrees.
    pub fn permits(&self, role: &VaultRole, account: &ServiceAccount) -> bool {
        let pattern = fill(&self.0, account.namespace.as_str(), account.name.as_str());
        matches(&pattern, role.as_str())
    }
}

/// Whether pods of this account may have the role their attributes name, if they name one.
pub fn check_role(
    permitted: &[TenantRole],
    attributes: &Attributes,
    account: &ServiceAccount,
) -> Result<(), String> {
    let Some(role) = &attributes.role else { return Ok(()) };
    if permitted.iter().any(|pattern| pattern.permits(role, account)) {
        return Ok(());
    }
    Err(format!(
        "role: pods of {account} may not choose '{role}'; remove role, or ask the operator of \
         this agent for [csi] tenant_roles"
    ))
}

fn fill(pattern: &str, namespace: &str, service_account: &str) -> String {
    pattern.replace("{namespace}", namespace).replace("{serviceaccount}", service_account)
}

/// `*` takes as little as will do; each piece after it must come in order, the last one at the end.
fn matches(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_names_with_the_pods_own_in_place() {
        let account = ServiceAccount {
            namespace: "shop".parse().unwrap(),
            name: "web".parse().unwrap(),
            uid: "u".parse().unwrap(),
        };
        for (pattern, role, permitted) in [
            ("{namespace}-*", "shop-reader", true),
            ("{namespace}-*", "shopping-reader", false),
            ("{namespace}-{serviceaccount}", "shop-web", true),
            ("{namespace}-{serviceaccount}", "shop-web2", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("*", "anything", true),
            ("reader", "reader", true),
        ] {
            let parsed: TenantRole = pattern.parse().unwrap();
            assert_eq!(
                parsed.permits(&role.parse().unwrap(), &account),
                permitted,
                "{pattern} {role}"
            );
        }
        for bad in ["", "a/b", "{pod}", "a b"] {
            assert!(bad.parse::<TenantRole>().is_err(), "{bad}");
        }
    }
}
