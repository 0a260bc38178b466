//! `on_change`: reload a systemd unit, send a signal or run a program when a volume changed.

use crate::config::document::Section;
use crate::config::field::Field;
use crate::delivery::files::{Argv, OnChange, ReloadSignal, UnitName};

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
    let parse = |text: &str| text.parse::<UnitName>().map_err(|_| "is not a unit's full name");
    let unit = field.convert(parse, "write it with its suffix, for example \"shop.service\"")?;
    Some(OnChange::SystemdReload(unit))
}

fn signal(field: &Field, section: &Section) -> Option<OnChange> {
    let pid_file = section.require("pid_file", "name the file that holds the process id");
    let parse = |text: &str| text.parse::<ReloadSignal>().map_err(|_| "is not a reload signal");
    let signal = field.convert(parse, "write one of HUP, USR1, USR2, WINCH, INT, QUIT, TERM");
    Some(OnChange::Signal { signal: signal?, pid_file: pid_file?.absolute_path()? })
}

fn command(field: &Field) -> Option<OnChange> {
    let elements = field.elements();
    if let Some(program) = elements.first() {
        program.absolute_path()?;
    }
    let words = elements.iter().map(Field::text).collect::<Option<Vec<String>>>()?;
    match Argv::try_from(words) {
        Ok(argv) => Some(OnChange::Command(argv)),
        Err(refused) => {
            field.problem(
                refused.to_string(),
                "write command = [\"/usr/bin/program\", \"argument\"]",
            );
            None
        }
    }
}
