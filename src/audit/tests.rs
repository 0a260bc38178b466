//! What the audit log promises: whole lines, no gap in the numbers, a closed door when it fails.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::sink::Sink;
use super::*;

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
