//! Grants as the configuration writes them, already parsed: names are ids, patterns are patterns.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::{
    LabelKey, LabelValue, Namespace, NodeName, PathPattern, RuleName, ServiceAccountName,
    SourceName, VolumeName,
};
use crate::identity::ProofStrength;

/// Everything policy is configured with.
#[derive(Debug, Clone)]
pub struct PolicyConfig {
    /// The grants, in the order of the file. Order decides nothing but which rule is named.
    pub grants: Vec<GrantConfig>,
    /// Free-form Cedar policies beside them.
    pub cedar: Option<CedarFile>,
    /// How long one decision may be relied on before it is asked again.
    pub recheck: Duration,
    /// Sources that decide themselves what a pod's own service account may read: there no rule has
    /// to permit it, and rules may only forbid.
    pub own_identity: BTreeSet<SourceName>,
    /// A changed policy that would take secrets from more than this share of the volumes is held,
    /// in percent.
    pub hold_percent: u32,
    /// Whether there is a pod directory: without one no rule may ask for labels.
    pub knows_labels: bool,
    /// The node's name, for conditions; `None` on a host that is no node.
    pub node: Option<NodeName>,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            grants: Vec::new(),
            cedar: None,
            recheck: Duration::from_secs(60),
            own_identity: BTreeSet::new(),
            hold_percent: 10,
            knows_labels: false,
            node: None,
        }
    }
}

/// A file of Cedar policies, already read.
#[derive(Debug, Clone)]
pub struct CedarFile {
    /// The file's name, for messages.
    pub name: String,
    /// Its content.
    pub text: String,
}

/// One rule: who may, or must not, read which paths.
#[derive(Debug, Clone)]
pub struct GrantConfig {
    /// Names the rule in messages, `explain` and the audit log; unique.
    pub name: RuleName,
    /// Whether it permits or forbids.
    pub effect: Effect,
    /// Whom it concerns.
    pub who: Who,
    /// The source the paths belong to.
    pub source: SourceName,
    /// API paths; any of them.
    pub paths: Vec<PathPattern>,
    /// Who shares a dynamic credential read under it. Only a permit uses this.
    pub share: Share,
    /// Whose identity is used upstream for what it permits to pods; everybody else reads with the
    /// agent's.
    pub login: GrantLogin,
    /// The weakest proof of identity it accepts. Only a permit uses this: a forbid always applies.
    pub min_proof: ProofStrength,
    /// One Cedar expression that must also hold: `context.hour >= 8`.
    pub when: Option<String>,
}

/// What a rule does when it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Allows, unless another rule forbids.
    Permit,
    /// Forbids, whatever else permits.
    Forbid,
}

/// Whom a grant concerns. User and group names are resolved by the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// A user of this host.
    User {
        /// Effective uid.
        uid: u32,
    },
    /// Members of a group of this host.
    Group {
        /// Effective or supplementary gid.
        gid: u32,
    },
    /// A volume declared in the configuration.
    Volume(VolumeName),
    /// Every user of this host; never a volume.
    AnyHostUser,
    /// The pods of a namespace, or some of them.
    Pods {
        /// The namespace.
        namespace: Namespace,
        /// The account; `None` is every account of the namespace.
        service_account: Option<ServiceAccountName>,
        /// The labels they must have, all of them.
        labels: BTreeMap<LabelKey, LabelValue>,
    },
    /// Every pod of this node.
    AnyPod,
}

/// Whose identity is used upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantLogin {
    /// The pod's service account, so that the source decides too.
    ServiceAccount,
    /// The agent's: the rule alone decides.
    Agent,
}

/// Who shares one dynamic credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Nobody: each consumer gets its own.
    Consumer,
    /// The pods of one service account on this node; for others the same as [`Share::Consumer`].
    ServiceAccount,
    /// All consumers of this agent that are allowed it.
    Agent,
}
