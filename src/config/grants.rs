//! `[policy]` and `[[grants]]`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::accounts;
use crate::config::document::{Document, Section, suggestion};
use crate::config::field::Field;
use crate::config::sources::Sources;
use crate::config::volumes::Volumes;
use crate::domain::{LabelKey, LabelValue, Namespace, RuleName, ServiceAccountName};
use crate::identity::ProofStrength;
use crate::policy::Share;
use crate::policy::{CedarFile, Effect, GrantConfig, GrantLogin, PolicyConfig, Who};

/// `forbid_grace`, which volumes take over, and the policy without its grants.
pub(super) fn policy(root: &Section, sources: &Sources) -> (Duration, PolicyConfig) {
    let section = root.section("policy");
    let cedar = section.get("cedar_file").and_then(|field| cedar(&field));
    let recheck = section.positive_duration("recheck", Duration::from_secs(60));
    let forbid_grace = section.duration("forbid_grace", Duration::from_secs(60));
    let hold_percent = section.count("hold_percent", 10);
    if hold_percent > 100 {
        let remedy = "write 1 to 100; 100 holds nothing";
        section.problem_at("hold_percent", format!("{hold_percent} is no share"), remedy);
    }
    let decides = section.choice("own_identity", true, &[("vault", true), ("deny", false)]);
    section.finish();
    let own_identity = if decides { sources.with_pod_login() } else { BTreeSet::new() };
    let policy =
        PolicyConfig { cedar, recheck, own_identity, hold_percent, ..PolicyConfig::default() };
    (forbid_grace, policy)
}

fn cedar(field: &Field) -> Option<CedarFile> {
    let path = field.absolute_path()?;
    let bytes = field.readable(&path, "create the file, or remove the key")?;
    let name = path.display().to_string();
    match String::from_utf8(bytes) {
        Ok(text) => Some(CedarFile { name, text }),
        Err(_) => {
            field.problem(
                format!("{} is not UTF-8 text", field.quoted()),
                "name a file of Cedar policies",
            );
            None
        }
    }
}

pub(super) fn read(
    document: &Document,
    root: &Section,
    sources: &Sources,
    volumes: &Volumes,
    has_cedar: bool,
) -> Vec<GrantConfig> {
    let mut grants: Vec<GrantConfig> = Vec::new();
    for section in root.sections("grants") {
        let Some(grant) = grant(&section, sources, volumes) else { continue };
        if grants.iter().any(|other| other.name == grant.name) {
            let message = format!("another grant is named \"{}\" too", grant.name);
            section.problem_at(
                "name",
                message,
                "name it differently: status and audit name the rule",
            );
        }
        grants.push(grant);
    }
    if !has_cedar {
        warn_of_nobody(document, &grants, volumes);
    }
    grants
}

fn grant(section: &Section, sources: &Sources, volumes: &Volumes) -> Option<GrantConfig> {
    let name = section.require("name", "name the rule: status and the audit log show it");
    let name: Option<RuleName> = name.and_then(|field| field.parsed("use a-z, 0-9, '-', '_', '.'"));
    let effects = [("permit", Effect::Permit), ("forbid", Effect::Forbid)];
    let effect = section.choice("effect", Effect::Permit, &effects);
    let source = sources.of(section);
    let who = section
        .require("who", "say whom it is about, for example who = { user = \"shop\" }")
        .and_then(|field| who(&field, volumes));
    let paths = section.require("paths", "name API paths: paths = [\"secret/data/shop/*\"]");
    let elements = paths.as_ref().map_or_else(Vec::new, |field| field.elements());
    if let Some(field) = paths.filter(|_| elements.is_empty()) {
        field.problem("there is no path in it, so the rule matches nothing", "add a path");
    }
    let paths = elements.iter().filter_map(|field| sources.pattern(field, source.as_ref()));
    let paths = paths.collect();
    let shares = [
        ("consumer", Share::Consumer),
        ("service-account", Share::ServiceAccount),
        ("agent", Share::Agent),
    ];
    let share = section.choice("share", Share::Consumer, &shares);
    if effect == Effect::Forbid && share != Share::Consumer {
        section.problem_at("share", "a rule that forbids shares nothing", "remove share");
    }
    let login = login(section, effect, who.as_ref());
    if share == Share::Agent && login == GrantLogin::ServiceAccount && is_about_pods(who.as_ref()) {
        let message = "pods that read as themselves have no credential in common with others";
        section.problem_at("share", message, "write share = \"service-account\"");
    }
    let proofs = [
        ("token", ProofStrength::Token),
        ("pidfd", ProofStrength::PidFd),
        ("peercred", ProofStrength::PeerCred),
        ("socket-only", ProofStrength::SocketOnly),
    ];
    let min_proof = section.choice("min_proof", ProofStrength::PeerCred, &proofs);
    let when = section.get("when").and_then(|field| field.text());
    section.finish();
    let (name, who, source) = (name?, who?, source?);
    Some(GrantConfig { name, effect, who, source, paths, share, login, min_proof, when })
}

fn is_about_pods(who: Option<&Who>) -> bool {
    matches!(who, Some(Who::Pods { .. } | Who::AnyPod))
}

/// A pod reads as itself unless the rule says otherwise; everybody else reads as the agent.
fn login(section: &Section, effect: Effect, who: Option<&Who>) -> GrantLogin {
    let logins = [("service-account", GrantLogin::ServiceAccount), ("agent", GrantLogin::Agent)];
    let login = section.choice("login", GrantLogin::ServiceAccount, &logins);
    if section.has("login") && (effect == Effect::Forbid || !is_about_pods(who)) {
        let message = "only what is permitted to pods is read with an identity to choose";
        section.problem_at("login", message, "remove login");
    }
    login
}

fn who(field: &Field, volumes: &Volumes) -> Option<Who> {
    let section = field.section();
    if !section.is_present() {
        return None;
    }
    let user = section.get("user").map(|f| accounts::user(&f).map(|uid| Who::User { uid }));
    let group = section.get("group").map(|f| accounts::group(&f).map(|gid| Who::Group { gid }));
    let volume = section.get("volume").map(|field| volume(&field, volumes));
    let anyone = section.get("any_host_user").map(|field| match field.boolean()? {
        true => Some(Who::AnyHostUser),
        false => {
            field.problem("false says nothing", "write true, or name a user, group or volume");
            None
        }
    });
    let pods = pods(&section);
    let any_pod = section.get("any_pod").map(|field| match field.boolean()? {
        true => Some(Who::AnyPod),
        false => {
            field.problem("false says nothing", "write true, or name a namespace");
            None
        }
    });
    section.finish();
    let all = [user, group, volume, anyone, pods, any_pod];
    let mut given: Vec<Option<Who>> = all.into_iter().flatten().collect();
    if given.is_empty() && !section.is_empty() {
        return None;
    }
    if given.len() != 1 {
        section.problem(
            format!(
                "{} of user, group, volume, any_host_user, namespace and any_pod are given",
                given.len()
            ),
            "give exactly one; write a second grant for somebody else",
        );
        return None;
    }
    given.pop().flatten()
}

/// A namespace, or a service account in it, or the pods with some labels of either.
fn pods(section: &Section) -> Option<Option<Who>> {
    let remedy = "write the name as Kubernetes has it";
    let namespace = section.get("namespace");
    let account = section.get("service_account");
    let labels = section.get("labels");
    if namespace.is_none() {
        if let Some(account) = &account {
            let message = "a service account is named without its namespace";
            account.problem(message, "add namespace = \"…\" beside it");
        }
        if let Some(labels) = &labels {
            let message =
                "labels without a namespace: whoever may create a pod anywhere chooses its labels";
            labels.problem(message, "add namespace = \"…\" beside it");
        }
        return None;
    }
    let namespace: Option<Namespace> = namespace?.parsed(remedy);
    let account: Option<Option<ServiceAccountName>> = account.map(|field| field.parsed(remedy));
    let service_account = match account {
        Some(None) => return Some(None),
        Some(named) => named,
        None => None,
    };
    let labels = match labels {
        Some(field) => match self::labels(&field) {
            Some(labels) => labels,
            None => return Some(None),
        },
        None => BTreeMap::new(),
    };
    Some(namespace.map(|namespace| Who::Pods { namespace, service_account, labels }))
}

/// `None` after a problem.
pub(super) fn labels(field: &Field) -> Option<BTreeMap<LabelKey, LabelValue>> {
    let section = field.section();
    if section.is_present() && section.is_empty() {
        field.problem("there is no label in it", "write labels = { app = \"shop\" }, or remove it");
    }
    let remedy = "write it as the pod's metadata has it";
    let entries = section.entries();
    let mut labels = BTreeMap::new();
    for (key, value) in &entries {
        let key = key.parse::<LabelKey>().map_err(|error| {
            value.problem(format!("the key is refused: {error}"), remedy);
        });
        if let (Ok(key), Some(value)) = (key, value.parsed::<LabelValue>(remedy)) {
            labels.insert(key, value);
        }
    }
    (!labels.is_empty() && labels.len() == entries.len()).then_some(labels)
}

fn volume(field: &Field, volumes: &Volumes) -> Option<Who> {
    let name = field.text()?;
    let found = volumes.names.iter().map(|(name, _)| name).find(|known| known.as_str() == name);
    if found.is_none() {
        let known: Vec<&str> = volumes.names.iter().map(|(name, _)| name.as_str()).collect();
        field.problem(format!("no volume is named {}", field.quoted()), suggestion(&name, &known));
    }
    found.cloned().map(Who::Volume)
}

/// Default deny: a volume that no grant names stays empty, unless Cedar rules say otherwise.
fn warn_of_nobody(document: &Document, grants: &[GrantConfig], volumes: &Volumes) {
    for (name, place) in &volumes.names {
        let about = |grant: &GrantConfig| grant.who == Who::Volume(name.clone());
        if !grants.iter().any(about) {
            let message = format!("no grant is about volume \"{name}\", so it gets nothing");
            let remedy = format!("add [[grants]] with who = {{ volume = \"{name}\" }}");
            document.warning(place, message, remedy);
        }
    }
}
