//! `[sources.NAME]` of kind `vault`: address, trust, login and mounts.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use http::Uri;

use crate::config::ca;
use crate::config::document::Section;
use crate::config::field::Field;
use crate::config::sources::RESERVED;
use crate::domain::{EngineKind, SecretPath, Token, TokenError};
use crate::source::ConfiguredMount;
use crate::source::vault::{PodLogin, RolePattern, VaultConfig};

/// Where Kubernetes puts a pod's token.
const TOKEN_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

pub(super) fn read(section: &Section, mounts: Option<Vec<ConfiguredMount>>) -> Option<VaultConfig> {
    let address = section
        .require("address", "write for example address = \"https://vault.example.com:8200\"")
        .and_then(|field| address(&field));
    let ca_file = ca_file(section, address.as_deref());
    let server_name = section.get("server_name").and_then(|field| server_name(&field));
    let namespace = section.get("namespace").and_then(|field| slash_path(&field));
    let auth_mount = section.get("auth_mount").map(|field| slash_path(&field));
    let role = section
        .require("role", "name the Vault role of the Kubernetes auth method: role = \"…\"")
        .and_then(|field| role(&field));
    let pods = section.get("pod_role").and_then(|field| {
        let role: RolePattern =
            field.parsed("write for example \"{namespace}-{serviceaccount}\"")?;
        Some(PodLogin { role })
    });
    let token_file = token_file(section);
    Some(VaultConfig {
        address: address?,
        namespace,
        ca_file,
        server_name,
        auth_mount: auth_mount.unwrap_or_else(|| Some("kubernetes".to_owned()))?,
        role: role?,
        pods,
        token_file: token_file?,
        mounts: mounts?,
    })
}

fn address(field: &Field) -> Option<String> {
    let text = field.text()?;
    match checked_address(&text) {
        Ok(address) => Some(address),
        // The address is not repeated: it may hold a password.
        Err((message, remedy)) => {
            field.problem(message, remedy);
            None
        }
    }
}

fn checked_address(text: &str) -> Result<String, (&'static str, &'static str)> {
    const EXAMPLE: &str = "write for example \"https://vault.example.com:8200\"";
    let uri: Uri = text.parse().map_err(|_| ("is not a URL", EXAMPLE))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(("has no scheme or no host", EXAMPLE));
    };
    if authority.as_str().contains('@') {
        return Err(("holds a user name or password", "remove everything up to and with the '@'"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
        return Err((
            "holds a path, query or fragment",
            "write scheme, host and port only; a Vault namespace goes into namespace",
        ));
    }
    if authority.as_str().ends_with(':') || uri.port().is_some_and(|port| port.as_u16() == 0) {
        return Err(("has no valid port", EXAMPLE));
    }
    match scheme {
        "https" => {}
        "http" if is_loopback(authority.host()) => {}
        "http" => {
            return Err((
                "is plain http to another machine: tokens and secrets would travel unencrypted",
                "use https with ca_file; http is accepted for loopback addresses only",
            ));
        }
        _ => return Err(("has a scheme other than https and http", EXAMPLE)),
    }
    Ok(format!("{scheme}://{authority}"))
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn ca_file(section: &Section, address: Option<&str>) -> Option<PathBuf> {
    let Some(field) = section.get("ca_file") else {
        if address.is_some_and(|address| address.starts_with("https:")) {
            section.problem_at(
                "ca_file",
                "https needs ca_file: only certificates it signs are trusted, never the system's",
                "name the PEM bundle of the CA that signed Vault's certificate",
            );
        }
        return None;
    };
    let path = field.absolute_path()?;
    if field.document().is_elsewhere {
        return Some(path);
    }
    let bundle = field.readable(&path, "let this user read the CA bundle, or correct the path")?;
    ca::check(&field, &bundle);
    Some(path)
}

fn server_name(field: &Field) -> Option<String> {
    let name = |text: &str| {
        let parsed = rustls::pki_types::ServerName::try_from(text.to_owned());
        parsed.map(|_| text.to_owned()).map_err(|_| "is neither a DNS name nor an IP address")
    };
    field.convert(name, "write the name in Vault's certificate")
}

/// A namespace or auth mount: segments like a path's, a trailing slash is dropped.
fn slash_path(field: &Field) -> Option<String> {
    let path = |text: &str| {
        let path = text.trim_end_matches('/').parse::<SecretPath>();
        path.map(|path| path.to_string()).map_err(|error| format!("is refused: {error}"))
    };
    field.convert(path, "write it without a leading slash, as Vault lists it")
}

fn role(field: &Field) -> Option<String> {
    let role = |text: &str| match text {
        "" => Err("is empty"),
        text if text.contains('/') || text.chars().any(char::is_control) => {
            Err("holds a slash or a control character")
        }
        text => Ok(text.to_owned()),
    };
    field.convert(role, "write the role's name as in auth/kubernetes/role/<name>")
}

/// A token that is missing or odd now may be right at the login: worth a warning only.
fn token_file(section: &Section) -> Option<PathBuf> {
    let Some(field) = section.get("token_file") else { return Some(PathBuf::from(TOKEN_FILE)) };
    let path = field.absolute_path()?;
    if let Some(trouble) = token_trouble(&field, &path) {
        let remedy = "logins fail until it holds a service-account token and nothing else";
        field.warning(trouble, remedy);
    }
    Some(path)
}

fn token_trouble(field: &Field, path: &Path) -> Option<String> {
    match (field.document().host.read)(path) {
        Err(error) => Some(format!("cannot read {}: {error}", field.quoted())),
        Ok(bytes) => {
            let error: TokenError = Token::new(bytes).err()?;
            Some(format!("{}: {error}", field.quoted()))
        }
    }
}

/// `[sources.NAME.mounts]`; `None` after a problem.
pub(super) fn mounts(section: &Section) -> Option<Vec<ConfiguredMount>> {
    const KINDS: [(&str, Option<EngineKind>); 5] = [
        ("auto", None),
        ("kv1", Some(EngineKind::Kv1)),
        ("kv2", Some(EngineKind::Kv2)),
        ("database", Some(EngineKind::Database)),
        ("other", Some(EngineKind::Other)),
    ];
    let table = section.section("mounts");
    if table.is_empty() {
        section.problem_at(
            "mounts",
            "no engine mount is named, and only paths below named mounts are ever read",
            "add for example: mounts = { secret = \"auto\" }",
        );
        return None;
    }
    // An incomplete list would make every path below what is missing look wrong.
    let mut is_sound = true;
    let mut mounts: Vec<ConfiguredMount> = Vec::new();
    for (name, field) in table.entries() {
        let kind = field.choice(&KINDS);
        is_sound &= kind.is_some();
        let path: SecretPath = match name.trim_end_matches('/').parse() {
            Ok(path) => path,
            Err(error) => {
                field.problem(format!("{name:?}: {error}"), "write the mount's path in quotes");
                is_sound = false;
                continue;
            }
        };
        if path.segments().next().is_some_and(|first| RESERVED.contains(&first)) {
            let message =
                format!("{name:?} is one of Vault's own paths, which are never forwarded");
            field.problem(message, "remove it");
        }
        let overlaps = |other: &ConfiguredMount| {
            path == other.path
                || path.below(&other.path).is_some()
                || other.path.below(&path).is_some()
        };
        if let Some(other) = mounts.iter().find(|other| overlaps(other)) {
            let message = format!(
                "lies inside {:?} or around it, which Vault does not allow",
                other.path.as_str()
            );
            field.problem(message, "keep one of the two");
        }
        mounts.push(ConfiguredMount { path, kind: kind.flatten() });
    }
    is_sound.then_some(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_scheme_host_and_port_and_http_stays_on_loopback() {
        let good = [
            ("https://vault.example.com:8200", "https://vault.example.com:8200"),
            ("https://vault.example.com/", "https://vault.example.com"),
            ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
            ("http://[::1]:8200", "http://[::1]:8200"),
            ("http://localhost:8200", "http://localhost:8200"),
        ];
        for (text, address) in good {
            assert_eq!(checked_address(text), Ok(address.to_owned()), "{text}");
        }
        let bad = [
            "vault.example.com:8200",
            "http://vault.example.com",
            "ftp://x",
            "https://",
            "https://u:p@h",
            "https://h/v1",
            "https://h?x=1",
            "https://h#x",
            "https://h:",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "/run/vault.sock",
        ];
        for text in bad {
            assert!(checked_address(text).is_err(), "{text}");
        }
    }
}
