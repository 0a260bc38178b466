//! How secrets reach applications: over Unix sockets and as files.

pub mod socket;
