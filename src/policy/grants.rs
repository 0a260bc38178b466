//! Grants as the configuration writes them.
/// placeholder
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    Consumer,
    Agent,
}
pub struct GrantConfig;
pub struct PolicyConfig;
pub enum Who {}
