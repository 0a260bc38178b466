//! Cedar.
pub struct CompiledPolicy;
pub struct PolicyError;
