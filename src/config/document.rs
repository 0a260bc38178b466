//! The TOML document with its lines: sections hand out keys, and remember every problem.
//!
//! serde would stop at the first unknown key or wrong type; walking the tree finds them all.

use std::cell::{OnceCell, RefCell};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::field::Field;
use crate::config::{Host, KeySource, Problem};

/// One configuration file while it is being read.
pub(super) struct Document<'a> {
    file: &'a str,
    text: &'a str,
    pub(super) host: &'a Host<'a>,
    /// The files that it names belong to another machine.
    pub(super) is_elsewhere: bool,
    key: OnceCell<KeySource>,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

/// Where something is written.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The dotted key.
    pub(super) key: String,
    /// Its first byte in the file.
    pub(super) offset: usize,
}

impl Place {
    fn join(&self, name: &str, offset: usize) -> Self {
        let dot = if self.key.is_empty() { "" } else { "." };
        Self { key: format!("{}{dot}{name}", self.key), offset }
    }
}

impl<'a> Document<'a> {
    pub(super) fn new(file: &'a str, text: &'a str, host: &'a Host<'a>) -> Self {
        let (problems, warnings) = Default::default();
        let key = OnceCell::new();
        Self { file, text, host, is_elsewhere: false, key, problems, warnings }
    }

    /// The same where the files that the document names are not: CA bundles are not looked at.
    pub(super) fn elsewhere(self) -> Self {
        Self { is_elsewhere: true, ..self }
    }

    /// Parses the text; every syntax error becomes a problem.
    pub(super) fn parse(&self) -> Option<Spanned<DeTable<'a>>> {
        let (tree, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let offset = error.span().map_or(0, |span| span.start);
            let place = Place { key: String::new(), offset };
            self.problem(&place, format!("not valid TOML: {}", error.message()), "fix the syntax");
        }
        errors.is_empty().then_some(tree)
    }

    /// The whole file as a section.
    pub(super) fn root(&'a self, tree: &'a DeTable<'a>) -> Section<'a> {
        Section::new(self, Place { key: String::new(), offset: 0 }, Some(tree))
    }

    pub(super) fn set_key(&self, key: KeySource) {
        // A document has one [encryption] section, which is read once.
        let _already_set = self.key.set(key);
    }

    pub(super) fn key(&self) -> Option<&KeySource> {
        self.key.get()
    }

    pub(super) fn problem(
        &self,
        place: &Place,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.borrow_mut().push(self.describe(place, message.into(), remedy.into()));
    }

    pub(super) fn warning(
        &self,
        place: &Place,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.warnings.borrow_mut().push(self.describe(place, message.into(), remedy.into()));
    }

    fn describe(&self, place: &Place, message: String, remedy: String) -> Problem {
        let (file, line) = (self.file.to_owned(), self.line(place));
        Problem { file, line, key: place.key.clone(), message, remedy }
    }

    /// The line of a place, counted from 1.
    pub(super) fn line(&self, place: &Place) -> usize {
        let before = &self.text.as_bytes()[..place.offset.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    /// Problems and warnings, each in the order of the file.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Problem>) {
        let in_order = |found: RefCell<Vec<Problem>>| {
            let mut found = found.into_inner();
            found.sort_by_key(|problem| problem.line);
            found
        };
        (in_order(self.problems), in_order(self.warnings))
    }
}

/// A table, or the absence of one: then every key has its default.
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    place: Place,
    table: Option<&'a DeTable<'a>>,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    pub(super) fn new(
        document: &'a Document<'a>,
        place: Place,
        table: Option<&'a DeTable<'a>>,
    ) -> Self {
        Self { document, place, table, known: RefCell::default() }
    }

    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_none_or(|table| table.is_empty())
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether a key is there; asking does not make it a known one.
    pub(super) fn has(&self, name: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(name))
    }

    pub(super) fn problem(&self, message: impl Into<String>, remedy: impl Into<String>) {
        self.document.problem(&self.place, message, remedy);
    }

    /// A problem with one key, which may have its default.
    pub(super) fn problem_at(
        &self,
        name: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let key = self.table.and_then(|table| table.get_key_value(name));
        let offset = key.map_or(self.place.offset, |(key, _)| key.span().start);
        self.document.problem(&self.place.join(name, offset), message, remedy);
    }

    /// A key's value, if it is there.
    pub(super) fn get(&self, name: &'static str) -> Option<Field<'a>> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&name) {
            known.push(name);
        }
        let (key, value) = self.table?.get_key_value(name)?;
        Some(Field::new(self.document, self.place.join(name, key.span().start), value))
    }

    /// A key's value; its absence is a problem with this remedy.
    pub(super) fn require(&self, name: &'static str, remedy: &str) -> Option<Field<'a>> {
        let field = self.get(name);
        if field.is_none() && self.is_present() {
            let place = self.place.join(name, self.place.offset);
            self.document.problem(&place, format!("{name:?} is missing"), remedy);
        }
        field
    }

    /// A table below this one.
    pub(super) fn section(&self, name: &'static str) -> Section<'a> {
        let absent = || Section::new(self.document, self.place.join(name, self.place.offset), None);
        self.get(name).map_or_else(absent, |field| field.section())
    }

    /// The tables of an array of tables.
    pub(super) fn sections(&self, name: &'static str) -> Vec<Section<'a>> {
        self.get(name)
            .map_or_else(Vec::new, |field| field.elements().iter().map(Field::section).collect())
    }

    /// Every key with its value, for tables whose keys are names that people choose.
    pub(super) fn entries(&self) -> Vec<(&'a str, Field<'a>)> {
        let entry = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let key: &'a Spanned<std::borrow::Cow<'a, str>> = key;
            let place = self.place.join(key.get_ref(), key.span().start);
            (key.get_ref().as_ref(), Field::new(self.document, place, value))
        };
        self.table.map_or_else(Vec::new, |table| table.iter().map(entry).collect())
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(&self) {
        let known = self.known.borrow();
        for (name, field) in self.entries() {
            if !known.contains(&name) {
                field.problem(format!("unknown key {name:?}"), suggestion(name, &known));
            }
        }
    }
}

/// `did you mean …?`, or the list of what there is.
pub(super) fn suggestion(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(nearest) => format!("did you mean {nearest:?}?"),
        None if known.is_empty() => "there are none".to_owned(),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// The known name that differs by a slip or two.
pub(super) fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    let distance = |known: &&str| strsim::damerau_levenshtein(name, known);
    let nearest = known.iter().copied().min_by_key(distance);
    nearest.filter(|known| distance(known) <= 1.max(name.len() / 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_gets_the_nearest_one_and_a_foreign_one_the_list() {
        assert_eq!(suggestion("max_stal", &["ttl", "max_stale"]), "did you mean \"max_stale\"?");
        assert_eq!(suggestion("colour", &["ttl", "max_stale"]), "known here: ttl, max_stale");
    }
}
