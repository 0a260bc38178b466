//! Size, words and secret types: what a reviewer would otherwise have to look for in each file.

use crate::rust;
use crate::tree::SourceFile;

const FILE_LINES_MAX: usize = 400;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;

/// Types that hold a secret, and the file or folder where a common name means them.
const SECRET_TYPES: [(&str, &str); 8] = [
    ("SecretBytes", "src/"),
    ("Token", "src/domain/"),
    ("LeaseId", "src/"),
    ("Key", "src/encryption"),
    ("Entry", "src/broker/mod.rs"),
    ("Login", "src/source/mod.rs"),
    ("Fetched", "src/source/mod.rs"),
    ("Reply", "src/broker/mod.rs"),
];

/// What would copy, compare or print one.
const REVEALING: [&str; 11] = [
    "AsRef",
    "Clone",
    "Copy",
    "Debug",
    "Deref",
    "Display",
    "Hash",
    "PartialEq",
    "PartialOrd",
    "Serialize",
    "ToString",
];

/// What no file may hold; matched as whole words, outside of comments and literals.
const NOWHERE: [(&str, &str); 4] = [
    ("#[ignore", "a test runs or does not exist"),
    ("allow(dead_code", "remove what is not used"),
    ("allow(unused", "remove what is not used"),
    ("mod utils", "name what it is about"),
];

/// What product code outside of some places may not hold.
const OUTSIDE: [(&str, &[&str], &str); 10] = [
    ("println!", &["src/cli", "src/main.rs"], "use tracing"),
    ("print!", &["src/cli", "src/main.rs"], "use tracing"),
    ("eprintln!", &["src/cli", "src/main.rs"], "use tracing"),
    ("eprint!", &["src/cli", "src/main.rs"], "use tracing"),
    ("dbg!", &[], "left over"),
    ("todo!", &[], "left over"),
    ("unimplemented!", &[], "left over"),
    ("unsafe", &["src/sys.rs"], "unsafe code lives in src/sys.rs"),
    ("tokio::spawn", &["src/shutdown.rs"], "use a Supervisor, JoinSet or TaskTracker"),
    ("unbounded_channel", &[], "every queue has a bound"),
];

/// Clocks that stop while the machine is suspended.
const STOPPING_CLOCKS: [&str; 5] =
    ["std::time::Instant", "Instant::now", "tokio::time::Instant", "DelayQueue", "time::interval"];

/// Lines, functions and the file itself that are too long.
pub(crate) fn too_long(file: &SourceFile) -> Vec<String> {
    let path = &file.path;
    let mut findings = Vec::new();
    let lines = file.text.lines().count();
    if lines > FILE_LINES_MAX {
        findings.push(format!("{path}: {lines} lines, at most {FILE_LINES_MAX}"));
    }
    for (index, line) in file.text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            let line = index + 1;
            findings.push(format!("{path}:{line}: {columns} columns, at most {COLUMNS_MAX}"));
        }
    }
    let long = rust::functions(&file.code).into_iter();
    findings.extend(long.filter(|function| function.lines > FUNCTION_LINES_MAX).map(|function| {
        let rust::Function { name, line, lines } = function;
        format!("{path}:{line}: function '{name}' has {lines} lines, at most {FUNCTION_LINES_MAX}")
    }));
    findings
}

/// A file whose first line does not say what it is for.
pub(crate) fn no_purpose(file: &SourceFile) -> Vec<String> {
    let stated = file.text.lines().next().is_some_and(|line| line.starts_with("//! "));
    let finding = || format!("{}:1: does not start by saying what it is for (//! …)", file.path);
    if stated { Vec::new() } else { vec![finding()] }
}

/// Words that do not belong where they stand.
pub(crate) fn misplaced_words(file: &SourceFile) -> Vec<String> {
    let mut findings = Vec::new();
    // Every test binary compiles the whole of its support and uses a part of it.
    let shared = file.path.starts_with("tests/support/");
    for (word, why) in NOWHERE.iter().filter(|(word, _)| !(shared && word.contains("dead_code"))) {
        findings.extend(at(file, &file.code, word, why));
    }
    for (word, places, why) in OUTSIDE {
        if !places.iter().any(|place| file.path.starts_with(place)) {
            findings.extend(at(file, &file.product, word, why));
        }
    }
    if file.path.starts_with("src/broker/") {
        for word in STOPPING_CLOCKS {
            findings.extend(at(file, &file.product, word, "it stops in suspend; use BootInstant"));
        }
    }
    findings
}

fn at(file: &SourceFile, code: &str, word: &str, why: &str) -> Vec<String> {
    let whole = |at: usize| {
        let before = code[..at].chars().next_back().is_some_and(is_word);
        let after = code[at + word.len()..].chars().next().is_some_and(is_word);
        !(before || after && word.ends_with(is_word))
    };
    let places = code.match_indices(word).filter(|(at, _)| whole(*at));
    places
        .map(|(at, _)| code[..at].matches('\n').count() + 1)
        .map(|line| format!("{}:{line}: holds '{word}': {why}", file.path))
        .collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Secret types that could be copied, compared or printed.
pub(crate) fn revealed_secrets(file: &SourceFile) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, place) in SECRET_TYPES {
        if !file.path.starts_with(place) {
            continue;
        }
        let traits =
            derived(&file.product, name).into_iter().chain(implemented(&file.product, name));
        for revealing in traits.filter(|name| REVEALING.contains(&name.as_str())) {
            findings.push(format!("{}: secret type '{name}' is {revealing}", file.path));
        }
    }
    findings
}

/// The traits derived for a type: those of the attributes between it and the item before it.
fn derived(code: &str, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for keyword in ["struct ", "enum "] {
        let declaration = format!("{keyword}{name}");
        for (start, _) in code.match_indices(&declaration) {
            if code[start + declaration.len()..].starts_with(is_word) {
                continue;
            }
            let item = code[..start].rfind([';', '}']).map_or(0, |end| end + 1);
            for (at, _) in code[item..start].match_indices("derive(") {
                let list = &code[item + at + "derive(".len()..start];
                let list = list.split(')').next().unwrap_or_default();
                found.extend(list.split(',').map(|path| last_segment(path.trim())));
            }
        }
    }
    found
}

/// The traits implemented for a type by hand.
fn implemented(code: &str, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (start, marker) in code.match_indices(" for ") {
        let target = code[start + marker.len()..].trim_start();
        let target = target.split([' ', '<', '{', '\n']).next().unwrap_or_default();
        let head = code[..start].rfind("impl").map_or("", |at| &code[at + 4..start]);
        if last_segment(target) == name && !head.contains(['{', ';', '}']) {
            found.push(trait_of(head));
        }
    }
    found
}

/// The trait in `<'a> path::Trait<Of>`, what stands between `impl` and `for`.
fn trait_of(head: &str) -> String {
    let mut depth = 0;
    let parameters = head.char_indices().find(|(_, c)| {
        depth += match c {
            '<' => 1,
            '>' => -1,
            _ => 0,
        };
        depth == 0
    });
    let path = match parameters {
        Some((end, '>')) => head[end + 1..].trim_start(),
        _ => head.trim_start(),
    };
    last_segment(path.split(['<', ' ', '\n']).next().unwrap_or_default())
}

fn last_segment(path: &str) -> String {
    path.rsplit("::").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile::new(path, text)
    }

    #[test]
    fn long_lines_functions_and_files_are_found() {
        let long_line = format!("// {}\n", "x".repeat(98));
        assert_eq!(too_long(&file("src/a.rs", &long_line)).len(), 1);
        let body = "    a();\n".repeat(70);
        assert_eq!(too_long(&file("src/a.rs", &format!("fn f() {{\n{body}}}\n"))).len(), 1);
        assert_eq!(too_long(&file("src/a.rs", &"\n".repeat(401))).len(), 1);
        let body = "    a();\n".repeat(68);
        assert!(too_long(&file("src/a.rs", &format!("fn f() {{\n{body}}}\n"))).is_empty());
    }

    #[test]
    fn a_file_without_a_purpose_is_found() {
        assert_eq!(no_purpose(&file("src/a.rs", "use std::fmt;\n")).len(), 1);
        assert!(no_purpose(&file("src/a.rs", "//! Says it.\n")).is_empty());
    }

    #[test]
    fn misplaced_words_are_found_in_code_only() {
        let bad = [
            "fn f() { println!(\"x\") }",
            "fn f() { dbg!(1); }",
            "fn f() { todo!() }",
            "fn f() { unsafe { g() } }",
            "fn f() { tokio::spawn(g()); }",
            "#[allow(dead_code)]",
            "#[ignore]\nfn f() {}",
            "#[ignore = \"slow\"]\nfn f() {}",
            "fn f() { eprint!(\"\") }",
        ];
        for text in bad {
            assert_eq!(misplaced_words(&file("src/a.rs", text)).len(), 1, "{text}");
        }
        let good = "// todo!()\nfn f() { g(\"dbg!\"); sprintln!(); }\n#[cfg(test)]\nmod tests {\n\
                    fn t() { tokio::spawn(f()); }\n}";
        assert_eq!(misplaced_words(&file("src/a.rs", good)), Vec::<String>::new());
        assert!(misplaced_words(&file("src/cli/run.rs", "fn f() { println!() }")).is_empty());
        assert!(misplaced_words(&file("src/sys.rs", "fn f() { unsafe {} }")).is_empty());
        let unused = "#![allow(dead_code, reason = \"shared\")]";
        assert!(misplaced_words(&file("tests/support/mod.rs", unused)).is_empty());
        assert_eq!(misplaced_words(&file("tests/vault.rs", unused)).len(), 1);
    }

    #[test]
    fn a_clock_that_stops_in_suspend_is_found_in_the_broker_only() {
        let text = "use tokio_util::time::DelayQueue;";
        assert_eq!(misplaced_words(&file("src/broker/task.rs", text)).len(), 1);
        assert!(misplaced_words(&file("src/delivery/mod.rs", text)).is_empty());
    }

    #[test]
    fn a_secret_type_that_could_be_printed_or_copied_is_found() {
        let bad = [
            "#[derive(Debug)]\npub struct SecretBytes(Vec<u8>);",
            "/// Doc.\n#[derive(\n    Clone,\n)]\n#[repr(C)]\npub(crate) struct SecretBytes;",
            "impl fmt::Debug for SecretBytes {\n}",
            "impl<'a> PartialEq<&'a str> for SecretBytes {}",
            "impl serde::Serialize for crate::domain::SecretBytes {}",
            "impl std::ops::Deref for SecretBytes\nwhere u8: Copy {}",
        ];
        for text in bad {
            assert_eq!(revealed_secrets(&file("src/domain/secret.rs", text)).len(), 1, "{text}");
        }
        let good = "#[derive(Debug)]\npub enum SecretBytesError {}\n#[derive(Debug)] struct A;\n\
                    pub struct SecretBytes(u8);\nimpl Drop for SecretBytes {}\n\
                    fn f() { for SecretBytes in x {} }";
        assert_eq!(revealed_secrets(&file("src/a.rs", good)), Vec::<String>::new());
        assert!(revealed_secrets(&file("src/a.rs", "#[derive(Clone)] struct Key;")).is_empty());
    }
}
