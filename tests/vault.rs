//! The broker against real Vault, PostgreSQL and Kubernetes.
mod support;
