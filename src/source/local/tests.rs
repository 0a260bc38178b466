//! The local source as the broker sees it, and as its file's author does.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::encryption::EncryptedValue;

const AGENT: LoginIdentity = LoginIdentity::Agent;

fn key() -> Key {
    Key::from_hex(&[b'7'; 64]).unwrap()
}

fn encrypted(plain: &str) -> String {
    EncryptedValue::encrypt(plain.as_bytes(), &key()).unwrap().to_string()
}

struct Fixture {
    directory: tempfile::TempDir,
    source: LocalSource,
}

impl Fixture {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = open(directory.path(), text, Some(key())).unwrap();
        Self { directory, source }
    }

    fn rewrite(&self, text: &str) {
        fs::write(self.directory.path().join("secrets.toml"), text).unwrap();
        self.source.reload();
    }

    async fn token(&self) -> Token {
        self.source.login(&AGENT, None).await.unwrap().token
    }

    async fn fetch(&self, spelling: &str) -> Result<Fetched, SourceError> {
        let (path, version) = spelling.split_once('@').unwrap_or((spelling, ""));
        let source = "local".parse().unwrap();
        let version = version.parse().ok();
        let secret = SecretRef { source, path: path.parse().unwrap(), version };
        self.source.fetch(&self.token().await, &secret, PathKind::Kv).await
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_slice(self.fetch(path).await.unwrap().data.expose()).unwrap()
    }
}

fn open(directory: &Path, text: &str, key: Option<Key>) -> Result<LocalSource, LocalError> {
    let file = directory.join("secrets.toml");
    fs::write(&file, text).unwrap();
    LocalSource::open(LocalConfig { file, key: key.map(|key| key.shared()) })
}

/// The problems of a file, as `line:column: message`.
fn problems(text: &str, key: Option<Key>) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    match open(directory.path(), text, key) {
        Ok(_) => Vec::new(),
        Err(LocalError::Invalid { problems, .. }) => {
            problems.iter().map(ToString::to_string).collect()
        }
        Err(other) => panic!("{other}"),
    }
}

fn kv2(secrets: &str) -> String {
    format!("[mounts.secret.secrets]\n{secrets}\n")
}

#[tokio::test]
async fn a_kv2_secret_has_vaults_shape_with_types_kept_and_encrypted_strings_opened() {
    let fixture = Fixture::new(&format!(
        "[mounts.secret.secrets.\"shop/web\"]\n\
         user = \"sh\\\"op\"\npassword = \"{}\"\nempty = \"{}\"\nport = 0x1_f\nratio = 1.5\n\
         on = true\nlist = [1, \"a\", {{ deep = \"{}\" }}]\n",
        encrypted("pä\"ss"),
        encrypted(""),
        encrypted("down")
    ));
    let reply = fixture.fetch("secret/data/shop/web").await.unwrap();
    assert_eq!((reply.version, reply.lease_duration_hint), (Some(1), 0));
    assert!(reply.lease.is_none() && reply.rotates_in.is_none());
    let text = std::str::from_utf8(reply.data.expose()).unwrap();
    let data = concat!(
        r#"{"data":{"empty":"","list":[1,"a",{"deep":"down"}],"on":true,"password":"pä\"ss","#,
        r#""port":31,"ratio":1.5,"user":"sh\"op"},"metadata":{"created_time":""#
    );
    assert!(text.starts_with(data), "{text}");
    let metadata = &serde_json::from_str::<Value>(text).unwrap()["metadata"];
    let created: Timestamp = metadata["created_time"].as_str().unwrap().parse().unwrap();
    assert!(created.duration_since(Timestamp::now()).abs() < jiff::SignedDuration::from_mins(1));
    let mut rest = metadata.clone();
    rest.as_object_mut().unwrap().remove("created_time");
    let expected =
        json!({"custom_metadata": null, "deletion_time": "", "destroyed": false, "version": 1});
    assert_eq!(rest, expected);
}

#[tokio::test]
async fn a_kv1_secret_is_its_keys_alone_and_has_no_versions() {
    let fixture = Fixture::new("[mounts.kv]\nkind = \"kv1\"\n[mounts.kv.secrets.app]\na = 1\n");
    let reply = fixture.fetch("kv/app").await.unwrap();
    assert_eq!(reply.data.expose(), b"{\"a\":1}");
    assert_eq!((reply.version, reply.lease_duration_hint), (None, KV1_LEASE_DURATION));
    let pinned = fixture.fetch("kv/app@1").await.err().unwrap();
    assert_eq!(pinned.class, ErrorClass::InvalidRequest);
}

#[tokio::test]
async fn a_version_goes_up_with_its_own_content_only_and_is_never_used_twice() {
    let fixture = Fixture::new(&kv2("a = { k = 1 }\nb = { k = 1 }"));
    let mut changes = fixture.source.changes().unwrap();
    let version = async |path| fixture.fetch(path).await.map(|reply| reply.version).ok().flatten();
    fixture.rewrite(&kv2("# a comment\nb = { k = 1 }\na = { k = 1 }"));
    assert!(!changes.has_changed().unwrap(), "the same content is no change");
    fixture.rewrite(&kv2("a = { k = 2 }\nb = { k = 1 }"));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert_eq!(version("secret/data/a").await, Some(2));
    assert_eq!(version("secret/data/b").await, Some(1));
    fixture.rewrite(&kv2("b = { k = 1 }"));
    assert!(changes.has_changed().unwrap(), "a removal is a change");
    assert_eq!(version("secret/data/a").await, None);
    fixture.rewrite(&kv2("a = { k = 3 }\nb = { k = 1 }"));
    assert_eq!(version("secret/data/a").await, Some(3), "2 has been somebody else");
}

#[tokio::test]
async fn only_the_current_version_can_be_pinned() {
    let fixture = Fixture::new(&kv2("a = { k = 1 }"));
    fixture.rewrite(&kv2("a = { k = 2 }"));
    assert!(fixture.fetch("secret/data/a@2").await.is_ok());
    for gone in [1, 3] {
        let error = fixture.fetch(&format!("secret/data/a@{gone}")).await.err().unwrap();
        assert_eq!(error.class, ErrorClass::NotFound);
        assert!(error.message.contains("keeps the current version only, 2"), "{error}");
    }
}

#[tokio::test]
async fn a_bad_new_file_changes_nothing_but_the_problem() {
    let fixture = Fixture::new(&kv2("a = { k = 1 }"));
    let changes = fixture.source.changes().unwrap();
    for (bad, part) in [
        ("", "no mount"),
        ("[mounts.secret.secrets.a]\nk = hunter2", ":2:5: "),
        ("[mounts.secret]\nkind = \"kv3\"", "must be \"kv2\""),
    ] {
        fixture.rewrite(bad);
        let problem = fixture.source.problem().unwrap();
        assert!(problem.contains(part) && problem.contains("in force"), "{problem}");
        assert!(!problem.contains("hunter2"), "{problem}");
        assert_eq!(fixture.json("secret/data/a").await["data"]["k"], 1);
    }
    fs::remove_file(fixture.directory.path().join("secrets.toml")).unwrap();
    fixture.source.reload();
    assert!(fixture.source.problem().unwrap().contains("cannot be read: No such file"));
    assert!(!changes.has_changed().unwrap());
    fixture.rewrite(&kv2("a = { k = 1 }"));
    assert_eq!(fixture.source.problem(), None);
}

#[test]
fn the_file_is_out_of_date_once_it_is_written_again_or_gone() {
    let fixture = Fixture::new(&kv2("a = { k = 1 }"));
    assert!(!fixture.source.is_out_of_date());
    let file = fixture.directory.path().join("secrets.toml");
    let next = fixture.directory.path().join("next.toml");
    fs::write(&next, kv2("a = { k = 2 }")).unwrap();
    fs::rename(&next, &file).unwrap();
    assert!(fixture.source.is_out_of_date());
    fixture.source.reload();
    assert!(!fixture.source.is_out_of_date());
    fs::remove_file(&file).unwrap();
    assert!(fixture.source.is_out_of_date());
}

#[tokio::test]
async fn following_takes_an_edit_and_ends_when_told() {
    let fixture = Fixture::new(&kv2("a = { k = 1 }"));
    let Fixture { directory, source } = fixture;
    let (source, stop) = (Arc::new(source), CancellationToken::new());
    let mut changes = source.changes().unwrap();
    let following = tokio::spawn(Arc::clone(&source).follow(stop.clone()));
    fs::write(directory.path().join("secrets.toml"), kv2("a = { k = 2 }")).unwrap();
    let deadline = Duration::from_secs(10);
    tokio::time::timeout(deadline, changes.changed()).await.unwrap().unwrap();
    stop.cancel();
    tokio::time::timeout(deadline, following).await.unwrap().unwrap();
}

const GENERATED: &str = "[mounts.database]
kind = \"generated\"
[mounts.database.roles.shop]
ttl = \"20s\"
max_ttl = \"1m\"
";

#[tokio::test]
async fn a_generated_credential_is_leased_renewed_revoked_and_ends_with_its_session() {
    let fixture = Fixture::new(GENERATED);
    let source = &fixture.source;
    assert!(source.description().generated);
    let path: SecretPath = "database/creds/shop".parse().unwrap();
    let mount = source.mount_of(&path).unwrap();
    assert_eq!((mount.path.as_str(), mount.kind), ("database", Some(EngineKind::Database)));

    let token = fixture.token().await;
    let secret = SecretRef { source: "local".parse().unwrap(), path, version: None };
    let mint = async || source.fetch(&token, &secret, PathKind::Minting).await.unwrap();
    let (first, second) = (mint().await, mint().await);
    assert_ne!(first.data.expose(), second.data.expose(), "each read makes its own");
    let (lease, terms) = first.lease.unwrap();
    assert_eq!(terms, LeaseTerms { duration: Duration::from_secs(20), renewable: true });
    assert!(lease.expose().starts_with("database/creds/shop/"));

    let long = Duration::from_secs(600);
    let renewed = source.renew_lease(&token, &lease, long).await.unwrap();
    assert!(renewed.duration <= Duration::from_secs(60), "cut at max_ttl: {renewed:?}");
    source.revoke_lease(&token, &lease).await.unwrap();
    let error = source.renew_lease(&token, &lease, long).await.unwrap_err();
    assert_eq!((error.class, &*error.message), (ErrorClass::LeaseEnded, "lease not found"));

    source.end_session(&token).await.unwrap();
    let second = second.lease.unwrap().0;
    let other = fixture.token().await;
    let error = source.renew_lease(&other, &second, long).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::LeaseEnded);
    let error = source.fetch(&token, &secret, PathKind::Minting).await.err().unwrap();
    assert_eq!(error.class, ErrorClass::TokenEnded);
}

#[tokio::test]
async fn what_is_not_there_is_answered_as_vault_would() {
    let fixture = Fixture::new(&format!("{}{GENERATED}", kv2("a = { k = 1 }")));
    for (path, class, part) in [
        ("secret/data/b", ErrorClass::NotFound, "no secret at 'secret/data/b'"),
        ("secret/a", ErrorClass::NotFound, "below 'data/'"),
        ("other/a", ErrorClass::NotFound, "no mount"),
        ("database/creds/nobody", ErrorClass::InvalidRequest, "<mount>/creds/<role>"),
        ("database/roles/shop", ErrorClass::InvalidRequest, "no role"),
    ] {
        let error = fixture.fetch(path).await.err().unwrap();
        assert_eq!(error.class, class, "{path}");
        assert!(error.message.contains(part), "{error}");
    }
    let token = fixture.token().await;
    let error = fixture.source.renew_token(&token, Duration::ZERO).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::InvalidRequest);
}

#[test]
fn all_problems_of_a_file_are_reported_at_once_with_line_and_column() {
    let text = "\
top = 1
[mounts.\"sys/x\"]
[mounts.secret]
kinds = \"kv2\"
[mounts.secret.secrets.\"a//b\"]
[mounts.secret.secrets.web]
at = 2024-01-01
big = 99999999999999999999
nan = nan
password = \"ENC:00\"
[mounts.\"secret/deep\"]
[mounts.db]
kind = \"generated\"
secrets = {}
[mounts.db.roles.shop]
ttl = \"soon\"
max_ttl = \"1s\"
length = 3
alphabet = \"a\"
[mounts.db.roles.\"a/b\"]
";
    let expected = [
        ("1:1: ", "unknown key \"top\" in the file; known: mounts"),
        ("2:9: ", "Vault keeps this path for itself"),
        ("4:1: ", "unknown key \"kinds\" in mount \"secret\"; known: kind, secrets"),
        ("5:24: ", "path has an empty segment"),
        ("7:6: ", "\"at\" in secret \"web\" of mount \"secret\" is a date or time"),
        ("8:7: ", "beyond 64 bits"),
        ("9:7: ", "no number that JSON has"),
        ("10:12: ", "a text in clear may not begin with 'ENC:'"),
        ("11:9: ", "overlaps with mount 'secret'"),
        ("14:1: ", "unknown key \"secrets\""),
        ("16:7: ", "\"ttl\" in role \"shop\" of mount \"db\" must be a duration"),
        ("17:11: ", "must not be shorter than ttl"),
        ("18:10: ", "must be from 8 to 256"),
        ("19:12: ", "two different visible ASCII characters"),
        ("20:1: ", "one path segment"),
    ];
    let found = problems(text, Some(key()));
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, (place, part)) in found.iter().zip(expected) {
        assert!(found.starts_with(place) && found.contains(part), "{found} / {place}{part}");
    }
}

#[test]
fn a_wrong_or_missing_key_is_found_at_load_and_says_what_to_do() {
    let text = kv2(&format!("web = {{ password = \"{}\" }}", encrypted("hunter2")));
    let other = Key::generate().unwrap();
    for (key, part) in [
        (Some(other), "was encrypted with another key, or has been altered: encrypt it again"),
        (None, "this source has no key: set its key_file or key_env"),
    ] {
        let found = problems(&text, key).join("\n");
        assert!(found.starts_with("2:20: \"password\" in secret \"web\" of mount \"secret\""));
        assert!(found.contains(part) && !found.contains("hunter2"), "{found}");
    }
}

#[test]
fn no_message_about_a_broken_file_repeats_what_stands_in_it() {
    for line in [
        "k = hunter2",
        "k = \"hunter2",
        "k = 'hunter2\nx'",
        "k = 2024-hunter2",
        "k = \"hunter2\" hunter2",
        "k = \"\\hunter2\"",
        "k = \"\"\"hunter2",
        "k = [\"hunter2\"",
        "k = { hunter2 = }",
        "k = \"ENC:hunter2\"",
        "k = 12:hunter2",
        "k = 1\nk = \"hunter2\"",
    ] {
        let found = problems(&format!("[mounts.s.secrets.a]\n{line}\n"), None).join("\n");
        assert!(!found.is_empty() && !found.contains("hunter2"), "{line}: {found}");
    }
}
