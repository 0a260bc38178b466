//! A manifest's YAML as a tree that knows its lines, and what a value was before it had a type.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// One value with the line it begins in.
#[derive(Debug, PartialEq)]
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) value: Value,
}

/// What a value is to Kubernetes, which reads YAML 1.1: `0440` is a number, `yes` a truth value.
#[derive(Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// As it is written.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// The documents of a file, in order; empty ones are left out. The error is one line, with its own
/// line number in the file.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, (u64, String)> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    let documents: Vec<Spanned<Raw>> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| {
            let line = error.location().map_or(0, |location| location.line());
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            (line, first)
        })?;
    Ok(documents.into_iter().map(|document| Node::of(document, text)).collect())
}

impl Node {
    fn of(raw: Spanned<Raw>, text: &str) -> Self {
        let span = raw.referenced.span();
        let written = || {
            let start = usize::try_from(span.byte_offset()?).ok()?;
            let end = start + usize::try_from(span.byte_len()?).ok()?;
            Some(text.get(start..end)?.trim().to_owned())
        };
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Bool(flag) => Value::Bool(flag),
            Raw::Number(number) => Value::Number(written().unwrap_or(number)),
            Raw::Text(text) => Value::Text(text),
            Raw::List(list) => {
                Value::List(list.into_iter().map(|one| Self::of(one, text)).collect())
            }
            Raw::Map(map) => {
                Value::Map(map.into_iter().map(|(key, one)| (key, Self::of(one, text))).collect())
            }
        };
        Self { line: raw.referenced.line(), value }
    }

    /// The value of a key, if this is a map and has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// The value at the end of a path of keys.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// The entries of a map; none of anything else.
    pub(super) fn entries(&self) -> &[(String, Node)] {
        match &self.value {
            Value::Map(map) => map,
            _ => &[],
        }
    }

    /// The elements of a list; none of anything else.
    pub(super) fn elements(&self) -> &[Node] {
        match &self.value {
            Value::List(list) => list,
            _ => &[],
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number that is no more than an id may be.
    pub(super) fn id(&self) -> Option<u32> {
        match &self.value {
            Value::Number(number) => number.parse().ok(),
            _ => None,
        }
    }

    /// The same content as one line of JSON, which is YAML too; scalars become strings.
    pub(super) fn to_json(&self) -> String {
        self.json().to_string()
    }

    fn json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(flag) => flag.to_string().into(),
            Value::Number(text) | Value::Text(text) => text.as_str().into(),
            Value::List(list) => list.iter().map(Self::json).collect(),
            Value::Map(map) => map.iter().map(|(key, one)| (key.clone(), one.json())).collect(),
        }
    }
}

enum Raw {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(String, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Raw, E> {
        Ok(Raw::Number(number.to_string()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Raw, E> {
        Ok(Raw::Number(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Raw, E> {
        Ok(Raw::Number(number.to_string()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = access.next_element()? {
            list.push(element);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = access.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_kubernetes_takes_them_for_with_their_lines_and_spelling() {
        let text = "a: 0440\nb: '0440'\n---\n# nothing\n---\nc:\n  - yes\n  - 12\n  - x\nd:\n";
        let documents = documents(text).unwrap();
        assert_eq!(documents.len(), 2, "{documents:?}");
        let first = &documents[0];
        assert_eq!(first.get("a").unwrap().value, Value::Number("0440".to_owned()));
        assert_eq!(first.get("b").unwrap().text(), Some("0440"));
        assert_eq!(first.get("b").unwrap().line, 2);
        let list = documents[1].get("c").unwrap().elements();
        assert_eq!(list[0].value, Value::Bool(true));
        assert_eq!((list[1].id(), list[1].line), (Some(12), 8));
        assert_eq!(documents[1].get("c").unwrap().to_json(), r#"["true","12","x"]"#);
        assert_eq!(documents[1].get("d").unwrap().value, Value::Null);
    }

    #[test]
    fn what_is_no_yaml_has_the_line_where_that_shows() {
        let (line, message) = documents("a: 1\nb: [\n").unwrap_err();
        assert!(line >= 2, "{line}");
        assert!(!message.is_empty() && !message.contains('\n'), "{message}");
    }
}
