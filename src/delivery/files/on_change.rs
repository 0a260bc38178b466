//! Tells an application that its files changed: reload a unit, signal a process, or run a program.
//!
//! A failure is an alarm until a later change succeeds; it is never retried by itself.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::Command;

/// How long a reload or program may take.
const LIMIT: Duration = Duration::from_secs(30);
/// A pid file holds one number and a line end.
const PID_FILE_BYTES_MAX: usize = 16;

/// Whom to tell, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnChange {
    /// `systemctl reload UNIT`.
    SystemdReload(UnitName),
    /// A signal to the process a pid file names.
    Signal {
        /// Which.
        signal: ReloadSignal,
        /// Where the pid is read, each time anew.
        pid_file: PathBuf,
    },
    /// A program, without a shell.
    Command(Argv),
}

/// Why somebody could not be told.
#[derive(Debug, thiserror::Error)]
pub enum OnChangeError {
    /// The program could not be started.
    #[error("cannot start '{0}'")]
    Start(String, #[source] io::Error),
    /// It ran and failed.
    #[error("'{0}' failed ({1})")]
    Failed(String, ExitStatus),
    /// It ran too long and was killed.
    #[error("'{0}' did not end within 30 s and was killed")]
    TimedOut(String),
    /// The pid file is missing or unreadable.
    #[error("cannot read pid file '{0}'")]
    PidFile(PathBuf, #[source] io::Error),
    /// It holds something else than one process id.
    #[error("pid file '{0}' must hold one process id above 1 and nothing else")]
    NotAPid(PathBuf),
    /// A user could have a signal sent to somebody else's process.
    #[error("pid file '{0}' belongs to neither root nor the process's own user")]
    PidFileOwner(PathBuf),
    /// No such process, or no right to signal it.
    #[error("cannot signal process {0}")]
    Process(i32, #[source] io::Error),
}

/// Why an `on_change` setting was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OnChangeRefused {
    /// Not the name of a unit.
    #[error("a unit is named like 'shop.service': letters, digits, ':-_.\\@' and a unit suffix")]
    Unit,
    /// Not a signal programs reload on.
    #[error("signal is one of HUP, USR1, USR2, WINCH, INT, QUIT, TERM")]
    Signal,
    /// Not a program with arguments.
    #[error("command is a list whose first element is the absolute path of a program")]
    Command,
}

/// A systemd unit's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitName(String);

impl FromStr for UnitName {
    type Err = OnChangeRefused;

    fn from_str(name: &str) -> Result<Self, OnChangeRefused> {
        const SUFFIXES: [&str; 6] = ["service", "socket", "target", "scope", "timer", "path"];
        let (stem, suffix) = name.rsplit_once('.').ok_or(OnChangeRefused::Unit)?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        let fits = !stem.is_empty() && name.len() <= 255 && name.chars().all(allowed);
        // A leading hyphen would be read as an option.
        if fits && !name.starts_with('-') && SUFFIXES.contains(&suffix) {
            return Ok(Self(name.to_owned()));
        }
        Err(OnChangeRefused::Unit)
    }
}

/// A signal that programs reload or end on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReloadSignal(Signal);

impl FromStr for ReloadSignal {
    type Err = OnChangeRefused;

    fn from_str(name: &str) -> Result<Self, OnChangeRefused> {
        Ok(Self(match name.strip_prefix("SIG").unwrap_or(name) {
            "HUP" => Signal::HUP,
            "USR1" => Signal::USR1,
            "USR2" => Signal::USR2,
            "WINCH" => Signal::WINCH,
            "INT" => Signal::INT,
            "QUIT" => Signal::QUIT,
            "TERM" => Signal::TERM,
            _ => return Err(OnChangeRefused::Signal),
        }))
    }
}

/// A program by absolute path, and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argv {
    program: String,
    arguments: Vec<String>,
}

impl TryFrom<Vec<String>> for Argv {
    type Error = OnChangeRefused;

    fn try_from(argv: Vec<String>) -> Result<Self, OnChangeRefused> {
        let mut words = argv.into_iter();
        match words.next() {
            Some(program) if Path::new(&program).is_absolute() => {
                Ok(Self { program, arguments: words.collect() })
            }
            _ => Err(OnChangeRefused::Command),
        }
    }
}

impl OnChange {
    /// Tells once, within 30 s. Dropping the future leaves a started program running.
    pub async fn tell(&self) -> Result<(), OnChangeError> {
        match self {
            Self::SystemdReload(unit) => {
                run("systemctl", &["reload".to_owned(), "--".to_owned(), unit.0.clone()]).await
            }
            Self::Signal { signal, pid_file } => send(*signal, pid_file),
            Self::Command(argv) => run(&argv.program, &argv.arguments).await,
        }
    }
}

async fn run(program: &str, arguments: &[String]) -> Result<(), OnChangeError> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    // Our environment may hold a key; what a program needs to find others is PATH.
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    let started = command.spawn();
    let mut child = started.map_err(|error| OnChangeError::Start(program.to_owned(), error))?;
    match tokio::time::timeout(LIMIT, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(OnChangeError::Failed(program.to_owned(), status)),
        Ok(Err(error)) => Err(OnChangeError::Start(program.to_owned(), error)),
        Err(_) => {
            // It may have ended in between, which is as good.
            let _ = child.kill().await;
            Err(OnChangeError::TimedOut(program.to_owned()))
        }
    }
}

fn send(signal: ReloadSignal, pid_file: &Path) -> Result<(), OnChangeError> {
    use std::os::unix::fs::MetadataExt;

    let unreadable = |error| OnChangeError::PidFile(pid_file.to_owned(), error);
    let text = std::fs::read(pid_file).map_err(unreadable)?;
    let file_owner = std::fs::metadata(pid_file).map_err(unreadable)?.uid();
    let number = parse_pid(&text).ok_or_else(|| OnChangeError::NotAPid(pid_file.to_owned()))?;
    let raw = number.as_raw_nonzero().get();
    let failed = |error: io::Error| OnChangeError::Process(raw, error);
    // From here on the descriptor means one process, whatever becomes of its number.
    let process = pidfd_open(number, PidfdFlags::empty()).map_err(|errno| failed(errno.into()))?;
    let process_owner = std::fs::metadata(format!("/proc/{raw}")).map_err(failed)?.uid();
    if file_owner != 0 && file_owner != process_owner {
        return Err(OnChangeError::PidFileOwner(pid_file.to_owned()));
    }
    pidfd_send_signal(&process, signal.0).map_err(|errno| failed(errno.into()))
}

/// One decimal number above 1, one optional line end, nothing else.
fn parse_pid(text: &[u8]) -> Option<Pid> {
    let digits = text.strip_suffix(b"\n").unwrap_or(text);
    if digits.len() > PID_FILE_BYTES_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: i32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Pid::from_raw(number).filter(|_| number > 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_pid_file_holds_one_pid_above_one() {
        assert_eq!(parse_pid(b"1234\n").map(|pid| pid.as_raw_nonzero().get()), Some(1234));
        for bad in
            ["", "\n", "0", "1", "-5", "+5", " 5", "5 ", "5\n\n", "5\n6", "0x5", "99999999999"]
        {
            assert_eq!(parse_pid(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn settings_that_could_mean_something_else_are_refused() {
        assert!("shop.service".parse::<UnitName>().is_ok());
        for bad in ["", "shop", ".service", "-x.service", "a b.service", "a;b.service", "x.conf"] {
            assert_eq!(bad.parse::<UnitName>(), Err(OnChangeRefused::Unit), "{bad:?}");
        }
        assert_eq!("SIGHUP".parse::<ReloadSignal>(), "HUP".parse::<ReloadSignal>());
        assert_eq!("KILL".parse::<ReloadSignal>(), Err(OnChangeRefused::Signal));
        assert_eq!(Argv::try_from(vec!["sh".to_owned()]), Err(OnChangeRefused::Command));
        assert_eq!(Argv::try_from(vec![]), Err(OnChangeRefused::Command));
    }

    #[tokio::test]
    async fn a_signal_reaches_the_process_its_pid_file_names() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let pid_file = dir.path().join("x.pid");
        std::fs::write(&pid_file, format!("{}\n", child.id().unwrap())).unwrap();
        let tell = OnChange::Signal { signal: "TERM".parse().unwrap(), pid_file };
        tell.tell().await.unwrap();
        assert_eq!(child.wait().await.unwrap().signal(), Some(15));
        // The number is free now.
        assert!(matches!(tell.tell().await, Err(OnChangeError::Process(..))));
    }

    #[tokio::test]
    async fn a_program_gets_its_arguments_unchanged_and_its_failure_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a b; $(touch x)");
        let touch = |target: &Path| {
            let words =
                vec!["/usr/bin/env".to_owned(), "touch".to_owned(), target.display().to_string()];
            OnChange::Command(Argv::try_from(words).unwrap())
        };
        touch(&target).tell().await.unwrap();
        assert!(target.exists());
        let failed = touch(&dir.path().join("no/such/dir")).tell().await;
        assert!(matches!(failed, Err(OnChangeError::Failed(..))), "{failed:?}");
    }
}
