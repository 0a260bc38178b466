//! The forgery suite: real processes in real cgroup trees lie about who they are.
//!
//! Each class of lies is tried in a v1 and a v2 hierarchy and under both of the kubelet's drivers,
//! on real sockets, at every door where it could pay ([`door`]): against the product's placement,
//! against its own server on a pod's socket and on the node's ([`agent`]), and against the CSI
//! driver of an agent that is a process of its own ([`driver`]). An attempt counts as lost when the
//! liar is taken for the victim, or for an operator, or gets the victim's secret. Each class also
//! meets attestors that make the usual mistakes ([`weak`], [`weak_tokens`]); one of them must fall
//! for it, or the class proves nothing. Of forged tokens and calls each one has a mistake that must
//! fall for it.
//!
//! Takes root. What is made lies below one name in each hierarchy and is removed again, also after
//! a panic.

mod agent;
#[path = "../support/agent.rs"]
mod agent_process;
mod api_server;
mod calls;
#[path = "../support/cluster.rs"]
mod cluster;
#[path = "../support/csi_driver.rs"]
mod csi_driver;
mod door;
mod driver;
mod forged;
mod genuine;
mod lies;
#[path = "../support/nobody_asks.rs"]
mod nobody_asks;
mod place;
#[path = "../support/pod_cgroups.rs"]
mod pod_cgroups;
#[path = "../support/process.rs"]
mod process;
mod processes;
mod puppet;
mod rig;
mod stage;
mod tokens;
mod tree;
mod weak;
mod weak_tokens;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use door::{AGENTS, ALL, DRIVERS, Door, HOST, NODES, OPERATORS, PODS, PODS_AND_OPERATORS};
use rig::{Rig, Tally};

/// The least number of forgeries a run makes.
const ATTEMPTS_MIN: usize = 10_000;

/// What a class of lies is, the doors where it could pay, and how it is told.
type Class = (&'static str, &'static [Door], fn(&Rig, Door) -> Tally);

const CLASSES: [Class; 22] = [
    ("victim's names below the attacker's own container", PODS, forged::below_a_container),
    ("victim's names in a cgroup that a user was given", PODS, forged::in_a_delegated_cgroup),
    ("victim's names beside the kubelet's root", PODS, forged::beside_the_root),
    ("a docker engine beside all pods", PODS, forged::sibling_engine),
    ("uids and slices that are nearly the victim's", PODS, forged::nearly_the_victim),
    ("in the victim's pod, but no container of it", PODS, forged::no_container_of_the_victim),
    ("hierarchies that disagree", PODS, forged::disagreeing_hierarchies),
    ("the victim's cgroup bound over a mount of the attacker", PODS, lies::mountinfo),
    ("uids, gids and groups of others", PODS_AND_OPERATORS, lies::credentials),
    ("commands and arguments of others", ALL, lies::commands),
    ("the victim's token in another pod's hands", NODES, lies::stolen_token),
    (
        "tokens of other pods, nodes, audiences, issuers, algorithms and clocks",
        NODES,
        tokens::shown_in_the_victims_place,
    ),
    ("forged publish calls", DRIVERS, calls::forged),
    ("root in a container", HOST, lies::root),
    ("the pid of a gone attacker, given to the victim", PODS, processes::reused_pid),
    ("the pid of a gone victim, given to an attacker", PODS, processes::inherited_pid),
    ("a socket that the victim passed on before it went", PODS, processes::passed_socket),
    ("behind the victim's last request", AGENTS, processes::behind_the_victims_last),
    ("a socket inherited from a victim that went", PODS, processes::inherited_socket),
    ("exec of the victim's program after connecting", PODS, processes::exec_as_the_victim),
    (
        "exec of a program with more rights after connecting",
        OPERATORS,
        processes::exec_after_connect,
    ),
    ("a main thread that is gone, or a whole process", OPERATORS, processes::exited),
];

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(puppet::ARGUMENT) {
        puppet::obey();
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("tests/identity: needs root: it makes cgroups and processes of other users");
        println!("0 passed, 1 failed");
        return ExitCode::FAILURE;
    }
    // Puppets inherit no terminal and are ended with their input, whatever ends this process.
    let trees = tree::Trees::make();
    let rigs = Rig::all(&trees);
    let (mut passed, mut failed, mut attempts) = (0, 0, 0);
    let mut judge = |good: bool| if good { passed += 1 } else { failed += 1 };
    for (name, control) in genuine::CONTROLS {
        let good = catch_unwind(AssertUnwindSafe(|| rigs.iter().all(control))).unwrap_or(false);
        println!("{}: {name}", if good { "ok" } else { "FAILED" });
        judge(good);
    }
    for (name, doors, class) in CLASSES {
        for door in doors {
            let told = rigs.iter().map(|rig| class(rig, *door));
            let all = || told.fold(Tally::default(), Tally::and);
            let tally = catch_unwind(AssertUnwindSafe(all)).unwrap_or_default();
            let good = tally.is_good();
            println!("{}: {name}, at {door}: {tally}", if good { "ok" } else { "FAILED" });
            attempts += tally.attempts;
            judge(good);
        }
    }
    println!("{attempts} attempts, at least {ATTEMPTS_MIN} are wanted");
    judge(attempts >= ATTEMPTS_MIN);
    drop(rigs);
    judge(trees.remove());
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
