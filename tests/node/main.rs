//! Pods on a whole Kubernetes node: does the real kubelet do what the agent relies on?

#[path = "../support/mod.rs"]
mod support;

mod accounts;
mod csi;
mod database;
mod flood;
mod ground;
mod hostile;
mod labels;
mod load;
mod many;
mod node_socket;
mod policy;
mod product;
mod restart;
mod sockets;
mod sub_path;

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The node's API server, which one test stops. Who uses the product is kept out by having that.
static API_SERVER: RwLock<()> = RwLock::new(());

/// It runs for as long as this is held.
fn api_server() -> RwLockReadGuard<'static, ()> {
    API_SERVER.read().unwrap_or_else(PoisonError::into_inner)
}

/// Nobody else needs it for as long as this is held.
fn api_server_alone() -> RwLockWriteGuard<'static, ()> {
    API_SERVER.write().unwrap_or_else(PoisonError::into_inner)
}
