//! `on_change`: reload a systemd unit, send a signal or run a program when a volume changed.

use crate::config::document::Section;
use crate::config::field::Field;
use crate::config::settings::OnChange;

/// Signals that programs take as "look again".
const SIGNALS: [(&str, &str); 7] = [
    ("HUP", "HUP"),
    ("USR1", "USR1"),
    ("USR2", "USR2"),
    ("WINCH", "WINCH"),
    ("INT", "INT"),
    ("QUIT", "QUIT"),
    ("TERM", "TERM"),
];
/// Kinds of systemd units.
const UNIT_KINDS: [&str; 6] = [".service", ".socket", ".target", ".scope", ".timer", ".path"];

pub(super) fn read(field: &Field) -> Option<OnChange> {
    let section = field.section();
    if !section.is_present() {
        return None;
    }
    let unit = section.get("systemd_reload").map(|field| unit(&field));
    let signal = section.get("signal").map(|field| signal(&field, &section));
    let command = section.get("command").map(|field| command(&field));
    if signal.is_none() && section.has("pid_file") {
        section.problem_at("pid_file", "there is no signal to send", "add signal = \"HUP\"");
    }
    section.finish();
    let mut given: Vec<Option<OnChange>> = [unit, signal, command].into_iter().flatten().collect();
    if given.len() != 1 {
        section.problem(
            format!("{} of systemd_reload, signal and command are given", given.len()),
            "give exactly one of them",
        );
        return None;
    }
    given.pop().flatten()
}

fn unit(field: &Field) -> Option<OnChange> {
    let unit = |text: &str| {
        let known = UNIT_KINDS.iter().any(|kind| text.len() > kind.len() && text.ends_with(kind));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@:\\".contains(c);
        match known && !text.starts_with('-') && text.chars().all(plain) {
            true => Ok(OnChange::SystemdReload(text.to_owned())),
            false => Err("is not a unit's full name"),
        }
    };
    field.convert(unit, "write it with its suffix, for example \"shop.service\"")
}

fn signal(field: &Field, section: &Section) -> Option<OnChange> {
    let pid_file = section.require("pid_file", "name the file that holds the process id");
    let signal = field.choice(&SIGNALS);
    let pid_file = pid_file?.absolute_path()?;
    Some(OnChange::Signal { signal: signal?.to_owned(), pid_file })
}

fn command(field: &Field) -> Option<OnChange> {
    let elements = field.elements();
    let Some(program) = elements.first() else {
        field.problem("names no program", "write command = [\"/usr/bin/…\", \"argument\"]");
        return None;
    };
    program.absolute_path()?;
    elements.iter().map(Field::text).collect::<Option<_>>().map(OnChange::Command)
}
