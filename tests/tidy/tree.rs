//! The files of the checkout and what must, and must not, be among them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::rust;

/// What the top level may hold beside dotfiles.
const TOP_LEVEL: [&str; 13] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "build.rs",
    "config.example.toml",
    "deploy",
    "docs",
    "fuzz",
    "src",
    "target",
    "tests",
];

/// Documents that must exist.
const DOCUMENTS: [&str; 5] =
    ["LICENSE", "README.md", "docs/ARCHITECTURE.md", "docs/CHANGELOG.md", "docs/audit.md"];

/// Words that name one person's machine or where its packages came from. Each is written in two
/// parts, so that this file does not name them.
const PLACES: [(&str, &str); 10] = [
    ("/ro", "ot/"),
    ("/ho", "me/"),
    ("/wo", "rk/"),
    ("/Us", "ers/"),
    ("index.", "crates.io"),
    ("static.", "crates.io"),
    ("proxy.", "golang.org"),
    ("files.", "pythonhosted.org"),
    ("registry.", "npmjs.org"),
    ("registry-1.", "docker.io"),
];

/// Lock files name where packages come from, and should.
const LOCK_FILES: [&str; 4] = ["Cargo.lock", "go.sum", "go.mod", "package-lock.json"];

/// A Rust file, read and prepared once.
pub(crate) struct SourceFile {
    /// Relative to the checkout: `src/policy/mod.rs`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// Comments and literals blanked.
    pub(crate) code: String,
    /// The same without tests; empty for a file that is all tests.
    pub(crate) product: String,
}

impl SourceFile {
    /// Prepares a file that may hold product code and inline tests.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = rust::code(text);
        let product = rust::without_tests(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, product }
    }
}

/// Every Rust file of ours: product, tests, benches, fuzz targets.
pub(crate) fn rust_files() -> Vec<SourceFile> {
    let mut files: Vec<SourceFile> = text_files()
        .into_iter()
        .filter(|(path, _)| path.ends_with(".rs"))
        .map(|(path, text)| SourceFile::new(&path, &text))
        .collect();
    let tests: BTreeSet<String> =
        files.iter().flat_map(|file| test_modules(&file.path, &file.text)).collect();
    for file in &mut files {
        if !file.path.starts_with("src/") || tests.contains(&file.path) {
            file.product.clear();
        }
    }
    files
}

/// The files that `#[cfg(test)] mod name;` declarations refer to.
fn test_modules(path: &str, text: &str) -> Vec<String> {
    let folder = Path::new(path).parent().unwrap_or(Path::new(""));
    let stem = Path::new(path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let below =
        if matches!(stem, "mod" | "lib" | "main") { folder.to_owned() } else { folder.join(stem) };
    let mut found = Vec::new();
    for (start, marker) in text.match_indices("#[cfg(test)]") {
        let declaration = &text[start + marker.len()..];
        let Some((head, _)) = declaration.split_once(';') else { continue };
        if head.contains('{') || !head.contains("mod ") {
            continue;
        }
        let file = match head.split_once("#[path = \"").and_then(|(_, rest)| rest.split_once('"')) {
            Some((file, _)) => folder.join(file),
            None => below.join(format!("{}.rs", head.rsplit("mod ").next().unwrap_or_default())),
        };
        found.push(file.to_string_lossy().into_owned());
    }
    found
}

/// Every text file of the checkout with its relative path, in order.
pub(crate) fn text_files() -> Vec<(String, String)> {
    let root = root();
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    paths.sort();
    let relative = |path: &Path| path.strip_prefix(&root).map(|path| path.display().to_string());
    paths
        .iter()
        .filter_map(|path| Some((relative(path).ok()?, fs::read_to_string(path).ok()?)))
        .collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    let skipped = ["target", ".git", "node_modules", "__pycache__"];
    for entry in fs::read_dir(folder).expect("the checkout can be read").flatten() {
        let kind = entry.file_type().expect("the checkout can be read");
        let name = entry.file_name();
        if kind.is_dir() && !skipped.iter().any(|skipped| name == *skipped) {
            collect(&entry.path(), paths);
        } else if kind.is_file() && name != ".git" {
            paths.push(entry.path());
        }
    }
}

/// What is at the top level and does not belong there.
pub(crate) fn strangers(names: impl Iterator<Item = String>) -> Vec<String> {
    names
        .filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()))
        .map(|name| format!("{name}: not one of the entries of the top level"))
        .collect()
}

/// The names at the top level of the checkout.
pub(crate) fn top_level() -> impl Iterator<Item = String> {
    let entries = fs::read_dir(root()).expect("the checkout can be read").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Documents that are missing, and gaps in the numbers of the decision records.
pub(crate) fn missing_documents(paths: &BTreeSet<String>) -> Vec<String> {
    let missing = DOCUMENTS.iter().filter(|document| !paths.contains(**document));
    let mut findings: Vec<String> =
        missing.map(|document| format!("{document}: is missing")).collect();
    let records: Vec<&str> =
        paths.iter().filter_map(|path| path.strip_prefix("docs/adr/")).collect();
    if records.is_empty() {
        findings.push("docs/adr: holds no record".to_owned());
    }
    for (index, record) in records.iter().enumerate() {
        if !record.starts_with(&format!("{:04}-", index + 1)) {
            findings.push(format!("docs/adr/{record}: expected number {:04}", index + 1));
        }
    }
    findings
}

/// Lines that name somebody's machine or a package registry.
pub(crate) fn machine_names(path: &str, text: &str) -> Vec<String> {
    if LOCK_FILES.iter().any(|name| path.ends_with(name)) {
        return Vec::new();
    }
    let named = |line: &str| {
        PLACES.iter().map(|(a, b)| format!("{a}{b}")).find(|place| line.contains(place))
    };
    let lines = text.lines().enumerate();
    lines
        .filter_map(|(index, line)| Some((index + 1, named(line)?)))
        .map(|(line, place)| format!("{path}:{line}: names '{place}'"))
        .collect()
}

#[test]
fn a_stray_top_level_entry_is_found() {
    let names = ["src", ".ci", "notes.txt", "Makefile"].map(str::to_owned);
    assert_eq!(strangers(names.into_iter()).len(), 2);
}

#[test]
fn a_missing_document_and_a_gap_in_the_records_are_found() {
    let have = ["docs/adr/0001-a.md", "docs/adr/0003-b.md"].map(str::to_owned);
    let findings = missing_documents(&BTreeSet::from(have));
    assert_eq!(findings.len(), DOCUMENTS.len() + 1, "{findings:?}");
    assert!(findings.last().is_some_and(|gap| gap.contains("expected number 0002")));
}

#[test]
fn a_machine_path_is_found_except_in_a_lock_file() {
    let text = format!("fine\nsee {}{}alice\n", PLACES[1].0, PLACES[1].1);
    assert_eq!(machine_names("docs/a.md", &text).len(), 1);
    assert!(machine_names("Cargo.lock", &text).is_empty());
}

#[test]
fn declared_test_modules_are_found_with_and_without_a_path() {
    let text = "#[cfg(test)]\nmod tests;\n#[cfg(test)]\n#[path = \"b_tests.rs\"]\nmod more;\n";
    assert_eq!(test_modules("src/a/b.rs", text), ["src/a/b/tests.rs", "src/a/b_tests.rs"]);
    assert_eq!(test_modules("src/a/mod.rs", text)[0], "src/a/tests.rs");
    assert!(test_modules("src/a.rs", "#[cfg(test)]\nmod tests { mod x; }").is_empty());
}
