//! How durations, sizes, modes and paths are written; pure text to value.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Reads `5m`, `1h 30m`, `250ms`. Negative durations are refused.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration =
        text.parse().map_err(|_| "is not a duration (units: h, m, s, ms)".to_owned())?;
    Duration::try_from(parsed).map_err(|_| "is negative".to_owned())
}

/// Reads `64MiB`, `16KiB`, `1GiB` or plain bytes, as a number of bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("has an unknown unit (units: KiB, MiB, GiB)".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "is not a size".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "is too large".to_owned())
}

/// Reads an octal mode such as `0440` of which only the bits of `allowed` may be set.
pub(super) fn mode(text: &str, allowed: u32) -> Result<u32, String> {
    let octal = text.len() <= 5 && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| octal && text.len() >= 3);
    let mode = mode.ok_or_else(|| "is not an octal mode of three or four digits".to_owned())?;
    match mode & !allowed {
        0 => Ok(mode),
        extra => Err(format!("sets the bits {extra:04o}, which are not allowed here")),
    }
}

/// Reads an absolute path without `.`, `..` or doubled slashes.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    if text.chars().any(char::is_control) {
        return Err("holds a control character".to_owned());
    }
    if !text.starts_with('/') {
        return Err("is not an absolute path".to_owned());
    }
    let path = Path::new(text);
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("holds '..'".to_owned());
    }
    // `components` drops what is superfluous; if that changes the text, two spellings would exist.
    let normalised: PathBuf = path.components().collect();
    if normalised.as_os_str() != text.trim_end_matches('/') && text != "/" {
        return Err("holds '.' or '//'".to_owned());
    }
    Ok(normalised)
}

/// Replaces `${NAME}` by what `variable` says; `$${` stands for a literal `${`.
pub(super) fn expand(
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let before = &rest[..at];
        let after = &rest[at + 2..];
        if let Some(escaped) = before.strip_suffix('$') {
            result.push_str(escaped);
            result.push_str("${");
            rest = after;
            continue;
        }
        result.push_str(before);
        let end = after.find('}').ok_or("holds '${' without '}'")?;
        let name = &after[..end];
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err("holds '${…}' with something that is no variable name".to_owned());
        }
        let value = variable(name);
        result.push_str(&value.ok_or_else(|| format!("needs the variable {name}: it is not set"))?);
        rest = &after[end + 1..];
    }
    result.push_str(rest);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_with_units() {
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "5", "5 parsecs", "-5m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_binary_multiples() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("16KiB"), Ok(16 * 1024));
        assert_eq!(size("1 GiB"), Ok(1 << 30));
        for bad in ["", "MiB", "1MB", "-1", "1.5MiB", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn modes_are_octal_and_bounded() {
        assert_eq!(mode("0440", 0o755), Ok(0o440));
        assert_eq!(mode("640", 0o755), Ok(0o640));
        for bad in ["440x", "0o440", "", "7", "0666", "4755", "+440"] {
            assert!(mode(bad, 0o755).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_has_exactly_one_spelling() {
        assert_eq!(absolute_path("/run/a"), Ok(PathBuf::from("/run/a")));
        assert_eq!(absolute_path("/run/a/"), Ok(PathBuf::from("/run/a")));
        assert_eq!(absolute_path("/"), Ok(PathBuf::from("/")));
        for bad in ["", "run", "./run", "/run/../a", "/run/./a", "/run//a", "/a\n", "/a\0"] {
            assert!(absolute_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn variables_are_expanded_and_a_missing_one_is_named() {
        let variable = |name: &str| (name == "HOST").then(|| "h".to_owned());
        assert_eq!(expand("https://${HOST}:1", &variable), Ok("https://h:1".to_owned()));
        assert_eq!(expand("a$${HOST}b$c", &variable), Ok("a${HOST}b$c".to_owned()));
        assert_eq!(
            expand("${NONE}", &variable),
            Err("needs the variable NONE: it is not set".to_owned())
        );
        assert!(expand("${HOST", &variable).is_err());
        assert!(expand("${}", &variable).is_err());
    }
}
