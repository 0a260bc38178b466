//! What each caller and each request may have, the same on every socket, and how often that was not
//! enough.

use std::sync::Arc;

use super::Limits;
use crate::telemetry::{Hits, Metrics};

/// Denials per second and caller that get an audit record of their own.
pub(super) const DENIAL_RECORDS_PER_SECOND: u32 = 10;
/// Refreshes per second and caller: each one costs an upstream read.
pub(super) const REFRESHES_PER_SECOND: u32 = 1;

/// The caps that are not one socket's.
#[derive(Debug)]
pub struct Caps {
    /// Their sizes.
    pub limits: Limits,
    pub(super) connections: Hits,
    pub(super) requests: Hits,
    pub(super) refreshes: Hits,
    pub(super) denial_records: Hits,
    pub(super) headers: Hits,
    pub(super) bodies: Hits,
}

impl Caps {
    /// Has them shown in status and metrics; call once per process and share the result.
    pub fn new(limits: Limits, metrics: &Metrics) -> Arc<Self> {
        let hits = Hits::default;
        let caps = Arc::new(Self {
            limits,
            connections: hits(),
            requests: hits(),
            refreshes: hits(),
            denial_records: hits(),
            headers: hits(),
            bodies: hits(),
        });
        let rate = |per_second: u32| per_second as usize;
        for (name, cap, hits) in [
            ("connections_per_user", limits.connections_per_user, &caps.connections),
            (
                "requests_per_second_per_user",
                rate(limits.requests_per_second_per_user),
                &caps.requests,
            ),
            ("refreshes_per_second_per_user", rate(REFRESHES_PER_SECOND), &caps.refreshes),
            (
                "denial_records_per_second_per_user",
                rate(DENIAL_RECORDS_PER_SECOND),
                &caps.denial_records,
            ),
            ("request_header_bytes", limits.header_bytes, &caps.headers),
            ("request_body_bytes", limits.body_bytes, &caps.bodies),
        ] {
            metrics.watch_each(name, cap, hits);
        }
        caps
    }
}
