//! Cgroups that are named like the victim's and lie elsewhere.

use crate::door::Door;
use crate::place::{ATTACKER, Driver, ID, VICTIM};
use crate::rig::{CONNECTIONS, Rig, Tally};

/// The user an attacker runs as.
const USER: u32 = 4242;

/// Makes cgroups in one that it was given, as itself, and moves into each.
fn forge_below(rig: &Rig, base: &str, door: Door) -> Tally {
    let directory = rig.place.tree.delegate(base, USER);
    let mut attacker = rig.actor_in(base);
    attacker.tell(&format!("become {USER} {USER}"));
    let (container, pod) = (rig.place.below_root(VICTIM), rig.place.pod_below_root(VICTIM));
    let shapes = [
        rig.place.container(VICTIM),
        format!("/kubepods{container}"),
        format!("/kubepods.slice{container}"),
        container,
        pod,
        format!("/pod{VICTIM}/{ID}"),
    ];
    let mut tally = Tally::default();
    for shape in &shapes {
        let inside = directory.join(shape.trim_start_matches('/'));
        attacker.tell(&format!("make {}", inside.display()));
        attacker.tell(&format!("enter {}", inside.display()));
        let count = CONNECTIONS / shapes.len() + 1;
        tally = tally.and(rig.knock(&mut attacker, door, count));
    }
    tally
}

pub(crate) fn below_a_container(rig: &Rig, door: Door) -> Tally {
    forge_below(rig, &rig.place.container(ATTACKER), door)
}

pub(crate) fn in_a_delegated_cgroup(rig: &Rig, door: Door) -> Tally {
    let user = format!("user-{USER}.slice/user@{USER}.service");
    forge_below(rig, &format!("/{}-user.slice/{user}", rig.place.name), door)
}

/// Has a process connect from each of these cgroups.
fn from_each(rig: &Rig, cgroups: &[String], door: Door) -> Tally {
    let count = CONNECTIONS / cgroups.len() + 1;
    let knock = |cgroup: &String| {
        let mut liar = rig.actor_in(cgroup);
        rig.knock(&mut liar, door, count)
    };
    cgroups.iter().map(knock).fold(Tally::default(), Tally::and)
}

pub(crate) fn beside_the_root(rig: &Rig, door: Door) -> Tally {
    let (name, below) = (&rig.place.name, rig.place.below_root(VICTIM));
    let root = rig.place.root();
    let cgroups = [
        format!("/{name}x{root}{below}"),
        format!("{root}x{below}"),
        format!("{root}{root}{below}"),
        format!("/{name}-b/kubepods{below}"),
        format!("/{name}-b{below}"),
    ];
    from_each(rig, &cgroups, door)
}

/// A docker engine in a pod may make its containers' cgroups beside all pods.
pub(crate) fn sibling_engine(rig: &Rig, door: Door) -> Tally {
    let (name, below) = (&rig.place.name, rig.place.below_root(VICTIM));
    let cgroups = [
        format!("/{name}-d/docker/{ID}{}{below}", rig.place.root()),
        format!("/{name}-d/docker/{ID}/pod{VICTIM}"),
        format!("/{name}-d/system.slice/docker-{ID}.scope/kubepods{below}"),
        format!("/{name}-d/docker/{ID}"),
    ];
    from_each(rig, &cgroups, door)
}

pub(crate) fn nearly_the_victim(rig: &Rig, door: Door) -> Tally {
    let (root, name) = (rig.place.root(), &rig.place.name);
    let scope = rig.place.scope("cri-containerd-", ID);
    let (upper, plain) = (VICTIM.to_ascii_uppercase(), VICTIM.replace('-', ""));
    let slice = format!("{name}-kubepods");
    let underscored = VICTIM.replace('-', "_");
    let pods = match rig.place.driver {
        Driver::Cgroupfs => vec![
            format!("/pod{VICTIM}x"),
            format!("/xpod{VICTIM}"),
            format!("/pod{upper}"),
            format!("/pod{plain}"),
            format!("/pod{underscored}"),
            format!("/burstable/besteffort/pod{VICTIM}"),
            format!("/guaranteed/pod{VICTIM}"),
            format!("/pod{VICTIM} (deleted)"),
        ],
        Driver::Systemd => vec![
            format!("/{slice}-pod{VICTIM}.slice"),
            format!("/{slice}-pod{plain}.slice"),
            format!("/{slice}-pod{underscored}x.slice"),
            format!("/{slice}-pod{}.slice", upper.replace('-', "_")),
            format!("/{slice}-burstable.slice/{slice}-pod{underscored}.slice"),
            format!("/{slice}-burstable.slice/{slice}-besteffort-pod{underscored}.slice"),
            format!("/{slice}-x-pod{underscored}.slice"),
            format!("/kubepods-pod{underscored}.slice"),
        ],
    };
    let cgroups: Vec<String> = pods.iter().map(|pod| format!("{root}{pod}/{scope}")).collect();
    from_each(rig, &cgroups, door)
}

/// Monitors, engines in the victim's containers, what no runtime makes: none speaks for the pod.
pub(crate) fn no_container_of_the_victim(rig: &Rig, door: Door) -> Tally {
    let pod = format!("{}{}", rig.place.root(), rig.place.pod_below_root(VICTIM));
    let container = rig.place.container(VICTIM);
    let cgroups = [
        format!("{pod}/crio-conmon-{ID}.scope"),
        format!("{pod}/crio-conmon-{ID}"),
        format!("{pod}/short"),
        format!("{pod}/{}", rig.place.scope("cri-containerd-", &format!("{ID}0"))),
        format!("{pod}/{}", rig.place.scope("mine-", &ID.to_ascii_uppercase())),
        format!("{container}/docker/{ID}"),
    ];
    from_each(rig, &cgroups, door)
}

/// In the victim's cgroup in one hierarchy and in the attacker's, or a docker engine's, in another.
pub(crate) fn disagreeing_hierarchies(rig: &Rig, door: Door) -> Tally {
    let elsewhere = [
        rig.place.container(ATTACKER),
        format!("/{}-d/docker/{ID}", rig.place.name),
        format!("{}{}", rig.place.root(), rig.place.pod_below_root(VICTIM)),
    ];
    let count = CONNECTIONS / elsewhere.len() + 1;
    let knock = |cgroup: &String| {
        let mut liar = rig.actor_in(&rig.place.container(VICTIM));
        rig.place.other_tree.put(liar.pid(), cgroup);
        rig.knock(&mut liar, door, count)
    };
    elsewhere.iter().map(knock).fold(Tally::default(), Tally::and)
}
