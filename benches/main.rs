//! Tables of ratios, each taken in one run.
//!
//! `cargo bench --bench benches` runs all benches, one after the other and each in a process of its
//! own; `cargo bench --bench benches -- NAME…` the named ones.

mod broker_step;
mod cached_read;
mod memory;
mod node_read;
mod pods;
mod start;

#[path = "support/bare.rs"]
mod bare;
#[path = "support/cgroup.rs"]
mod cgroup;
#[path = "../tests/support/cluster.rs"]
mod cluster;
#[path = "support/cores.rs"]
mod cores;
#[path = "../tests/support/csi_driver.rs"]
mod csi_driver;
#[path = "../tests/support/fake_vault.rs"]
mod fake_vault;
#[path = "support/load.rs"]
mod load;
#[path = "../tests/support/nobody_asks.rs"]
mod nobody_asks;
#[path = "support/node.rs"]
mod node;
#[path = "../tests/support/pod_cgroups.rs"]
mod pod_cgroups;
#[path = "../tests/support/pod_node.rs"]
mod pod_node;
#[path = "support/reader.rs"]
mod reader;
#[path = "support/report.rs"]
mod report;
#[path = "support/resident.rs"]
mod resident;
#[path = "../tests/support/mod.rs"]
mod support;

use std::process::Command;
use std::{env, io};

use secrets_broker::sys::WipingAllocator;

// As the agent has it.
#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator;

type Bench = fn() -> io::Result<()>;

const BENCHES: [(&str, Bench); 6] = [
    ("broker_step", broker_step::run),
    ("cached_read", cached_read::run),
    ("memory", memory::run),
    ("node_read", node_read::run),
    ("pods", pods::run),
    ("start", start::run),
];

fn main() -> io::Result<()> {
    bare::serve_if_asked()?;
    node::serve_if_asked()?;
    // Cargo says `--bench`, whatever it runs.
    let names: Vec<String> = env::args().skip(1).filter(|name| name != "--bench").collect();
    if let [name] = &names[..] {
        return named(name)?();
    }
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    if names.is_empty() {
        names.extend(BENCHES.map(|(name, _)| name));
    }
    let mut failed = Vec::new();
    for name in names {
        named(name)?;
        if !Command::new(env::current_exe()?).arg(name).status()?.success() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(io::Error::other(format!("failed: {}", failed.join(", "))))
    }
}

fn named(name: &str) -> io::Result<Bench> {
    let bench = BENCHES.into_iter().find(|(known, _)| *known == name);
    let known = || BENCHES.map(|(name, _)| name).join(", ");
    bench
        .map(|(_, bench)| bench)
        .ok_or_else(|| io::Error::other(format!("no '{name}'; there are {}", known())))
}
