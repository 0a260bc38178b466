//! What is wrong with a pod's volumes of our driver, and which files the others will hold. Pure.

use std::collections::BTreeMap;

use super::manifest::PodOf;
use super::plan::{PlannedFile, files};
use super::readers::unreadable;
use super::yaml::{Node, Value};
use crate::delivery::csi::attributes::Attributes;
use crate::delivery::csi::{TenantRole, WRITABLE, check_role};
use crate::domain::{ServiceAccount, ServiceAccountName, SourceName};
use crate::identity::supposed::SupposedPod;
use crate::source::ConfiguredMount;

/// What a CSI volume may have in a pod's spec.
const CSI_FIELDS: [&str; 5] =
    ["driver", "fsType", "nodePublishSecretRef", "readOnly", "volumeAttributes"];
/// How far a driver's name may be off to be taken for a slip.
const SLIP: usize = 3;

/// By whose rules a manifest is judged.
pub(super) struct Terms<'a> {
    /// The driver's name.
    pub(super) driver: &'a str,
    /// The namespace of objects that name none.
    pub(super) namespace: &'a str,
    /// What the operator of the agent permits, if that is known.
    pub(super) operator: Option<Operator<'a>>,
}

/// What a configuration says about pods' volumes.
pub(super) struct Operator<'a> {
    /// The source that items read from.
    pub(super) source: &'a SourceName,
    /// Its mounts, if the configuration has them.
    pub(super) mounts: Option<&'a [ConfiguredMount]>,
    /// The Vault roles that pods may choose.
    pub(super) tenant_roles: &'a [TenantRole],
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    /// The pod would not start, or the volume is of no use.
    Problem,
    /// It works, but not as somebody may expect.
    Warning,
    /// It works; there is a better way.
    Hint,
}

/// One thing to say about a manifest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) line: u64,
    /// Whose volume, and where in it: `Pod shop/web: volume 'secrets': mode`.
    pub(super) place: String,
    pub(super) message: String,
}

/// A volume without a problem.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PlannedVolume {
    /// `Pod shop/web: volume 'secrets'`
    pub(super) place: String,
    /// The account its pod runs as.
    pub(super) service_account: String,
    /// Its files, in the order of its items.
    pub(super) files: Vec<PlannedFile>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Judged {
    pub(super) findings: Vec<Finding>,
    pub(super) volumes: Vec<PlannedVolume>,
    /// How many volumes of the driver there are.
    pub(super) seen: usize,
}

impl Judged {
    /// Judges a pod's volumes.
    pub(super) fn add(&mut self, pod: &PodOf<'_>, terms: &Terms<'_>) {
        let volumes = pod.spec.get("volumes").map_or(&[][..], Node::elements);
        for volume in volumes {
            let Some(csi) = volume.get("csi") else { continue };
            let name = volume.get("name").and_then(Node::text).unwrap_or("(no name)");
            let place = format!("{}: volume '{name}'", pod.label());
            let driver = csi.get("driver");
            if driver.and_then(Node::text) == Some(terms.driver) {
                self.seen += 1;
                One { pod, terms, csi, name, place, judged: self }.judge();
            } else if let Some(slip) = driver.filter(|driver| is_slip(driver, terms.driver)) {
                let message = format!("no such driver; write {}", terms.driver);
                let place = format!("{place}: driver");
                self.findings.push(Finding {
                    severity: Severity::Problem,
                    line: slip.line,
                    place,
                    message,
                });
            }
        }
    }
}

fn is_slip(driver: &Node, meant: &str) -> bool {
    driver.text().is_some_and(|name| strsim::damerau_levenshtein(name, meant) <= SLIP)
}

/// One volume while it is judged.
struct One<'a, 'j> {
    pod: &'a PodOf<'a>,
    terms: &'a Terms<'a>,
    csi: &'a Node,
    name: &'a str,
    place: String,
    judged: &'j mut Judged,
}

impl One<'_, '_> {
    fn judge(mut self) {
        let before = self.problems();
        self.fields();
        self.mounts();
        let account = self.account();
        let attributes = self.attributes();
        let planned = attributes.and_then(|attributes| self.plan(&attributes, account.as_ref()));
        if let Some(files) = planned.filter(|_| self.problems() == before) {
            let service_account = self.pod.service_account().unwrap_or("default").to_owned();
            let place = self.place;
            self.judged.volumes.push(PlannedVolume { place, service_account, files });
        }
    }

    fn problems(&self) -> usize {
        let is_problem = |finding: &&Finding| finding.severity == Severity::Problem;
        self.judged.findings.iter().filter(is_problem).count()
    }

    fn note(&mut self, severity: Severity, line: u64, key: &str, message: impl Into<String>) {
        let colon = if key.is_empty() { "" } else { ": " };
        let place = format!("{}{colon}{key}", self.place);
        self.judged.findings.push(Finding { severity, line, place, message: message.into() });
    }

    fn problem(&mut self, line: u64, key: &str, message: impl Into<String>) {
        self.note(Severity::Problem, line, key, message);
    }

    fn fields(&mut self) {
        for (name, value) in self.csi.entries() {
            if !CSI_FIELDS.contains(&name.as_str()) {
                let known = CSI_FIELDS.join(", ");
                let name: String = name.chars().take(80).collect();
                self.problem(value.line, &name, format!("no such field under csi; known: {known}"));
            }
        }
        match self.csi.get("readOnly").map(|node| (node.line, &node.value)) {
            Some((_, Value::Bool(true))) => {}
            Some((line, Value::Bool(false))) => self.problem(line, "readOnly", WRITABLE),
            None => self.problem(self.csi.line, "readOnly", WRITABLE),
            Some((line, _)) => self.problem(line, "readOnly", "write true, without quotes"),
        }
    }

    /// Which containers have it, and how.
    fn mounts(&mut self) {
        let mut mounted = false;
        let pod = self.pod;
        for container in pod.containers() {
            let mounts = container.get("volumeMounts").map_or(&[][..], Node::elements);
            for mount in mounts {
                if mount.get("name").and_then(Node::text) != Some(self.name) {
                    continue;
                }
                mounted = true;
                let part = ["subPath", "subPathExpr"].into_iter();
                if let Some((key, node)) =
                    part.filter_map(|key| Some((key, mount.get(key)?))).next()
                {
                    let name = container_name(container);
                    let message = format!(
                        "container '{name}' keeps the file it started with and sees no change; \
                         mount the directory instead"
                    );
                    self.note(Severity::Warning, node.line, key, message);
                }
            }
        }
        if !mounted {
            let message = "no container mounts it; add it to volumeMounts, or remove it";
            self.problem(self.csi.line, "", message);
        }
    }

    /// The account the pod runs as, if its names are names.
    fn account(&mut self) -> Option<ServiceAccount> {
        let line = self.pod.spec.line;
        let named = self.pod.service_account();
        if matches!(named, None | Some("default")) {
            let message = "the pod reads as service account 'default', as every pod of the \
                           namespace that names none; give it one of its own";
            self.note(Severity::Hint, line, "serviceAccountName", message);
        }
        let namespace = self.pod.namespace.unwrap_or(self.terms.namespace).parse();
        let account = named.unwrap_or("default").parse::<ServiceAccountName>();
        match (namespace, account) {
            (Ok(namespace), Ok(account)) => {
                Some(SupposedPod::with_volume(namespace, account).account())
            }
            (namespace, account) => {
                if let Err(error) = namespace {
                    self.problem(line, "namespace", error.to_string());
                }
                if let Err(error) = account {
                    self.problem(line, "serviceAccountName", error.to_string());
                }
                None
            }
        }
    }

    /// The attributes as the driver would read them, with a problem for each that Kubernetes would
    /// not even pass on.
    fn attributes(&mut self) -> Option<Attributes> {
        let given = self.csi.get("volumeAttributes");
        let line = given.map_or(self.csi.line, |node| node.line);
        if let Some(Node { value: Value::Text(_) | Value::List(_), .. }) = given {
            self.problem(line, "volumeAttributes", "not a map; write name: \"value\" lines in it");
            return None;
        }
        let mut texts: BTreeMap<&str, String> = BTreeMap::new();
        let mut lines = BTreeMap::new();
        for (name, node) in given.map_or(&[][..], Node::entries) {
            lines.insert(name.as_str(), node.line);
            let (text, trouble) = as_text(name, node);
            if let Some(trouble) = trouble {
                self.problem(node.line, name, trouble);
            }
            texts.insert(name, text);
        }
        let pairs = texts.iter().map(|(name, text)| (*name, text.as_str()));
        match Attributes::parse(pairs) {
            Ok(attributes) => Some(attributes),
            Err(problems) => {
                for problem in problems {
                    let about = lines.iter().find(|(name, _)| is_about(&problem, name));
                    let at = about.map_or(line, |(_, line)| *line);
                    self.problem(at, "volumeAttributes", problem);
                }
                None
            }
        }
    }

    fn plan(
        &mut self,
        attributes: &Attributes,
        account: Option<&ServiceAccount>,
    ) -> Option<Vec<PlannedFile>> {
        let line = self.csi.line;
        match (&self.terms.operator, account) {
            (Some(operator), Some(account)) => {
                if let Err(refusal) = check_role(operator.tenant_roles, attributes, account) {
                    self.problem(line, "volumeAttributes", refusal);
                }
            }
            (None, _) if attributes.role.is_some() => {
                let message = "the operator of the agent has to permit it (tenant_roles); \
                               --config FILE would tell";
                self.note(Severity::Hint, line, "role", message);
            }
            _ => {}
        }
        let fs_group = self.pod.spec.at(&["securityContext", "fsGroup"]).and_then(Node::id);
        let files = match files(attributes, fs_group, self.terms.operator.as_ref()) {
            Ok(files) => files,
            Err(problems) => {
                for problem in problems {
                    self.problem(line, "volumeAttributes", problem);
                }
                return None;
            }
        };
        for (line, message) in unreadable(self.pod, self.name, &files) {
            self.note(Severity::Warning, line, "", message);
        }
        Some(files)
    }
}

/// The text Kubernetes would pass on, or what it would be if it were written as one.
fn as_text(name: &str, node: &Node) -> (String, Option<String>) {
    let quoted = |text: &str, kind: &str| {
        let trouble = format!(
            "{text} is a {kind}, and Kubernetes takes strings only; write {name}: \"{text}\""
        );
        (text.to_owned(), Some(trouble))
    };
    match &node.value {
        Value::Text(text) => (text.clone(), None),
        Value::Null => (String::new(), None),
        Value::Number(text) => quoted(text, "number"),
        Value::Bool(flag) => quoted(&flag.to_string(), "truth value"),
        Value::List(_) | Value::Map(_) => {
            let how = match name {
                "items" => "write items: | and the list below it, indented",
                _ => "write one string",
            };
            let trouble = format!("a list or map, and Kubernetes takes strings only; {how}");
            (node.to_json(), Some(trouble))
        }
    }
}

/// Whether a problem of the driver begins with this attribute's name.
fn is_about(problem: &str, name: &str) -> bool {
    let unknown = problem.strip_prefix("unknown attribute '").unwrap_or(problem);
    unknown.strip_prefix(name).is_some_and(|rest| rest.starts_with([':', '\'', ' ']))
}

pub(super) fn container_name(container: &Node) -> &str {
    container.get("name").and_then(Node::text).unwrap_or("(no name)")
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
