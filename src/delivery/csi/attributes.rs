//! `volumeAttributes`: what a pod's manifest may say about its volume. Pure, closed, all problems
//! at once.
//!
//! Nothing here names an upstream, a login identity, a command or a time: those are the operator's.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::delivery::files::{FileOwnership, ItemConfig, ItemContent, ItemText, check_names};
use crate::domain::{SourceName, VaultRole};

/// What the kubelet adds to the attributes, beside the tenant's own.
const KUBELET_PREFIX: &str = "csi.storage.k8s.io/";
/// Longest attributes, names and values.
pub(super) const ATTRIBUTES_BYTES_MAX: usize = 128 * 1024;
/// Longest `items`; the kubelet's own bound on a pod is far larger.
const ITEMS_BYTES_MAX: usize = 64 * 1024;
/// Items of one volume.
const ITEMS_MAX: usize = 128;
/// Names in the `keys` of all of them: each may be a secret of its own, followed for itself.
const KEYS_MAX: usize = 256;
/// Twice what that takes as YAML. Aliases count as often as they are used.
const NODES_MAX: usize = 4096;
/// The names a tenant may use.
const KNOWN: [&str; 9] =
    ["deliver", "secret", "path", "format", "items", "owner", "group", "mode", "role"];
/// The attributes that say what files hold.
const CONTENT: [&str; 4] = ["secret", "path", "format", "items"];
/// Set-user-id and its like are not for secrets.
const MODE_MAX: u32 = 0o777;
/// Mode of files whose group is the pod's `fsGroup`.
const GROUP_MODE: u32 = 0o440;
/// Mode of files otherwise: the mount is private to the pod.
const PRIVATE_MODE: u32 = 0o444;
/// The same for a socket: connecting takes the right to write.
const GROUP_SOCKET_MODE: u32 = 0o660;
const PRIVATE_SOCKET_MODE: u32 = 0o666;

/// A volume as its pod wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// As it is written, for the record of the volume.
    pub written: BTreeMap<String, String>,
    /// What the pod finds in it.
    pub deliver: Deliver,
    /// Owner of the files or of the socket.
    pub owner: Option<u32>,
    /// Their group.
    pub group: Option<u32>,
    /// Their mode.
    pub mode: Option<u32>,
    /// The Vault role to log in with in place of the configured pattern.
    pub role: Option<VaultRole>,
}

/// How a volume brings secrets to its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deliver {
    /// As files: these items, at least one.
    Files(Vec<TenantItem>),
    /// Through a socket, which answers for every secret that policy allows the pod.
    Socket,
}

/// One item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantItem {
    /// What it shows.
    pub content: ItemContent,
    /// Its own mode.
    pub mode: Option<u32>,
}

/// `items` in YAML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenItem {
    secret: Option<String>,
    keys: Option<BTreeMap<String, String>>,
    path: Option<String>,
    format: Option<String>,
    mode: Option<String>,
}

impl Attributes {
    /// Parses; every problem says which attribute and what to do.
    pub fn parse<'a>(all: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self, Vec<String>> {
        let tenants: Vec<_> = all.filter(|(name, _)| !name.starts_with(KUBELET_PREFIX)).collect();
        let bytes: usize = tenants.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > ATTRIBUTES_BYTES_MAX {
            return Err(vec![format!(
                "volumeAttributes have {bytes} bytes, which is longer than {ATTRIBUTES_BYTES_MAX}; \
                 put some of the secrets into another volume"
            )]);
        }
        let mut problems = Vec::new();
        let mut own = BTreeMap::new();
        for (name, value) in tenants {
            if KNOWN.contains(&name) {
                own.insert(name, value);
            } else {
                let name: String = name.chars().take(80).collect();
                problems.push(format!(
                    "unknown attribute '{}'; known are: {}",
                    name.escape_debug(),
                    KNOWN.join(", ")
                ));
            }
        }
        let deliver = deliver(&own, &mut problems);
        let mut number = |name: &str, parse: fn(&str) -> Option<u32>, remedy: &str| {
            let text = own.get(name)?;
            let parsed = parse(text);
            if parsed.is_none() {
                problems.push(format!("{name}: '{}' {remedy}", text.escape_debug()));
            }
            parsed
        };
        let id = "is not a number; write the numeric id, for example \"1000\"";
        let owner = number("owner", account_id, id);
        let group = number("group", account_id, id);
        let mode = number("mode", mode, MODE_REMEDY);
        let role = own.get("role").and_then(|text| match text.parse() {
            Ok(role) => Some(role),
            Err(error) => {
                problems.push(format!("role: {error}"));
                None
            }
        });
        if problems.is_empty() {
            let text = |(name, value): (&&str, &&str)| ((*name).to_owned(), (*value).to_owned());
            let written = own.iter().map(text).collect();
            Ok(Self { written, deliver, owner, group, mode, role })
        } else {
            Err(problems)
        }
    }

    /// The volume's items for the files' side; none if it holds a socket. Owner and mode: explicit,
    /// else `fsGroup`'s, else readable for whoever runs in the pod.
    pub fn items(&self, source: &SourceName, fs_group: Option<u32>) -> Vec<ItemConfig> {
        let Deliver::Files(items) = &self.deliver else { return Vec::new() };
        let ownership = self.ownership(fs_group, GROUP_MODE, PRIVATE_MODE);
        let item = |item: &TenantItem| ItemConfig {
            source: source.clone(),
            content: item.content.clone(),
            ownership: FileOwnership { mode: item.mode.unwrap_or(ownership.mode), ..ownership },
        };
        items.iter().map(item).collect()
    }

    /// Owner and mode of the socket, by the same order.
    pub fn socket_ownership(&self, fs_group: Option<u32>) -> FileOwnership {
        self.ownership(fs_group, GROUP_SOCKET_MODE, PRIVATE_SOCKET_MODE)
    }

    fn ownership(&self, fs_group: Option<u32>, group_mode: u32, private: u32) -> FileOwnership {
        let group = self.group.or(fs_group);
        let default = if group.is_some() { group_mode } else { private };
        FileOwnership {
            uid: self.owner.unwrap_or(0),
            gid: group.unwrap_or(0),
            mode: self.mode.unwrap_or(default),
        }
    }
}

const MODE_REMEDY: &str = "is not a file mode; write it in octal and in quotes, such as \"0440\"";

/// The number of a user or group. The largest one is none: to `chown` it means "leave as it is".
pub(super) fn account_id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn mode(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    u32::from_str_radix(digits, 8).ok().filter(|mode| plain && *mode <= MODE_MAX)
}

fn deliver(own: &BTreeMap<&str, &str>, problems: &mut Vec<String>) -> Deliver {
    match own.get("deliver").copied() {
        None | Some("files") => Deliver::Files(items(own, problems)),
        Some("socket") => {
            for name in CONTENT.iter().filter(|name| own.contains_key(*name)) {
                problems.push(format!(
                    "{name}: has no meaning with deliver: socket, which answers for every secret \
                     that policy allows; remove it, or move it to a volume of its own"
                ));
            }
            Deliver::Socket
        }
        Some(other) => {
            let other: String = other.chars().take(80).collect();
            problems.push(format!(
                "deliver: '{}' is neither \"files\" nor \"socket\"",
                other.escape_debug()
            ));
            Deliver::Socket
        }
    }
}

fn items(own: &BTreeMap<&str, &str>, problems: &mut Vec<String>) -> Vec<TenantItem> {
    let flat = ["secret", "path", "format"].iter().any(|name| own.contains_key(name));
    let written = match own.get("items") {
        Some(_) if flat => {
            let message = "items and secret, path or format are both given; move all into items";
            problems.push(message.to_owned());
            return Vec::new();
        }
        Some(text) => match from_yaml(text) {
            Ok(items) => items,
            Err(problem) => {
                problems.push(problem);
                return Vec::new();
            }
        },
        None => {
            let get = |name: &str| own.get(name).map(|text| (*text).to_owned());
            vec![WrittenItem {
                secret: get("secret"),
                keys: None,
                path: get("path"),
                format: get("format"),
                mode: None,
            }]
        }
    };
    let numbered = own.contains_key("items");
    let mut items = Vec::new();
    for (index, item) in written.into_iter().enumerate() {
        let place = if numbered { format!("items: item {} ", index + 1) } else { String::new() };
        let mode = item.mode.as_deref().map(|text| (text.to_owned(), mode(text)));
        if let Some((text, None)) = &mode {
            problems.push(format!("{place}mode '{}' {MODE_REMEDY}", text.escape_debug()));
        }
        let WrittenItem { secret, keys, path, format, .. } = item;
        match (ItemText { secret, keys, path, format }).content() {
            Ok(content) => items.push(TenantItem { content, mode: mode.and_then(|(_, m)| m) }),
            Err(error) => problems.push(format!("{place}{error}")),
        }
    }
    let files: Vec<_> = items.iter().map(|item: &TenantItem| item.content.file()).collect();
    problems.extend(check_names(&files));
    items
}

fn from_yaml(text: &str) -> Result<Vec<WrittenItem>, String> {
    if text.len() > ITEMS_BYTES_MAX {
        return Err(format!("items: longer than {ITEMS_BYTES_MAX} bytes; use fewer items"));
    }
    let options = serde_saphyr::options! { budget: serde_saphyr::budget! { max_nodes: NODES_MAX } };
    let items: Vec<WrittenItem> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            format!("items: not a YAML list of items: {first}")
        })?;
    let keys: usize = items.iter().flat_map(|item| &item.keys).map(BTreeMap::len).sum();
    match items.len() {
        _ if keys > KEYS_MAX => {
            Err(format!("items: {keys} keys, at most {KEYS_MAX}; use another volume for some"))
        }
        0 => Err("items: the list is empty; add - secret: \"secret/shop/web\"".to_owned()),
        count if count > ITEMS_MAX => Err(format!("items: {count}, at most {ITEMS_MAX}")),
        _ => Ok(items),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Attributes, Vec<String>> {
        Attributes::parse(pairs.iter().copied())
    }

    #[test]
    fn one_file_needs_no_yaml_and_the_kubelets_own_keys_are_not_the_tenants() {
        let attributes = parse(&[
            ("csi.storage.k8s.io/pod.name", "web-0"),
            ("secret", "secret/shop/web#token"),
            ("path", "api/token"),
            ("mode", "0400"),
            ("owner", "1000"),
            ("role", "shop"),
        ])
        .unwrap();
        let items = attributes.items(&"vault".parse().unwrap(), None);
        assert_eq!(items.len(), 1);
        assert_eq!(items[0].file().unwrap().as_str(), "api/token");
        assert_eq!(items[0].ownership, FileOwnership { uid: 1000, gid: 0, mode: 0o400 });
        assert_eq!(attributes.role.unwrap().as_str(), "shop");
    }

    #[test]
    fn owner_and_mode_are_explicit_then_the_groups_then_open_inside_the_pod() {
        let attributes = parse(&[(
            "items",
            "- secret: secret/shop/web\n- keys: {u: 'kv/a#u'}\n  path: a.json\n  mode: '0400'\n",
        )])
        .unwrap();
        let ownership = |fs_group| {
            let items = attributes.items(&"vault".parse().unwrap(), fs_group);
            items.iter().map(|item| (item.ownership.gid, item.ownership.mode)).collect::<Vec<_>>()
        };
        assert_eq!(ownership(None), [(0, 0o444), (0, 0o400)]);
        assert_eq!(ownership(Some(2000)), [(2000, 0o440), (2000, 0o400)]);
    }

    #[test]
    fn a_socket_has_an_owner_and_a_mode_and_no_items() {
        let socket = parse(&[("deliver", "socket"), ("role", "shop")]).unwrap();
        assert!(socket.items(&"vault".parse().unwrap(), None).is_empty());
        let shared = FileOwnership { uid: 0, gid: 2000, mode: 0o660 };
        assert_eq!(socket.socket_ownership(Some(2000)), shared);
        assert_eq!(socket.socket_ownership(None), FileOwnership { gid: 0, mode: 0o666, ..shared });
        let own = parse(&[("deliver", "socket"), ("owner", "1000"), ("mode", "0600")]).unwrap();
        let owner = FileOwnership { uid: 1000, gid: 0, mode: 0o600 };
        assert_eq!(own.socket_ownership(None), owner);
        let problems = parse(&[("deliver", "socket"), ("secret", "kv/a"), ("items", "x")]);
        assert_eq!(problems.unwrap_err().len(), 2);
        let problems = parse(&[("deliver", "env"), ("secret", "kv/a")]).unwrap_err();
        assert_eq!(problems, ["deliver: 'env' is neither \"files\" nor \"socket\""]);
        assert!(parse(&[("deliver", "files"), ("secret", "kv/a")]).is_ok());
    }

    #[test]
    fn every_problem_is_said_at_once() {
        let problems = parse(&[
            ("items", "- secret: kv//a\n- path: x\n- secret: kv/a#k\n  mode: '9'\n"),
            ("vaultAddress", "http://attacker"),
            ("mode", "04777"),
            ("owner", "root"),
            ("role", "../x"),
        ])
        .unwrap_err();
        let text = problems.join("\n");
        for part in ["item 1", "item 2", "item 3", "vaultAddress", "04777", "owner", "role"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(problems.len(), 7, "{text}");
    }

    #[test]
    fn hostile_attributes_are_refused() {
        let bomb = "a: &a [x,x]\nb: &b [*a,*a]\n";
        let many = "- secret: kv/a\n".repeat(ITEMS_MAX + 1);
        let long = "x".repeat(ITEMS_BYTES_MAX + 1);
        for items in ["", "[]", "secret: kv/a", "- secret: kv/a\n  vault: x", bomb, &many, &long] {
            assert!(parse(&[("items", items)]).is_err(), "{}", &items[..items.len().min(40)]);
        }
        let aliased = |n| format!("- {{path: {n}.env, keys: *k}}\n");
        let aliases = format!("- {{path: a.env, keys: &k {{{}}}}}\n", keys(200));
        let aliases = aliases + &(0..20).map(aliased).collect::<String>();
        let problems = parse(&[("items", &aliases)]).unwrap_err();
        assert!(problems[0].contains("not a YAML list of items"), "{problems:?}");
        assert!(parse(&[]).is_err());
        assert!(parse(&[("secret", "kv/a"), ("owner", "4294967295")]).is_err());
        assert!(parse(&[("items", "- secret: kv/a#k"), ("secret", "kv/a#k")]).is_err());
        let twice = "- secret: kv/a#k\n- secret: kv/b#k\n";
        assert!(parse(&[("items", twice)]).unwrap_err()[0].contains("both write 'k'"));
    }

    /// So many secrets as a flow mapping's content.
    fn keys(count: usize) -> String {
        (0..count).map(|n| format!("k{n}: 'kv/{n}#k'")).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_keys_of_all_items_are_as_many_as_one_volume_may_follow() {
        let two = |more: usize| {
            let item =
                |path: &str, count| format!("- {{path: {path}, keys: {{{}}}}}\n", keys(count));
            item("a.env", KEYS_MAX / 2) + &item("b.env", KEYS_MAX / 2 + more)
        };
        assert!(parse(&[("items", &two(0))]).is_ok());
        let problems = parse(&[("items", &two(1))]).unwrap_err();
        assert!(problems[0].contains("257 keys, at most 256"), "{problems:?}");
        // As large as it may be in every way.
        let whole = "- {path: PATH.json, secret: kv/a, format: json, mode: '0400'}\n";
        let all = (1..ITEMS_MAX).map(|n| whole.replace("PATH", &n.to_string()));
        let all: Vec<_> = all.collect();
        let item = format!("- {{path: a.env, keys: {{{}}}}}\n", keys(KEYS_MAX));
        assert!(parse(&[("items", &(all.concat() + &item))]).is_ok());
    }
}
