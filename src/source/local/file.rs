//! Reads the local file's text: mounts, secrets and roles, with every problem of the file at once.
//!
//! The walk is by hand, over spans: serde's own messages quote the offending value, and here that
//! would be a secret.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::generated::{Alphabet, Role};
use super::value::Value;
use crate::domain::{EngineKind, SecretBytes, SecretPath};
use crate::encryption::Key;

/// First segments that Vault keeps for itself.
const RESERVED: [&str; 4] = ["sys", "auth", "identity", "cubbyhole"];

type Node<'t> = Spanned<DeValue<'t>>;

/// What a file says. Secrets and roles are keyed by the API path they are read at.
pub(super) struct LocalFile {
    pub(super) mounts: BTreeMap<SecretPath, EngineKind>,
    /// The JSON object of each secret.
    pub(super) secrets: BTreeMap<SecretPath, SecretBytes>,
    pub(super) roles: BTreeMap<SecretPath, Role>,
}

/// One thing that is wrong with a file. The message never holds a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProblem {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

/// Collects problems and turns spans into lines and columns.
pub(super) struct Problems<'t> {
    text: &'t str,
    found: Vec<FileProblem>,
}

impl Problems<'_> {
    pub(super) fn add(&mut self, span: Range<usize>, message: String) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        self.found.push(FileProblem {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        });
    }
}

impl LocalFile {
    /// Reads the text; `key` opens its encrypted values, each of which is tried here and now.
    pub(super) fn parse(text: &str, key: Option<&Key>) -> Result<Self, Vec<FileProblem>> {
        let mut problems = Problems { text, found: Vec::new() };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            // `Error`'s own Display quotes the line, which may hold a secret.
            problems.add(error.span().unwrap_or_default(), error.message().to_owned());
        }
        let mut file =
            Self { mounts: BTreeMap::new(), secrets: BTreeMap::new(), roles: BTreeMap::new() };
        if problems.found.is_empty() {
            file.read_document(&document, key, &mut problems);
        }
        problems.found.sort_by_key(|problem| (problem.line, problem.column));
        if problems.found.is_empty() { Ok(file) } else { Err(problems.found) }
    }

    fn read_document(
        &mut self,
        document: &Spanned<DeTable<'_>>,
        key: Option<&Key>,
        problems: &mut Problems<'_>,
    ) {
        let mut top = Fields::new(document.get_ref(), document.span(), "the file".to_owned());
        let mounts = top.table("mounts", problems);
        top.finish(problems);
        // An empty file is one that is just being written, not one without secrets.
        let Some((mounts, _)) = mounts.filter(|(mounts, _)| !mounts.is_empty()) else {
            let message = "the file has no mount: begin with [mounts.secret]".to_owned();
            return problems.add(0..0, message);
        };
        for (name, node) in mounts {
            let place = format!("mount {:?}", name.get_ref());
            let Some(path) = self.mount_path(name, &place, problems) else { continue };
            let Some((table, span)) = table_of(node, &place, problems) else { continue };
            let mut fields = Fields::new(table, span, place);
            self.read_mount(&path, &mut fields, key, problems);
            fields.finish(problems);
        }
    }

    /// Checks a mount's path against Vault's own names and the mounts read before it.
    fn mount_path(
        &self,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        place: &str,
        problems: &mut Problems<'_>,
    ) -> Option<SecretPath> {
        let mut refuse = |message: String| {
            problems.add(name.span(), format!("{place}: {message}"));
            None
        };
        let path: SecretPath = match name.get_ref().parse() {
            Ok(path) => path,
            Err(error) => return refuse(format!("{error}")),
        };
        if path.segments().next().is_some_and(|first| RESERVED.contains(&first)) {
            return refuse("Vault keeps this path for itself; use another".to_owned());
        }
        let lies_within =
            |other: &&SecretPath| path.below(other).is_some() || other.below(&path).is_some();
        if let Some(other) = self.mounts.keys().find(lies_within) {
            return refuse(format!("overlaps with mount '{other}'; no mount may lie in another"));
        }
        Some(path)
    }

    fn read_mount(
        &mut self,
        path: &SecretPath,
        fields: &mut Fields<'_>,
        key: Option<&Key>,
        problems: &mut Problems<'_>,
    ) {
        let (kind, prefix) = match fields.text("kind", problems) {
            None | Some("kv2") => (EngineKind::Kv2, "data/"),
            Some("kv1") => (EngineKind::Kv1, ""),
            Some("generated") => (EngineKind::Database, "creds/"),
            Some(_) => {
                let problem = "must be \"kv2\", \"kv1\" or \"generated\"";
                return fields.refuse_rest("kind", problem, problems);
            }
        };
        self.mounts.insert(path.clone(), kind);
        let (section, one) = match kind {
            EngineKind::Database => ("roles", "role"),
            _ => ("secrets", "secret"),
        };
        let Some((entries, _)) = fields.table(section, problems) else { return };
        for (name, node) in entries {
            let place = format!("{one} {:?} of {}", name.get_ref(), fields.place);
            let api_path = format!("{path}/{prefix}{}", name.get_ref());
            let api_path: SecretPath =
                match (name.get_ref().parse::<SecretPath>(), api_path.parse()) {
                    (Ok(_), Ok(api_path)) => api_path,
                    (Err(error), _) | (_, Err(error)) => {
                        problems.add(name.span(), format!("{place}: {error}"));
                        continue;
                    }
                };
            let Some((table, span)) = table_of(node, &place, problems) else { continue };
            if kind == EngineKind::Database {
                let mut fields = Fields::new(table, span, place);
                if let Some(role) = read_role(name.get_ref(), &mut fields, problems) {
                    self.roles.insert(api_path, role);
                }
                fields.finish(problems);
            } else if let Some(value) = Value::read(node, &place, key, problems) {
                self.secrets.insert(api_path, value.to_json());
            }
        }
    }
}

fn read_role(name: &str, fields: &mut Fields<'_>, problems: &mut Problems<'_>) -> Option<Role> {
    let before = problems.found.len();
    if name.contains('/') {
        let message = format!("{}: a role's name is one path segment", fields.place);
        problems.add(fields.span.clone(), message);
    }
    let default = Role::default();
    let ttl = fields.duration("ttl", problems).unwrap_or(default.ttl);
    let max_ttl = fields.duration("max_ttl", problems).unwrap_or(default.max_ttl.max(ttl));
    if max_ttl < ttl {
        fields.refuse("max_ttl", "must not be shorter than ttl", problems);
    }
    let length = match fields.integer("length", problems) {
        None => default.length,
        Some(length) => match usize::try_from(length) {
            Ok(length) if Role::LENGTHS.contains(&length) => length,
            _ => {
                fields.refuse("length", "must be from 8 to 256", problems);
                default.length
            }
        },
    };
    let alphabet = match fields.text("alphabet", problems).map(str::parse::<Alphabet>) {
        None => default.alphabet,
        Some(Ok(alphabet)) => alphabet,
        Some(Err(error)) => {
            fields.refuse("alphabet", &error.to_string(), problems);
            default.alphabet
        }
    };
    let username_prefix = fields.text("username_prefix", problems);
    let username_prefix = username_prefix.map_or(default.username_prefix, str::to_owned);
    let role = Role { ttl, max_ttl, length, alphabet, username_prefix };
    (problems.found.len() == before).then_some(role)
}

/// The table in a node, or a problem.
fn table_of<'t>(
    node: &'t Node<'_>,
    place: &str,
    problems: &mut Problems<'_>,
) -> Option<(&'t DeTable<'t>, Range<usize>)> {
    match node.get_ref() {
        DeValue::Table(table) => Some((table, node.span())),
        _ => {
            problems.add(node.span(), format!("{place} must be a table"));
            None
        }
    }
}

/// A table whose keys are known; what nobody asked for is an error.
struct Fields<'t> {
    table: &'t DeTable<'t>,
    span: Range<usize>,
    place: String,
    known: Vec<&'static str>,
}

impl<'t> Fields<'t> {
    fn new(table: &'t DeTable<'t>, span: Range<usize>, place: String) -> Self {
        Self { table, span, place, known: Vec::new() }
    }

    fn get(&mut self, name: &'static str) -> Option<&'t Node<'t>> {
        self.known.push(name);
        self.table.get(name)
    }

    fn table(
        &mut self,
        name: &'static str,
        problems: &mut Problems<'_>,
    ) -> Option<(&'t DeTable<'t>, Range<usize>)> {
        let place = format!("\"{name}\" in {}", self.place);
        self.get(name).and_then(|node| table_of(node, &place, problems))
    }

    fn text(&mut self, name: &'static str, problems: &mut Problems<'_>) -> Option<&'t str> {
        let node = self.get(name)?;
        if node.get_ref().as_str().is_none() {
            self.refuse(name, "must be a string", problems);
        }
        node.get_ref().as_str()
    }

    fn integer(&mut self, name: &'static str, problems: &mut Problems<'_>) -> Option<i64> {
        let node = self.get(name)?;
        let number = node.get_ref().as_integer();
        let number = number.and_then(|n| i64::from_str_radix(n.as_str(), n.radix()).ok());
        if number.is_none() {
            self.refuse(name, "must be a whole number", problems);
        }
        number
    }

    fn duration(&mut self, name: &'static str, problems: &mut Problems<'_>) -> Option<Duration> {
        let text = self.text(name, problems)?;
        let duration = text.parse::<jiff::SignedDuration>().ok();
        let duration = duration.and_then(|duration| Duration::try_from(duration).ok());
        let duration = duration.filter(|duration| !duration.is_zero());
        if duration.is_none() {
            let problem = "must be a duration longer than zero, like \"20s\" or \"1h 30m\"";
            self.refuse(name, problem, problems);
        }
        duration
    }

    /// Reports a problem with one field.
    fn refuse(&self, name: &str, problem: &str, problems: &mut Problems<'_>) {
        let span = self.table.get(name).map_or(self.span.clone(), Spanned::span);
        problems.add(span, format!("\"{name}\" in {} {problem}", self.place));
    }

    /// Reports a problem that leaves the meaning of the other fields open.
    fn refuse_rest(&mut self, name: &'static str, problem: &str, problems: &mut Problems<'_>) {
        self.refuse(name, problem, problems);
        self.known.extend(["secrets", "roles"]);
    }

    /// Reports the keys that nobody asked for.
    fn finish(self, problems: &mut Problems<'_>) {
        for (name, _) in self.table {
            if !self.known.contains(&name.get_ref().as_ref()) {
                let expected = self.known.join(", ");
                let name_text = name.get_ref();
                let place = &self.place;
                let message = format!("unknown key {name_text:?} in {place}; known: {expected}");
                problems.add(name.span(), message);
            }
        }
    }
}
