//! What rules about labels promise: unknown labels open nothing and let nothing slip past.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use crate::domain::{Pod, ServiceAccount};
use crate::identity::ProofStrength;
use crate::identity::pods::DirectoryPod;

const PATH: &str = "secret/data/shop/db";
const UID: &str = "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ab";

fn pod(namespace: &str) -> Identity {
    let account = ServiceAccount {
        namespace: namespace.parse().unwrap(),
        name: "web".parse().unwrap(),
        uid: "u-1".parse().unwrap(),
    };
    let pod = Pod { uid: UID.parse().unwrap(), name: "web-0".parse().unwrap(), account };
    Identity::published_pod(Arc::new(pod), &"shop".parse().unwrap(), None)
}

/// What the API server says of that pod.
fn listed(pairs: &[(&str, &str)]) -> DirectoryPod {
    DirectoryPod {
        uid: UID.parse().unwrap(),
        name: "web-0".parse().unwrap(),
        namespace: "shop".parse().unwrap(),
        service_account: "web".parse().unwrap(),
        labels: Arc::new(labels(pairs)),
        leaving: false,
    }
}

/// A directory that knows that pod with these labels.
fn knowing(pairs: &[(&str, &str)]) -> PodDirectory {
    let directory = PodDirectory::told();
    directory.tell(listed(pairs));
    directory
}

fn secret() -> SecretRef {
    SecretRef { source: "vault".parse().unwrap(), path: PATH.parse().unwrap(), version: None }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Pods of namespace `shop` with these labels.
fn labelled(name: &str, effect: Effect, pairs: &[(&str, &str)]) -> GrantConfig {
    let wanted: BTreeMap<_, _> =
        pairs.iter().map(|(key, value)| (key.parse().unwrap(), value.parse().unwrap())).collect();
    GrantConfig {
        name: name.parse().unwrap(),
        effect,
        who: Who::Pods {
            namespace: "shop".parse().unwrap(),
            service_account: None,
            labels: wanted,
        },
        source: "vault".parse().unwrap(),
        paths: vec!["secret/data/shop/*".parse().unwrap()],
        share: Share::Consumer,
        login: GrantLogin::ServiceAccount,
        min_proof: ProofStrength::PeerCred,
        when: None,
    }
}

fn config(grants: Vec<GrantConfig>, cedar: Option<&str>) -> PolicyConfig {
    let cedar = cedar.map(|text| CedarFile { name: "policy.cedar".into(), text: text.to_owned() });
    PolicyConfig { grants, cedar, knows_labels: true, ..PolicyConfig::default() }
}

fn compile(config: &PolicyConfig) -> CompiledPolicy {
    CompiledPolicy::compile(config).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn problems(config: &PolicyConfig) -> Vec<String> {
    let problems = CompiledPolicy::compile(config).err().unwrap_or_default();
    problems.iter().map(ToString::to_string).collect()
}

fn decide(
    config: &PolicyConfig,
    identity: &Identity,
    labels: Option<&Labels>,
) -> Result<Permit, Denied> {
    let secret = secret();
    compile(config).decide(identity, &secret, labels, Timestamp::now())
}

#[test]
fn a_grant_with_labels_is_for_pods_that_have_all_of_them_with_these_values() {
    let wanted = [("app", "shop"), ("app.kubernetes.io/tier", "")];
    let config = config(vec![labelled("shop", Effect::Permit, &wanted)], None);
    let all = labels(&[("app", "shop"), ("app.kubernetes.io/tier", ""), ("other", "x")]);
    assert!(decide(&config, &pod("shop"), Some(&all)).is_ok());
    assert!(decide(&config, &pod("web"), Some(&all)).is_err(), "another namespace");
    for too_little in [
        &[("app", "shop")][..],
        &[("app", "web"), ("app.kubernetes.io/tier", "")],
        &[("app", "Shop"), ("app.kubernetes.io/tier", "")],
        &[],
    ] {
        let denied = decide(&config, &pod("shop"), Some(&labels(too_little))).unwrap_err();
        assert!(denied.reason.contains("condition or proof"), "{too_little:?}: {denied}");
    }
}

#[test]
fn unknown_labels_permit_nothing_and_the_reason_says_so() {
    let config = config(vec![labelled("shop", Effect::Permit, &[("app", "shop")])], None);
    let denied = decide(&config, &pod("shop"), None).unwrap_err();
    assert!(denied.reason.contains("covered by shop, but the pod is not known"), "{denied}");
}

#[test]
fn unknown_labels_do_not_slip_past_a_rule_that_forbids_by_them() {
    let plain = labelled("plain", Effect::Permit, &[]);
    let by_label = r#"principal.hasTag("app") && principal.getTag("app") == "bad""#;
    let in_condition =
        GrantConfig { when: Some(by_label.to_owned()), ..labelled("bad", Effect::Forbid, &[]) };
    let in_file =
        format!("@id(\"bad\") forbid (principal is Pod, action, resource) when {{ {by_label} }};");
    let configs = [
        config(vec![plain.clone(), labelled("bad", Effect::Forbid, &[("app", "bad")])], None),
        config(vec![plain.clone(), in_condition], None),
        config(vec![plain.clone()], Some(&in_file)),
    ];
    for config in &configs {
        assert!(decide(config, &pod("shop"), Some(&labels(&[]))).is_ok());
        assert!(decide(config, &pod("shop"), Some(&labels(&[("app", "good")]))).is_ok());
        let bad = decide(config, &pod("shop"), Some(&labels(&[("app", "bad")]))).unwrap_err();
        assert!(!bad.reason.contains("not known"), "{bad}");
        let unknown = decide(config, &pod("shop"), None).unwrap_err();
        assert_eq!(unknown.rule, Some("bad".parse().unwrap()), "{unknown}");
        assert!(unknown.reason.contains("not known in the pod directory"), "{unknown}");
    }
    // A rule may say itself what holds then, and nobody but pods is concerned.
    let minding = in_file.replace("when {", "when { principal.labels_known &&");
    let minding = config(vec![plain.clone()], Some(&minding));
    assert!(decide(&minding, &pod("shop"), None).is_ok());
    let everybody = GrantConfig { who: Who::AnyHostUser, ..plain };
    let host =
        Identity::host_user(1, 1, &[], ProofStrength::PidFd, crate::identity::Listener::Host);
    assert!(decide(&config(vec![everybody], Some(&in_file)), &host, None).is_ok());
}

#[test]
fn a_forbid_by_label_is_for_its_own_namespace() {
    let bad = labelled("bad", Effect::Forbid, &[("app", "bad")]);
    let everywhere = GrantConfig { who: Who::AnyPod, ..labelled("plain", Effect::Permit, &[]) };
    let when = |rule: &GrantConfig| GrantConfig {
        when: Some("principal.hasTag(\"app\")".to_owned()),
        ..rule.clone()
    };
    let in_condition = when(&labelled("bad", Effect::Forbid, &[]));
    let in_file = "@id(\"bad\") forbid (principal in Namespace::\"shop\", action, resource) \
                   when { principal is Pod && principal.hasTag(\"app\") };";
    for config in [
        config(vec![everywhere.clone(), bad], None),
        config(vec![everywhere.clone(), in_condition], None),
        config(vec![everywhere], Some(in_file)),
    ] {
        assert!(decide(&config, &pod("web"), None).is_ok());
        assert!(decide(&config, &pod("shop"), None).is_err());
    }
}

#[test]
fn cedar_rules_read_labels_as_tags() {
    let text = r#"@id("tier") permit (principal is Pod in Namespace::"shop", action, resource)
        when { principal.hasTag("tier") && ["a", "b"].contains(principal.getTag("tier")) };"#;
    let config = config(Vec::new(), Some(text));
    assert!(decide(&config, &pod("shop"), Some(&labels(&[("tier", "b")]))).is_ok());
    assert!(decide(&config, &pod("shop"), Some(&labels(&[("tier", "c")]))).is_err());
    assert!(decide(&config, &pod("shop"), None).is_err());
}

#[test]
fn labels_without_a_directory_or_a_namespace_are_problems() {
    let grant = labelled("shop", Effect::Permit, &[("app", "shop")]);
    let none = PolicyConfig { knows_labels: false, ..config(vec![grant], None) };
    let found = problems(&none);
    assert!(found.len() == 1 && found[0].contains("directory = \"apiserver\""), "{found:?}");

    let anywhere = r#"@id("any") permit (principal is Pod, action, resource)
        when { principal.hasTag("app") && principal.getTag("app") == "shop" };"#;
    let found = problems(&config(Vec::new(), Some(anywhere)));
    assert!(found.len() == 1 && found[0].contains("in every namespace"), "{found:?}");
    let forbid = anywhere.replace("permit", "forbid");
    assert_eq!(problems(&config(Vec::new(), Some(&forbid))), Vec::<String>::new());
    let unguarded = r#"@id("any") permit (principal is Pod in Namespace::"shop", action, resource)
        when { principal.getTag("app") == "shop" };"#;
    assert!(problems(&config(Vec::new(), Some(unguarded)))[0].contains("does not fit"));
}

#[test]
fn a_changed_label_ends_proofs_only_where_a_rule_asks_for_labels() {
    let directory = knowing(&[("app", "shop")]);
    let grant = labelled("shop", Effect::Permit, &[("app", "shop")]);
    let policy = Policy::new(compile(&config(vec![grant], None))).with_directory(directory.clone());
    let secret = secret();
    let now = BootInstant::from_nanos(1);
    let proof = policy.authorize(&pod("shop"), &secret, now).unwrap();
    let generations = policy.generations();
    directory.tell(listed(&[("app", "web")]));
    policy.labels_changed();
    assert!(!policy.still_holds(&proof, now) && generations.has_changed().unwrap());
    assert!(policy.authorize(&pod("shop"), &secret, now).is_err());

    policy.replace(compile(&config(vec![labelled("plain", Effect::Permit, &[])], None)));
    let proof = policy.authorize(&pod("shop"), &secret, now).unwrap();
    policy.labels_changed();
    assert!(policy.still_holds(&proof, now), "no rule asks for labels");
}

#[test]
fn the_absence_of_a_label_permits_nobody_whose_labels_are_not_known() {
    let mut unless = labelled("unless", Effect::Permit, &[]);
    unless.when = Some("!principal.hasTag(\"quarantine\")".to_owned());
    let file = "@id(\"file\") permit (principal is Pod in Namespace::\"shop\", action, resource) \
                unless { principal.hasTag(\"quarantine\") };";
    for config in [config(vec![unless], None), config(Vec::new(), Some(file))] {
        assert!(decide(&config, &pod("shop"), Some(&labels(&[]))).is_ok());
        assert!(decide(&config, &pod("shop"), Some(&labels(&[("quarantine", "")]))).is_err());
        assert!(decide(&config, &pod("shop"), None).is_err());
    }
}

#[test]
fn what_a_label_might_permit_is_open_until_it_is_known_and_not_read_with_another_login() {
    let mut lent = labelled("lent", Effect::Permit, &[("app", "shop")]);
    lent.login = GrantLogin::Agent;
    let own_identity = BTreeSet::from(["vault".parse().unwrap()]);
    let config = PolicyConfig { own_identity, ..config(vec![lent], None) };
    let denied = decide(&config, &pod("shop"), None).unwrap_err();
    assert!(denied.labels_unknown, "{denied}");
    let known = |pairs| decide(&config, &pod("shop"), Some(&labels(pairs))).unwrap().rule;
    assert_eq!(known(&[("app", "shop")]).as_str(), "lent");
    assert_eq!(known(&[]).as_str(), "own-identity");
    // Another namespace's pods are not waited for.
    assert_eq!(decide(&config, &pod("web"), None).unwrap().rule.as_str(), "own-identity");
}

const LONG: Duration = Duration::from_secs(600);

/// Policy that asks for a label, and the directory that it asks.
fn asking(effect: Effect) -> (Policy, PodDirectory) {
    let directory = PodDirectory::told();
    let plain = (effect == Effect::Forbid).then(|| labelled("plain", Effect::Permit, &[]));
    let by_label = labelled("by-label", effect, &[("app", "shop")]);
    let config = config(plain.into_iter().chain([by_label]).collect(), None);
    (Policy::new(compile(&config)).with_directory(directory.clone()), directory)
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_takes_labels_waits_until_the_pod_is_known() {
    for (effect, allowed) in [(Effect::Permit, true), (Effect::Forbid, false)] {
        let (policy, directory) = asking(effect);
        let asked = policy.clone();
        let deciding = tokio::spawn(async move {
            asked.authorize_within(LONG, &pod("shop"), &secret()).await.map(drop)
        });
        tokio::task::yield_now().await;
        assert!(!deciding.is_finished(), "{effect:?}");
        directory.tell(listed(&[("app", "shop")]));
        let decided = deciding.await.unwrap();
        assert_eq!(decided.is_ok(), allowed, "{effect:?} {decided:?}");
        assert!(!decided.is_err_and(|denied| denied.labels_unknown));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_stays_unknown_is_refused_with_why() {
    let (policy, directory) = asking(Effect::Permit);
    let wait = Duration::from_secs(2);
    let started = tokio::time::Instant::now();
    let denied = policy.authorize_within(wait, &pod("shop"), &secret()).await.unwrap_err();
    assert!(started.elapsed() >= wait, "by a clock that stands still but for this");
    assert!(denied.labels_unknown && denied.reason.contains("knows of no such pod"), "{denied}");
    directory.tell(listed(&[]));
    directory.tell_gone(&UID.parse().unwrap());
    let denied = policy.authorize_within(LONG, &pod("shop"), &secret()).await.unwrap_err();
    assert!(!denied.labels_unknown && denied.reason.ends_with("the pod is gone"), "{denied}");
}

#[tokio::test]
async fn nobody_waits_whose_decision_takes_no_labels() {
    let plain = labelled("plain", Effect::Permit, &[]);
    let policy = Policy::new(compile(&config(vec![plain.clone()], None)));
    let policy = policy.with_directory(PodDirectory::told());
    assert!(policy.authorize_within(LONG, &pod("shop"), &secret()).await.is_ok(), "no label rule");

    let elsewhere = labelled("by-label", Effect::Permit, &[("app", "shop")]);
    let other_path =
        GrantConfig { paths: vec!["secret/data/web/*".parse().unwrap()], ..elsewhere.clone() };
    let policy = Policy::new(compile(&config(vec![plain, other_path], None)));
    let policy = policy.with_directory(PodDirectory::told());
    assert!(policy.authorize_within(LONG, &pod("shop"), &secret()).await.is_ok(), "another path");

    let policy = Policy::new(compile(&config(vec![elsewhere], None)));
    let policy = policy.with_directory(knowing(&[("app", "web")]));
    let known = policy.authorize_within(LONG, &pod("shop"), &secret()).await.unwrap_err();
    assert!(!known.labels_unknown, "{known}");
}

#[test]
fn a_pod_that_is_leaving_may_read_and_gets_no_new_credential() {
    let plain = labelled("plain", Effect::Permit, &[]);
    let directory = PodDirectory::told();
    let policy = Policy::new(compile(&config(vec![plain], None)));
    let policy = policy.with_directory(directory.clone());
    let now = BootInstant::from_nanos(1);
    let permit = policy.authorize(&pod("shop"), &secret(), now).unwrap();
    assert!(permit.may_mint(), "not known is no reason");
    directory.tell(listed(&[]));
    assert!(permit.may_mint());
    directory.tell(DirectoryPod { leaving: true, ..listed(&[]) });
    assert!(!permit.may_mint(), "also by what was decided before");
    assert!(policy.authorize(&pod("shop"), &secret(), now).is_ok_and(|again| !again.may_mint()));
    directory.tell_gone(&UID.parse().unwrap());
    assert!(!permit.may_mint());
    let without = Policy::new(compile(&config(vec![labelled("p", Effect::Permit, &[])], None)));
    assert!(without.authorize(&pod("shop"), &secret(), now).unwrap().may_mint());
}
