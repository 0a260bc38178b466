//! Round trips: what a format writes, its readers read back.

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::*;
use crate::delivery::files::object::Value;

fn write(format: Format, entries: &[(&str, &str)]) -> Result<String, FormatError> {
    let raw: Vec<Box<RawValue>> = entries
        .iter()
        .map(|(_, json)| RawValue::from_string((*json).to_owned()).unwrap())
        .collect();
    let values: Vec<(&str, Value<'_>)> =
        entries.iter().zip(&raw).map(|((name, _), json)| (*name, Value::from_json(json))).collect();
    format.write(&values).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
}

fn string(value: &str) -> String {
    serde_json::to_string(value).unwrap()
}

/// Reads properties as `java.util.Properties.load` documents it, for files without continuations.
fn read_properties(file: &str) -> Vec<(String, String)> {
    fn unescape(text: &str) -> String {
        let mut units: Vec<u16> = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let unit = match c {
                '\\' => match chars.next().unwrap() {
                    'n' => u16::from(b'\n'),
                    'r' => u16::from(b'\r'),
                    't' => u16::from(b'\t'),
                    'u' => u16::from_str_radix(&chars.by_ref().take(4).collect::<String>(), 16)
                        .unwrap(),
                    other => u16::try_from(u32::from(other)).unwrap(),
                },
                c => u16::try_from(u32::from(c)).expect("properties are ASCII"),
            };
            units.push(unit);
        }
        String::from_utf16(&units).unwrap()
    }
    let split = |line: &str| {
        let mut escaped = false;
        let at = line.find(|c| {
            let found = !escaped && matches!(c, '=' | ':' | ' ' | '\t');
            escaped = c == '\\' && !escaped;
            found
        });
        let at = at.unwrap();
        let value = line[at..].trim_start_matches([' ', '\t']).strip_prefix(['=', ':']).unwrap();
        (unescape(&line[..at]), unescape(value.trim_start_matches([' ', '\t'])))
    };
    file.lines().map(split).collect()
}

/// Lets the real `sh` read the file and print the variables, NUL-separated.
fn read_with_sh(file: &str, names: &[String]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.env");
    std::fs::write(&path, file).unwrap();
    let prints: String = names.iter().map(|name| format!("printf '%s\\0' \"${name}\"\n")).collect();
    let script = format!(". '{}'\n{prints}", path.display());
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

#[test]
fn types_survive_json_and_yaml() {
    let entries = [("a", "\"x\""), ("n", "12.50"), ("o", r#"{"b":[true,null]}"#)];
    let json = write(Format::Json, &entries).unwrap();
    assert_eq!(json, "{\n  \"a\": \"x\",\n  \"n\": 12.50,\n  \"o\": {\"b\":[true,null]}\n}\n");
    let yaml = write(Format::Yaml, &entries).unwrap();
    assert_eq!(yaml, "\"a\": \"x\"\n\"n\": 12.50\n\"o\": {\"b\":[true,null]}\n");
}

#[test]
fn what_a_format_cannot_hold_is_refused_by_key() {
    assert_eq!(
        write(Format::Dotenv, &[("db-password", "\"x\"")]),
        Err(FormatError::VariableName("db-password".into()))
    );
    assert_eq!(write(Format::Dotenv, &[("A", r#""\u0000""#)]), Err(FormatError::Nul("A".into())));
    let two = write(Format::Raw, &[("a", "\"x\""), ("b", "\"y\"")]);
    assert_eq!(two, Err(FormatError::RawWantsOne(vec!["a".into(), "b".into()])));
    assert_eq!(write(Format::Raw, &[("a", r#""x\n""#)]).unwrap(), "x\n");
}

#[test]
fn the_extension_names_the_format() {
    for (file, format) in [
        ("a.json", Some(Format::Json)),
        (".env", Some(Format::Dotenv)),
        ("x/app.yml", Some(Format::Yaml)),
        ("app.properties", Some(Format::Properties)),
        ("token", None),
    ] {
        assert_eq!(Format::from_file_name(&file.parse().unwrap()), format, "{file}");
    }
}

#[test]
fn sh_reads_back_what_dotenv_wrote() {
    let values = [
        "plain",
        "",
        "it's",
        "a b",
        "$HOME `id` $(id)",
        "back\\slash",
        "'\"$`\\",
        "two\nlines",
        "two'\nlines\\",
        "#no comment",
        "ünï😀",
        "\\'",
        "a\\",
        "!history",
        "tab\tcr\r",
    ];
    let names: Vec<String> = (0..values.len()).map(|n| format!("V{n}")).collect();
    let json: Vec<String> = values.iter().map(|value| string(value)).collect();
    let entries: Vec<(&str, &str)> =
        names.iter().zip(&json).map(|(name, json)| (name.as_str(), json.as_str())).collect();
    let file = write(Format::Dotenv, &entries).unwrap();
    assert_eq!(read_with_sh(&file, &names), values);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn sh_reads_back_any_dotenv_value(values in prop::collection::vec("[^\u{0}]{0,30}", 8)) {
        let names: Vec<String> = (0..values.len()).map(|n| format!("V{n}")).collect();
        let json: Vec<String> = values.iter().map(|value| string(value)).collect();
        let entries: Vec<(&str, &str)> =
            names.iter().zip(&json).map(|(name, json)| (name.as_str(), json.as_str())).collect();
        let file = write(Format::Dotenv, &entries).unwrap();
        prop_assert_eq!(read_with_sh(&file, &names), values);
    }
}

proptest! {
    #[test]
    fn properties_come_back_as_java_reads_them(name in "(?s).{1,20}", value in "(?s).{0,40}") {
        let file = write(Format::Properties, &[(&name, &string(&value))]).unwrap();
        prop_assert!(file.is_ascii());
        prop_assert_eq!(read_properties(&file), vec![(name, value)]);
    }

    #[test]
    fn json_comes_back(name in "(?s).{0,20}", value in "(?s).{0,40}") {
        let file = write(Format::Json, &[(&name, &string(&value))]).unwrap();
        let read: serde_json::Value = serde_json::from_str(&file).unwrap();
        prop_assert_eq!(read, serde_json::json!({ name: value }));
    }

    // A YAML double-quoted scalar without line breaks, tabs or unprintable characters means what
    // the same JSON string means, so a JSON reader stands in for a YAML one.
    #[test]
    fn yaml_is_one_line_of_printable_json_strings(name in "(?s).{0,20}", value in "(?s).{0,40}") {
        let file = write(Format::Yaml, &[(&name, &string(&value))]).unwrap();
        let line = file.strip_suffix('\n').unwrap();
        let odd = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
        prop_assert!(!line.chars().any(odd));
        let read: serde_json::Value = serde_json::from_str(&format!("{{{line}}}")).unwrap();
        prop_assert_eq!(read, serde_json::json!({ name: value }));
    }
}
