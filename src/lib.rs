//! secrets-broker: one agent per node that logs in to Vault with a Kubernetes service-account
//! token, caches KV secrets with TTLs, renews database leases at 75 % of their lifetime, and serves
//! both as zeroized tmpfs files and over Unix sockets.

#![deny(unsafe_code)]

pub mod app;
pub mod audit;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod domain;
pub mod encryption;
pub mod hardening;
pub mod identity;
pub mod policy;
pub mod shutdown;
pub mod source;
pub mod status;
pub mod sys;
pub mod telemetry;
pub mod watch;
