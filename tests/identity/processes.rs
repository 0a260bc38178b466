//! One process connects and another one reads: pids, sockets and programs that change hands.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::net::{RecvFlags, recv};

use crate::agent::SECRET;
use crate::door::Door;
use crate::place::{ATTACKER, VICTIM};
use crate::puppet;
use crate::rig::{Accepted, CONNECTIONS, PROCESSES, Rig, Tally};
use crate::stage::Actor;
use crate::tree::Version;
use crate::weak::{VICTIMS_COMMAND, Weakness};

const USER: u32 = 4242;

/// The attacker connects, leaves the socket to a child and goes; its pid becomes the victim's.
pub(crate) fn reused_pid(rig: &Rig, door: Door) -> Tally {
    let mut tally = Tally::default();
    let mut creator = Actor::start();
    for _ in 0..PROCESSES {
        let mut attacker = rig.actor_in(&rig.place.container(ATTACKER));
        rig.connect(&mut attacker, door);
        attacker.tell("fork-and-exit");
        attacker.reap();
        creator.tell(&format!("create {}", attacker.pid()));
        rig.place.tree.put(attacker.pid(), &rig.place.container(VICTIM));
        let accepted = rig.accept(door);
        tally.count(rig.serves(&mut attacker, &accepted, door), &accepted.believed);
        creator.tell("end-created");
        attacker.tell("exit");
    }
    tally
}

/// The victim connects, is identified and goes; its pid becomes that of a process of the attacker,
/// which connects, too. An attestor that knows processes by their pids is the weak one here.
pub(crate) fn inherited_pid(rig: &Rig, door: Door) -> Tally {
    let mut tally = Tally::default();
    let mut attacker = rig.actor_in(&rig.place.container(ATTACKER));
    for _ in 0..PROCESSES {
        let mut victim = rig.actor_in(&rig.place.container(VICTIM));
        let (_, knows) = identified(rig, &mut victim, door);
        victim.tell("exit");
        victim.reap();
        attacker.tell(&format!("create {}", victim.pid()));
        rig.created_connects(&mut attacker, door);
        let accepted = rig.accept(door);
        // It is the victim's number indeed.
        let same = accepted.pid() == Some(victim.pid());
        let knows = if same && !knows.is_empty() { &["remembers the pid"][..] } else { &[] };
        tally.count(rig.serves(&mut attacker, &accepted, door), knows);
        attacker.tell("hang-up");
        attacker.tell("end-created");
    }
    tally
}

/// The victim connects and is identified; whether it is served. An attestor that asks when a
/// connection is accepted, and never again, is the weak one here.
fn identified(rig: &Rig, victim: &mut Actor, door: Door) -> (Accepted, &'static [&'static str]) {
    rig.connect(victim, door);
    let accepted = rig.accept(door);
    let at_accept = rig.serves(victim, &accepted, door);
    (accepted, if at_accept { &["asks once"] } else { &[] })
}

/// What another process gets on a socket whose connector went. It asks before the agent had a
/// chance to notice that.
fn served_to(rig: &Rig, holder: &mut Actor, accepted: &Accepted, door: Door) -> bool {
    if door == Door::Victim {
        rig.asks(holder);
        assert!(asked(accepted), "the process holds the socket");
    }
    rig.serves(holder, accepted, door)
}

/// The victim connects and is identified, and the agent looks away as `looks_away` says; then the
/// victim passes its socket to the attacker and goes. What the attacker got by `asks`, and which
/// mistakes would have given it that, is counted.
fn passed(
    rig: &Rig,
    door: Door,
    looks_away: impl Fn(&mut Actor),
    asks: impl Fn(&mut Actor, &Accepted, &'static [Weakness]) -> (bool, &'static [Weakness]),
) -> Tally {
    let mut tally = Tally::default();
    let mut attacker = rig.actor_in(&rig.place.container(ATTACKER));
    let meeting = rig.directory.path().join("meeting");
    for _ in 0..PROCESSES {
        attacker.tell(&format!("await {}", meeting.display()));
        let mut victim = rig.actor_in(&rig.place.container(VICTIM));
        let (accepted, asked_once) = identified(rig, &mut victim, door);
        looks_away(&mut victim);
        victim.tell(&format!("pass {}", meeting.display()));
        attacker.tell("take");
        victim.tell("exit");
        victim.reap();
        let (served, believed) = asks(&mut attacker, &accepted, asked_once);
        tally.count(served, believed);
        attacker.tell("hang-up");
    }
    tally
}

/// The attacker asks on a socket that the victim has passed on.
pub(crate) fn passed_socket(rig: &Rig, door: Door) -> Tally {
    passed(
        rig,
        door,
        |_| rig.looks_away(),
        |attacker, accepted, asked_once| (served_to(rig, attacker, accepted, door), asked_once),
    )
}

/// The victim asks once more before it passes its socket on and goes, and the attacker asks right
/// behind it, before the agent has read either.
pub(crate) fn behind_the_victims_last(rig: &Rig, door: Door) -> Tally {
    passed(
        rig,
        door,
        |victim| rig.looks_away_when_asked(victim),
        |attacker, _, asked_once| {
            rig.asks(attacker);
            let heard = rig.hears_out(attacker).matches(SECRET).count();
            // Unheard, the victim's own came too late to bring anything along.
            (heard > 1, if heard > 0 { asked_once } else { &[] })
        },
    )
}

/// The victim connects and is identified, and goes; its child moved to the attacker's container.
pub(crate) fn inherited_socket(rig: &Rig, door: Door) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..PROCESSES {
        let mut victim = rig.actor_in(&rig.place.container(VICTIM));
        let (accepted, asked_once) = identified(rig, &mut victim, door);
        rig.looks_away();
        let child: u32 = victim.tell("fork-and-exit").parse().unwrap();
        victim.reap();
        rig.place.tree.put(child, &rig.place.container(ATTACKER));
        tally.count(served_to(rig, &mut victim, &accepted, door), asked_once);
        victim.tell("exit");
    }
    tally
}

/// An attacker connects, then becomes a program that is called like the victim's.
pub(crate) fn exec_as_the_victim(rig: &Rig, door: Door) -> Tally {
    let program = rig.directory.path().join(VICTIMS_COMMAND);
    drop(fs::remove_file(&program));
    symlink(std::env::current_exe().unwrap(), &program).unwrap();
    let mut tally = Tally::default();
    for _ in 0..PROCESSES {
        let mut liar = rig.actor_in(&rig.place.container(ATTACKER));
        rig.connect(&mut liar, door);
        let socket = liar.tell(&format!("exec {} {}", program.display(), puppet::ARGUMENT));
        liar.tell(&format!("adopt {socket}"));
        let accepted = rig.accept(door);
        tally.count(rig.serves(&mut liar, &accepted, door), &accepted.believed);
    }
    tally
}

/// Whether something was sent on the connection.
fn asked(accepted: &Accepted) -> bool {
    let received = recv(&accepted.stream, &mut [0; 8], RecvFlags::DONTWAIT);
    received.is_ok_and(|(length, _)| length > 0)
}

/// A user connects, then becomes a program of root's, on the host and in a container.
pub(crate) fn exec_after_connect(rig: &Rig, door: Door) -> Tally {
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
        rig.connect(&mut user, door);
        user.tell(&format!("exec {} 600", program.display()));
        wait_for_exec(user.pid());
        let accepted = rig.accept(door);
        tally.count(rig.serves(&mut user, &accepted, door), &accepted.believed);
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
pub(crate) fn exited(rig: &Rig, door: Door) -> Tally {
    let mut headless = rig.actor_in(&rig.place.container(ATTACKER));
    headless.tell("leave-main-thread");
    let mut tally = rig.knock(&mut headless, door, CONNECTIONS);
    let hidden = tally.fell_for("trusts the pid");
    assert_eq!(hidden, rig.place.tree.version == Version::V1, "v2 hides no exit");
    for _ in 0..PROCESSES {
        let mut zombie = rig.actor_in(&rig.place.container(ATTACKER));
        rig.connect(&mut zombie, door);
        // Nobody waits for it, so it stays.
        zombie.tell("fork-and-exit");
        let accepted = rig.accept(door);
        tally.count(rig.serves(&mut zombie, &accepted, door), &accepted.believed);
        zombie.tell("exit");
    }
    tally
}
