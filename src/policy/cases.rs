//! Cases: what a policy is expected to decide about somebody and a secret. Pure.

use jiff::Timestamp;

use super::{CompiledPolicy, GrantLogin};
use crate::domain::{LoginIdentity, RuleName, SecretRef};
use crate::identity::Identity;
use crate::identity::pods::Labels;

/// One question with the answer it should have.
#[derive(Debug, Clone)]
pub struct Case {
    /// What people call it.
    pub name: Option<String>,
    /// Who is supposed to ask.
    pub identity: Identity,
    /// The labels of its pod, where it is one.
    pub labels: Option<Labels>,
    /// For what.
    pub secret: SecretRef,
    /// When; `None` is now.
    pub at: Option<Timestamp>,
    /// The answer it should have.
    pub expected: Expected,
}

/// An answer, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Allowed or denied.
    pub allowed: bool,
    /// The rule that decides; `None` is any, or none.
    pub rule: Option<RuleName>,
    /// Whose identity is used upstream; `None` is either.
    pub login: Option<GrantLogin>,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Who may or may not read what, by which rule and why, in one line.
    pub decided: String,
    /// What of it was not expected; empty when the case passed.
    pub unexpected: Vec<String>,
}

impl Case {
    /// Puts the question to a policy.
    pub fn ask(&self, policy: &CompiledPolicy, now: Timestamp) -> Outcome {
        let Self { identity, labels, secret, expected, .. } = self;
        let decision = policy.suppose(identity, secret, labels.as_ref(), self.at.unwrap_or(now));
        let (allowed, rule, login, decided) = match decision {
            Ok(permit) => {
                let decided = format!(
                    "{identity} may read {secret}: rule '{}', as {}",
                    permit.rule, permit.login
                );
                let login = match permit.login {
                    LoginIdentity::Agent => GrantLogin::Agent,
                    LoginIdentity::ServiceAccount(_) => GrantLogin::ServiceAccount,
                };
                (true, Some(permit.rule), Some(login), decided)
            }
            Err(denied) => {
                let decided = format!("{identity} may not read {secret}: {denied}");
                (false, denied.rule, None, decided)
            }
        };
        let mut unexpected = Vec::new();
        if allowed != expected.allowed {
            let word = if expected.allowed { "allow" } else { "deny" };
            unexpected.push(format!("expected {word}"));
        } else {
            if let Some(expected) =
                expected.rule.as_ref().filter(|name| Some(*name) != rule.as_ref())
            {
                unexpected.push(format!("expected rule '{expected}'"));
            }
            if expected.login.is_some_and(|expected| Some(expected) != login) {
                let word = match login {
                    Some(GrantLogin::Agent) => "service-account",
                    _ => "agent",
                };
                unexpected.push(format!("expected login {word}"));
            }
        }
        Outcome { decided, unexpected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ProofStrength;
    use crate::policy::{Effect, GrantConfig, PolicyConfig, Share, Who};

    fn policy() -> CompiledPolicy {
        let grant = GrantConfig {
            name: "pods".parse().unwrap(),
            effect: Effect::Permit,
            who: Who::AnyPod,
            source: "vault".parse().unwrap(),
            paths: vec!["secret/data/{namespace}/*".parse().unwrap()],
            share: Share::Consumer,
            login: GrantLogin::Agent,
            min_proof: ProofStrength::PeerCred,
            when: Some("context.hour >= 8".to_owned()),
        };
        let config = PolicyConfig { grants: vec![grant], ..PolicyConfig::default() };
        CompiledPolicy::compile(&config).map_err(|all| format!("{all:?}")).unwrap()
    }

    fn ask(path: &str, hour: u8, allowed: bool, rule: &str, login: GrantLogin) -> Outcome {
        let case = Case {
            name: None,
            identity: Identity::supposed("pod:shop/web").unwrap(),
            labels: None,
            secret: SecretRef {
                source: "vault".parse().unwrap(),
                path: path.parse().unwrap(),
                version: None,
            },
            at: Some(format!("2027-01-15T{hour:02}:00:00Z").parse().unwrap()),
            expected: Expected {
                allowed,
                rule: Some(rule.parse().unwrap()),
                login: allowed.then_some(login),
            },
        };
        case.ask(&policy(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_case_passes_with_the_decision_the_rule_and_the_login_it_expects() {
        let outcome = ask("secret/data/shop/web", 9, true, "pods", GrantLogin::Agent);
        assert_eq!(outcome.unexpected, Vec::<String>::new());
        assert_eq!(
            outcome.decided,
            "pod:shop/web may read vault:secret/data/shop/web: rule 'pods', as agent"
        );
    }

    #[test]
    fn each_difference_is_named() {
        let agent = GrantLogin::Agent;
        let by_night = ask("secret/data/shop/web", 7, true, "pods", agent);
        assert_eq!(by_night.unexpected, ["expected allow"]);
        assert!(by_night.decided.contains("covered by pods"), "{}", by_night.decided);
        let foreign = ask("secret/data/other/web", 9, false, "pods", agent);
        assert_eq!(foreign.unexpected, ["expected rule 'pods'"]);
        let allowed = ask("secret/data/shop/web", 9, false, "pods", agent);
        assert_eq!(allowed.unexpected, ["expected deny"]);
        let other = ask("secret/data/shop/web", 9, true, "x", GrantLogin::ServiceAccount);
        assert_eq!(other.unexpected, ["expected rule 'x'", "expected login service-account"]);
    }
}
