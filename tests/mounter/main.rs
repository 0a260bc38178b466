//! The mounter as a process with real mounts, and its sandbox.
//!
//! Every test that mounts runs again in a child with a mount namespace of its own, so nothing it
//! does or leaves behind is seen outside. That takes root. Without root each of those tests says so
//! on standard error and checks that the mounter refuses to start, instead; it never just passes.

#[path = "../support/process.rs"]
mod process;

mod denied;
mod hostile;
mod rig;
mod volumes;
