//! The view on a terminal: the cause first, then deadlines and outlook, then tables.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};

use crate::clock::Human;
use crate::status::build::count;
use crate::status::{Health, LimitView, Moment, SecretView, StatusView, VolumeView};

/// How it may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Whether escape sequences are understood.
    pub color: bool,
    /// Columns to wrap at; `None` never wraps.
    pub width: Option<u16>,
}

/// From this share of a cap on, a limit is shown: nine tenths.
const LIMIT_SHOWN_FROM: (u64, u64) = (9, 10);

/// The whole view as text.
pub fn render_status(view: &StatusView, style: Style) -> String {
    let mut text = headline(view, style);
    deadlines(&mut text, view, style);
    outlook(&mut text, view, style);
    sources(&mut text, view, style);
    sessions(&mut text, view, style);
    secrets(&mut text, view, style);
    volumes(&mut text, view, style);
    pod_directory(&mut text, view);
    locked_out(&mut text, view, style);
    limits(&mut text, view, style);
    for note in &view.notes {
        let _infallible = writeln!(text, "\nnote: {note}");
    }
    if !view.hardening.is_empty() {
        let _infallible = writeln!(text, "\nprotection: {}", view.hardening.join(", "));
    }
    text
}

fn headline(view: &StatusView, style: Style) -> String {
    let color = match view.health {
        Health::Healthy => "32",
        Health::Degraded => "31",
    };
    let health = painted(view.health.as_str(), color, style);
    let up = Human(Duration::from_secs(view.uptime_seconds));
    let mut text = format!("{health}: {}\n", view.headline);
    for cause in view.causes.iter().skip(1) {
        let _infallible = writeln!(text, "also: {cause}");
    }
    let _infallible = writeln!(
        text,
        "secrets-broker {}, instance {}, up {up}, at {}",
        view.version, view.instance, view.taken_at
    );
    text
}

fn painted(text: &str, code: &str, style: Style) -> String {
    if style.color { format!("\x1b[1;{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn section(text: &mut String, title: &str, style: Style) {
    let title = if style.color { format!("\x1b[1m{title}\x1b[0m") } else { title.to_owned() };
    let _infallible = writeln!(text, "\n{title}");
}

/// Rows under a header, aligned; no lines, so that it can be cut and pasted.
pub fn table(text: &mut String, header: &[&str], rows: Vec<Vec<String>>, style: Style) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if let Some(width) = style.width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    if !header.is_empty() {
        table.set_header(header.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    for row in rows {
        table.add_row(row);
    }
    for line in table.lines() {
        let _infallible = writeln!(text, "{}", line.trim_end());
    }
}

fn deadlines(text: &mut String, view: &StatusView, style: Style) {
    if view.deadlines.is_empty() {
        return;
    }
    section(text, "What stops working when", style);
    let row = |deadline: &crate::status::DeadlineView| {
        let when = deadline.at.relative();
        vec![when, deadline.what.clone(), deadline.effect.clone(), deadline.consumers.join(" ")]
    };
    table(text, &[], view.deadlines.iter().map(row).collect(), style);
}

fn outlook(text: &mut String, view: &StatusView, style: Style) {
    let Some(outlook) = &view.outlook else { return };
    let parts = [
        ("What works now", &outlook.works_now),
        ("What a restart would lose", &outlook.restart_would_lose),
        ("What happens on recovery", &outlook.on_recovery),
        ("What to do", &outlook.to_do),
    ];
    for (title, lines) in parts {
        if !lines.is_empty() {
            section(text, title, style);
        }
        for line in lines {
            let _infallible = writeln!(text, " {line}");
        }
    }
}

fn sources(text: &mut String, view: &StatusView, style: Style) {
    section(text, "Sources", style);
    let header = ["NAME", "KIND", "ADDRESS", "STATE", "FOR", "NEXT TRY", "LAST ERROR"];
    let row = |source: &crate::status::SourceView| {
        let state = if source.reachable { "reachable" } else { "unreachable" };
        let generated = if source.generated { " (generated)" } else { "" };
        vec![
            source.name.clone(),
            format!("{}{generated}", source.kind),
            source.address.clone(),
            state.to_owned(),
            source.since.distance(),
            relative(source.next_attempt.as_ref()),
            source.last_error.clone().unwrap_or_default(),
        ]
    };
    table(text, &header, view.sources.iter().map(row).collect(), style);
}

fn sessions(text: &mut String, view: &StatusView, style: Style) {
    if view.sessions.is_empty() {
        return;
    }
    section(text, "Sessions", style);
    let header = ["SOURCE", "PURPOSE", "STATE", "RENEWS", "ENDS", "HOLDERS", "LAST ERROR"];
    let row = |session: &crate::status::SessionView| {
        vec![
            session.source.clone(),
            session.purpose.clone(),
            session.state.clone(),
            relative(session.renews.as_ref()),
            relative(session.expires.as_ref()),
            session.holders.to_string(),
            session.last_error.clone().unwrap_or_default(),
        ]
    };
    table(text, &header, view.sessions.iter().map(row).collect(), style);
}

fn secrets(text: &mut String, view: &StatusView, style: Style) {
    if view.secrets.is_empty() {
        return;
    }
    section(text, "Secrets", style);
    let header = ["SECRET", "KIND", "STATE", "AGE", "NEXT", "UNTIL", "LEASE", "CONSUMERS"];
    table(text, &header, view.secrets.iter().map(secret).collect(), style);
}

fn secret(secret: &SecretView) -> Vec<String> {
    let next = match (&secret.next, &secret.next_at) {
        (Some(next), Some(at)) => format!("{next} {}", at.relative()),
        _ => String::new(),
    };
    let lease = secret.lease.as_ref();
    let lease = lease.map_or_else(String::new, |l| format!("{} renewed {}x", l.mac, l.renewals));
    vec![
        secret.secret.clone(),
        secret.kind.clone().unwrap_or_default(),
        secret.state.clone(),
        secret.fetched.as_ref().map(Moment::distance).unwrap_or_default(),
        next,
        relative(secret.works_until.as_ref()),
        lease,
        secret.consumers.join(" "),
    ]
}

fn volumes(text: &mut String, view: &StatusView, style: Style) {
    if view.volumes.is_empty() {
        return;
    }
    section(text, "Volumes", style);
    let header = ["VOLUME", "FILE", "SECRET", "STATE", "AGE", "UNTIL", "PROBLEM"];
    table(text, &header, view.volumes.iter().flat_map(volume).collect(), style);
    for volume in &view.volumes {
        let revision = volume.revision.as_deref().unwrap_or("nothing published yet");
        let at = relative(volume.published.as_ref());
        let _infallible =
            writeln!(text, " {}: {} ({}), {revision} {at}", volume.name, volume.path, volume.mount);
        if let Some(alarm) = &volume.alarm {
            let _infallible = writeln!(text, " {}: {}", volume.name, painted(alarm, "31", style));
        }
    }
}

fn volume(volume: &VolumeView) -> Vec<Vec<String>> {
    let row = |item: &crate::status::ItemView| {
        vec![
            volume.name.clone(),
            item.file.clone(),
            item.secret.clone(),
            item.state.clone(),
            item.fetched.as_ref().map(Moment::distance).unwrap_or_default(),
            relative(item.works_until.as_ref()),
            item.problem.as_ref().map(|problem| problem.message.clone()).unwrap_or_default(),
        ]
    };
    volume.items.iter().map(row).collect()
}

fn locked_out(text: &mut String, view: &StatusView, style: Style) {
    if view.locked_out.is_empty() {
        return;
    }
    section(text, "Locked out of the node socket (secrets-broker unlock POD)", style);
    let row = |pod: &crate::status::LockedPodView| {
        vec![
            pod.pod.clone(),
            format!("since {}", pod.since.relative()),
            format!("ends {}", pod.until.relative()),
        ]
    };
    table(text, &[], view.locked_out.iter().map(row).collect(), style);
}

fn pod_directory(text: &mut String, view: &StatusView) {
    let Some(directory) = &view.pod_directory else { return };
    let heard = directory.heard.as_ref().map_or("never".to_owned(), Moment::relative);
    let _infallible = match directory.synced {
        true => writeln!(
            text,
            "\npod directory: {} known, API server last heard of {heard}",
            count(directory.pods, "pod")
        ),
        false => writeln!(text, "\npod directory: not listed yet"),
    };
}

/// Only limits that were hit or are nearly used up; all of them are in the JSON.
fn limits(text: &mut String, view: &StatusView, style: Style) {
    let (share, whole) = LIMIT_SHOWN_FROM;
    let is_near = |limit: &&LimitView| {
        let is_near = |used: u64| used.saturating_mul(whole) >= limit.cap.saturating_mul(share);
        limit.hits > 0 || limit.used.is_some_and(is_near)
    };
    let row = |limit: &LimitView| {
        let cap = match limit.used {
            Some(used) => format!("{used} of {}", limit.cap),
            None => format!("{} each", limit.cap),
        };
        vec![limit.name.clone(), cap, format!("hit {}x", limit.hits)]
    };
    let rows: Vec<Vec<String>> = view.limits.iter().filter(is_near).map(row).collect();
    if !rows.is_empty() {
        section(text, "Limits", style);
        table(text, &[], rows, style);
    }
}

fn relative(moment: Option<&Moment>) -> String {
    moment.map(Moment::relative).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;
    use crate::telemetry::Limit;

    const PLAIN: Style = Style { color: false, width: None };

    #[test]
    fn an_outage_leads_with_the_cause_and_the_deadlines() {
        let (report, volumes, facts) = sample::outage();
        let text = render_status(&StatusView::new(&report, &volumes, &facts), PLAIN);
        let expected = "\
degraded: source vault unreachable for 4m12s: connection refused
secrets-broker 0.1.0, instance a1b2c3, up 2h30m, at 2027-01-15T08:00:00Z

What stops working when
 in 6m40s   vault:database/creds/shop   the credential ends                            volume:shop
 in 30m00s  session vault (agent)       its token ends, and the leases made with it
 in 50m00s  vault:secret/data/shop/web  sockets answer 503; files stay, marked stale   volume:shop

What works now
 2 of 2 cached secrets can be used
 files of 1 of 1 volume are in place
 secrets of vault that are not cached cannot be read

What a restart would lose
 1 leased credential: replaced on restart, as there is no journal
 2 cached values that cannot be fetched again while the source is unreachable

What happens on recovery
 source vault is tried again by itself, next in 12s
 leases that still live are renewed under the same ids; none is minted
 stale values are refreshed, files follow without a restart

What to do
 look at source vault itself (sealed? stopped? network?); do not restart the agent

Sources
";
        let squeezed = |text: &str| {
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            text.lines().map(words).collect::<Vec<_>>()
        };
        let lines = squeezed(&text);
        let wanted = squeezed(expected);
        assert_eq!(lines[..wanted.len()], wanted[..], "{text}");
    }

    #[test]
    fn a_healthy_agent_is_one_line_and_its_tables() {
        let (report, volumes, facts) = sample::healthy();
        let text = render_status(&StatusView::new(&report, &volumes, &facts), PLAIN);
        let first = text.lines().next().unwrap();
        assert_eq!(first, "healthy: 2 secrets, 1 source and 1 volume in order, up 2h30m");
        assert!(!text.contains("What"), "{text}");
        assert!(!text.contains("Limits"), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        let row = text.lines().find(|line| line.contains("vault:database/creds/shop")).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        let wanted = "vault:database/creds/shop dynamic fresh 13m20s renew in 1m40s in 6m40s \
                      3fa94c renewed 1x volume:shop";
        assert_eq!(words.join(" "), wanted);
    }

    #[test]
    fn limits_that_were_hit_or_are_nearly_used_up_have_a_line() {
        let (mut report, volumes, facts) = sample::healthy();
        report.limits = vec![
            Limit::shared("entries", 90, 100, 0),
            Limit::shared("bytes", 89, 100, 0),
            Limit::shared("broker_queue", 0, 1024, 2),
            Limit::each("connections_per_user", 128, 3),
            Limit::each("value_bytes", 1, 0),
        ];
        let text = render_status(&StatusView::new(&report, &volumes, &facts), PLAIN);
        let shown = text.lines().skip_while(|line| *line != "Limits").skip(1);
        let shown: Vec<String> = shown
            .take_while(|line| !line.is_empty())
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let expected = [
            "entries 90 of 100 hit 0x",
            "broker_queue 0 of 1024 hit 2x",
            "connections_per_user 128 each hit 3x",
        ];
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn a_directory_is_one_line() {
        let (report, volumes, facts) = sample::healthy();
        let mut view = StatusView::new(&report, &volumes, &facts);
        assert!(!render_status(&view, PLAIN).contains("pod directory"));
        let heard = Moment { at: view.taken_at.clone(), in_seconds: -40 };
        let mut directory = crate::status::PodDirectoryView {
            mode: "apiserver".to_owned(),
            synced: false,
            pods: 1,
            heard: Some(heard),
            failing_since: None,
            last_error: None,
        };
        view.pod_directory = Some(directory.clone());
        assert!(render_status(&view, PLAIN).contains("\npod directory: not listed yet\n"));
        directory.synced = true;
        view.pod_directory = Some(directory);
        let expected = "\npod directory: 1 pod known, API server last heard of 40s ago\n";
        assert!(render_status(&view, PLAIN).contains(expected));
    }

    #[test]
    fn color_and_width_are_only_used_when_asked_for() {
        let (report, volumes, facts) = sample::outage();
        let view = StatusView::new(&report, &volumes, &facts);
        let text = render_status(&view, Style { color: true, width: Some(80) });
        assert!(text.starts_with("\x1b[1;31mdegraded\x1b[0m: "), "{text}");
    }
}
