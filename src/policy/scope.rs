//! Which pods a rule's scope leaves out for certain, whatever its conditions say.

use cedar_policy::{Policy, PrincipalConstraint};

use crate::identity::Subject;

/// A rule's scope, as far as it is about pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// It may be about any.
    Any,
    /// Only about those of this namespace.
    Namespace(String),
    /// Only about those of this `namespace/service account`.
    ServiceAccount(String),
}

impl Scope {
    pub(super) fn of(policy: &Policy) -> Self {
        let group = match policy.principal_constraint() {
            PrincipalConstraint::In(group) | PrincipalConstraint::IsIn(_, group) => group,
            _ => return Self::Any,
        };
        let name = group.id().unescaped().to_owned();
        match group.type_name().to_string().as_str() {
            "Namespace" => Self::Namespace(name),
            "ServiceAccount" => Self::ServiceAccount(name),
            _ => Self::Any,
        }
    }

    /// Whether a rule of this scope may be about the caller.
    pub(super) fn may_hold(&self, subject: &Subject) -> bool {
        let Subject::Pod(pod) = subject else { return true };
        match self {
            Self::Any => true,
            Self::Namespace(name) => name == pod.account.namespace.as_str(),
            Self::ServiceAccount(name) => *name == pod.account.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_read_where_the_rule_names_a_namespace_or_an_account() {
        let namespace = Scope::Namespace("shop".to_owned());
        let account = Scope::ServiceAccount("shop/web".to_owned());
        for (principal, scope) in [
            ("principal", Scope::Any),
            ("principal is Pod", Scope::Any),
            ("principal == Pod::\"1b\"", Scope::Any),
            ("principal is HostUser in Group::\"5\"", Scope::Any),
            ("principal in Namespace::\"shop\"", namespace.clone()),
            ("principal is Pod in Namespace::\"shop\"", namespace),
            ("principal is Pod in ServiceAccount::\"shop/web\"", account),
        ] {
            let policy = format!("forbid ({principal}, action, resource);").parse().unwrap();
            assert_eq!(Scope::of(&policy), scope, "{principal}");
        }
    }
}
