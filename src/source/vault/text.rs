//! Makes what Vault wrote fit to show: one line, bounded, without tokens and lease ids. Pure.

/// Longest quotation, in characters.
const TEXT_CHARS_MAX: usize = 300;
/// From this length on, mixed letters and digits are taken for something random.
const RANDOM_BYTES_MIN: usize = 20;
/// What stands where something was taken out.
const REMOVED: &str = "[removed]";
/// Shorter strings are no credentials, and replacing them would only garble the message.
const SECRET_BYTES_MIN: usize = 8;

/// Joins Vault's `errors` into one line that may be shown; `secrets` are what we sent.
pub(super) fn quotable(errors: &[String], secrets: &[&str]) -> String {
    let mut text = errors.join("; ");
    for secret in secrets {
        // A lease id's last segment alone is what makes it a secret.
        let tail = secret.rsplit('/').next().unwrap_or(secret);
        for part in [secret, tail] {
            if part.len() >= SECRET_BYTES_MIN {
                text = text.replace(part, REMOVED);
            }
        }
    }
    let shown = |c: char| c.is_alphanumeric() || c.is_ascii_graphic();
    let line: String = text.chars().map(|c| if shown(c) { c } else { ' ' }).collect();
    let words: Vec<String> = line.split_whitespace().map(without_tokens).collect();
    shorten(&words.join(" "))
}

fn without_tokens(word: &str) -> String {
    let in_token = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while !rest.is_empty() {
        let run = rest.find(|c| !in_token(c)).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(run);
        out.push_str(if looks_like_a_token(head) { REMOVED } else { head });
        let other = tail.find(in_token).unwrap_or(tail.len());
        out.push_str(&tail[..other]);
        rest = &tail[other..];
    }
    out
}

/// Vault's token prefixes, old (`s.` and 24 characters) and new, anything shaped like a JWT, and
/// the long random part that ends a lease id (24 base-62 characters).
fn looks_like_a_token(run: &str) -> bool {
    let random = run.split(['.', '_', '-']).any(|part| {
        let has = |kind: fn(&char) -> bool| part.chars().any(|c| kind(&c));
        part.len() >= RANDOM_BYTES_MIN
            && has(char::is_ascii_digit)
            && has(char::is_ascii_lowercase)
            && has(char::is_ascii_uppercase)
    });
    let new = ["hvs.", "hvb.", "hvr."].iter().any(|prefix| run.contains(prefix));
    let old = ["s.", "b.", "r."]
        .iter()
        .any(|prefix| run.strip_prefix(prefix).is_some_and(|rest| rest.len() >= 20));
    random || new || old || run.contains("eyJ")
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, secrets: &[&str]) -> String {
        quotable(&[text.to_owned()], secrets)
    }

    #[test]
    fn tokens_of_every_shape_are_taken_out() {
        let legacy = format!("lookup of s.{} failed", "A1b2".repeat(6));
        for (text, expected) in [
            ("token hvs.CAESI-x_1 is bad", "token [removed] is bad"),
            ("token=\"hvb.AAAA\", sorry", "token=\"[removed]\", sorry"),
            ("(prefix-hvr.AAAA)", "([removed])"),
            ("lease db/creds/a/Zk3v9Q0pLm1xZk3v9Q0pLm1x.ns1", "lease db/creds/a/[removed]"),
            (
                "namespace not authorized (shop-production-2)",
                "namespace not authorized (shop-production-2)",
            ),
            ("jwt eyJhbGciOi.eyJpc3Mi.c2ln", "jwt [removed]"),
            (legacy.as_str(), "lookup of [removed] failed"),
            ("no handler for route \"db/creds/s.x\"", "no handler for route \"db/creds/s.x\""),
        ] {
            assert_eq!(shown(text, &[]), expected);
        }
    }

    #[test]
    fn what_we_sent_is_taken_out_whole_and_by_its_last_segment() {
        let id = "database/creds/shop/Zk3v9Q0pLm1x";
        let text = format!("lease {id} or Zk3v9Q0pLm1x of database/creds/shop");
        assert_eq!(shown(&text, &[id]), "lease [removed] or [removed] of database/creds/shop");
    }

    #[test]
    fn the_line_is_one_line_without_tricks_and_bounded() {
        assert_eq!(
            shown("2 errors occurred:\n\t* permission denied\n\u{202e}* x\u{1b}[2J\n", &[]),
            "2 errors occurred: * permission denied * x [2J"
        );
        assert_eq!(shown(&"é".repeat(1_000), &[]).chars().count(), 301);
        assert_eq!(quotable(&["a".into(), "b".into()], &[]), "a; b");
    }
}
