//! `explain` in words: short lines that answer which lease, how old, what next, why, until when.

use std::fmt::Write as _;

use crate::clock::Human;
use crate::status::build::count;
use crate::status::{Access, ExplainView, ExplainedEntry, ExplainedFile, LeaseView, SecretView};

/// The explanation for people.
pub fn render_explain(view: &ExplainView) -> String {
    let mut text = format!("{}\n", view.secret);
    if let Some(problem) = &view.source_problem {
        line(&mut text, problem);
    }
    if view.entries.is_empty() {
        line(&mut text, "not cached: nobody has read it since the agent started, or it was idle");
    }
    for entry in &view.entries {
        text.push('\n');
        entry_lines(&mut text, entry);
    }
    if !view.files.is_empty() {
        text.push_str("\nFiles\n");
        view.files.iter().for_each(|file| line(&mut text, &file_line(file)));
    }
    if !view.access.is_empty() {
        text.push_str("\nWho may read it\n");
        view.access.iter().for_each(|access| line(&mut text, &access_line(access)));
    }
    text
}

fn line(text: &mut String, line: &str) {
    let _infallible = writeln!(text, "  {line}");
}

fn entry_lines(text: &mut String, explained: &ExplainedEntry) {
    let entry = &explained.entry;
    let kind = entry.kind.as_deref().unwrap_or("secret of a kind not yet known");
    let owner = entry.consumer.as_ref().map_or_else(String::new, |who| format!(" of {who}"));
    let version = entry.version.map_or_else(String::new, |version| format!(", version {version}"));
    let _infallible = writeln!(text, "{kind}{owner}{version}: {}", entry.state);
    if let Some(why) = &explained.why {
        line(text, &format!("why: {why}"));
    }
    if let Some(fetched) = &entry.fetched {
        line(text, &format!("age: {} (requested {})", fetched.distance(), fetched.at));
    }
    if let Some(lease) = &entry.lease {
        line(text, &lease_line(lease));
    }
    if let (Some(next), Some(at)) = (&entry.next, &entry.next_at) {
        line(text, &format!("next: {next} {}", at.relative()));
    }
    if let Some(problem) = &entry.problem {
        let attempts = count(problem.attempts as usize, "attempt");
        let since = problem.since.distance();
        line(
            text,
            &format!("last error: {} ({}, {attempts} in {since})", problem.message, problem.class),
        );
    }
    if let Some(until) = &entry.works_until {
        line(text, &works_line(entry, until.in_seconds <= 0, &until.relative()));
    }
    line(text, &consumers_line(entry));
    for old in &entry.retiring {
        line(text, &format!("the credential it replaced ends {}", old.relative()));
    }
}

fn lease_line(lease: &LeaseView) -> String {
    let first = Human(std::time::Duration::from_secs(lease.first_duration_seconds));
    let renewals = match (lease.renewable, lease.renewals) {
        (false, _) => "cannot be renewed".to_owned(),
        (true, 1) => "renewed once".to_owned(),
        (true, times) => format!("renewed {times} times"),
    };
    format!(
        "lease: {}… granted {} for {first}, {renewals}, ends {}",
        lease.mac,
        lease.issued.relative(),
        lease.expires.relative()
    )
}

fn works_line(entry: &SecretView, is_over: bool, when: &str) -> String {
    let (over, ahead) = if entry.lease.is_some() {
        ("stopped working", "works")
    } else {
        ("no longer served", "is served")
    };
    if is_over { format!("{over}: {when}") } else { format!("{ahead} until: {when}") }
}

fn consumers_line(entry: &SecretView) -> String {
    let leases = match entry.local_leases {
        0 => String::new(),
        number => format!(", {}", count(number, "local lease")),
    };
    match entry.consumers.as_slice() {
        [] => format!("consumers: none{leases}"),
        some => format!("consumers: {}{leases}", some.join(", ")),
    }
}

fn file_line(file: &ExplainedFile) -> String {
    let age = file.fetched.as_ref();
    let age = age.map_or_else(String::new, |fetched| format!(", value {} old", fetched.distance()));
    let problem = file.problem.as_ref();
    let problem = problem.map_or_else(String::new, |problem| format!(": {}", problem.message));
    format!("{} (volume {}): {}{age}{problem}", file.path, file.volume, file.state)
}

fn access_line(access: &Access) -> String {
    match (access.allowed, &access.rule) {
        (true, Some(rule)) => format!("{}: yes, by rule {rule}", access.who),
        (true, None) => format!("{}: yes", access.who),
        (false, rule) => {
            let by = rule.as_ref().map_or_else(String::new, |rule| format!(" by rule {rule}"));
            let reason = access.reason.as_deref().unwrap_or("no rule permits it");
            format!("{}: no{by}, {reason}", access.who)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    #[test]
    fn a_failing_lease_is_explained_line_by_line() {
        let (report, volumes, facts) = sample::outage();
        let access = vec![
            Access {
                who: "volume:shop".into(),
                allowed: true,
                rule: Some("shop".into()),
                reason: None,
            },
            Access { who: "uid:1000".into(), allowed: false, rule: None, reason: None },
        ];
        let secret = sample::secret_ref("database/creds/shop");
        let view = ExplainView::new(&secret, &report, &volumes, access, &facts);
        let expected = "\
vault:database/creds/shop
  source vault unreachable for 4m12s: connection refused

dynamic of volume:shop: fresh
  age: 13m20s (requested 2027-01-15T07:46:40Z)
  lease: 3fa94c… granted 33m20s ago for 20m00s, renewed once, ends in 6m40s
  next: renew in 3s
  last error: connection refused (unreachable, 7 attempts in 1m40s)
  works until: in 6m40s
  consumers: volume:shop, 1 local lease
  the credential it replaced ends in 1m00s

Files
  /run/v/shop/db.json (volume shop): fresh, value 13m20s old

Who may read it
  volume:shop: yes, by rule shop
  uid:1000: no, no rule permits it
";
        assert_eq!(render_explain(&view), expected);
    }

    #[test]
    fn a_stale_value_says_why_and_until_when() {
        let (report, volumes, facts) = sample::outage();
        let secret = sample::secret_ref("secret/data/shop/web");
        let text =
            render_explain(&ExplainView::new(&secret, &report, &volumes, Vec::new(), &facts));
        assert!(text.contains("kv, version 3: stale\n"), "{text}");
        let why = "why: its ttl is over and refreshing failed: source vault unreachable for 4m12s";
        assert!(text.contains(why), "{text}");
        assert!(text.contains("is served until: in 50m00s"), "{text}");
    }

    #[test]
    fn a_secret_nobody_read_is_said_to_be_unknown() {
        let (report, volumes, facts) = sample::healthy();
        let secret = sample::secret_ref("secret/data/other");
        let text =
            render_explain(&ExplainView::new(&secret, &report, &volumes, Vec::new(), &facts));
        assert!(text.contains("not cached"), "{text}");
    }
}
