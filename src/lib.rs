//! secrets-broker: one agent per node that logs in to Vault with a Kubernetes service-account
//! token, caches KV secrets with TTLs, renews database leases at 75 % of their lifetime, and serves
//! both as zeroized tmpfs files and over Unix sockets.

#![deny(unsafe_code)]
#![warn(missing_docs)]
// A `pub` nobody can reach hides dead code from the compiler.
#![warn(unreachable_pub)]
// A panic takes a node's secrets service down: `expect` with the invariant, or an error.
#![cfg_attr(not(test), warn(clippy::panic, clippy::unwrap_used))]
// Output of its own would mix with the audit log; the command line says so where it prints.
#![warn(clippy::print_stderr, clippy::print_stdout)]
// Numbers that change silently.
#![warn(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)]

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
pub mod mounter;
pub mod mountinfo;
pub mod policy;
pub mod service_manager;
pub mod shutdown;
pub mod source;
pub mod status;
pub mod sys;
pub mod telemetry;
pub mod watch;
