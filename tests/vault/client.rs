//! An application: it reads its credentials from the volume and logs in to PostgreSQL, again and
//! again.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rig::Rig;
use crate::support::postgres::Postgres;

const PAUSE: Duration = Duration::from_millis(100);

/// One attempt to log in.
#[derive(Debug)]
pub struct Attempt {
    pub at: Instant,
    pub user: String,
    pub outcome: Result<(), String>,
}

/// The application, in a thread of its own.
pub struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Attempt>>,
}

impl Client {
    /// Logs in every 100 ms with what `file` of the volume holds at that moment.
    pub fn start(rig: &Rig, file: &str) -> Client {
        let (path, postgres) = (rig.path(file), Arc::clone(&rig.bed.postgres));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || run(&path, &postgres, &stopped));
        Client { stop, thread }
    }

    /// Everything it tried.
    pub fn stop(self) -> Vec<Attempt> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client ran")
    }

    /// The users it logged in as, in order; panics when one attempt of at least `expected` failed.
    pub fn never_failed(self, expected: usize) -> Vec<String> {
        let attempts = self.stop();
        let failed: Vec<&Attempt> = attempts.iter().filter(|one| one.outcome.is_err()).collect();
        assert!(failed.is_empty(), "{} of {}: {failed:?}", failed.len(), attempts.len());
        assert!(attempts.len() >= expected, "only {} attempts", attempts.len());
        let mut users: Vec<String> = attempts.into_iter().map(|one| one.user).collect();
        users.dedup();
        users
    }
}

fn run(file: &Path, postgres: &Postgres, stop: &AtomicBool) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let at = Instant::now();
        let attempt = match credentials(file) {
            Ok((user, password)) => {
                let outcome = postgres.login(&user, &password);
                Attempt { at, user, outcome }
            }
            Err(error) => Attempt { at, user: String::new(), outcome: Err(error) },
        };
        attempts.push(attempt);
        thread::sleep(PAUSE.saturating_sub(at.elapsed()));
    }
    attempts
}

/// User and password from one read of one file, so that they belong together.
fn credentials(file: &Path) -> Result<(String, String), String> {
    let text = fs::read_to_string(file).map_err(|error| format!("the file: {error}"))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text:?}"))?;
    let field = |key: &str| value[key].as_str().map(str::to_owned).ok_or(format!("no {key}"));
    Ok((field("username")?, field("password")?))
}
