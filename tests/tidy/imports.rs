//! Imports run one way. A folder may import what stands in an earlier row, and itself.

use crate::rust;
use crate::tree::SourceFile;

/// The layers, lowest first. Modules of one row do not know each other.
const LAYERS: [&[&str]; 11] = [
    &["domain"],
    &["sys"],
    &[
        "clock",
        "telemetry",
        "service_manager",
        "shutdown",
        "encryption",
        "hardening",
        "mountinfo",
        "watch",
    ],
    &["identity", "mounter", "source"],
    &["policy"],
    &["audit"],
    &["broker"],
    &["status"],
    &["delivery"],
    &["config"],
    &["app", "cli"],
];

/// Exceptions to the rows: who may not import what, although it lies lower.
const WALLS: [(&str, &str, &str); 6] = [
    ("broker", "source::vault", "the broker knows sources by trait only"),
    ("broker", "source::local", "the broker knows sources by trait only"),
    ("delivery", "source::vault", "deliveries know no Vault"),
    ("delivery", "source::local", "deliveries know no source"),
    ("broker", "identity::peer", "the broker knows no pids and sockets"),
    ("broker", "identity::token", "the broker knows no tokens of pods"),
];

/// Imports of one file that run the wrong way.
pub(crate) fn wrong_way(file: &SourceFile) -> Vec<String> {
    let Some((module, depth)) = module_of(&file.path) else { return Vec::new() };
    let Some(own) = layer(&module) else {
        let row = "give it a row in tests/tidy/imports.rs";
        return vec![format!("{}: module '{module}' has no layer; {row}", file.path)];
    };
    let mut findings = Vec::new();
    for (line, target) in imports(&file.product, depth) {
        let top = target.split("::").next().unwrap_or_default();
        let at = format!("{}:{line}", file.path);
        match layer(top) {
            Some(layer) if layer >= own && top != module && !(module == "cli" && top == "app") => {
                findings.push(format!("{at}: '{module}' may not import '{top}'"));
            }
            _ => {}
        }
        let walls = WALLS.iter().filter(|(who, what, _)| *who == module && target == *what);
        findings.extend(walls.map(|(_, what, why)| format!("{at}: imports '{what}': {why}")));
    }
    findings
}

/// The top-level module a file belongs to, and how deep in it the file's own module lies.
fn module_of(path: &str) -> Option<(String, usize)> {
    let inner = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    if matches!(inner, "lib" | "main") {
        return None;
    }
    let parts: Vec<&str> = inner.split('/').filter(|part| *part != "mod").collect();
    Some(((*parts.first()?).to_owned(), parts.len()))
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// Every path that starts at the crate root, with its line: two segments where there are two.
fn imports(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let starts = code.match_indices("crate::").map(|(at, start)| (at, at + start.len()));
    let chain = "super::".repeat(depth);
    // Exactly as many steps up as lead to the root; fewer stay inside the module.
    let supers = code.match_indices(&chain).map(|(at, start)| (at, at + start.len()));
    for (at, end) in starts.chain(supers) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$' || c == ':') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        found.extend(targets(&code[end..]).into_iter().map(|target| (line, target)));
    }
    found
}

/// What follows `crate::`: one path, or the paths of a group `{a::b, c}`.
fn targets(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else { return target(rest).into_iter().collect() };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                found.extend(target(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

fn target(path: &str) -> Option<String> {
    let words = rust::words(path);
    let (0, first) = *words.first()? else { return None };
    match words.get(1) {
        Some((at, second)) if path[first.len()..*at].trim() == "::" => {
            Some(format!("{first}::{second}"))
        }
        _ => Some(first.to_owned()),
    }
}

#[test]
fn an_import_against_the_direction_is_found_however_it_is_written() {
    let check = |path: &str, text: &str| wrong_way(&SourceFile::new(path, text)).len();
    assert_eq!(check("src/domain/ids.rs", "use crate::policy::Authorized;"), 1);
    assert_eq!(check("src/domain/ids.rs", "fn f() { crate::broker::read() }"), 1);
    assert_eq!(check("src/policy/mod.rs", "use crate::{domain::SecretRef, broker::{A, B}};"), 1);
    assert_eq!(check("src/policy/mod.rs", "use super::broker::A;"), 1);
    assert_eq!(check("src/policy/engine.rs", "use super::super::broker::A;"), 1);
    assert_eq!(check("src/identity/mod.rs", "use crate::source::Source;"), 1);
    assert_eq!(check("src/delivery/files/mod.rs", "use crate::source::vault::VaultConfig;"), 1);
    assert_eq!(check("src/novel.rs", "use std::fmt;"), 1);
}

#[test]
fn imports_along_the_direction_comments_and_tests_are_left_alone() {
    let text = "// crate::broker\nuse crate::domain::A;\nuse super::audit;\n\
                #[cfg(test)]\nmod tests { use crate::broker::B; }";
    let file = SourceFile::new("src/policy/engine.rs", text);
    assert_eq!(wrong_way(&file), Vec::<String>::new());
    let file = SourceFile::new("src/delivery/mod.rs", "use crate::source::ErrorClass;");
    assert_eq!(wrong_way(&file), Vec::<String>::new());
}
