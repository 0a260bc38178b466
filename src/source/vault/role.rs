//! The Vault role of a pod's service account, from one configured pattern.

use std::fmt;
use std::str::FromStr;

use crate::domain::{ServiceAccount, VaultRole};

/// A role's name with places for the account's: `{namespace}-{serviceaccount}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolePattern(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Namespace,
    ServiceAccount,
}

/// Why a pattern was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RolePatternError {
    /// A placeholder that does not exist, or a brace that nothing closes.
    #[error("has '{{{0}' in it; the placeholders are {{namespace}} and {{serviceaccount}}")]
    Placeholder(String),
    /// No account could ever log in with it.
    #[error("gives no role for namespace 'a' and account 'a': {0}")]
    Role(#[from] crate::domain::VaultRoleError),
}

impl FromStr for RolePattern {
    type Err = RolePatternError;

    fn from_str(text: &str) -> Result<Self, RolePatternError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            if !before.is_empty() {
                parts.push(Part::Literal(before.to_owned()));
            }
            let unknown = || RolePatternError::Placeholder(behind.chars().take(40).collect());
            let (name, after) = behind.split_once('}').ok_or_else(unknown)?;
            parts.push(match name {
                "namespace" => Part::Namespace,
                "serviceaccount" => Part::ServiceAccount,
                _ => return Err(unknown()),
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        let pattern = Self(parts);
        pattern.render("a", "a").parse::<VaultRole>()?;
        Ok(pattern)
    }
}

impl RolePattern {
    /// The account's role. Different accounts may get the same one (`a-b`, `c` and `a`, `b-c`);
    /// Vault's role binds namespace and name, so at most one of them can log in with it.
    ///
    /// # Errors
    /// The names together are no role Vault could have.
    pub fn role_of(
        &self,
        account: &ServiceAccount,
    ) -> Result<VaultRole, crate::domain::VaultRoleError> {
        self.render(account.namespace.as_str(), account.name.as_str()).parse()
    }

    fn render(&self, namespace: &str, service_account: &str) -> String {
        let part = |part: &Part| match part {
            Part::Literal(text) => text.clone(),
            Part::Namespace => namespace.to_owned(),
            Part::ServiceAccount => service_account.to_owned(),
        };
        self.0.iter().map(part).collect()
    }
}

impl fmt::Display for RolePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render("{namespace}", "{serviceaccount}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(namespace: &str, name: &str) -> ServiceAccount {
        ServiceAccount {
            namespace: namespace.parse().unwrap(),
            name: name.parse().unwrap(),
            uid: "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab".parse().unwrap(),
        }
    }

    #[test]
    fn the_accounts_names_go_where_the_pattern_says() {
        for (pattern, role) in [
            ("{namespace}-{serviceaccount}", "shop-web"),
            ("prod_{serviceaccount}.{namespace}", "prod_web.shop"),
            ("everybody", "everybody"),
        ] {
            let parsed: RolePattern = pattern.parse().unwrap();
            assert_eq!(parsed.role_of(&account("shop", "web")).unwrap().as_str(), role);
            assert_eq!(parsed.to_string(), pattern);
        }
    }

    #[test]
    fn a_pattern_that_no_account_could_use_is_refused() {
        for bad in ["", "{pod}", "{namespace", "a/{namespace}", "-{namespace}", "{namespace}-"] {
            assert!(bad.parse::<RolePattern>().is_err(), "{bad}");
        }
        let long: RolePattern = "{namespace}-{serviceaccount}".parse().unwrap();
        let name = ["a"; 126].join(".");
        assert!(long.role_of(&account(&"n".repeat(63), &name)).is_err());
    }
}
