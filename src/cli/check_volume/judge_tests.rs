//! Manifests and everything that is said about them.

use super::super::manifest::pods;
use super::super::yaml::documents;
use super::*;

const TERMS: Terms<'static> =
    Terms { driver: "csi.secrets-broker.io", namespace: "shop", operator: None };

/// A pod with these fields beside its volume, and these lines under `csi`.
fn pod(spec: &str, csi: &str) -> String {
    let csi: String = csi.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "kind: Pod\nmetadata: {{name: web, namespace: shop}}\nspec:\n{spec}  volumes:\n  \
         - name: secrets\n    csi:\n      driver: csi.secrets-broker.io\n{csi}"
    )
}

const MOUNTED: &str = "  serviceAccountName: web\n  containers:\n  - name: web\n    \
                       volumeMounts: [{name: secrets, mountPath: /secrets}]\n";

fn judged(text: &str, terms: &Terms<'_>) -> Judged {
    let mut judged = Judged::default();
    let documents = documents(text).unwrap_or_else(|error| panic!("{text}: {error:?}"));
    for pod in documents.iter().flat_map(pods) {
        judged.add(&pod, terms);
    }
    judged
}

fn said(judged: &Judged, severity: Severity) -> Vec<String> {
    let of = judged.findings.iter().filter(|finding| finding.severity == severity);
    of.map(|f| format!("{}: {}: {}", f.line, f.place, f.message)).collect()
}

#[test]
fn a_volume_in_order_is_planned_file_by_file() {
    let spec = format!("  securityContext: {{fsGroup: 2000}}\n{MOUNTED}");
    let csi = "readOnly: true\nvolumeAttributes:\n  items: |\n    - secret: secret/shop/web\n    \
               - path: db.json\n      mode: '0400'\n      keys: {u: database/creds/shop#username, \
               p: database/creds/shop#username}\n";
    let judged = judged(&pod(&spec, csi), &TERMS);
    assert_eq!(judged.findings, []);
    let volume = &judged.volumes[0];
    assert_eq!(volume.place, "Pod shop/web: volume 'secrets'");
    let lines: Vec<String> = volume
        .files
        .iter()
        .map(|f| format!("{} {} {} {}", f.file, f.owner(), f.mode(), f.secrets.join(" ")))
        .collect();
    assert_eq!(
        lines,
        ["* 0:2000 0440 secret/shop/web", "db.json 0:2000 0400 database/creds/shop#username"]
    );
}

#[test]
fn every_problem_is_said_at_once_with_its_line() {
    let csi = "readonly: true\nvolumeAttributes:\n  secret: secret//shop\n  mode: 0440\n  \
               owner: root\n  vault: http://x\n";
    let judged = judged(&pod("  serviceAccountName: web\n", csi), &TERMS);
    let problems = said(&judged, Severity::Problem);
    for part in [
        "9: Pod shop/web: volume 'secrets': readonly: no such field",
        "8: Pod shop/web: volume 'secrets': readOnly: the volume is writable",
        "no container mounts it",
        "12: Pod shop/web: volume 'secrets': mode: 0440 is a number, and Kubernetes takes strings \
         only; write mode: \"0440\"",
        "13: Pod shop/web: volume 'secrets': volumeAttributes: owner: 'root' is not a number",
        "14: Pod shop/web: volume 'secrets': volumeAttributes: unknown attribute 'vault'",
        "11: Pod shop/web: volume 'secrets': volumeAttributes: secret 'secret//shop'",
    ] {
        assert!(problems.iter().any(|line| line.contains(part)), "{part} in {problems:#?}");
    }
    assert_eq!(problems.len(), 7, "{problems:#?}");
    assert!(judged.volumes.is_empty());
}

#[test]
fn a_list_where_a_string_belongs_is_named_and_its_content_checked_all_the_same() {
    let csi = "readOnly: true\nvolumeAttributes:\n  items:\n  - secret: secret/a#k\n    \
               mode: 0999\n";
    let problems = said(&judged(&pod(MOUNTED, csi), &TERMS), Severity::Problem);
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems[0].contains("items: a list or map"), "{problems:#?}");
    assert!(problems[1].contains("item 1 mode '0999'"), "{problems:#?}");
}

#[test]
fn what_works_but_surprises_is_a_warning_or_a_hint() {
    let spec = "  containers:\n  - name: web\n    securityContext: {runAsUser: 1000}\n    \
                volumeMounts:\n    - {name: secrets, mountPath: /t, subPath: token}\n";
    let csi = "readOnly: true\nvolumeAttributes: {secret: secret/a#token, mode: '0400', role: x}\n";
    let judged = judged(&pod(spec, csi), &TERMS);
    assert_eq!(said(&judged, Severity::Problem), Vec::<String>::new());
    let warnings = said(&judged, Severity::Warning).join("\n");
    assert!(warnings.contains("8: Pod shop/web: volume 'secrets': subPath: container 'web'"));
    assert!(warnings.contains("runs as user 1000 and cannot read token"), "{warnings}");
    let hints = said(&judged, Severity::Hint).join("\n");
    assert!(hints.contains("service account 'default'"), "{hints}");
    assert!(hints.contains("role: the operator of the agent has to permit it"), "{hints}");
    assert_eq!(judged.volumes.len(), 1);
}

#[test]
fn the_operators_configuration_decides_about_roles_and_paths() {
    let roles = ["{namespace}-*".parse().unwrap()];
    let (source, kind) = ("vault".parse().unwrap(), Some(crate::domain::EngineKind::Kv2));
    let mounts = [ConfiguredMount { path: "secret".parse().unwrap(), kind }];
    let operator = Operator { source: &source, mounts: Some(&mounts), tenant_roles: &roles };
    let terms = Terms { operator: Some(operator), ..TERMS };
    let csi = |secret: &str, role: &str| {
        format!(
            "readOnly: true\nvolumeAttributes: {{secret: {secret}, path: a.json, role: {role}}}\n"
        )
    };
    let good = judged(&pod(MOUNTED, &csi("secret/shop/web", "shop-reader")), &terms);
    assert_eq!(good.findings, []);
    assert_eq!(good.volumes[0].files[0].secrets, ["secret/data/shop/web"]);
    let bad = judged(&pod(MOUNTED, &csi("kv/shop/web", "other")), &terms);
    let problems = said(&bad, Severity::Problem).join("\n");
    assert!(problems.contains("pods of shop/web may not choose 'other'"), "{problems}");
    assert!(problems.contains("'kv/shop/web' lies below no mount of the source (secret)"));
}

#[test]
fn other_drivers_are_left_alone_but_a_slip_is_named() {
    let with =
        |driver: &str| pod(MOUNTED, "readOnly: true\n").replace("csi.secrets-broker.io", driver);
    let other = judged(&with("secrets-store.csi.k8s.io"), &TERMS);
    assert_eq!((other.seen, other.findings.len()), (0, 0));
    let slip = judged(&with("csi.secret-broker.io"), &TERMS);
    assert_eq!(said(&slip, Severity::Problem).len(), 1);
}
