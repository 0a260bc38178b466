//! Messages survive the wire; whatever else arrives is refused without a panic.

use proptest::prelude::*;

use super::*;
use crate::mounter::TargetError;

fn key() -> VolumeKey {
    "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab~secrets".parse().unwrap()
}

fn requests() -> Vec<Request> {
    let target = "/var/lib/kubelet/pods/8e3a/volumes/kubernetes.io~csi/secrets/mount".to_owned();
    vec![
        Request::Prepare { key: key(), size: TmpfsSize::new(1 << 20, 64).unwrap() },
        Request::Bind { key: key(), target: target.clone() },
        Request::Unbind { target },
        Request::Discard { key: key() },
        Request::List { after: None },
        Request::List { after: Some(key()) },
        Request::MountedBelow { key: key() },
    ]
}

fn replies() -> Vec<Reply> {
    vec![
        Reply::Prepared { noswap: true },
        Reply::Done,
        Reply::Volumes { volumes: vec![Mounted { key: key(), bound: true }], more: false },
        Reply::Inodes(vec![1, u64::MAX]),
        Reply::Failed(Failure::Target(TargetError::Shape)),
        Reply::Failed(Failure::Foreign("ext4".into(), "the target".into())),
        Reply::Failed(Failure::System { what: "mount".into(), errno: libc::EPERM }),
    ]
}

#[test]
fn every_message_arrives_as_it_was_sent() {
    for request in requests() {
        assert_eq!(Request::decode(&request.encode()).unwrap(), request);
    }
    for reply in replies() {
        assert_eq!(Reply::decode(&reply.encode()).unwrap(), reply);
    }
}

#[test]
fn the_largest_messages_fit_their_bounds() {
    let longest: VolumeKey = format!("{}~{}", "a".repeat(64), "b".repeat(63)).parse().unwrap();
    let volume = Mounted { key: longest.clone(), bound: false };
    let volumes = Reply::Volumes { volumes: vec![volume; VOLUMES_PER_REPLY], more: true };
    assert!(volumes.encode().len() <= REPLY_BYTES_MAX);
    let inodes = Reply::Inodes(vec![u64::MAX; INODES_PER_REPLY]);
    assert!(inodes.encode().len() <= REPLY_BYTES_MAX);
    let root: crate::mounter::KubeletRoot = format!("/{}", "r".repeat(1023)).parse().unwrap();
    let target = crate::mounter::Target::of(&root, &longest).as_str().to_owned();
    assert!(Request::Bind { key: longest, target }.encode().len() <= REQUEST_BYTES_MAX);
}

#[test]
fn what_is_not_exactly_a_message_is_refused() {
    let packet = |json: &str| [&[VERSION], json.as_bytes()].concat();
    let discard = format!(r#"{{"discard":{{"key":"{}"}}}}"#, key().directory());
    assert!(Request::decode(&packet(&discard)).is_ok());
    for bad in [
        String::new(),
        "null".to_owned(),
        r#""list""#.to_owned(),
        r#"{"mount":{"source":"/","target":"/"}}"#.to_owned(),
        r#"{"discard":{"key":"../..~x"}}"#.to_owned(),
        r#"{"discard":{"key":"a"}}"#.to_owned(),
        r#"{"discard":{"key":"a~b","force":true}}"#.to_owned(),
        r#"{"prepare":{"key":"a~b","size":{"bytes":1,"inodes":64}}}"#.to_owned(),
        format!("{discard} "),
        format!("{discard}{discard}"),
        "[".repeat(4000),
    ] {
        // White space behind a message is JSON, and harmless; everything else is refused.
        assert_eq!(Request::decode(&packet(&bad)).is_ok(), bad.ends_with("} "), "{bad}");
    }
    assert!(matches!(Request::decode(&[]), Err(ProtocolError::Empty)));
    assert!(matches!(Request::decode(&[2, b'{']), Err(ProtocolError::Version(2))));
    let long = packet(&" ".repeat(REQUEST_BYTES_MAX));
    assert!(matches!(Request::decode(&long), Err(ProtocolError::TooLong(_))));
}

#[test]
fn a_request_is_one_line_of_the_log_whatever_it_holds() {
    let request = Request::Unbind { target: "/a\nb\u{1b}[2J".to_owned() };
    assert!(!request.to_string().contains(['\n', '\u{1b}']));
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(packet in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Request::decode(&packet);
        let _ = Reply::decode(&packet);
    }

    /// Mutants of real messages get past the first checks; what is accepted is canonical again.
    #[test]
    fn a_damaged_message_is_refused_or_is_another_message(
        which in 0..7_usize,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut packet = requests()[which].encode();
        for (place, byte) in damage {
            let at = place.index(packet.len());
            packet[at] = byte;
        }
        if let Ok(request) = Request::decode(&packet) {
            prop_assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }
    }
}
