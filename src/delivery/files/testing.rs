//! Values that tests of several files here need.

use std::time::Duration;

use crate::broker::{DataView, Entry, Problem, shared_bytes};
use crate::clock::BootInstant;
use crate::domain::{PathKind, SecretBytes};
use crate::source::ErrorClass;

use super::config::{FileOwnership, ItemConfig, OnProblem, VolumeConfig};

pub(super) fn at(seconds: u64) -> BootInstant {
    BootInstant::from_nanos(seconds * 1_000_000_000)
}

/// A KV entry fetched at 10 s, fresh until 20 s, dead at 30 s.
pub(super) fn entry(data: &str) -> Entry {
    Entry {
        data: DataView::new(shared_bytes(SecretBytes::new(data.into())), 0..data.len()),
        kind: PathKind::Kv,
        fetched_at: at(10),
        fresh_until: at(20),
        dead_at: at(30),
        version: Some(1),
        fingerprint: 0,
        interest: None,
    }
}

pub(super) fn problem(class: ErrorClass) -> Problem {
    Problem { class, message: "as the test wants".to_owned(), since: at(12), attempts: 1 }
}

/// Files that this process may create without privileges.
pub(super) fn own_files(mode: u32) -> FileOwnership {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    FileOwnership { uid: uid.as_raw(), gid: gid.as_raw(), mode }
}

pub(super) fn volume(items: Vec<ItemConfig>) -> VolumeConfig {
    VolumeConfig {
        name: "shop".parse().unwrap(),
        path: "/nowhere".into(),
        defaults: own_files(0o440),
        items,
        on_stale: OnProblem::Keep,
        on_denied: OnProblem::Keep,
        on_gone: OnProblem::Keep,
        forbid_grace: Duration::from_secs(60),
        retire_grace: Duration::from_secs(30),
        on_change: None,
        on_change_batch: Duration::from_secs(1),
    }
}
