//! Pods on a whole Kubernetes node: does the real kubelet do what the agent relies on?

#[path = "../support/mod.rs"]
mod support;

mod csi;
mod ground;
mod product;
