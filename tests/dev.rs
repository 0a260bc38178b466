//! The dev mode driven as a user would.
