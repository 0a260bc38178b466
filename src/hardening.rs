//! Keeps the process's memory and files to itself: no core dump, no swap, no new privileges.

use std::fmt;

use rustix::mm::MlockAllFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::CapabilitySet;

use crate::sys;

/// What was done at start, step by step, for status and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardened {
    /// In the order they were taken.
    pub steps: Vec<HardeningStep>,
}

/// One step and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HardeningStep {
    /// What it is about: `core dumps`, `memory lock`.
    pub name: &'static str,
    /// How it went.
    pub outcome: Outcome,
}

/// How a step went. Nothing here stops the agent; operators see what is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// In force.
    Done(&'static str),
    /// Left out on purpose; the text says why and what it would take.
    Skipped(String),
    /// The kernel refused.
    Failed(String),
}

impl Hardened {
    /// The steps that failed: what an operator should look at.
    pub fn failures(&self) -> impl Iterator<Item = &HardeningStep> {
        self.steps.iter().filter(|step| matches!(step.outcome, Outcome::Failed(_)))
    }
}

impl fmt::Display for HardeningStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        match &self.outcome {
            Outcome::Done(what) => f.write_str(what),
            Outcome::Skipped(why) => write!(f, "not done: {why}"),
            Outcome::Failed(error) => write!(f, "FAILED: {error}"),
        }
    }
}

/// Takes every step; none stops the others.
///
/// To be called first thing in `main`, before any thread exists (`no_new_privs` concerns the
/// calling thread and what it starts) and before the first secret is read.
pub fn harden() -> Hardened {
    let core_limit = Rlimit { current: Some(0), maximum: Some(0) };
    let owner_only = rustix::fs::Mode::from_raw_mode(0o077);
    let steps = vec![
        step(
            "tracing",
            rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable),
            "not dumpable: other users can neither trace this process nor read its memory",
        ),
        step(
            "core dumps",
            rustix::process::setrlimit(Resource::Core, core_limit),
            "off (RLIMIT_CORE 0)",
        ),
        step(
            "privileges",
            rustix::thread::set_no_new_privs(true),
            "no new ones (no_new_privs); on_change commands cannot gain any either",
        ),
        step("descriptors", raise_descriptors(), "as many as the hard limit allows"),
        HardeningStep { name: "memory lock", outcome: lock_memory() },
        step("SIGIO", sys::ignore_sigio(), "ignored; a broken file lease would kill us otherwise"),
        HardeningStep {
            name: "umask",
            outcome: {
                rustix::process::umask(owner_only);
                Outcome::Done("077: new files are for their owner only")
            },
        },
    ];
    Hardened { steps }
}

/// A connection takes three descriptors, and the usual soft limit is for programs that use
/// `select`.
fn raise_descriptors() -> rustix::io::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(Resource::Nofile, raised)
}

fn step(
    name: &'static str,
    result: Result<(), impl fmt::Display>,
    done: &'static str,
) -> HardeningStep {
    let outcome = match result {
        Ok(()) => Outcome::Done(done),
        Err(error) => Outcome::Failed(error.to_string()),
    };
    HardeningStep { name, outcome }
}

/// What decides whether all memory may be locked.
#[derive(Debug, Clone, Copy)]
struct MemoryLimits {
    ipc_lock: bool,
    /// `RLIMIT_MEMLOCK`; `None` is unlimited.
    memlock: Option<u64>,
    swap: bool,
}

impl MemoryLimits {
    fn read() -> Self {
        let ipc_lock = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
        // One line is the heading. Unreadable counts as "there may be swap".
        let swap = std::fs::read_to_string("/proc/swaps").map_or(true, |s| s.lines().count() > 1);
        Self { ipc_lock, memlock: rustix::process::getrlimit(Resource::Memlock).current, swap }
    }

    /// Locking under a limit would make later allocations fail, and those abort the process.
    fn refusal(self) -> Option<String> {
        let memlock = self.memlock.filter(|_| !self.ipc_lock)?;
        let consequence = if self.swap {
            "secrets may reach this node's swap"
        } else {
            "this node has no swap, so nothing reaches a disk"
        };
        Some(format!(
            "RLIMIT_MEMLOCK is {} KiB and CAP_IPC_LOCK is missing; {consequence}; \
             grant the capability or set LimitMEMLOCK=infinity",
            memlock / 1024
        ))
    }
}

fn lock_memory() -> Outcome {
    if let Some(refusal) = MemoryLimits::read().refusal() {
        return Outcome::Skipped(refusal);
    }
    // ONFAULT: lock pages as they are used instead of populating every thread's whole stack.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    match rustix::mm::mlockall(flags) {
        Ok(()) => Outcome::Done("all pages, present and future; none reaches swap"),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn memory_is_locked_only_where_no_limit_can_fail_a_later_allocation() {
        let limits = |ipc_lock, memlock, swap| MemoryLimits { ipc_lock, memlock, swap };
        assert_eq!(limits(true, Some(8 << 20), true).refusal(), None);
        assert_eq!(limits(false, None, true).refusal(), None);
        let refusal = limits(false, Some(8 << 20), true).refusal().unwrap();
        assert!(refusal.contains("8192 KiB") && refusal.contains("may reach"), "{refusal}");
        let refusal = limits(false, Some(0), false).refusal().unwrap();
        assert!(refusal.contains("has no swap"), "{refusal}");
    }

    #[test]
    fn a_failed_step_is_listed_with_its_reason() {
        let failed = step("core dumps", Err("operation not permitted"), "off");
        assert_eq!(failed.to_string(), "core dumps: FAILED: operation not permitted");
        let report = Hardened { steps: vec![step("umask", Ok::<(), String>(()), "077"), failed] };
        assert_eq!(report.failures().map(|step| step.name).collect::<Vec<_>>(), ["core dumps"]);
    }

    /// The steps change the whole process, so a second one takes them and looks at itself.
    #[test]
    fn the_kernel_shows_every_step_in_force() {
        const CHILD: &str = "HARDENING_TEST_CHILD";
        if std::env::var_os(CHILD).is_none() {
            let name = "hardening::tests::the_kernel_shows_every_step_in_force";
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--test-threads=1"])
                .env(CHILD, "1")
                .output()
                .unwrap();
            let output = String::from_utf8_lossy(&child.stdout);
            assert!(child.status.success() && output.contains("1 passed"), "{output}");
            return;
        }
        let report = harden();
        assert_eq!(report.failures().count(), 0, "{report:?}");
        assert_eq!(report.steps.len(), 7);
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("NoNewPrivs:\t1") && status.contains("Umask:\t0077"), "{status}");
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        let ignored = u64::from_str_radix(ignored, 16).unwrap();
        assert_ne!(ignored & (1 << (libc::SIGIO - 1)), 0, "SIGIO is ignored");
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let files: Vec<&str> = files.split_whitespace().collect();
        assert_eq!(files[3], files[4], "soft and hard limit");
        let dumpable = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(dumpable, DumpableBehavior::NotDumpable);
        let locked = matches!(report.steps[4].outcome, Outcome::Done(_));
        let kib = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        assert_eq!(!kib.trim().starts_with("0 "), locked, "{kib}");
    }
}
