//! A place with a socket, the product's answer to a connection, and the count of a class.

use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use secrets_broker::domain::{Pod, VolumeName};
use secrets_broker::identity::Listener;
use secrets_broker::identity::peer::{Peer, PeerError};
use tokio::net::UnixStream;

use crate::agent::{self, Agent};
use crate::door::Door;
use crate::place::{Place, victim, victims_token};
use crate::stage::Actor;
use crate::tree::Trees;
use crate::weak::{self, Weakness};

/// Attempts of one class in one place, where an attempt is a connection.
pub(crate) const CONNECTIONS: usize = 130;
/// The same where an attempt takes a process or more of its own.
pub(crate) const PROCESSES: usize = 50;

/// One place with a socket that everybody may connect to.
pub(crate) struct Rig {
    pub(crate) place: Place,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) victim: Arc<Pod>,
    volume: VolumeName,
    pub(crate) victims_token: String,
    agent: Agent,
    listener: UnixListener,
    runtime: tokio::runtime::Runtime,
}

/// A connection as the agent holds it: identified when it was accepted, to be asked again later.
pub(crate) struct Accepted {
    pub(crate) peer: Result<Peer, PeerError>,
    /// The mistakes that would have believed the caller at that time.
    pub(crate) believed: Vec<Weakness>,
    pub(crate) stream: UnixStream,
}

impl Accepted {
    /// The number of the process that connected.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.stream.peer_cred().ok()?.pid()?.try_into().ok()
    }
}

impl Rig {
    pub(crate) fn all(trees: &Trees) -> Vec<Self> {
        Place::all(trees).into_iter().map(Self::at).collect()
    }

    fn at(place: Place) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let all = PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(directory.path().join("s"), all).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let volume: VolumeName = "victims-volume".parse().unwrap();
        let agent = Agent::start(directory.path(), &place.kubelet, &volume);
        let (victim, victims_token) = (victim(), victims_token());
        Self { place, directory, victim, volume, victims_token, agent, listener, runtime }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// Has an actor connect to the socket whose connections are judged here, and at a door of the
    /// agent's there, too. The agent sees nothing of it before the connection is accepted.
    pub(crate) fn connect(&self, actor: &mut Actor, door: Door) {
        self.connect_by("connect", actor, door);
    }

    /// The same by a process that the actor created; the actor has its sockets.
    pub(crate) fn created_connects(&self, actor: &mut Actor, door: Door) {
        self.connect_by("created-connects", actor, door);
    }

    fn connect_by(&self, act: &str, actor: &mut Actor, door: Door) {
        actor.tell(&format!("{act} {}", self.socket().display()));
        if door.is_the_agents() {
            self.agent.hold();
            actor.tell(&format!("{act} {}", self.agent.socket(door).display()));
        }
    }

    /// Keeps the agent from noticing anything until somebody has asked it.
    pub(crate) fn looks_away(&self) {
        self.agent.hold();
    }

    /// The same, once what this actor asks is announced to it.
    pub(crate) fn looks_away_when_asked(&self, actor: &mut Actor) {
        self.agent.hold_once_announced(|| self.asks(actor));
    }

    /// Looks again; what the holder of the socket hears until the agent hangs up.
    pub(crate) fn hears_out(&self, holder: &mut Actor) -> String {
        self.agent.release();
        holder.tell("hear-out")
    }

    /// An actor in a cgroup.
    pub(crate) fn actor_in(&self, cgroup: &str) -> Actor {
        let actor = Actor::start();
        self.place.tree.put(actor.pid(), cgroup);
        actor
    }

    /// Accepts the oldest waiting connection.
    pub(crate) fn accept(&self, door: Door) -> Accepted {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let _inside = self.runtime.enter();
        let stream = UnixStream::from_std(stream).unwrap();
        let peer = Peer::of(stream.as_fd(), Some(&self.place.kubelet));
        let believed = weak::believed(&stream, &self.place.kubelet, door);
        self.agent.release();
        Accepted { peer, believed, stream }
    }

    /// The holder of a socket sends the request that only the victim's should be answered. With the
    /// victim's token, which changes nothing but at the node's socket.
    pub(crate) fn asks(&self, holder: &mut Actor) {
        holder.tell(&format!("ask {}", self.victims_token));
    }

    /// What the holder of a socket of the agent's hears when it asks with this token, or without.
    pub(crate) fn answer(&self, holder: &mut Actor, token: Option<&str>) -> String {
        holder.tell(&token.map_or("ask".to_owned(), |token| format!("ask {token}")));
        self.agent.release();
        holder.tell("hear")
    }

    /// Has the agent forget the forged tokens that came from the victim's place.
    pub(crate) fn forgives(&self) {
        self.agent.forgives(&self.victim);
    }

    /// Whether the product serves this caller what only the door's owner may have, right now. At a
    /// door of the agent's, `holder` of the socket asks and says what it heard.
    pub(crate) fn serves(&self, holder: &mut Actor, accepted: &Accepted, door: Door) -> bool {
        if door.is_the_agents() {
            return self.answer(holder, Some(&self.victims_token)).contains(agent::SECRET);
        }
        let Ok(peer) = &accepted.peer else { return false };
        let identified = match door {
            Door::PodSocket | Door::NodeSocket | Door::Driver => unreachable!("the agent judges"),
            Door::Victim => peer.identify_in_pod(&self.victim, &self.volume, None).is_ok(),
            Door::Operator => peer.identify(Listener::Operator).is_ok(),
            Door::Kubelet => peer.host_root().is_ok(),
        };
        identified && peer.still_alive()
    }

    /// Lets a liar connect `count` times.
    pub(crate) fn knock(&self, liar: &mut Actor, door: Door, count: usize) -> Tally {
        let mut tally = Tally::default();
        for _ in 0..count {
            self.connect(liar, door);
            let accepted = self.accept(door);
            tally.count(self.serves(liar, &accepted, door), &accepted.believed);
            liar.tell("hang-up");
        }
        tally
    }
}

/// What came of the attempts of one class.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) attempts: usize,
    served: usize,
    caught: usize,
    by: Vec<Weakness>,
}

impl Tally {
    pub(crate) fn count(&mut self, served: bool, believed: &[Weakness]) {
        self.attempts += 1;
        self.served += usize::from(served);
        self.caught += usize::from(!believed.is_empty());
        self.add(believed);
    }

    fn add(&mut self, by: &[Weakness]) {
        for weakness in by {
            if !self.by.contains(weakness) {
                self.by.push(weakness);
            }
        }
    }

    pub(crate) fn and(mut self, other: Self) -> Self {
        self.attempts += other.attempts;
        self.served += other.served;
        self.caught += other.caught;
        self.add(&other.by);
        self
    }

    pub(crate) fn fell_for(&self, weakness: Weakness) -> bool {
        self.by.contains(&weakness)
    }

    /// Nobody was taken for the victim, and a weak attestor fell for it.
    pub(crate) fn is_good(&self) -> bool {
        self.attempts > 0 && self.served == 0 && self.caught > 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attempts, served, caught, by } = self;
        let by = by.join(", ");
        write!(f, "{attempts} attempts, {served} attested; weak attestors {caught} ({by})")
    }
}
