//! One process connects and another one reads: pids, sockets and programs that change hands.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::net::{RecvFlags, recv};

use crate::place::{ATTACKER, VICTIM};
use crate::rig::{Accepted, CONNECTIONS, Door, PROCESSES, Rig, Tally};
use crate::stage::Actor;
use crate::tree::Version;

const USER: u32 = 4242;

fn connect(rig: &Rig, actor: &mut Actor) {
    actor.tell(&format!("connect {}", rig.socket().display()));
}

/// The attacker connects, leaves the socket to a child and goes; its pid becomes the victim's.
pub(crate) fn reused_pid(rig: &Rig) -> Tally {
    let mut tally = Tally::default();
    let mut creator = Actor::start();
    for _ in 0..PROCESSES {
        let mut attacker = rig.actor_in(&rig.place.container(ATTACKER));
        connect(rig, &mut attacker);
        attacker.tell("fork-and-exit");
        attacker.reap();
        creator.tell(&format!("create {}", attacker.pid()));
        rig.place.tree.put(attacker.pid(), &rig.place.container(VICTIM));
        let accepted = rig.accept(Door::Victim);
        tally.count(rig.serves(&accepted, Door::Victim), &accepted.believed);
        creator.tell("end-created");
        attacker.tell("exit");
    }
    tally
}

/// An attestor that asks when a connection is accepted, and never again, is the weak one here.
fn count_later(rig: &Rig, tally: &mut Tally, at_accept: bool, accepted: &Accepted) {
    let asked_once: &[&str] = if at_accept { &["asks once"] } else { &[] };
    tally.count(rig.serves(accepted, Door::Victim), asked_once);
}

/// The victim connects and is identified, passes its socket to the attacker and goes.
pub(crate) fn passed_socket(rig: &Rig) -> Tally {
    let mut tally = Tally::default();
    let mut attacker = rig.actor_in(&rig.place.container(ATTACKER));
    let meeting = rig.directory.path().join("meeting");
    for _ in 0..PROCESSES {
        attacker.tell(&format!("await {}", meeting.display()));
        let mut victim = rig.actor_in(&rig.place.container(VICTIM));
        connect(rig, &mut victim);
        let accepted = rig.accept(Door::Victim);
        let at_accept = rig.serves(&accepted, Door::Victim);
        victim.tell(&format!("pass {}", meeting.display()));
        attacker.tell("take");
        victim.tell("exit");
        victim.reap();
        attacker.tell("ask");
        assert!(asked(&accepted), "the attacker holds the socket");
        count_later(rig, &mut tally, at_accept, &accepted);
        attacker.tell("hang-up");
    }
    tally
}

/// The victim connects and is identified, and goes; its child moved to the attacker's container.
pub(crate) fn inherited_socket(rig: &Rig) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..PROCESSES {
        let mut victim = rig.actor_in(&rig.place.container(VICTIM));
        connect(rig, &mut victim);
        let accepted = rig.accept(Door::Victim);
        let at_accept = rig.serves(&accepted, Door::Victim);
        let child: u32 = victim.tell("fork-and-exit").parse().unwrap();
        victim.reap();
        rig.place.tree.put(child, &rig.place.container(ATTACKER));
        victim.tell("ask");
        assert!(asked(&accepted), "the child holds the socket");
        count_later(rig, &mut tally, at_accept, &accepted);
        victim.tell("exit");
    }
    tally
}

/// Whether something was sent on the connection.
fn asked(accepted: &Accepted) -> bool {
    let received = recv(&accepted.stream, &mut [0; 8], RecvFlags::DONTWAIT);
    received.is_ok_and(|(length, _)| length > 0)
}

/// A user connects, then becomes a program of root's, on the host and in a container.
pub(crate) fn exec_after_connect(rig: &Rig) -> Tally {
    let program = rig.directory.path().join("setuid");
    fs::copy("/bin/sleep", &program).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
    let mut tally = Tally::default();
    for attempt in 0..PROCESSES {
        let mut user = Actor::start();
        if attempt % 2 == 0 {
            rig.place.tree.put(user.pid(), &rig.place.container(ATTACKER));
        }
        user.tell(&format!("become {USER} {USER}"));
        connect(rig, &mut user);
        user.tell(&format!("exec {} 600", program.display()));
        wait_for_exec(user.pid());
        let accepted = rig.accept(Door::Operator);
        tally.count(rig.serves(&accepted, Door::Operator), &accepted.believed);
    }
    tally
}

fn wait_for_exec(pid: u32) {
    let runs = || fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "setuid\n");
    for _ in 0..10_000 {
        if runs() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("{pid} did not execute the program");
}

/// In v1 the kernel shows `/` for a thread that exited: a root container looks like the host.
pub(crate) fn exited(rig: &Rig) -> Tally {
    let mut headless = rig.actor_in(&rig.place.container(ATTACKER));
    headless.tell("leave-main-thread");
    let mut tally = rig.knock(&mut headless, Door::Operator, CONNECTIONS);
    let hidden = tally.fell_for("trusts the pid");
    assert_eq!(hidden, rig.place.tree.version == Version::V1, "v2 hides no exit");
    for _ in 0..PROCESSES {
        let mut zombie = rig.actor_in(&rig.place.container(ATTACKER));
        connect(rig, &mut zombie);
        // Nobody waits for it, so it stays.
        zombie.tell("fork-and-exit");
        let accepted = rig.accept(Door::Operator);
        tally.count(rig.serves(&accepted, Door::Operator), &accepted.believed);
        zombie.tell("exit");
    }
    tally
}
