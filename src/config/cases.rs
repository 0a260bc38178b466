//! `[[case]]` of a file of policy cases: who asks for what, and what should come of it.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::config::document::{Document, Section, suggestion};
use crate::config::field::Field;
use crate::config::grants::labels;
use crate::config::{Config, ConfigError, Host, accounts};
use crate::domain::{
    EngineKind, Mount, Namespace, SecretPath, SecretRef, ServiceAccountName, SourceName, Spelling,
    VolumeName,
};
use crate::identity::pods::Labels;
use crate::identity::supposed::SupposedPod;
use crate::identity::{Identity, Listener, ProofStrength};
use crate::policy::{Case, Expected, GrantLogin};
use crate::source::ConfiguredMount;

/// What each kind of caller is told apart by.
const KINDS: [&str; 3] = ["namespace", "user", "volume"];
/// What the paths of engines begin with that have one spelling only, or that say which one it is.
const API_PREFIXES: [&str; 3] = ["data/", "creds/", "static-creds/"];

/// The mount of a source that a path lies below.
pub type MountOf<'a> = &'a dyn Fn(&SourceName, &SecretPath) -> Option<ConfiguredMount>;

/// Reads the cases of a text, which problems call `file`, about a configuration; each with the line
/// it begins in.
///
/// # Errors
/// Every problem at once; a file without a case is one.
pub fn cases(
    text: &str,
    file: &str,
    host: &Host,
    config: &Config,
    mount_of: MountOf,
) -> Result<Vec<(usize, Case)>, ConfigError> {
    let document = Document::new(file, text, host);
    let tree = document.parse();
    let mut cases = Vec::new();
    if let Some(tree) = &tree {
        let root = document.root(tree.get_ref());
        let sections = root.sections("case");
        if sections.is_empty() {
            root.problem("there is no case in it, so nothing is tested", "add [[case]]");
        }
        for section in sections {
            let case = case(&section, config, mount_of);
            section.finish();
            cases.extend(case.map(|case| (document.line(section.place()), case)));
        }
        root.finish();
    }
    let (problems, _) = document.finish();
    if problems.is_empty() { Ok(cases) } else { Err(ConfigError { problems }) }
}

fn case(section: &Section, config: &Config, mount_of: MountOf) -> Option<Case> {
    let name = section.get("name").and_then(|field| field.text());
    let who = "say who asks, for example who = { namespace = \"shop\", service_account = \"web\" }";
    let who = section.require("who", who).and_then(|field| who_of(&field, config));
    let secret = section.require("secret", "name the secret: secret = \"secret/shop/web\"");
    let source = source(section, config);
    let secret = secret.and_then(|field| self::secret(&field, source?, mount_of));
    let at = section.get("at").map(|field| {
        field.parsed::<Timestamp>("write RFC 3339 in quotes, such as \"2027-01-15T22:00:00Z\"")
    });
    let expected = expected(section);
    let at = match at {
        Some(None) => return None,
        at => at.flatten(),
    };
    let (identity, labels) = who?;
    Some(Case { name, identity, labels, secret: secret?, at, expected: expected? })
}

fn expected(section: &Section) -> Option<Expected> {
    let expect = section.require("expect", "write expect = \"allow\" or expect = \"deny\"");
    let allowed = expect.and_then(|field| field.choice(&[("allow", true), ("deny", false)]));
    let rule = section
        .get("rule")
        .map(|field| field.parsed("name a rule as the grant or the Cedar file does"));
    let logins = [("service-account", GrantLogin::ServiceAccount), ("agent", GrantLogin::Agent)];
    let login = section.get("login").map(|field| field.choice(&logins));
    if login.is_some() && allowed == Some(false) {
        section.problem_at("login", "what is denied is read by nobody", "remove login");
    }
    match (rule, login) {
        (Some(None), _) | (_, Some(None)) => None,
        (rule, login) => {
            Some(Expected { allowed: allowed?, rule: rule.flatten(), login: login.flatten() })
        }
    }
}

/// The source that is named, else the default one.
fn source(section: &Section, config: &Config) -> Option<SourceName> {
    let Some(field) = section.get("source") else { return Some(config.default_source.clone()) };
    let name = field.text()?;
    let found = config.sources.keys().find(|known| known.as_str() == name);
    if found.is_none() {
        let known: Vec<&str> = config.sources.keys().map(SourceName::as_str).collect();
        field.problem(format!("no source is named {}", field.quoted()), suggestion(&name, &known));
    }
    found.cloned()
}

/// The secret as policy sees it: by its API path.
fn secret(field: &Field, source: SourceName, mount_of: MountOf) -> Option<SecretRef> {
    let spelling: Spelling = field.parsed("write the plain path: \"secret/shop/web\"")?;
    let Some(mount) = mount_of(&source, &spelling.path) else {
        let message = format!("{} lies below no mount of source \"{source}\"", field.quoted());
        field.problem(message, "correct the path, or name its source with source = \"…\"");
        return None;
    };
    let below = spelling.path.below(&mount.path).unwrap_or_default();
    let kind = match mount.kind {
        Some(kind) => kind,
        None if API_PREFIXES.iter().any(|prefix| below.starts_with(prefix)) => EngineKind::Other,
        // A wrong guess would make a denial look right that nobody will ever see.
        None => {
            let path = &mount.path;
            let message = format!(
                "the kind of mount \"{path}\" is found out at Vault, so the API path is not known"
            );
            let remedy = format!(
                "write \"{path}/data/{below}\" if that is meant, or the mount's \
                                  kind in the configuration"
            );
            field.problem(message, remedy);
            return None;
        }
    };
    match spelling.canonical(&Mount { path: mount.path, kind }) {
        Ok(path) => Some(SecretRef { source, path, version: None }),
        Err(error) => {
            field.problem(format!("{}: {error}", field.quoted()), "write the full API path");
            None
        }
    }
}

/// Somebody, with the labels of a pod.
type WhoAsks = (Identity, Option<Labels>);

fn who_of(field: &Field, config: &Config) -> Option<WhoAsks> {
    let section = field.section();
    if !section.is_present() {
        return None;
    }
    let given: Vec<&str> = KINDS.into_iter().filter(|kind| section.has(kind)).collect();
    let identity = match given.as_slice() {
        ["namespace"] => pod(&section),
        ["user"] => user(&section).map(|user| (user, None)),
        ["volume"] => volume(&section, config).map(|volume| (volume, None)),
        _ => {
            let message = format!("{} of {} are given", given.len(), KINDS.join(", "));
            section.problem(message, "give exactly one; a pod has namespace and service_account");
            return None;
        }
    };
    section.finish();
    identity
}

/// A pod: everything that policy can ask about one is read here.
fn pod(section: &Section) -> Option<WhoAsks> {
    let remedy = "write the name as Kubernetes has it";
    let namespace: Option<Namespace> = section.get("namespace")?.parsed(remedy);
    let account = section.require("service_account", "name the account the pod runs as");
    let account: Option<ServiceAccountName> = account.and_then(|field| field.parsed(remedy));
    let doors =
        [("csi", Listener::Csi), ("pod-socket", Listener::PodSocket), ("node", Listener::Node)];
    let listener = section.choice("listener", Listener::Csi, &doors);
    let strength = match listener {
        Listener::Csi => proof(section, &[ProofStrength::Token]),
        Listener::PodSocket => proof(
            section,
            &[ProofStrength::PidFd, ProofStrength::PeerCred, ProofStrength::SocketOnly],
        ),
        // As `[sockets.node] proof_token` has it by default.
        _ => proof(section, &[ProofStrength::Token, ProofStrength::PidFd, ProofStrength::PeerCred]),
    };
    // A pod without labels is one whose labels are known, too.
    let labels =
        section.get("labels").map_or_else(|| Some(BTreeMap::new()), |field| labels(&field));
    let (namespace, service_account) = (namespace?, account?);
    let pod =
        SupposedPod { namespace, service_account, listener, strength: strength?, known: None };
    let labels = labels?.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    Some((Identity::supposed_pod(&pod), Some(labels)))
}

fn user(section: &Section) -> Option<Identity> {
    let uid = accounts::user(&section.get("user")?);
    let groups = section.get("groups").map_or_else(Vec::new, |field| field.elements());
    let gids: Vec<Option<u32>> = groups.iter().map(accounts::group).collect();
    let strength = proof(section, &[ProofStrength::PidFd, ProofStrength::PeerCred])?;
    let gids: Vec<u32> = gids.into_iter().collect::<Option<_>>()?;
    Some(Identity::supposed_user(uid?, &gids, strength))
}

fn volume(section: &Section, config: &Config) -> Option<Identity> {
    let field = section.get("volume")?;
    let name = field.text()?;
    let known = config.volumes.iter().map(|volume| &volume.config.name);
    let found = known.clone().find(|known| known.as_str() == name);
    if found.is_none() {
        let known: Vec<&str> = known.map(VolumeName::as_str).collect();
        field.problem(format!("no volume is named {}", field.quoted()), suggestion(&name, &known));
    }
    found.cloned().map(Identity::declared_volume)
}

/// How the caller is proved, strongest first where nothing is said; `None` after a problem.
fn proof(section: &Section, possible: &[ProofStrength]) -> Option<ProofStrength> {
    let Some(field) = section.get("proof") else { return possible.first().copied() };
    let text = field.text()?;
    let found = possible.iter().find(|strength| strength.to_string() == text);
    if found.is_none() {
        let words: Vec<String> = possible.iter().map(ToString::to_string).collect();
        let message = format!("{} is no proof that such a caller can have", field.quoted());
        field.problem(message, format!("write {}", words.join(" or ")));
    }
    found.copied()
}
