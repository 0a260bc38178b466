//! Keys that have a default: a section's typed getters.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::document::Section;
use crate::config::values;

impl Section<'_> {
    pub(super) fn boolean(&self, name: &'static str, default: bool) -> bool {
        self.get(name).and_then(|field| field.boolean()).unwrap_or(default)
    }

    /// A duration that may be zero.
    pub(super) fn duration(&self, name: &'static str, default: Duration) -> Duration {
        self.get(name).and_then(|field| field.duration()).unwrap_or(default)
    }

    /// A duration above zero.
    pub(super) fn positive_duration(&self, name: &'static str, default: Duration) -> Duration {
        let Some(field) = self.get(name) else { return default };
        let duration = field.duration();
        if duration.is_some_and(|duration| duration.is_zero()) {
            field.problem("zero makes no sense here", "write a longer duration");
            return default;
        }
        duration.unwrap_or(default)
    }

    /// A number from 1 to `u32::MAX`.
    pub(super) fn count(&self, name: &'static str, default: u32) -> u32 {
        let Some(field) = self.get(name) else { return default };
        let number = field.number().and_then(|number| u32::try_from(number).ok());
        number.filter(|number| *number > 0).unwrap_or_else(|| {
            let message = format!("{} is not a number from 1 to {}", field.quoted(), u32::MAX);
            field.problem(message, format!("write a number, for example {default}"));
            default
        })
    }

    /// A number of bytes, at least 1.
    pub(super) fn size(&self, name: &'static str, default: u64) -> u64 {
        let Some(field) = self.get(name) else { return default };
        let size = field.size();
        if size == Some(0) {
            field.problem("zero makes no sense here", "write a larger size");
            return default;
        }
        size.unwrap_or(default)
    }

    pub(super) fn mode(&self, name: &'static str, default: u32, allowed: u32) -> u32 {
        let remedy = format!("write for example \"{default:04o}\"");
        self.get(name).and_then(|field| field.mode(allowed, &remedy)).unwrap_or(default)
    }

    pub(super) fn path(&self, name: &'static str, default: &str) -> PathBuf {
        self.get(name)
            .and_then(|field| field.absolute_path())
            .unwrap_or_else(|| values::absolute_path(default).expect("defaults are normalised"))
    }

    pub(super) fn choice<T: Copy>(
        &self,
        name: &'static str,
        default: T,
        choices: &[(&str, T)],
    ) -> T {
        self.get(name).and_then(|field| field.choice(choices)).unwrap_or(default)
    }
}
