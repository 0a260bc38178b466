//! What a policy would decide, asked without a wish to read: no proof comes of it.

use jiff::Timestamp;

use super::{CompiledPolicy, Denied, owner_of};
use crate::domain::{ConsumerId, LoginIdentity, RuleName, SecretRef};
use crate::identity::Identity;
use crate::identity::pods::Labels;

/// What would be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supposed {
    /// The rule that permits it.
    pub rule: RuleName,
    /// Whose identity would be used upstream.
    pub login: LoginIdentity,
    /// Who would have a dynamic secret to itself; `None`: all of the agent's consumers share it.
    pub dynamic_owner: Option<ConsumerId>,
}

impl CompiledPolicy {
    /// What this policy, in force or not, says about a caller, with its pod's labels if they are
    /// known, and a secret at a moment.
    pub fn suppose(
        &self,
        identity: &Identity,
        secret: &SecretRef,
        labels: Option<&Labels>,
        at: Timestamp,
    ) -> Result<Supposed, Denied> {
        let permit = self.decide(identity, secret, labels, at)?;
        let dynamic_owner = owner_of(permit.share, identity);
        Ok(Supposed { rule: permit.rule, login: permit.login, dynamic_owner })
    }
}
