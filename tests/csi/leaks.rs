//! What must not be in a text: another pod's value, another pod's name, and whatever opens Vault.

use crate::upstream::{CANARY, CREDENTIALS, Owners};

/// What begins a service account's token: `{"alg":` in base64.
const KUBERNETES_TOKEN: &str = "eyJhbGciOi";

/// Who sees a text.
pub struct Viewer<'a> {
    /// Whose values may be in it: a pod's number.
    pub owner: Option<usize>,
    /// Which pods' names and paths may be in it; without, everybody's.
    pub names: Option<&'a [usize]>,
}

impl Viewer<'_> {
    /// Logs, audit lines and operators' views: all names, no value.
    pub const OPERATOR: Viewer<'static> = Viewer { owner: None, names: None };
}

/// A namespace, and an account or a pod in it.
pub fn names(number: usize) -> [String; 3] {
    let (namespace, own) = (number / 10, number % 10);
    [format!("team-{namespace:02}"), format!("web-{own:02}"), format!("app-{own:02}")]
}

/// Everything in a text that the viewer must not see, each once with what is around it.
pub fn leaks(text: &str, owners: &Owners, viewer: &Viewer) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(CANARY) {
        let digits = text[at + CANARY.len()..].bytes().take_while(u8::is_ascii_hexdigit).count();
        let value = &text[at..at + CANARY.len() + digits];
        // Also one that was cut short.
        if viewer.owner.is_none() || owners.get(value).copied() != viewer.owner {
            found.push(format!("a value: {}", around(text, at)));
        }
    }
    for kind in CREDENTIALS.into_iter().chain([KUBERNETES_TOKEN]) {
        let places = text.match_indices(kind);
        found.extend(places.map(|(at, _)| format!("a credential: {}", around(text, at))));
    }
    if let Some(allowed) = viewer.names {
        let named = text.match_indices("team-").filter_map(|(at, _)| Some((at, name(text, at)?)));
        let others = named.filter(|(_, number)| !allowed.contains(number));
        found.extend(others.map(|(at, _)| format!("a name: {}", around(text, at))));
    }
    found
}

/// The pod or account that is named at `team-`: `team-03/web-07`, `team-03-web-07`, `app` for pods.
fn name(text: &str, at: usize) -> Option<usize> {
    let named = text.get(at..at + "team-00/web-00".len())?;
    let (namespace, rest) = named["team-".len()..].split_at_checked(2)?;
    let own = rest.get(1..)?;
    let own = own.strip_prefix("web-").or_else(|| own.strip_prefix("app-"))?;
    Some(namespace.parse::<usize>().ok()? * 10 + own.parse::<usize>().ok()?)
}

fn around(text: &str, at: usize) -> String {
    let near = &text.as_bytes()[at.saturating_sub(80)..(at + 80).min(text.len())];
    String::from_utf8_lossy(near).escape_debug().to_string()
}

/// The check itself: it must find what it is there for.
mod finds {
    use super::*;

    fn owners() -> Owners {
        Owners::from([(value(1), 1), (value(2), 2)])
    }

    fn value(number: usize) -> String {
        format!("{CANARY}{number:032x}")
    }

    fn count(text: &str, owner: usize) -> usize {
        leaks(text, &owners(), &Viewer { owner: Some(owner), names: Some(&[owner]) }).len()
    }

    #[test]
    fn a_reply_with_a_swapped_owner_is_a_leak() {
        let reply = format!(r#"{{"data":{{"password":"{}"}}}}"#, value(1));
        assert_eq!(count(&reply, 1), 0);
        assert_eq!(count(&reply, 2), 1);
        let operator = leaks(&reply, &owners(), &Viewer::OPERATOR);
        assert_eq!(operator.len(), 1, "operators see no value at all");
    }

    #[test]
    fn half_a_value_and_an_unknown_one_are_leaks() {
        assert_eq!(count(&value(1)[..20], 1), 1);
        assert_eq!(count(&value(3), 1), 1);
        assert_eq!(count(CANARY, 1), 1);
    }

    #[test]
    fn credentials_are_leaks_for_everybody() {
        for credential in ["hvs.1", "upstream-accessor-1", "x/upstream-lease-1", "eyJhbGciOi"] {
            let text = format!("x-header: {credential}\r\n");
            assert_eq!(count(&text, 1), 1, "{credential}");
            assert_eq!(leaks(&text, &owners(), &Viewer::OPERATOR).len(), 1, "{credential}");
        }
    }

    #[test]
    fn somebody_elses_name_is_a_leak_in_every_spelling() {
        for name in ["team-00/web-02", "team-00-web-02", "team-00:web-02", "team-00/app-02"] {
            let text = format!("secret/data/{name} ");
            assert_eq!((count(&text, 2), count(&text, 1)), (0, 1), "{name}");
            assert!(leaks(&text, &owners(), &Viewer::OPERATOR).is_empty());
        }
        assert_eq!(names(37), ["team-03", "web-07", "app-07"].map(str::to_owned));
        assert_eq!(count("team-03/web-07", 37), 0);
    }
}
