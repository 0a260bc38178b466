//! Cgroup grammar.
