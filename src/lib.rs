//! secrets-broker: one agent per node that logs in to Vault with a Kubernetes service-account
//! token, caches KV secrets with TTLs, renews database leases at 75 % of their lifetime, and serves
//! both as zeroized tmpfs files and over Unix sockets.

pub mod audit;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod identity;
pub mod policy;
pub mod shutdown;
pub mod source;
pub mod status;
