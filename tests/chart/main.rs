//! The chart, rendered by Helm and shown to a real API server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

#[path = "../manifests/privileges.rs"]
mod privileges;
#[path = "../support/mod.rs"]
mod support;

use privileges::{objects, privileges, violations};
use serde_json::{Value, json};
use support::kubernetes::Kubernetes;

/// As docs/operations.md renders the manifests.
const DEFAULTS: [&str; 2] = ["--namespace=secrets-broker", "--kube-version=1.36.0"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn chart() -> PathBuf {
    root().join("deploy/chart")
}

/// With directories of its own: nothing of whoever runs the tests counts.
fn helm(arguments: &[&str]) -> Output {
    static HOME: OnceLock<tempfile::TempDir> = OnceLock::new();
    let home = HOME.get_or_init(|| tempfile::tempdir().expect("a directory"));
    Command::new(support::server_program("helm"))
        .args(arguments)
        .env_clear()
        .env("HOME", home.path())
        .output()
        .expect("run helm")
}

fn template(arguments: &[&str]) -> Result<String, String> {
    let chart = chart();
    let fixed = ["template", "secrets-broker", chart.to_str().expect("a readable path")];
    let output = helm(&[&fixed, &DEFAULTS[..], arguments].concat());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("helm writes text");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn rendered(arguments: &[&str]) -> Vec<Value> {
    objects(&template(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}")))
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

#[test]
fn helm_finds_nothing_to_complain_about() {
    let output = helm(&["lint", "--strict", chart().to_str().expect("a readable path")]);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
}

#[test]
fn the_manifests_are_what_the_chart_renders() {
    let committed = fs::read_to_string(root().join("deploy/manifests/install.yaml")).unwrap();
    let header: String = committed
        .lines()
        .take_while(|line| line.starts_with("# "))
        .map(|l| format!("{l}\n"))
        .collect();
    let fresh = template(&[]).unwrap();
    assert!(
        committed == format!("{header}{fresh}"),
        "render deploy/manifests/install.yaml anew: {header}"
    );
}

#[test]
fn values_that_would_not_work_are_refused_with_their_name() {
    let digest = "image.digest=sha256:12";
    let same_audience = "nodeSocket.enabled=true,placement.enabled=true,podDirectory=apiserver,\
                         nodeSocket.proofAudience=vault";
    for (value, names) in [
        ("csi.drivr=x", "drivr"),
        ("csi.driver=Not A Name", "driver"),
        ("csi.verify=never", "verify"),
        ("csi.kubeletRoot=relative", "kubeletRoot"),
        ("csi.kubeletRoot=/var/lib/kubelet/", "kubeletRoot"),
        ("csi.tokenExpirationSeconds=60", "tokenExpirationSeconds"),
        ("csi.volume.totalMiB=256MiB", "totalMiB"),
        ("podDirectory=kubelet", "podDirectory"),
        ("nodeSocket.proofToken=never", "proofToken"),
        ("nodeSocket.enabled=true", "placement.enabled"),
        ("nodeSocket.enabled=true,placement.enabled=true", "podDirectory"),
        (same_audience, "proofAudience"),
        ("csi.volume.sizeKiB=65536,csi.volume.totalMiB=32", "no volume has room"),
        ("updateStrategy.rollingUpdate.maxSurge=1", "maxSurge"),
        ("agent.seLinuxOptions.privileged=true", "privileged"),
        ("nodeSocket.proofAudience=api", "proofAudience"),
        ("placement.cgroupRoot=kubepods", "cgroupRoot"),
        ("placement.cgroupRoot=/kubelet/xkubepods", "cgroupRoot"),
        ("placement.cgroupRoot=/kubelet-kubepods", "cgroupRoot"),
        ("log.level=loud", "level"),
        ("metrics.port=80", "port"),
        ("terminationGracePeriodSeconds=5", "terminationGracePeriodSeconds"),
        ("priorityClass.value=2000000000", "value"),
        ("agent.extraEnv[0].value=nameless", "extraEnv"),
        ("config=", "config"),
        ("config=[sources.vault]\n[agent]", "the chart writes these itself"),
        ("config=[sources.vault]\n[sockets.host]", "the chart writes these itself"),
        ("config=[sources.vault]\n[pods]", "the chart writes these itself"),
        ("vaultCA.secret=both", "vaultCA"),
        (digest, "digest"),
        ("privileged=true", "privileged"),
    ] {
        let refused = template(&["--set", value]).err();
        let refused = refused.unwrap_or_else(|| panic!("{value} was accepted"));
        assert!(refused.contains(names), "{value}: {refused}");
    }
}

#[test]
fn rights_follow_how_tokens_are_judged_and_pods_are_known() {
    let rules = |arguments: &[&str]| {
        let objects = rendered(arguments);
        assert_eq!(violations(&objects), Vec::<String>::new(), "{arguments:?}");
        let roles = privileges(&objects);
        let rules = roles.lines().filter(|line| {
            line.contains("rules[") && !line.ends_with(r#"[""]"#) || line.contains("roleRef.name")
        });
        rules.map(|line| line.split_once(": ").expect("a line").1.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(rules(&[]), [r#"roleRef.name = "system:service-account-issuer-discovery""#]);
    let reviews = rules(&["--set", "csi.verify=tokenreview"]);
    assert_eq!(
        reviews,
        [
            r#"rules[0].apiGroups = ["authentication.k8s.io"]"#,
            r#"rules[0].resources = ["tokenreviews"]"#,
            r#"rules[0].verbs = ["create"]"#,
            r#"roleRef.name = "secrets-broker-token-reviews""#,
        ]
    );
    let with_pods = ["--set", "podDirectory=apiserver"];
    let pods = rules(&with_pods).concat();
    assert!(pods.contains(r#"["pods"]"#) && pods.contains(r#"["list","watch"]"#), "{pods}");
    let config = |arguments: &[&str]| {
        let objects = rendered(arguments);
        let map = of_kind(&objects, "ConfigMap")[0];
        map["data"]["config.toml"].as_str().expect("a configuration").to_owned()
    };
    assert!(config(&with_pods).contains("\n[pods]\ndirectory = \"apiserver\"\n\n[csi]\n"));
    assert!(!config(&[]).contains("[pods]"));
}

#[test]
fn what_the_configuration_names_besides_is_the_agents_alone() {
    let objects = rendered(&[
        "--set=agent.extraEnv[0].name=CLUSTER,agent.extraEnv[0].value=blue",
        "--set=agent.extraVolumes[0].name=policy,agent.extraVolumes[0].configMap.name=policy",
        "--set=agent.extraVolumeMounts[0].name=policy,agent.extraVolumeMounts[0].mountPath=/policy",
        "--set=priorityClass.create=false",
    ]);
    assert_eq!(violations(&objects), Vec::<String>::new());
    let pod = &of_kind(&objects, "DaemonSet")[0]["spec"]["template"]["spec"];
    let named = |list: &Value, name: &str| {
        list.as_array().into_iter().flatten().any(|entry| entry["name"] == name)
    };
    assert!(named(&pod["volumes"], "policy"), "{pod:#}");
    for container in pod["containers"].as_array().expect("containers") {
        let is_agent = container["name"] == "agent";
        assert_eq!(named(&container["env"], "CLUSTER"), is_agent, "{container:#}");
        assert_eq!(named(&container["volumeMounts"], "policy"), is_agent, "{container:#}");
    }
    assert!(pod["priorityClassName"].is_null() && of_kind(&objects, "PriorityClass").is_empty());
}

#[test]
fn the_hosts_processes_are_seen_only_where_callers_are_placed() {
    let placed = ["--set=placement.enabled=true,placement.cgroupRoot=/kubepods.slice"];
    for (arguments, seen) in [(&[][..], false), (&placed[..], true)] {
        let objects = rendered(arguments);
        assert_eq!(violations(&objects), Vec::<String>::new(), "{arguments:?}");
        let pod = &of_kind(&objects, "DaemonSet")[0]["spec"]["template"]["spec"];
        assert_eq!(pod["hostPID"].as_bool().unwrap_or_default(), seen);
        let maps = of_kind(&objects, "ConfigMap");
        let config = maps.iter().find_map(|map| map["data"]["config.toml"].as_str());
        let lines = "[placement]\npod_uid = \"${POD_UID}\"\ncgroup_root = \"/kubepods.slice\"\n";
        assert_eq!(config.expect("a configuration").contains(lines), seen);
    }
}

#[test]
fn pods_tokens_travel_as_secrets_where_the_cluster_knows_how() {
    let spec = |version: &str| {
        let objects = rendered(&["--kube-version", version]);
        of_kind(&objects, "CSIDriver")[0]["spec"].clone()
    };
    assert_eq!(spec("1.35.0")["serviceAccountTokenInSecrets"], true);
    assert_eq!(spec("1.36.3-gke.1")["serviceAccountTokenInSecrets"], true);
    assert!(spec("1.34.9").get("serviceAccountTokenInSecrets").is_none());
    // Whose tokens name no node.
    assert!(template(&["--kube-version", "1.29.14"]).is_err());
    assert!(template(&["--kube-version", "1.30.0"]).is_ok());
}

#[test]
fn of_several_releases_in_a_cluster_one_makes_the_driver_object() {
    let drivers = |value: &str| {
        let objects = rendered(&["--set", value]);
        assert_eq!(of_kind(&objects, "DaemonSet").len(), 1);
        of_kind(&objects, "CSIDriver").len()
    };
    assert_eq!(drivers("csi.createDriver=true"), 1);
    assert_eq!(drivers("csi.createDriver=false"), 0);
}

#[test]
fn everything_that_is_off_by_default_can_be_switched_on() {
    let digest = format!("--set=image.digest=sha256:{}", "1".repeat(64));
    let objects = rendered(&[
        "--set=podMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true",
        "--set-string=csi.settings=tenant_roles = [\"shop\"]",
        "--set=agent.seLinuxOptions.type=spc_t",
        "--set=hostNetwork=true,priorityClass.create=false,priorityClass.name=system-node-critical",
        "--set=csi.kubeletRoot=/var/lib/k0s/kubelet,csi.volume.totalMiB=1024",
        "--set=vaultCA.configMap=,vaultCA.secret=vault-tls",
        &digest,
    ]);
    assert_eq!(violations(&objects), Vec::<String>::new());
    let alerts = fs::read_to_string(chart().join("files/alerts.yaml")).unwrap();
    let rule = of_kind(&objects, "PrometheusRule")[0];
    assert_eq!(rule["spec"]["groups"], privileges::objects(&alerts)[0]["groups"]);
    let endpoint = &of_kind(&objects, "PodMonitor")[0]["spec"]["podMetricsEndpoints"][0];
    assert_eq!(endpoint["relabelings"][0]["targetLabel"], "instance");
    assert!(of_kind(&objects, "PriorityClass").is_empty());
    let configured = of_kind(&objects, "ConfigMap");
    let config = configured.iter().find_map(|map| map["data"]["config.toml"].as_str());
    let (_, csi) = config.expect("a configuration").split_once("[csi]").expect("[csi]");
    assert!(csi.contains("\ntenant_roles = [\"shop\"]\n"), "{csi}");
    let dashboards = of_kind(&objects, "ConfigMap");
    let dashboard = dashboards.iter().find_map(|map| map["data"]["secrets-broker.json"].as_str());
    let dashboard: Value = serde_json::from_str(dashboard.expect("a dashboard")).expect("JSON");
    assert_eq!(dashboard["uid"], "secrets-broker");
    let pod = &of_kind(&objects, "DaemonSet")[0]["spec"]["template"]["spec"];
    assert_eq!(pod["dnsPolicy"], "ClusterFirstWithHostNet");
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    let agent = pod["containers"].as_array().expect("containers").last().expect("the agent");
    assert_eq!(agent["resources"]["limits"]["memory"], "1216Mi");
    assert_eq!(agent["securityContext"]["seLinuxOptions"], json!({ "type": "spc_t" }));
    let text = serde_json::to_string(pod).expect("JSON");
    let ca = &pod["volumes"][0]["projected"]["sources"][1]["secret"];
    assert_eq!(ca["name"], "vault-tls");
    assert_eq!(ca["items"], json!([{ "key": "ca.crt", "path": "vault-ca.pem" }]));
    assert!(!text.contains("/var/lib/kubelet"), "{text}");
}

#[test]
fn the_api_server_accepts_every_object_and_every_field() {
    let kubernetes = Kubernetes::start();
    kubernetes.create_namespace("secrets-broker");
    for arguments in [&[][..], &["--set=csi.verify=tokenreview,podDirectory=apiserver"]] {
        for object in rendered(arguments) {
            kubernetes.dry_run(&object);
        }
    }
}
