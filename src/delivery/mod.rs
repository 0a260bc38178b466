//! How secrets reach applications. A delivery knows no Vault: it holds what policy authorised.

pub mod csi;
pub mod files;
pub mod metrics_port;
pub mod socket;
#[cfg(test)]
mod testing;
