//! Controls: who is genuine is attested, or that nobody else is would prove nothing.

use std::fs;

use secrets_broker::domain::PodUid;
use secrets_broker::identity::cgroup::{Placement, placement};
use secrets_broker::identity::kubelet_cgroup::KubeletCgroup;

use crate::place::{ATTACKER, VICTIM};
use crate::rig::{Door, Rig};
use crate::stage::Actor;

/// A claim, and what shows it in one place.
type Control = (&'static str, fn(&Rig) -> bool);

pub(crate) const CONTROLS: [Control; 4] = [
    ("a process of the victim is attested as the victim", victim),
    ("another pod's is not", attacker),
    ("root of the host is an operator and may be the kubelet", host),
    ("the kubelet's root is learned from the agent's own cgroup file", learned),
];

fn victim(rig: &Rig) -> bool {
    served(rig, &mut rig.actor_in(&rig.place.container(VICTIM)), Door::Victim)
}

fn attacker(rig: &Rig) -> bool {
    !served(rig, &mut rig.actor_in(&rig.place.container(ATTACKER)), Door::Victim)
}

fn host(rig: &Rig) -> bool {
    let mut host = Actor::start();
    served(rig, &mut host, Door::Operator)
        && served(rig, &mut host, Door::Kubelet)
        && !served(rig, &mut host, Door::Victim)
}

fn served(rig: &Rig, actor: &mut Actor, door: Door) -> bool {
    actor.tell(&format!("connect {}", rig.socket().display()));
    let accepted = rig.accept(door);
    let served = rig.serves(&accepted, door);
    actor.tell("hang-up");
    served
}

/// The agent's pod and the victim's lie beside each other, so one tells where the other is.
fn learned(rig: &Rig) -> bool {
    let text = |uid: &str| {
        let actor = rig.actor_in(&rig.place.container(uid));
        fs::read_to_string(format!("/proc/{}/cgroup", actor.pid())).unwrap()
    };
    let own: PodUid = ATTACKER.parse().unwrap();
    let kubelet = KubeletCgroup::learned(&text(ATTACKER), &own).unwrap();
    let placed = placement(&text(VICTIM), Some(&kubelet));
    matches!(placed, Placement::Pod { uid, .. } if uid.as_str() == VICTIM)
}
