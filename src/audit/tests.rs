//! What the audit log promises: whole lines, no gap in the numbers, a closed door when it fails.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::budget::Reached;
use super::sink::Sink;
use super::*;
use crate::identity::{Listener, ProofStrength};
use crate::telemetry::{Hits, Metrics};

fn event(message: &str) -> AuditEvent {
    AuditEvent::Lifecycle { message: message.to_owned() }
}

fn open(path: &Path) -> Result<(Audit, AuditWriter), AuditError> {
    Audit::open(AuditConfig { output: Output::File(path.to_owned()), ..AuditConfig::default() })
}

/// Runs the writer to its end: everything queued is written.
async fn drain(writer: AuditWriter) -> anyhow::Result<()> {
    let evidence = CancellationToken::new();
    evidence.cancel();
    writer.run(evidence).await
}

/// The messages of all lines, after checking that their numbers have no gap.
fn messages(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let numbered = lines.enumerate().map(|(index, line)| {
        assert_eq!(line["seq"], index + 1);
        line["message"].as_str().unwrap().to_owned()
    });
    numbered.collect()
}

#[tokio::test]
async fn records_are_numbered_lines_in_a_file_only_we_can_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (audit, writer) = open(&path).unwrap();
    assert!(audit.is_healthy());
    for message in ["one", "two"] {
        audit.record(event(message)).unwrap();
    }
    drain(writer).await.unwrap();
    assert_eq!(messages(&fs::read_to_string(&path).unwrap()), ["one", "two"]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!audit.is_healthy());
    assert_eq!(audit.record(event("too late")), Err(NotRecorded::Down));
}

#[test]
fn a_link_a_pipe_and_a_missing_directory_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("target"), "").unwrap();
    std::os::unix::fs::symlink(at("target"), at("link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).unwrap();
    for name in ["link", "missing/file", "."] {
        assert!(matches!(open(&at(name)), Err(AuditError::Open { .. })), "{name}");
    }
    rustix::fs::chmod(at("pipe"), rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    assert!(matches!(open(&at("pipe")), Err(AuditError::NotAFile { .. })));
}

#[tokio::test]
async fn a_line_cut_off_by_a_crash_does_not_swallow_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    fs::write(&path, "{\"time\":\"20").unwrap();
    let (audit, writer) = open(&path).unwrap();
    audit.record(event("whole")).unwrap();
    drain(writer).await.unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(messages(text.split_once('\n').unwrap().1), ["whole"]);
}

#[tokio::test]
async fn a_full_queue_is_down_and_the_gap_is_written_down() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (audit, writer) = open(&path).unwrap();
    for _ in 0..QUEUE_RECORDS_MAX {
        audit.record(event("kept")).unwrap();
    }
    assert!(!audit.is_healthy());
    assert_eq!(audit.record(event("lost")), Err(NotRecorded::Down));
    drain(writer).await.unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), QUEUE_RECORDS_MAX + 1);
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["lost"]), (&"lost".into(), &1.into()));
}

/// Goal: an output that stops taking bytes closes the door, and opens it again by itself with no
/// line lost or torn. Method: a full non-blocking pipe, in virtual time.
#[tokio::test(start_paused = true)]
async fn a_failing_output_recovers_by_itself_without_losing_a_line() {
    let (mut reader, mut pipe) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&pipe, true).unwrap();
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    while pipe.write(&[b'x'; 1000]).is_ok() {}
    let file = fs::File::from(std::os::fd::OwnedFd::from(pipe));
    let (audit, writer) = Audit::with_sink(Sink::from_file(file), AuditConfig::default()).unwrap();
    let evidence = CancellationToken::new();
    let writer = tokio::spawn(writer.run(evidence.clone()));

    audit.record(event("before anybody knows")).unwrap();
    until(|| !audit.is_healthy()).await;
    let long = "y".repeat(5000);
    assert_eq!(audit.record(event(&long)), Err(NotRecorded::Down));

    let mut text = Vec::new();
    until(|| {
        // The reader drains little by little, so lines are written in pieces.
        let mut piece = [0; 700];
        let count = reader.read(&mut piece).unwrap_or(0);
        text.extend_from_slice(&piece[..count]);
        audit.is_healthy() && count == 0
    })
    .await;
    audit.record(event("after")).unwrap();
    evidence.cancel();
    writer.await.unwrap().unwrap();
    let _ = reader.read_to_end(&mut text);
    let text = String::from_utf8(text).unwrap();
    let expected = ["before anybody knows", long.as_str(), "after"];
    assert_eq!(messages(text.trim_start_matches('x')), expected);
}

/// Waits, in virtual time, until `condition` holds.
async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the condition was never met");
}

#[tokio::test(start_paused = true)]
async fn after_a_rotation_lines_go_to_the_new_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (audit, writer) = open(&path).unwrap();
    let evidence = CancellationToken::new();
    let writer = tokio::spawn(writer.run(evidence.clone()));
    let lines = |path: &Path| fs::read_to_string(path).map_or(0, |text| text.lines().count());

    audit.record(event("old")).unwrap();
    until(|| lines(&path) == 1).await;
    let rotated = directory.path().join("audit.jsonl.1");
    fs::rename(&path, &rotated).unwrap();
    audit.reopen();
    until(|| path.exists()).await;
    audit.record(event("new")).unwrap();
    evidence.cancel();
    writer.await.unwrap().unwrap();
    assert_eq!((lines(&rotated), lines(&path)), (1, 1));
}

#[tokio::test]
async fn what_cannot_be_written_at_the_stop_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (audit, writer) = Audit::with_sink(Sink::from_file(full), AuditConfig::default()).unwrap();
    audit.record(event("nowhere to go")).unwrap();
    let error = drain(writer).await.unwrap_err();
    assert!(error.to_string().starts_with("1 audit records"), "{error}");
}

#[test]
fn macs_tell_equal_from_different_without_telling_what() {
    let directory = tempfile::tempdir().unwrap();
    let open = || open(&directory.path().join("audit.jsonl")).unwrap().0;
    let (one, other) = (open(), open());
    let lease = |id: &str| LeaseId::new(id.to_owned());
    let mac = one.mac_lease(&lease("database/creds/a/1"));
    assert_eq!(mac.len(), 64);
    assert_eq!(mac, one.mac_lease(&lease("database/creds/a/1")));
    assert_ne!(mac, one.mac_lease(&lease("database/creds/a/2")));
    assert_ne!(mac, other.mac_lease(&lease("database/creds/a/1")));
    let token = Token::new(b"database/creds/a/1".to_vec()).unwrap();
    assert_eq!(mac, one.mac_token(&token));
}

/// A denial or permission of a user for the secret of this number.
fn decision(uid: u32, allowed: bool, number: usize) -> AuditEvent {
    AuditEvent::Decision {
        identity: Identity::host_user(uid, uid, &[], ProofStrength::PidFd, Listener::Host),
        secret: SecretRef {
            source: "vault".parse().unwrap(),
            path: format!("secret/data/{number}").parse().unwrap(),
            version: None,
        },
        allowed,
        rule: None,
        reason: None,
    }
}

fn unlimited() -> AuditConfig {
    AuditConfig { lines_per_second_per_caller: u32::MAX, ..AuditConfig::default() }
}

/// Goal: nobody else is refused, whoever floods. Method: the output stands still, so that whatever
/// is taken stays in the queue; then the same flood of records that no budget is for.
#[test]
fn a_flood_of_one_caller_leaves_the_records_of_another_accepted() {
    let open = || {
        let null = fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        Audit::with_sink(Sink::from_file(null), unlimited()).unwrap()
    };
    let (audit, _writer) = open();
    let flood = |uid| (0..5000).filter(|n| audit.record(decision(uid, true, *n)).is_ok()).count();
    assert_eq!(flood(1), QUEUE_RECORDS_MAX / 2);
    assert_eq!(audit.record(decision(1, true, 9999)), Err(NotRecorded::OverBudget));
    assert_eq!(audit.record(decision(2, true, 0)), Ok(()));
    // Each further one gets half of what is left.
    assert_eq!(flood(3), QUEUE_RECORDS_MAX / 4);
    assert_eq!(flood(4), QUEUE_RECORDS_MAX / 8);
    assert_eq!(audit.record(decision(5, true, 0)), Ok(()));
    assert!(audit.is_healthy());

    let (audit, _writer) = open();
    while audit.record(event("nobody's")).is_ok() {}
    assert_eq!(audit.record(decision(2, true, 0)), Err(NotRecorded::Down));
}

/// Goal: what is beyond the budget is counted, and the counts are complete. Method: three kinds of
/// floods, and the lines they leave, however long that takes.
#[tokio::test]
async fn what_is_beyond_a_callers_budget_is_counted_into_lines_of_it() {
    const FLOOD: usize = 2000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let output = Output::File(path.clone());
    let config = AuditConfig { output, lines_per_second_per_caller: 10, ..AuditConfig::default() };
    let (audit, writer) = Audit::open(config).unwrap();
    let mut permitted = 0;
    for number in 0..FLOOD {
        assert_eq!(audit.record(decision(1, false, number)), Ok(()));
        assert_eq!(audit.record(decision(2, true, 7)), Ok(()));
        match audit.record(decision(3, true, number)) {
            Ok(()) => permitted += 1,
            Err(error) => assert_eq!(error, NotRecorded::OverBudget),
        }
    }
    drain(writer).await.unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let lines: Vec<_> = lines.collect();
    for (uid, counted, own) in [
        ("uid:1", "denied", None),
        ("uid:2", "repeated", None),
        ("uid:3", "refused", Some(permitted)),
    ] {
        let of = |event: &str| {
            let event = event.to_owned();
            lines.iter().filter(move |line| line["identity"] == uid && line["event"] == event)
        };
        let counted: u64 = of("coalesced").map(|line| line[counted].as_u64().unwrap()).sum();
        let lines = of("decision").count();
        assert_eq!(lines + usize::try_from(counted).unwrap(), FLOOD, "{uid}");
        assert!(lines < FLOOD && own.is_none_or(|own| own == lines), "{uid}: {lines} lines");
    }
}

#[tokio::test(start_paused = true)]
async fn a_summary_is_written_although_its_caller_went_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let output = Output::File(path.clone());
    let config = AuditConfig { output, lines_per_second_per_caller: 1, ..AuditConfig::default() };
    let (audit, writer) = Audit::open(config).unwrap();
    let evidence = CancellationToken::new();
    let writer = tokio::spawn(writer.run(evidence.clone()));
    for number in 0..1000 {
        audit.record(decision(1, false, number)).unwrap();
    }
    until(|| fs::read_to_string(&path).unwrap().contains("coalesced")).await;
    evidence.cancel();
    writer.await.unwrap().unwrap();
}

/// While nothing can be written, counting is no way around the closed door.
#[tokio::test]
async fn what_would_be_counted_is_refused_while_the_log_is_down() {
    let null = fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    let config = AuditConfig { lines_per_second_per_caller: 1, ..AuditConfig::default() };
    let (audit, writer) = Audit::with_sink(Sink::from_file(null), config).unwrap();
    assert_eq!(audit.record(decision(1, true, 1)), Ok(()));
    assert_eq!(audit.record(decision(1, true, 1)), Ok(()));
    drain(writer).await.unwrap();
    assert_eq!(audit.record(decision(1, true, 1)), Err(NotRecorded::Down));
}

#[test]
fn each_cap_counts_what_it_kept_from_having_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let output = Output::File(directory.path().join("audit.jsonl"));
    let config = AuditConfig { output, lines_per_second_per_caller: 800, ..AuditConfig::default() };
    // Nothing is written: the writer does not run.
    let (audit, _writer) = Audit::open(config).unwrap();
    let metrics = Metrics::new();
    audit.watch_limits(&metrics);
    let shown = |name: &str| {
        let limits = metrics.limits();
        let limit = limits.iter().find(|limit| limit.name == name).unwrap();
        (limit.used, limit.hits)
    };
    let half = QUEUE_RECORDS_MAX / 2;
    for number in 0..half + 3 {
        audit.record(decision(1, false, number)).unwrap();
    }
    assert_eq!(shown("audit_queue"), (Some(half as u64), 0));
    assert_eq!(shown("audit_queue_per_caller"), (None, 3));
    for _ in 0..half {
        audit.record(event("ours")).unwrap();
    }
    assert_eq!(audit.record(event("no room")), Err(NotRecorded::Down));
    assert_eq!(audit.record(decision(2, true, 1)), Err(NotRecorded::Down));
    assert_eq!(shown("audit_queue"), (Some(QUEUE_RECORDS_MAX as u64), 2));
    assert_eq!(shown("audit_callers"), (Some(2), 0));
    assert_eq!(shown("audit_lines_per_second_per_caller"), (None, 0));
}

#[test]
fn a_caller_over_its_lines_is_counted_for_its_own_cap() {
    let budgets = Budgets::new(1, false);
    let now = BootInstant::from_nanos(1_000_000_000_000);
    for free in [100, 100, 100, 0] {
        budgets.admit(&decision(1, false, 1), free, now);
    }
    let Reached { lines, share, queue, callers } = &budgets.reached;
    assert_eq!([lines, share, queue, callers].map(Hits::total), [3, 0, 0, 0]);
}
