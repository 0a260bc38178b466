//! What policy promises: default deny, forbid wins, errors deny, and no way around a path pattern.

use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::identity::{Listener, ProofStrength};

const MONDAY_0930: &str = "2026-11-23T09:30:00Z";

pub(super) fn grant(name: &str, who: Who, paths: &[&str]) -> GrantConfig {
    GrantConfig {
        name: name.parse().unwrap(),
        effect: Effect::Permit,
        who,
        source: "vault".parse().unwrap(),
        paths: paths.iter().map(|path| path.parse().unwrap()).collect(),
        share: Share::Consumer,
        login: GrantLogin::ServiceAccount,
        min_proof: ProofStrength::PeerCred,
        when: None,
    }
}

fn user(uid: u32) -> Identity {
    Identity::host_user(uid, uid, &[27], ProofStrength::PidFd, Listener::Host)
}

pub(super) fn secret(path: &str) -> SecretRef {
    SecretRef { source: "vault".parse().unwrap(), path: path.parse().unwrap(), version: None }
}

pub(super) fn config(grants: Vec<GrantConfig>) -> PolicyConfig {
    PolicyConfig { grants, ..PolicyConfig::default() }
}

fn with_cedar(grants: Vec<GrantConfig>, text: &str) -> PolicyConfig {
    let cedar = CedarFile { name: "policy.cedar".to_owned(), text: text.to_owned() };
    PolicyConfig { cedar: Some(cedar), ..config(grants) }
}

fn compile(config: &PolicyConfig) -> CompiledPolicy {
    CompiledPolicy::compile(config).unwrap_or_else(|problems| panic!("{problems:?}"))
}

pub(super) fn decide(
    config: &PolicyConfig,
    identity: &Identity,
    path: &str,
) -> Result<Permit, Denied> {
    compile(config).decide(identity, &secret(path), None, MONDAY_0930.parse().unwrap())
}

fn problems(config: &PolicyConfig) -> Vec<String> {
    let problems = CompiledPolicy::compile(config).err().unwrap_or_default();
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_grant_opens_its_paths_to_its_subject_and_nothing_else() {
    let volume = |name: &str| Identity::declared_volume(name.parse().unwrap());
    let shop = Who::Volume("shop".parse().unwrap());
    let table: &[(Who, Identity, &str, bool)] = &[
        (Who::User { uid: 1000 }, user(1000), "secret/data/shop/db", true),
        (Who::User { uid: 1000 }, user(1001), "secret/data/shop/db", false),
        (Who::User { uid: 27 }, user(1000), "secret/data/shop/db", false),
        (Who::Group { gid: 27 }, user(1000), "secret/data/shop/db", true),
        (Who::Group { gid: 1000 }, user(1000), "secret/data/shop/db", true),
        (Who::Group { gid: 28 }, user(1000), "secret/data/shop/db", false),
        (Who::AnyHostUser, user(0), "secret/data/shop/db", true),
        (Who::AnyHostUser, volume("shop"), "secret/data/shop/db", false),
        (shop.clone(), volume("shop"), "secret/data/shop/db", true),
        (shop.clone(), volume("web"), "secret/data/shop/db", false),
        (shop, user(1000), "secret/data/shop/db", false),
        (Who::AnyHostUser, user(0), "secret/data/shop/db/ro", false),
        (Who::AnyHostUser, user(0), "secret/data/shopping/db", false),
        (Who::AnyHostUser, user(0), "secret/data/shop", false),
    ];
    for (who, identity, path, allowed) in table {
        let config = config(vec![grant("shop", who.clone(), &["secret/data/shop/*"])]);
        let decision = decide(&config, identity, path);
        assert_eq!(decision.is_ok(), *allowed, "{who:?} {identity} {path}: {decision:?}");
    }
}

#[test]
fn a_grant_is_for_its_own_source_only() {
    let policy = compile(&config(vec![grant("any", Who::AnyHostUser, &["secret/**"])]));
    let mut other = secret("secret/data/a");
    other.source = "local".parse().unwrap();
    let at = MONDAY_0930.parse().unwrap();
    assert!(policy.decide(&user(0), &secret("secret/data/a"), None, at).is_ok());
    assert!(policy.decide(&user(0), &other, None, at).is_err());
}

#[test]
fn an_empty_policy_denies_and_says_why() {
    let denied = decide(&config(Vec::new()), &user(0), "secret/data/a").unwrap_err();
    assert_eq!(denied.rule, None);
    assert!(denied.reason.contains("no grant covers the path"), "{denied}");
}

#[test]
fn a_proof_below_the_asked_one_is_not_enough_but_a_forbid_applies_to_every_proof() {
    let weak = Identity::host_user(1000, 1000, &[], ProofStrength::PeerCred, Listener::Host);
    let mut permit = grant("permit", Who::AnyHostUser, &["secret/**"]);
    permit.min_proof = ProofStrength::PidFd;
    let denied = decide(&config(vec![permit.clone()]), &weak, "secret/data/a").unwrap_err();
    assert!(denied.reason.contains("permit") && denied.reason.contains("peercred"), "{denied}");
    assert!(decide(&config(vec![permit.clone()]), &user(1), "secret/data/a").is_ok());

    permit.min_proof = ProofStrength::PeerCred;
    let mut forbid = grant("forbid", Who::AnyHostUser, &["secret/**"]);
    (forbid.effect, forbid.min_proof) = (Effect::Forbid, ProofStrength::PidFd);
    let denied = decide(&config(vec![permit, forbid]), &weak, "secret/data/a").unwrap_err();
    assert_eq!(denied.rule, Some("forbid".parse().unwrap()));
}

#[test]
fn the_first_permit_is_named_and_the_strictest_sharing_wins() {
    let mut shared = grant("shared", Who::AnyHostUser, &["database/**"]);
    shared.share = Share::Agent;
    let own = grant("own", Who::AnyHostUser, &["database/creds/*"]);
    let permit = decide(&config(vec![shared.clone()]), &user(1), "database/creds/a").unwrap();
    assert_eq!((permit.rule.as_str(), permit.share), ("shared", Share::Agent));
    let permit = decide(&config(vec![shared, own]), &user(1), "database/creds/a").unwrap();
    assert_eq!((permit.rule.as_str(), permit.share), ("shared", Share::Consumer));
}

#[test]
fn conditions_see_time_door_node_and_proof() {
    let table = [
        ("context.hour == 9", true),
        ("context.hour >= 10", false),
        ("context.weekday == 1", true),
        ("context.weekday > 5", false),
        ("context.now < datetime(\"2027-01-01\")", true),
        ("context.listener == \"host\"", true),
        ("context.node == \"node-1\"", true),
        ("context.node == \"node-2\" || context.node == \"\"", false),
        ("context.proof == \"pidfd\" // with a comment", true),
        ("principal.gids.contains(27) && principal.uid == 1000", true),
        ("resource.path like \"secret/data/*\" && resource.source == \"vault\"", true),
        ("principal in Group::\"28\"", false),
    ];
    for (when, allowed) in table {
        let mut rule = grant("shop", Who::AnyHostUser, &["secret/**"]);
        rule.when = Some(when.to_owned());
        let config = PolicyConfig { node: Some("node-1".parse().unwrap()), ..config(vec![rule]) };
        let decision = decide(&config, &user(1000), "secret/data/a");
        assert_eq!(decision.is_ok(), allowed, "{when}: {decision:?}");
    }
}

#[test]
fn an_evaluation_error_denies_even_if_only_a_forbid_failed() {
    for effect in [Effect::Permit, Effect::Forbid] {
        let mut failing = grant("overflow", Who::AnyHostUser, &["secret/**"]);
        failing.effect = effect;
        failing.when = Some("principal.uid * 9223372036854775807 > 0".to_owned());
        let fine = grant("fine", Who::AnyHostUser, &["secret/**"]);
        let denied = decide(&config(vec![fine, failing]), &user(1000), "secret/a").unwrap_err();
        assert_eq!(denied.rule, Some("overflow".parse().unwrap()), "{denied}");
        assert!(denied.reason.contains("could not be evaluated"), "{denied}");
    }
}

#[test]
fn a_condition_cannot_leave_its_place() {
    let injections = [
        "true }; permit (principal, action, resource) when { true",
        "true } unless { false",
        "true\n};\npermit (principal, action, resource);\n//",
        "true };",
        "} ; permit(principal,action,resource) when {",
        "true; true",
        "\"unterminated",
        "/* unterminated",
        "",
        "@id(\"x\") permit (principal, action, resource)",
    ];
    for when in injections {
        let mut rule = grant("shop", Who::User { uid: 1 }, &["secret/data/shop/*"]);
        rule.when = Some(when.to_owned());
        let found = problems(&config(vec![rule]));
        assert!(found.len() == 1 && found[0].contains("one Cedar expression"), "{when}: {found:?}");
    }
}

#[test]
fn what_does_not_fit_the_schema_is_refused_at_load() {
    let unfit = [
        "context.nope == 1",
        "principal.name == \"x\"",
        "context.hour == \"nine\"",
        "resource in PathSet::\"misspelt\"",
        "context.hour < 5 && context.proof",
        "false",
    ];
    for when in unfit {
        let mut rule = grant("shop", Who::AnyHostUser, &["secret/**"]);
        rule.when = Some(when.to_owned());
        let found = problems(&config(vec![rule]));
        assert!(!found.is_empty() && found[0].contains("rule 'shop' does not fit"), "{found:?}");
    }
}

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    let mut bad_condition = grant("first", Who::AnyHostUser, &["secret/**"]);
    bad_condition.when = Some("context.hour >=\n >= 8".to_owned());
    let no_paths = grant("second", Who::AnyHostUser, &[]);
    let twice = grant("second", Who::AnyHostUser, &["a/b"]);
    let found = problems(&with_cedar(
        vec![bad_condition, no_paths, twice],
        "permit (principal, action, resource);\n\
         @id(\"Bad Name\") permit (principal, action, resource);",
    ));
    let all = found.join("\n");
    for expected in [
        "grant 'first'",
        "line 2, column 2",
        "'second' has no paths",
        "'second' is used twice",
        "policy.cedar: the policy starting",
        "@id(\"Bad Name\")",
    ] {
        assert!(all.contains(expected), "{expected} is missing in\n{all}");
    }
    let syntax = problems(&with_cedar(Vec::new(), "@id(\"a\")\npermit (principal,, resource);"));
    assert!(syntax[0].starts_with("policy.cedar: line 2, column "), "{syntax:?}");
    let template = "@id(\"a\") permit (principal == ?principal, action, resource);";
    assert!(problems(&with_cedar(Vec::new(), template))[0].contains("templates"));
}

#[test]
fn cedar_policies_stand_beside_grants_and_may_use_their_path_sets() {
    let config = with_cedar(
        vec![grant("shop", Who::User { uid: 1000 }, &["secret/data/shop/*"])],
        "@id(\"ops\") permit (principal in Group::\"27\", action, resource in PathSet::\"shop\");\n\
         @id(\"night\") forbid (principal, action, resource) unless { context.hour < 22 };",
    );
    let permit = decide(&config, &user(7), "secret/data/shop/db").unwrap();
    assert_eq!((permit.rule.as_str(), permit.share), ("ops", Share::Consumer));
    assert!(decide(&config, &user(7), "secret/data/other/db").is_err());
    let late: Timestamp = "2026-11-23T22:00:00Z".parse().unwrap();
    let denied = compile(&config).decide(&user(7), &secret("secret/data/shop/db"), None, late);
    assert_eq!(denied.unwrap_err().rule, Some("night".parse().unwrap()));
}

#[test]
fn decisions_work_on_a_thread_with_a_small_stack() {
    let config = config(vec![grant("shop", Who::AnyHostUser, &["secret/**"])]);
    let small = std::thread::Builder::new().stack_size(64 * 1024);
    let decided = small.spawn(move || decide(&config, &user(1), "secret/data/a")).unwrap().join();
    assert!(decided.unwrap().is_ok());
}

#[test]
fn a_proof_ends_with_its_time_or_its_policy() {
    let config = config(vec![grant("shop", Who::AnyHostUser, &["secret/**"])]);
    let policy = Policy::new(compile(&config));
    let now = BootInstant::from_nanos(1);
    let proof = policy.authorize(&user(1), &secret("secret/data/a"), now).unwrap();
    assert_eq!(proof.valid_until(), now + Duration::from_secs(60));
    assert!(policy.still_holds(&proof, now + Duration::from_secs(59)));
    assert!(!policy.still_holds(&proof, now + Duration::from_secs(60)));
    let generations = policy.generations();
    policy.replace(compile(&config));
    assert!(generations.has_changed().unwrap());
    assert!(!policy.still_holds(&proof, now));
    let next = policy.authorize(&user(1), &secret("secret/data/a"), now).unwrap();
    assert_eq!((proof.generation(), next.generation()), (1, 2));
}

fn any_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["secret", "data", "a", "b", "shop"]), 1..5)
        .prop_map(|segments| segments.join("/"))
}

fn any_pattern() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(vec!["secret", "data", "a", "shop", "*"]);
    (prop::collection::vec(segment, 1..4), any::<bool>())
        .prop_map(|(parts, rest)| parts.join("/") + if rest { "/**" } else { "" })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Goal: the engine agrees with the definition, whatever the order of the rules.
    #[test]
    fn allowed_means_some_permit_and_no_forbid_matches(
        rules in prop::collection::vec((any_pattern(), any::<bool>()), 0..4),
        path in any_path(),
    ) {
        let grants = rules.iter().enumerate().map(|(index, (pattern, forbid))| {
            let mut rule = grant(&format!("rule{index}"), Who::AnyHostUser, &[pattern]);
            if *forbid {
                rule.effect = Effect::Forbid;
            }
            rule
        });
        let matches = |effect: bool| rules.iter().any(|(pattern, forbid)| {
            let pattern: crate::domain::PathPattern = pattern.parse().unwrap();
            *forbid == effect && pattern.matches(&path.parse().unwrap(), None)
        });
        let decision = decide(&config(grants.collect()), &user(1), &path);
        prop_assert_eq!(decision.is_ok(), matches(false) && !matches(true));
    }

    /// Goal: whatever stands in `when`, a path outside the grant's patterns stays closed.
    #[test]
    fn no_condition_opens_a_path_outside_the_patterns(when in "\\PC{0,60}", path in any_path()) {
        let mut rule = grant("shop", Who::AnyHostUser, &["only/here"]);
        rule.when = Some(when);
        if let Ok(policy) = CompiledPolicy::compile(&config(vec![rule])) {
            let at = MONDAY_0930.parse().unwrap();
            prop_assert!(policy.decide(&user(1), &secret(&path), None, at).is_err());
        }
    }
}
