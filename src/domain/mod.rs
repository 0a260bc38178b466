//! The vocabulary: identifiers, secret bytes, engine mounts and path patterns every layer shares.
//!
//! Nothing here does IO or reads a clock, and no secret type can be copied, compared or printed.

mod consumer;
mod ids;
mod label;
mod mount;
mod path;
mod pattern;
mod pod;
mod secret;
mod spelling;
mod text_name;

pub use consumer::{AccountLogin, ConsumerId, LoginIdentity, VaultRole, VaultRoleError};
pub use ids::{IdError, LocalLeaseId, RuleName, SourceName, VolumeName};
pub use label::{LabelError, LabelKey, LabelValue};
pub use mount::{EngineKind, Mount, PathKind};
pub use path::{PathError, SecretPath, SecretRef};
pub use pattern::{PathPattern, PatternError};
pub use pod::{
    ContainerId, CsiDriverName, KubernetesNameError, Namespace, NodeName, Pod, PodName, PodUid,
    PodVolumeName, ServiceAccount, ServiceAccountName, ServiceAccountUid,
};
pub use secret::{LeaseId, SecretBytes, Token, TokenError};
pub use spelling::{Spelling, SpellingError};
