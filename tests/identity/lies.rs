//! What a process can say about itself: mounts, credentials, names; and root in a container.

use std::os::unix::fs::PermissionsExt;

use crate::door::Door;
use crate::place::{ATTACKER, ID, VICTIM};
use crate::rig::{CONNECTIONS, Rig, Tally};
use crate::stage::Actor;
use crate::weak::{BELIEVES_TOKEN, VICTIMS_COMMAND, VICTIMS_GROUP, VICTIMS_USER};
use crate::weak_tokens::is_the_victims;

const USER: u32 = 4242;

/// Binds the victim's cgroup somewhere, as root of a mount namespace and as a mere user.
pub(crate) fn mountinfo(rig: &Rig, door: Door) -> Tally {
    let theirs = rig.place.tree.make(&rig.place.container(VICTIM));
    let target = rig.directory.path().join("bound");
    std::fs::create_dir_all(&target).unwrap();
    std::fs::set_permissions(&target, PermissionsExt::from_mode(0o755)).unwrap();
    let bind = format!("bind {} {}", theirs.display(), target.display());
    let mut tally = Tally::default();
    for namespaces in [
        vec!["own-mounts".to_owned()],
        vec![format!("become {USER} {USER}"), "own-users".to_owned()],
    ] {
        let mut liar = rig.actor_in(&rig.place.container(ATTACKER));
        for step in namespaces {
            liar.tell(&step);
        }
        liar.tell(&bind);
        tally = tally.and(rig.knock(&mut liar, door, CONNECTIONS / 2));
    }
    tally
}

/// In another pod, and on the host: neither is anybody else with any user or group.
pub(crate) fn credentials(rig: &Rig, door: Door) -> Tally {
    let agent = rustix::process::geteuid().as_raw();
    let lies = if door.is_a_pods() {
        vec![
            format!("{VICTIMS_USER} {VICTIMS_GROUP}"),
            format!("{USER} {USER} {VICTIMS_GROUP}"),
            format!("0 0 {VICTIMS_GROUP}"),
        ]
    } else {
        vec![format!("{USER} {USER} 0"), format!("{agent} {agent}")]
    };
    let count = CONNECTIONS / lies.len() + 1;
    let mut tally = Tally::default();
    for lie in lies {
        let mut liar = rig.actor_in(&rig.place.container(ATTACKER));
        liar.tell(&format!("become {lie}"));
        tally = tally.and(rig.knock(&mut liar, door, count));
    }
    if door.is_a_pods() {
        let mut host = Actor::start();
        host.tell(&format!("become {VICTIMS_USER} {VICTIMS_GROUP}"));
        tally = tally.and(rig.knock(&mut host, door, count));
    }
    tally
}

pub(crate) fn commands(rig: &Rig, door: Door) -> Tally {
    let name = match door {
        Door::Victim | Door::PodSocket | Door::NodeSocket => VICTIMS_COMMAND,
        Door::Kubelet | Door::Driver => "kubelet",
        Door::Operator => "x) S 1 (y",
    };
    let mut liar = Actor::start_as(name);
    rig.place.tree.put(liar.pid(), &rig.place.container(ATTACKER));
    liar.tell(&format!("call-itself {name}"));
    rig.knock(&mut liar, door, CONNECTIONS)
}

/// Root in every kind of container.
pub(crate) fn root(rig: &Rig, door: Door) -> Tally {
    let name = &rig.place.name;
    let cgroups = [
        rig.place.container(ATTACKER),
        rig.place.container(VICTIM),
        format!("{}/burstable/pod{}/{ID}", rig.place.root(), VICTIM.replace('-', "")),
        format!("/{name}-d/docker/{ID}"),
        format!("/{name}-d/system.slice/docker-{ID}.scope/user.slice"),
        format!("/{name}-d/machine.slice/libpod-{ID}.scope/container"),
        format!("/{name}-d/lxc.payload.web/init.scope"),
    ];
    let count = CONNECTIONS / cgroups.len() + 1;
    let knock = |cgroup: &String| rig.knock(&mut rig.actor_in(cgroup), door, count);
    cgroups.iter().map(knock).fold(Tally::default(), Tally::and)
}

/// Every liar at the node's socket has that token; this one has nothing else.
pub(crate) fn stolen_token(rig: &Rig, door: Door) -> Tally {
    let mut tally = Tally::default();
    let mut thief = rig.actor_in(&rig.place.container(ATTACKER));
    for _ in 0..CONNECTIONS {
        rig.connect(&mut thief, door);
        let accepted = rig.accept(door);
        // A weak attestor does not ask where the caller is.
        let believed = is_the_victims(&rig.victims_token).then_some(BELIEVES_TOKEN);
        tally.count(rig.serves(&mut thief, &accepted, door), believed.as_slice());
        thief.tell("hang-up");
    }
    tally
}
