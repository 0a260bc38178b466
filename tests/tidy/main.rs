//! Style rules that a reviewer would otherwise have to remember, held as a test over the sources.
//!
//! Every check is shown to catch a bad example beside its definition.

use std::collections::BTreeSet;

use tree::SourceFile;

mod imports;
mod rules;
mod rust;
mod tree;

/// Runs one check over every Rust file and reports all findings at once.
fn hold(check: impl Fn(&SourceFile) -> Vec<String>) {
    let files = tree::rust_files();
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "no sources found");
    report(files.iter().flat_map(check).collect());
}

fn report(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn imports_run_one_way() {
    hold(imports::wrong_way);
}

#[test]
fn files_functions_and_lines_are_short() {
    hold(rules::too_long);
}

#[test]
fn every_file_says_what_it_is_for() {
    hold(rules::no_purpose);
}

#[test]
fn no_word_stands_where_it_does_not_belong() {
    hold(rules::misplaced_words);
}

#[test]
fn no_secret_type_can_be_copied_compared_or_printed() {
    hold(rules::revealed_secrets);
}

#[test]
fn the_top_level_holds_what_belongs_there() {
    report(tree::strangers(tree::top_level()));
}

#[test]
fn the_documents_are_there_and_the_records_numbered_without_gaps() {
    let paths: BTreeSet<String> = tree::text_files().into_iter().map(|(path, _)| path).collect();
    report(tree::missing_documents(&paths));
}

#[test]
fn no_file_names_a_machine_or_a_package_registry() {
    let files = tree::text_files();
    report(files.iter().flat_map(|(path, text)| tree::machine_names(path, text)).collect());
}
