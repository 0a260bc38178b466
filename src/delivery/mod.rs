//! How secrets reach applications. A delivery knows no Vault: it holds authorised subscriptions.

pub mod files;
