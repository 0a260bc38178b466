//! The broker as a process of its own against real Vault, PostgreSQL and Kubernetes: counts from
//! Vault's audit log, rows from `pg_roles`.

#[path = "../support/mod.rs"]
mod support;

mod client;
mod confidentiality;
mod connections;
mod consumers;
mod databases;
mod pods;
mod rig;
mod secrets;
mod sessions;
mod statics;
mod volumes;
