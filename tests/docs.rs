//! The documentation says what the code does: metrics, settings, configurations, links and names.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use secrets_broker::broker::report::{
    LeaseReport, Report, SecretReport, SessionReport, SourceReport,
};
use secrets_broker::clock::BootInstant;
use secrets_broker::config::{Config, ConfigError, Host, SourceConfig, cases};
use secrets_broker::domain::{SecretPath, SecretRef, SourceName};
use secrets_broker::identity::pods::{DirectoryMode, DirectoryState};
use secrets_broker::policy::CompiledPolicy;
use secrets_broker::source::local::{LocalConfig, LocalSource};
use secrets_broker::status::VolumeStatus;
use secrets_broker::telemetry::{Limit, Metrics};

#[path = "support/markdown.rs"]
mod markdown;

use markdown::blocks;

/// A page with its path below the checkout.
struct Page {
    path: PathBuf,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file with this extension below a directory.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(files(&entry, extension));
        } else if entry.extension().is_some_and(|e| e == extension) {
            found.push(entry);
        }
    }
    found
}

fn pages() -> Vec<Page> {
    let mut paths = files(&root().join("docs"), "md");
    paths.push(root().join("README.md"));
    let page = |path: PathBuf| Page { text: fs::read_to_string(&path).unwrap(), path };
    let pages: Vec<Page> = paths.into_iter().map(page).collect();
    assert!(pages.len() > 15, "only {} pages found", pages.len());
    pages
}

/// The text without its fenced blocks.
fn prose(text: &str) -> String {
    text.split("\n```").step_by(2).collect::<Vec<_>>().join("\n")
}

/// Everything in single backticks, outside fenced blocks.
fn quoted(text: &str) -> Vec<String> {
    let prose = prose(text);
    prose.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn report(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let exposed = exposed();
    let documented = metrics_in(&read("docs/operations.md"));
    let missing = exposed.difference(&documented).map(|name| format!("not documented: {name}"));
    let invented = documented.difference(&exposed).map(|name| format!("does not exist: {name}"));
    report(&missing.chain(invented).collect::<Vec<_>>());
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let exposed = exposed();
    for (file, least) in [("alerts.yaml", 8), ("dashboard.json", 15)] {
        let asked = metrics_in(&read(&format!("deploy/chart/files/{file}")));
        assert!(asked.len() >= least, "{file} asks for {} metrics only", asked.len());
        let invented = asked.difference(&exposed);
        report(&invented.map(|name| format!("{file}: {name} does not exist")).collect::<Vec<_>>());
    }
}

#[test]
fn the_warning_about_limits_is_not_for_those_that_each_caller_has_for_itself() {
    let alerts = read("deploy/chart/files/alerts.yaml");
    let rule = |name: &str| {
        let found = alerts.split("- alert: ").find(|rule| rule.starts_with(&format!("{name}\n")));
        found.unwrap_or_else(|| panic!("no alert {name}")).to_owned()
    };
    // Only what everybody shares has a "used".
    assert!(rule("SecretsBrokerLimitReached").contains("and secrets_broker_limit_used"));
    let own = rule("SecretsBrokerOwnLimitReached");
    assert!(own.contains("unless secrets_broker_limit_used") && own.contains("severity: info"));
}

/// The names of everything a scrape shows.
fn exposed() -> BTreeSet<String> {
    let text = scrape();
    let declared = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    declared
        .map(|line| match line.split_once(' ') {
            Some((name, "counter")) => format!("{name}_total"),
            Some((name, _)) => name.to_owned(),
            None => panic!("no type: {line}"),
        })
        .collect()
}

/// Every metric that a text names.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|w| w.starts_with("secrets_broker_")).map(str::to_owned).collect()
}

/// What a scrape shows with one of everything: metrics without a label set are not declared.
fn scrape() -> String {
    let now = BootInstant::default();
    let metrics = Metrics::new();
    metrics.connections.get_or_create(&[("socket", "host")]).inc();
    metrics.refused.get_or_create(&[("socket", "host"), ("reason", "idle")]).inc();
    let source: SourceName = "vault".parse().unwrap();
    let report = Report {
        sources: vec![SourceReport {
            name: source.clone(),
            reachable: true,
            since: now,
            last_error: None,
            failures: 0,
            next_attempt: None,
            in_flight: 0,
        }],
        sessions: vec![SessionReport {
            source: source.clone(),
            purpose: "agent".to_owned(),
            state: "live",
            expires_at: None,
            renew_at: None,
            holders: 1,
            last_error: None,
        }],
        secrets: vec![leased(source, now)],
        limits: vec![Limit::shared("entries", 1, 2, 0)],
        ..Report::default()
    };
    let volume = VolumeStatus {
        name: "shop".parse().unwrap(),
        path: "/run/shop".into(),
        mount: "tmpfs".to_owned(),
        revision: None,
        published_at: None,
        links_missing: false,
        alarm: None,
        items: Vec::new(),
    };
    let pods = DirectoryState {
        mode: DirectoryMode::ApiServer,
        synced: true,
        pods: 1,
        heard_at: Some(now),
        failing: None,
    };
    secrets_broker::delivery::socket::metrics::render(&metrics, &report, &[volume], &pods)
}

fn leased(source: SourceName, now: BootInstant) -> SecretReport {
    let path = "database/creds/shop".parse().unwrap();
    SecretReport {
        secret: SecretRef { source, path, version: None },
        kind: None,
        consumer: None,
        state: "fresh",
        fetched_at: Some(now),
        fresh_until: None,
        dead_at: None,
        version: None,
        lease: Some(LeaseReport {
            mac: String::new(),
            issued_at: now,
            first_duration: Duration::from_secs(60),
            expires_at: now,
            renewable: true,
            renewals: 0,
        }),
        next: None,
        problem: None,
        consumers: Vec::new(),
        local_leases: 0,
        retiring: Vec::new(),
    }
}

#[test]
fn every_setting_is_mentioned_on_some_page() {
    let all: String = pages().iter().map(|page| page.text.clone()).collect();
    let words: BTreeSet<&str> =
        all.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let example = read("config.example.toml");
    let settings = example.lines().filter_map(|line| {
        let setting = line.strip_prefix('#').unwrap_or(line);
        let (key, _) = setting.split_once(" = ")?;
        key.chars().all(|c| c.is_ascii_lowercase() || c == '_').then_some(key)
    });
    let settings: BTreeSet<&str> = settings.collect();
    assert!(settings.len() > 50, "only {} settings found", settings.len());
    report(
        &settings.difference(&words).map(|key| format!("no page says {key}")).collect::<Vec<_>>(),
    );
}

#[test]
fn every_relative_link_leads_to_a_file_and_its_heading() {
    let mut findings = Vec::new();
    for page in pages() {
        for link in prose(&page.text).split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let target = link.0;
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => page.path.clone(),
                file => page.path.parent().unwrap().join(file),
            };
            let known = path.is_dir()
                || fs::read_to_string(&path).is_ok_and(|text| {
                    heading.is_empty() || text.lines().any(|line| anchor(line) == heading)
                });
            if !known {
                findings.push(format!("{}: {target} leads nowhere", page.path.display()));
            }
        }
    }
    report(&findings);
}

/// The anchor of a heading, as Markdown viewers make it.
fn anchor(line: &str) -> String {
    let Some(text) = line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim()) else {
        return String::new();
    };
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[test]
fn every_configuration_on_a_page_is_accepted_without_a_warning() {
    let (mut findings, mut checked) = (Vec::new(), 0);
    for page in pages() {
        for config in blocks(&page.text, "toml config") {
            let added = blocks(&page.text, "toml adds to config").concat();
            for text in [config.clone(), format!("{config}\n{added}")] {
                checked += 1;
                let problems = match parse(&text) {
                    Ok(config) => config.warnings,
                    Err(error) => error.problems,
                };
                let named = problems.iter().map(|p| format!("{}: {p}", page.path.display()));
                findings.extend(named);
            }
        }
    }
    assert!(checked >= 10, "only {checked} configurations found");
    report(&findings);
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    on_host(|host| Config::parse(text, "page", host))
}

/// A machine that has what the pages suppose.
fn on_host<R>(with: impl FnOnce(&Host) -> R) -> R {
    let certificate = {
        let mut params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2090, 1, 1);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    };
    let read = |path: &Path| -> io::Result<Vec<u8>> {
        Ok(match path.to_str().unwrap() {
            "/etc/passwd" => b"root:x:0:0::/:/bin/sh\nshop:x:1007:1008::/:/bin/sh\n".to_vec(),
            "/etc/group" => b"root:x:0:\nshop:x:1008:\n".to_vec(),
            path if path.ends_with(".pem") => certificate.clone().into_bytes(),
            _ => b"eyJhbGciOi.token".to_vec(),
        })
    };
    with(&Host {
        variable: &|_| None,
        read: &read,
        open: &|_| Ok(()),
        uid: 0,
        gid: 0,
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    })
}

#[test]
fn every_case_on_a_page_passes_with_the_configuration_beside_it() {
    let page = read("docs/policy.md");
    let config =
        blocks(&page, "toml config").concat() + &blocks(&page, "toml adds to config").concat();
    let config = parse(&config).unwrap_or_else(|error| panic!("{error}"));
    let policy = CompiledPolicy::compile(&config.policy);
    let policy = policy.map_err(|problems| format!("{problems:?}")).unwrap();
    let SourceConfig::Vault(vault) = &config.sources[&config.default_source] else {
        panic!("the page's source is no Vault");
    };
    let mount_of = |_: &SourceName, path: &SecretPath| {
        vault.mounts.iter().find(|mount| path.below(&mount.path).is_some()).cloned()
    };
    let text = blocks(&page, "toml cases").concat();
    let cases = on_host(|host| cases(&text, "page", host, &config, &mount_of));
    let cases = cases.unwrap_or_else(|error| panic!("{error}"));
    assert!(cases.len() >= 4, "only {} cases found", cases.len());
    let failed = cases.iter().filter_map(|(line, case)| {
        let outcome = case.ask(&policy, jiff::Timestamp::UNIX_EPOCH);
        let failed = !outcome.unexpected.is_empty();
        failed.then(|| format!("case at {line}: {:?}: {}", outcome.unexpected, outcome.decided))
    });
    report(&failed.collect::<Vec<_>>());
}

#[test]
fn every_local_file_on_a_page_opens() {
    let secrets = blocks(&read("docs/sources/local.md"), "toml secrets");
    assert_eq!(secrets.len(), 1);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secrets.toml");
    fs::write(&file, &secrets[0]).unwrap();
    if let Err(error) = LocalSource::open(LocalConfig { file, key: None }) {
        panic!("{error}");
    }
}

#[test]
fn every_test_that_is_named_as_proof_exists() {
    let sources = ["src", "tests"].map(|directory| files(&root().join(directory), "rs")).concat();
    let code: String = sources.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let names = quoted(&read("docs/SECURITY.md"));
    let tests: Vec<&String> = names.iter().filter(|name| name.matches('_').count() > 3).collect();
    assert!(tests.len() > 20, "only {} tests are named", tests.len());
    let missing = tests.iter().filter(|name| !code.contains(&format!("fn {name}(")));
    report(&missing.map(|name| format!("no such test: {name}")).collect::<Vec<_>>());
}

#[test]
fn every_path_the_architecture_names_is_there() {
    let names = quoted(&read("docs/ARCHITECTURE.md"));
    let paths: Vec<&String> = names
        .iter()
        .filter(|name| name.starts_with("src/") || name.starts_with("tests/"))
        .collect();
    assert!(paths.len() > 30, "only {} paths are named", paths.len());
    let missing = paths
        .iter()
        .filter(|path| !path.ends_with('*') && !root().join(path.trim_end_matches('/')).exists());
    report(&missing.map(|path| format!("no such path: {path}")).collect::<Vec<_>>());
}

#[test]
fn the_checks_see_what_they_are_for() {
    let text = "a [b](c.md) `q`\n```toml config\nx = 1\n```\n`r`\n```sh\n`no`\n```\n";
    assert_eq!(blocks(text, "toml config"), ["x = 1\n"]);
    assert_eq!(quoted(text), ["q", "r"]);
    assert_eq!(anchor("## What `dev` shows"), "what-dev-shows");
    assert_eq!(anchor("## `..status.json`"), "statusjson");
    assert!(parse("[sources.x]\nkind = \"vault\"\n").is_err());
}
