//! The rendered manifests, the unit and the image's recipe: what they grant, and that the agent
//! takes the configuration they bring.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use secrets_broker::config::{Config, Host, MounterPlace};
use secrets_broker::delivery::csi::attributes::{Attributes, Deliver};
use serde_json::json;

#[path = "../support/markdown.rs"]
mod markdown;
mod privileges;

use markdown::blocks;
use privileges::{objects, privileges, violations};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifests() -> String {
    read("deploy/manifests/install.yaml")
}

#[test]
fn the_manifests_grant_what_the_golden_file_says_and_nothing_else() {
    let (granted, golden) =
        (privileges(&objects(&manifests())), read("tests/manifests/golden.txt"));
    let surplus = granted.lines().filter(|line| !golden.lines().any(|known| known == *line));
    let missing = golden.lines().filter(|line| !granted.lines().any(|known| known == *line));
    let surplus: Vec<String> = surplus.map(|line| format!("+ {line}")).collect();
    let missing: Vec<String> = missing.map(|line| format!("- {line}")).collect();
    assert!(granted == golden, "\n{}\n{}\n", surplus.join("\n"), missing.join("\n"));
}

#[test]
fn the_two_halves_stay_apart() {
    assert_eq!(violations(&objects(&manifests())), Vec::<String>::new());
}

/// Each is a change that somebody could make to get something to work.
#[test]
fn every_weaker_manifest_is_noticed() {
    let weak = [
        ("[CHOWN, FOWNER", "[SYS_ADMIN, CHOWN, FOWNER"),
        ("drop: [ALL]", "drop: [NET_RAW]"),
        ("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"),
        ("privileged: false", "privileged: true"),
        ("type: RuntimeDefault", "type: Unconfined"),
        ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
        ("automountServiceAccountToken: false\n      enable", "enable"),
        ("hostNetwork: false", "hostNetwork: false\n      hostPID: true"),
        ("- name: config\n              mountPath", "- name: kubelet\n              mountPath"),
        ("mountPropagation: HostToContainer", "mountPropagation: Bidirectional"),
        (
            "volumeMounts:\n",
            "env: []\n          volumeMounts:\n            - { name: api-access, mountPath: /a }\n",
        ),
        ("name: system:service-account-issuer-discovery", "name: cluster-admin"),
        ("podInfoOnMount: true", "podInfoOnMount: false"),
        ("fsGroupPolicy: None", "fsGroupPolicy: File"),
        ("    - Ephemeral", "    - Ephemeral\n    - Persistent"),
        ("requiresRepublish: true", "requiresRepublish: false"),
        ("- audience: \"vault\"", "- audience: \"\""),
    ];
    let manifests = manifests();
    for (good, bad) in weak {
        assert!(manifests.contains(good), "nothing to weaken: {good}");
        let weaker = objects(&manifests.replacen(good, bad, 1));
        assert!(!violations(&weaker).is_empty(), "not noticed: {bad}");
        assert_ne!(privileges(&weaker), read("tests/manifests/golden.txt"), "{bad}");
    }
    let role = "kind: ClusterRole\nrules:\n  - resources: [secrets]\n    verbs: [get]\n";
    let account =
        "kind: ClusterRole\nrules:\n  - resources: [serviceaccounts/token]\n    verbs: [create]\n";
    for rights in [role, account] {
        assert_eq!(violations(&objects(rights)).len(), 1, "{rights}");
    }
}

#[test]
fn the_agent_takes_the_configuration_without_a_warning() {
    let objects = objects(&manifests());
    let text = objects.iter().find_map(|object| object["data"]["config.toml"].as_str());
    let config = parse(text.expect("a ConfigMap with config.toml"));
    assert_eq!(config.warnings, []);
    assert!(!config.sockets.host.enabled);
    assert_eq!(config.sockets.metrics, Some("10.1.2.3:9102".parse().unwrap()));
    let csi = config.csi.expect("[csi] is enabled");
    assert_eq!(csi.driver.node.as_str(), "node-1");
    let container = |name: &str| {
        let pods = objects.iter().filter(|object| object["kind"] == "DaemonSet");
        let containers = pods.flat_map(|pod| {
            pod["spec"]["template"]["spec"]["containers"].as_array().cloned().unwrap_or_default()
        });
        containers.into_iter().find(|container| container["name"] == name).expect("is there")
    };
    // Both halves mean the same socket, driver and directories.
    let args: Vec<String> =
        serde_json::from_value(container("mounter")["args"].clone()).expect("arguments");
    let after = |flag: &str| {
        args.iter().skip_while(|argument| *argument != flag).nth(1).cloned().unwrap_or_default()
    };
    let MounterPlace::Socket(socket) = &csi.mounter else { panic!("the agent mounts by itself") };
    assert_eq!(Path::new(&after("--socket")), socket);
    assert_eq!(after("--driver"), csi.driver.driver.as_str());
    assert_eq!(after("--kubelet-root"), csi.driver.kubelet_root.as_str());
    let agent = container("agent");
    let mounted = |path: &Path| {
        let mounts = agent["volumeMounts"].as_array().into_iter().flatten();
        mounts.filter_map(|mount| mount["mountPath"].as_str()).any(|mount| path.starts_with(mount))
    };
    let needed = [csi.driver.socket(), csi.driver.registration_socket(), csi.driver.state_dir];
    for path in needed.iter().chain([socket, &config.sockets.operator.path]) {
        assert!(mounted(path), "{} is on no volume", path.display());
    }
    let memory = agent["resources"]["limits"]["memory"].as_str().expect("a memory limit");
    let mebibytes: u64 = memory.strip_suffix("Mi").expect("in MiB").parse().expect("a number");
    assert!(mebibytes << 20 >= csi.driver.volume_bytes_total + (128 << 20), "{memory}");
}

fn parse(text: &str) -> Config {
    let certificate = {
        let mut params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2090, 1, 1);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    };
    let read = |path: &Path| -> io::Result<Vec<u8>> {
        match path.to_str() {
            Some("/etc/secrets-broker/vault-ca.pem") => Ok(certificate.clone().into_bytes()),
            Some("/var/run/secrets/vault/token") => Ok(b"eyJhbGciOi.token".to_vec()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    };
    let variable = |name: &str| match name {
        "NODE_NAME" => Some("node-1".to_owned()),
        "POD_IP" => Some("10.1.2.3".to_owned()),
        _ => None,
    };
    let host = Host {
        variable: &variable,
        read: &read,
        open: &|_| Ok(()),
        uid: 0,
        gid: 0,
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    };
    Config::parse(text, "config.toml", &host).unwrap_or_else(|error| panic!("{error}"))
}

/// The volumes of pods on these pages would be published as they are written.
#[test]
fn every_pod_in_the_documents_is_understood() {
    let pages = ["README.md", "docs/delivery/csi.md", "docs/delivery/sockets.md"].map(read);
    let pods = pages.iter().flat_map(|page| blocks(page, "yaml pod"));
    let mut published = 0;
    for pod in pods {
        for volume in objects(&pod)[0]["spec"]["volumes"].as_array().expect("volumes") {
            let csi = &volume["csi"];
            if csi.is_null() {
                continue;
            }
            published += 1;
            assert_eq!(
                (&csi["driver"], &csi["readOnly"]),
                (&json!("csi.secrets-broker.io"), &json!(true))
            );
            let attributes = csi["volumeAttributes"].as_object().expect("attributes");
            let pairs = attributes.iter().map(|(name, value)| {
                (name.as_str(), value.as_str().expect("Kubernetes takes strings only"))
            });
            let parsed = Attributes::parse(pairs).unwrap_or_else(|all| panic!("{all:#?}"));
            let empty = matches!(&parsed.deliver, Deliver::Files(items) if items.is_empty());
            assert!(!empty);
        }
    }
    assert_eq!(published, 4);
}

#[test]
fn the_unit_waits_for_the_first_fill_keeps_what_outlives_it_and_makes_no_mount_namespace() {
    let unit = read("deploy/systemd/secrets-broker.service");
    let has = |line: &str| unit.lines().any(|found| found == line);
    for line in [
        "Type=notify",
        "RuntimeDirectory=secrets-broker",
        "RuntimeDirectoryPreserve=yes",
        "Restart=on-failure",
        "NoNewPrivileges=yes",
        "LimitMEMLOCK=infinity",
        "LimitCORE=0",
        "UMask=0077",
        "LockPersonality=yes",
        "MemoryDenyWriteExecute=yes",
        "MemorySwapMax=0",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "RestrictNamespaces=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service @mount",
        "KeyringMode=private",
    ] {
        assert!(has(line), "{line}");
    }
    let capabilities = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let capabilities: Vec<&str> = capabilities.expect("a bounding set").split(' ').collect();
    for never in ["CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_SYS_MODULE", "CAP_SETUID", "CAP_BPF"] {
        assert!(!capabilities.contains(&never), "{never}");
    }
    // Volumes that are mounted in a namespace of the agent's own would be seen by nobody else.
    let private = ["Private", "Protect", "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths"];
    for line in unit.lines().filter(|line| !line.starts_with('#')) {
        assert!(!private.iter().any(|name| line.starts_with(name)), "{line}");
    }
}

#[test]
fn the_image_holds_one_file_and_nothing_to_run_a_command_with() {
    let recipe = read("deploy/Dockerfile");
    let (_, last) = recipe.rsplit_once("\nFROM ").expect("two stages");
    let steps: Vec<&str> =
        last.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let expected = [
        "scratch",
        "COPY --from=build /image /",
        "USER 0:0",
        "ENTRYPOINT [\"/usr/bin/secrets-broker\"]",
    ];
    assert_eq!(steps, expected);
}
