//! What a rule asks of pods' labels, read from its Cedar form, so that grants, conditions and the
//! Cedar file are judged alike.

use cedar_policy::Policy;
use serde_json::Value;

/// What a rule asks for that may not be known of a pod: its labels, and which account it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LabelUse {
    /// It asks for labels at all.
    pub(super) asks: bool,
    /// It says in which namespace or for which account the labels count.
    pub(super) names_namespace: bool,
    /// It says itself what holds for a pod whose labels are not known.
    pub(super) minds_unknown: bool,
    /// It asks which service account of its name a pod runs as.
    pub(super) asks_account_uid: bool,
}

impl LabelUse {
    pub(super) fn of(policy: &Policy) -> Self {
        let mut found = Self::default();
        match policy.to_json() {
            Ok(json) => found.look_at(&json),
            // Cannot be read, so it counts as the worst.
            Err(_) => found.asks = true,
        }
        found
    }

    fn look_at(&mut self, json: &Value) {
        match json {
            Value::Object(fields) => {
                for (key, value) in fields {
                    match (key.as_str(), value.as_str()) {
                        ("hasTag" | "getTag", _) => self.asks = true,
                        ("type", Some("Namespace" | "ServiceAccount"))
                        | ("attr", Some("namespace")) => {
                            self.names_namespace = true;
                        }
                        ("attr", Some("labels_known")) => self.minds_unknown = true,
                        ("attr", Some("service_account_uid")) => {
                            (self.names_namespace, self.asks_account_uid) = (true, true);
                        }
                        _ => {}
                    }
                    self.look_at(value);
                }
            }
            Value::Array(values) => values.iter().for_each(|value| self.look_at(value)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(policy: &str) -> LabelUse {
        LabelUse::of(&policy.parse().unwrap())
    }

    #[test]
    fn labels_and_namespaces_are_found_wherever_they_stand() {
        let none = used(r#"@id("hasTag Namespace") permit (principal, action, resource);"#);
        assert_eq!(none, LabelUse::default());
        let condition = r#"when { principal.hasTag("app") && principal . getTag ("app") == "x" };"#;
        let asks = LabelUse { asks: true, ..LabelUse::default() };
        let anywhere = format!("permit (principal is Pod, action, resource) {condition}");
        assert_eq!(used(&anywhere), asks);
        let with_namespace = LabelUse { names_namespace: true, ..asks };
        for scope in [r#"in Namespace::"shop""#, r#"in ServiceAccount::"shop/web""#] {
            let text = format!("permit (principal is Pod {scope}, action, resource) {condition}");
            assert_eq!(used(&text), with_namespace, "{text}");
        }
        for more in [
            r#"principal["namespace"] == "shop""#,
            r#"principal in Namespace::"shop""#,
            r#"principal.service_account_uid == "u""#,
        ] {
            let text = format!(
                "permit (principal is Pod, action, resource) when {{ {more} }} {condition}"
            );
            let asks_account_uid = more.contains("uid");
            assert_eq!(used(&text), LabelUse { asks_account_uid, ..with_namespace }, "{text}");
        }
        let minds = format!(
            "forbid (principal is Pod, action, resource) \
             when {{ principal.labels_known }} {condition}"
        );
        assert_eq!(used(&minds), LabelUse { minds_unknown: true, ..asks });
    }
}
