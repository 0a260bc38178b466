//! Two agents for tests: one in order, one whose Vault does not answer.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::broker::Problem;
use crate::broker::report::{
    LeaseReport, Report, RetiringReport, SecretReport, SessionReport, SourceReport,
};
use crate::clock::BootInstant;
use crate::domain::{ConsumerId, PathKind, SecretRef};
use crate::identity::pods::PodDirectory;
use crate::source::{ErrorClass, SourceDescription};
use crate::status::{Facts, ItemStatus, VolumeStatus};
use crate::telemetry::Limit;

const SECOND: u64 = 1_000_000_000;
/// The samples' now, in seconds since boot.
const NOW: u64 = 100_000;

fn at(offset: i64) -> BootInstant {
    BootInstant::from_nanos(NOW.checked_add_signed(offset).unwrap() * SECOND)
}

pub(super) fn secret_ref(path: &str) -> SecretRef {
    SecretRef { source: "vault".parse().unwrap(), path: path.parse().unwrap(), version: None }
}

pub(super) fn healthy() -> (Report, Vec<VolumeStatus>, Facts) {
    let shop = ConsumerId::volume(&"shop".parse().unwrap());
    let kv = SecretReport {
        secret: secret_ref("secret/data/shop/web"),
        kind: Some(PathKind::Kv),
        consumer: None,
        state: "fresh",
        fetched_at: Some(at(-60)),
        fresh_until: Some(at(240)),
        dead_at: Some(at(3540)),
        version: Some(3),
        lease: None,
        next: Some(("refresh", at(200))),
        problem: None,
        consumers: vec![shop.clone()],
        local_leases: 0,
        retiring: Vec::new(),
    };
    let dynamic = SecretReport {
        secret: secret_ref("database/creds/shop"),
        kind: Some(PathKind::Minting),
        consumer: Some(shop.clone()),
        fetched_at: Some(at(-800)),
        fresh_until: Some(at(400)),
        dead_at: Some(at(400)),
        version: None,
        lease: Some(LeaseReport {
            mac: "3fa94c".to_owned(),
            issued_at: at(-2000),
            first_duration: Duration::from_secs(1200),
            expires_at: at(400),
            renewable: true,
            renewals: 1,
        }),
        next: Some(("renew", at(100))),
        consumers: vec![shop],
        local_leases: 1,
        ..kv.clone()
    };
    let source = SourceReport {
        name: "vault".parse().unwrap(),
        reachable: true,
        since: at(-9000),
        last_error: None,
        failures: 0,
        next_attempt: None,
        in_flight: 0,
    };
    let session = SessionReport {
        source: "vault".parse().unwrap(),
        purpose: "agent".to_owned(),
        state: "live",
        expires_at: Some(at(1800)),
        renew_at: Some(at(900)),
        holders: 2,
        last_error: None,
    };
    let report = Report {
        taken_at: at(0),
        sources: vec![source],
        sessions: vec![session],
        secrets: vec![dynamic, kv],
        limits: vec![
            Limit::shared("entries", 2, 20_000, 0),
            Limit::each("connections_per_user", 128, 0),
        ],
        ..Report::default()
    };
    (report, vec![volume()], facts())
}

fn volume() -> VolumeStatus {
    let item = |file: &str, path: &str, fetched| ItemStatus {
        file: file.to_owned(),
        secret: secret_ref(path),
        state: "fresh",
        fetched_at: Some(at(fetched)),
        works_until: None,
        version: None,
        problem: None,
    };
    VolumeStatus {
        name: "shop".parse().unwrap(),
        path: "/run/v/shop".into(),
        mount: "tmpfs noswap".to_owned(),
        revision: Some("..2027_01_15".to_owned()),
        published_at: Some(at(-60)),
        links_missing: false,
        alarm: None,
        items: vec![
            item("db.json", "database/creds/shop", -800),
            item("*", "secret/data/shop/web", -60),
        ],
    }
}

fn facts() -> Facts {
    let description = SourceDescription {
        kind: "vault",
        address: "https://vault.example.com:8200".to_owned(),
        namespace: None,
        generated: false,
    };
    Facts {
        version: "0.1.0",
        started_at: at(-9000),
        now: at(0),
        wall_now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        instance: "a1b2c3".to_owned(),
        config_problem: None,
        policy_held: None,
        csi_waits_for: None,
        audit_healthy: true,
        sources: BTreeMap::from([("vault".parse().unwrap(), description)]),
        pod_directory: PodDirectory::none().state(),
        locked_out: Vec::new(),
        hardening: vec!["memory locked".to_owned()],
        notes: Vec::new(),
    }
}

pub(super) fn outage() -> (Report, Vec<VolumeStatus>, Facts) {
    let (mut report, mut volumes, facts) = healthy();
    let source = &mut report.sources[0];
    source.reachable = false;
    source.since = at(-252);
    source.last_error = Some("connection refused".to_owned());
    source.failures = 9;
    source.next_attempt = Some(at(12));
    let dynamic = &mut report.secrets[0];
    dynamic.next = Some(("renew", at(3)));
    dynamic.problem = Some(Problem {
        class: ErrorClass::Unreachable,
        message: "connection refused".to_owned(),
        since: at(-100),
        attempts: 7,
    });
    let retiring = RetiringReport { mac: "aa11bb".to_owned(), ends_at: at(60), lapses_at: None };
    dynamic.retiring.push(retiring);
    let kv = &mut report.secrets[1];
    kv.state = "stale";
    kv.fetched_at = Some(at(-600));
    kv.fresh_until = Some(at(-300));
    kv.dead_at = Some(at(3000));
    volumes[0].items[1].state = "stale";
    (report, volumes, facts)
}
