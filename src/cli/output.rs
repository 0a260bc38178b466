//! Standard output: whole texts, colour and width of a terminal, and a reader that went away.

use std::io::{self, IsTerminal, Write};

use crate::status::Style;

/// Writes a whole text and flushes it.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Whether an error only means that nobody reads any more, as after `| head`.
pub(super) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Colour on a terminal unless `NO_COLOR` or a dumb terminal says otherwise; width of a terminal.
pub(super) fn style() -> Style {
    if !is_terminal() {
        return Style { color: false, width: None };
    }
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    Style { color: !dumb && !is_set("NO_COLOR"), width: size().map(|(width, _)| width) }
}

/// The terminal's columns and rows.
pub(super) fn size() -> Option<(u16, u16)> {
    let (width, height) = terminal_size::terminal_size()?;
    Some((width.0, height.0))
}
