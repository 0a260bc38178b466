//! What a publish call must be, and that everything wrong with it is said at once.

use super::*;
use crate::delivery::csi::proto::csi::{VolumeCapability, volume_capability};

const UID: &str = "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab";

fn root() -> KubeletRoot {
    "/var/lib/kubelet".parse().unwrap()
}

fn mount(group: &str) -> Option<VolumeCapability> {
    let mount = volume_capability::MountVolume {
        volume_mount_group: group.to_owned(),
        ..Default::default()
    };
    Some(VolumeCapability { access_type: Some(AccessType::Mount(mount)), ..Default::default() })
}

fn request() -> NodePublishVolumeRequest {
    let context = [
        ("csi.storage.k8s.io/pod.namespace", "shop"),
        ("csi.storage.k8s.io/pod.name", "web-0"),
        ("csi.storage.k8s.io/pod.uid", UID),
        ("csi.storage.k8s.io/serviceAccount.name", "web"),
        (EPHEMERAL, "true"),
        ("secret", "secret/shop/web#token"),
    ];
    let tokens =
        r#"{"vault":{"token":"canary.token.x","expirationTimestamp":"2030-01-01T00:00:00Z"}}"#;
    NodePublishVolumeRequest {
        volume_id: "csi-1".to_owned(),
        target_path: format!("/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/secrets/mount"),
        volume_capability: mount(""),
        readonly: true,
        secrets: HashMap::from([(TOKENS.to_owned(), tokens.to_owned())]),
        volume_context: context.map(|(name, value)| (name.into(), value.into())).into(),
        ..Default::default()
    }
}

fn read(request: &NodePublishVolumeRequest) -> Result<Publish, Vec<String>> {
    Publish::read(request, &root(), "vault")
}

#[test]
fn a_call_of_the_kubelets_is_read_whole() {
    let publish = read(&request()).unwrap_or_else(|problems| panic!("{problems:?}"));
    assert_eq!(publish.pod.uid.as_str(), UID);
    assert_eq!(publish.target.key().volume.as_str(), "secrets");
    assert_eq!(publish.token.expose(), "canary.token.x");
    let source = "vault".parse().unwrap();
    assert_eq!(publish.attributes.items(&source, None).len(), 1);
    assert_eq!(publish.fs_group, None);

    let mut with_group = request();
    with_group.volume_capability = mount("2000");
    assert_eq!(read(&with_group).ok().unwrap().fs_group, Some(2000));
}

#[test]
fn older_kubelets_put_the_tokens_among_the_attributes() {
    let mut older = request();
    let tokens = older.secrets.remove(TOKENS).unwrap();
    older.volume_context.insert(TOKENS.to_owned(), tokens);
    assert_eq!(read(&older).ok().unwrap().token.expose(), "canary.token.x");
}

#[test]
fn each_thing_that_is_wrong_is_named() {
    type Change = fn(&mut NodePublishVolumeRequest);
    let changes: [(Change, &str); 12] = [
        (|r| r.volume_id.clear(), "volume_id"),
        (|r| r.readonly = false, "readOnly: true"),
        (|r| r.volume_capability = None, "volume_capability"),
        (|r| r.volume_capability = mount("wheel"), "volume_mount_group"),
        (|r| r.target_path = "/etc".to_owned(), "kubelet's root"),
        (|r| r.target_path = r.target_path.replace("8e3a", "9e3a"), "another pod's"),
        (|r| drop(r.volume_context.remove(EPHEMERAL)), "ephemeral"),
        (|r| drop(r.volume_context.remove("csi.storage.k8s.io/pod.uid")), "podInfoOnMount"),
        (
            |r| {
                r.volume_context
                    .insert("csi.storage.k8s.io/pod.name".into(), "../x".into())
                    .map_or((), drop)
            },
            "pod.name",
        ),
        (|r| r.secrets.clear(), "tokenRequests"),
        (
            |r| drop(r.secrets.insert(TOKENS.into(), "{\"other\":{\"token\":\"canary\"}}".into())),
            "'vault'",
        ),
        (
            |r| drop(r.volume_context.insert("vaultAddress".into(), "http://x".into())),
            "vaultAddress",
        ),
    ];
    let mut all = request();
    for (change, part) in changes {
        let mut request = request();
        change(&mut request);
        let problems = read(&request).err().unwrap_or_default();
        assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:?}");
        assert!(!problems.concat().contains("canary"), "{problems:?}");
        change(&mut all);
    }
    assert!(read(&all).err().unwrap().len() >= 7);
}
