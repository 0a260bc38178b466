//! A database credential in a pod's file over its whole life: renewed, replaced with overlap, ended
//! with its pod.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::{Value, json};

use crate::product::{Product, leftovers, pod, product, restrict, root_of, unlinked};
use crate::support::node::image::program_with_libraries;
use crate::support::node::pods::plain_log;
use crate::support::node::{ADDRESS, SOON};
use crate::support::postgres::installed;
use crate::support::process::eventually;
use crate::support::shared::node;

/// Logs in again and again with what is in its file; when it is told to end it goes on for some
/// seconds, and then says so.
const LOGS_IN: &str = r#"
    field() { echo "$credential" | sed -n "s/^ *\"$1\": \"\([^\"]*\)\".*/\1/p"; }
    query() {
        credential=$(cat /secrets/database.json)
        PGUSER=$(field username) PGPASSWORD=$(field password) \
            psql -XAt -c "SELECT 'query as ' || current_user" || echo "failed: $credential"
    }
    end() {
        echo ending
        for i in $(seq 30); do
            cat /secrets/token >/dev/null || echo "failed: no token"
            query
            sleep 0.2
        done
        echo finished
        exit 0
    }
    trap end TERM
    while :; do query; sleep 0.2 & wait $!; done"#;
/// How often it does so in the end.
const QUERIES_LAST: usize = 30;

/// The credential as the pod sees it now.
pub fn credential(file: &Path) -> std::io::Result<(String, String)> {
    let credential: Value = serde_json::from_slice(&fs::read(file)?).expect("a whole document");
    let text = |key: &str| credential[key].as_str().expect("a text").to_owned();
    Ok((text("username"), text("password")))
}

/// How often Vault renewed each lease of this database role.
pub fn renewals(product: &Product, role: &str) -> Vec<usize> {
    let leases = format!("database/creds/{role}/");
    let mut counts = std::collections::BTreeMap::new();
    for entry in product.bed.vault.audit_log() {
        let lease = entry["response"]["secret"]["lease_id"].as_str().unwrap_or_default();
        let renewal = entry["request"]["path"].as_str().is_some_and(|path| {
            path.starts_with("sys/leases/renew") && entry["type"] == "response"
        });
        if renewal && lease.starts_with(&leases) {
            *counts.entry(lease.to_owned()).or_default() += 1;
        }
    }
    counts.into_values().collect()
}

#[test]
fn no_query_fails_through_renewals_and_a_replacement_and_the_pods_end_ends_everything() {
    let product = product();
    let node = node();
    product.account("life", "web");
    node.admit_restricted_pods_only("life");
    product.let_in("life", "web");
    // Leases of 20 s that can be renewed for 60 s.
    product.bed.write_database_role("life", json!({}));
    product.bed.vault.put_kv2("shop/life", json!({ "token": "s3cr3t" }));
    let items = "- secret: secret/shop/life#token\n\
                 - secret: database/creds/life\n  path: database.json\n";
    let image = node.image("psql", &program_with_libraries(&installed("psql")));
    let mut app = pod("life", "app", "web", &image, json!({ "items": items }));
    restrict(&mut app);
    app["spec"]["terminationGracePeriodSeconds"] = json!(60);
    app["spec"]["containers"][0]["command"] = json!(["sh", "-c", LOGS_IN]);
    app["spec"]["containers"][0]["env"] = json!([
        { "name": "PGHOST", "value": ADDRESS },
        { "name": "PGPORT", "value": product.bed.postgres.port.to_string() },
        { "name": "PGDATABASE", "value": "postgres" },
        { "name": "PGSSLMODE", "value": "disable" },
        { "name": "PGGSSENCMODE", "value": "disable" },
    ]);
    let uid = node.apply(&app)["metadata"]["uid"].as_str().expect("a uid").to_owned();
    node.wait_until_ready("life", "app");
    let process = node.container_process("life", "app", "main").expect("its process");
    let volume = root_of(process).join("secrets");
    let file = volume.join("database.json");
    let (first, password_of_first) = credential(&file).expect("the file is there");
    let (mut users, mut queries) = (BTreeSet::new(), 0_u32);
    let deadline = Instant::now() + Duration::from_secs(300);
    // Until the first one does not exist any more.
    while queries == 0 || product.users_of("life").contains(&first) {
        assert!(Instant::now() < deadline, "{first} is not replaced: {}", product.log());
        let (user, password) = credential(&file).expect("the file is there");
        if let Err(error) = product.bed.postgres.login(&user, &password) {
            panic!("query {queries} as {user}, first {first}: {error}\n{}", product.log());
        }
        if users.insert(user) && users.len() == 2 {
            // Whoever has read the file before the replacement still gets in.
            let overlap = product.bed.postgres.login(&first, &password_of_first);
            overlap.expect("the replaced credential works for a while");
        }
        queries += 1;
        thread::sleep(Duration::from_millis(100));
    }
    assert!(users.len() >= 2 && users.contains(&first), "{users:?}");
    assert!(queries > 10, "{queries} queries");
    let counts = renewals(&product, "life");
    assert!(counts.iter().any(|count| *count >= 2), "{counts:?}");
    assert_eq!(product.requests("database/creds/life", "read"), users.len());

    let database = unlinked(&file);
    assert!(!database().iter().all(|byte| *byte == 0));
    let token = unlinked(&volume.join("token"));
    assert_eq!(token(), b"s3cr3t");
    check_own_queries(&end(&product, process, &file), &users);
    eventually(SOON, "no user is left", || product.users_of("life").is_empty());
    assert_eq!(leftovers(&uid), Vec::<String>::new());
    assert!([token(), database()].concat().iter().all(|byte| *byte == 0), "{:?}", token());
}

/// Deletes the pod; until its process is gone its files are there, and the credential works. What
/// the pod said in its life.
fn end(product: &Product, process: u32, file: &Path) -> String {
    let node = node();
    let log = node.pod_log_file("life", "app", "main").expect("its log");
    let mut log = File::open(log).expect("open the log");
    let mut said = || {
        let mut text = String::new();
        log.rewind().and_then(|()| log.read_to_string(&mut text)).expect("read the log");
        plain_log(&text)
    };
    node.kubectl(&["delete", "pod", "app", "--namespace", "life", "--wait=false"]);
    let mut last = 0_u32;
    let deadline = Instant::now() + 2 * SOON;
    loop {
        let login = credential(file).map(|(user, pass)| product.bed.postgres.login(&user, &pass));
        // The way to the file ends with the process, whose last words are read below.
        if root_of(process).read_link().is_err() {
            break;
        }
        login.expect("the file is there").expect("the credential works while a container runs");
        last += 1;
        assert!(Instant::now() < deadline, "the pod does not end: {}", said());
    }
    assert!(last > 2, "{last} queries while the pod ended");
    node.wait("api/v1/namespaces/life/pods/app", SOON, "gone", Value::is_null);
    said()
}

/// Each of the pod's own queries worked: as each of these users, and until its end.
fn check_own_queries(said: &str, users: &BTreeSet<String>) {
    let (life, last) = said.split_once("ending\n").expect("it was told to end");
    let asked_as = |said: &str| -> Vec<String> {
        said.lines().filter_map(|line| line.strip_prefix("query as ")).map(str::to_owned).collect()
    };
    assert!(!said.contains("failed") && last.ends_with("finished\n"), "{said}");
    assert_eq!(asked_as(last).len(), QUERIES_LAST, "{said}");
    let asked = asked_as(life);
    assert!(asked.len() > 100, "{said}");
    assert!(users.is_subset(&BTreeSet::from_iter(asked)), "{users:?}\n{said}");
}
