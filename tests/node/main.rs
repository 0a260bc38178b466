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
