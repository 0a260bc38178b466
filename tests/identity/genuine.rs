//! Controls: who is genuine is attested, or that nobody else is would prove nothing.

use std::fs;

use secrets_broker::domain::PodUid;
use secrets_broker::identity::cgroup::{Placement, placement};
use secrets_broker::identity::kubelet_cgroup::KubeletCgroup;

use crate::door::{Door, PODS};
use crate::driver::Driver;
use crate::place::{ATTACKER, VICTIM};
use crate::rig::Rig;
use crate::stage::Actor;

/// A claim, and what shows it in one place.
type Control = (&'static str, fn(&Rig) -> bool);

pub(crate) const CONTROLS: [Control; 5] = [
    ("a process of the victim is attested as the victim", victim),
    ("another pod's is not", attacker),
    ("a good publish call gives the victim its secret, until it is taken back", published),
    ("root of the host is an operator and may be the kubelet", host),
    ("the kubelet's root is learned from the agent's own cgroup file", learned),
];

fn victim(rig: &Rig) -> bool {
    served_as_a_pod(rig, VICTIM).iter().all(|served| *served)
}

fn attacker(rig: &Rig) -> bool {
    served_as_a_pod(rig, ATTACKER).iter().all(|served| !served)
}

/// What a pod's process gets at each door that opens for the victim.
fn served_as_a_pod(rig: &Rig, uid: &str) -> Vec<bool> {
    let mut actor = rig.actor_in(&rig.place.container(uid));
    PODS.iter().map(|door| served(rig, &mut actor, *door)).collect()
}

fn host(rig: &Rig) -> bool {
    let mut host = Actor::start();
    served(rig, &mut host, Door::Operator)
        && served(rig, &mut host, Door::Kubelet)
        && !PODS.iter().any(|door| served(rig, &mut host, *door))
}

fn published(rig: &Rig) -> bool {
    let driver = Driver::start(&rig.place);
    driver.publishes_the_victims() && driver.takes_the_victims_back()
}

fn served(rig: &Rig, actor: &mut Actor, door: Door) -> bool {
    rig.connect(actor, door);
    let accepted = rig.accept(door);
    let served = rig.serves(actor, &accepted, door);
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
