//! The real servers behind the tests: Vault, PostgreSQL, etcd and kube-apiserver on loopback, and a
//! whole Kubernetes node.
//!
//! `Testbed::start` gives a test a Vault of its own, set up as an operator would set it up for the
//! broker. PostgreSQL and the Kubernetes API are slower to start, so the tests of one binary share
//! them; each testbed's database roles carry its own prefix. `shared::node` is a node with pods,
//! and `Testbed::start_beside` a Vault that knows it. Nothing is installed or built here:
//! `tests/run` does that and says where the programs are.
#![allow(dead_code, reason = "every test binary compiles this and uses a part of it")]

pub mod agent;
pub mod certificates;
pub mod http;
pub mod kubernetes;
pub mod node;
pub mod postgres;
pub mod process;
pub mod shared;
pub mod testbed;
pub mod vault;

use std::env;
use std::path::{Path, PathBuf};

/// A program that `tests/servers/build` made.
pub fn server_program(name: &str) -> PathBuf {
    const VARIABLE: &str = "SECRETS_BROKER_TEST_SERVERS";
    let dir = env::var_os(VARIABLE).unwrap_or_else(|| {
        panic!(
            "{VARIABLE} is not set: use tests/run, or build the servers with tests/servers/build \
             and set it to what `tests/servers/build --print-dir` prints"
        )
    });
    let program = Path::new(&dir).join(name);
    assert!(program.exists(), "{} is missing: tests/servers/build {name}", program.display());
    program
}
