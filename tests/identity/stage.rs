//! The test's side of a puppet: starts one, tells it what to do, ends it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::puppet;

/// A process that does as it is told. It ends with its input.
pub(crate) struct Actor {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Actor {
    pub(crate) fn start() -> Self {
        Self::start_as("puppet")
    }

    /// With another name for its own program.
    pub(crate) fn start_as(program: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg0(program)
            .arg(puppet::ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do something, and waits until it is done; what it answers.
    pub(crate) fn tell(&mut self, line: &str) -> String {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        let answer = answer.trim_end();
        answer.strip_prefix("ok").unwrap_or_else(|| panic!("{line}: {answer:?}")).trim().to_owned()
    }

    /// Waits for the process that was started, and frees its pid; forks of it live on.
    pub(crate) fn reap(&mut self) {
        self.child.wait().unwrap();
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Forks read the end of their input; the child may be one that no longer reads.
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
