//! The checks of one client: counted, and shown as they come.

use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};

pub(crate) struct Report {
    client: &'static str,
    passed: u32,
    pub(crate) failed: u32,
}

impl Report {
    pub(crate) fn new(client: &'static str) -> Report {
        Report { client, passed: 0, failed: 0 }
    }

    /// Runs one check; a panic fails it.
    pub(crate) fn check(&mut self, name: &str, check: impl FnOnce()) {
        let outcome = catch_unwind(AssertUnwindSafe(check));
        self.line(&format!("{} {name}", if outcome.is_ok() { "ok" } else { "FAILED" }));
    }

    /// Runs a program whose output are lines of checks. Ending badly or without a check is a
    /// failure of its own.
    pub(crate) fn follow(&mut self, mut command: Command) {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("start the client");
        let before = (self.passed, self.failed);
        let output = child.stdout.take().expect("the client's output is piped");
        for line in BufReader::new(output).lines() {
            self.line(&line.expect("the client writes UTF-8"));
        }
        let status = child.wait().expect("wait for the client");
        let told = (self.passed, self.failed);
        if told == before || (!status.success() && told.1 == before.1) {
            self.line(&format!("FAILED the client ended with {status}"));
        }
    }

    fn line(&mut self, line: &str) {
        if line.starts_with("ok ") {
            self.passed += 1;
        } else if line.starts_with("FAILED ") {
            self.failed += 1;
        }
        println!("{:<10} {line}", self.client);
    }
}
