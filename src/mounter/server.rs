//! The mounter's side of the socket: a few threads that were there before the sandbox closed.
//!
//! Each takes a connection, sees who made it, reads one packet, answers it and closes. Descriptors
//! that somebody sends along are not received.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, accept_with,
    recv, sendmsg,
};

use super::agent_process::AgentProcess;
use super::answer::answer;
use super::mounts::Mounts;
use super::protocol::{REQUEST_BYTES_MAX, Reply, Request};
use super::{Failure, sandbox};
use crate::sys::{self, StopSignals};

/// Connections served at once; more wait in the socket's queue.
const CONNECTIONS_MAX: usize = 4;
/// How long a peer may take to send its request, and to take the reply.
const PEER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a stop waits for the agent's end: longer than an agent takes to stop by default
/// (`stop_grace`, 20 s), and less than a pod's containers are given (at least 26 s).
const AGENT_PATIENCE: Duration = Duration::from_secs(25);
/// How often it looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Why the mounter ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It could not give up what it does not need, and does not run with it.
    #[error("cannot enter the sandbox")]
    Sandbox(#[source] sandbox::SandboxError),
    /// Signals or threads.
    #[error("cannot start serving")]
    Start(#[source] io::Error),
    /// The socket failed, or a thread panicked.
    #[error("a thread that serves the socket ended")]
    Ended,
}

/// Who may connect besides root.
#[derive(Debug, Clone, Copy)]
pub struct Peers {
    /// The agent's user.
    pub agent_uid: u32,
}

impl Peers {
    fn admit(self, uid: u32) -> bool {
        uid == 0 || uid == self.agent_uid
    }
}

/// What the main thread waits for.
enum End {
    Signal,
    Thread,
}

/// Enters the sandbox and serves until SIGTERM or SIGINT, and then until the agent that asked
/// has exited, for 25 s at most; a second signal ends it at once. Unmounts nothing at the end.
///
/// To be called on the process's only thread, which gives up its capabilities.
pub fn serve(listener: OwnedFd, mounts: Mounts, peers: Peers) -> Result<(), ServeError> {
    let signals = StopSignals::block().map_err(ServeError::Start)?;
    sandbox::drop_capabilities().map_err(ServeError::Sandbox)?;
    let (ends, ended) = mpsc::sync_channel(CONNECTIONS_MAX + 1);
    let agent = AgentProcess::default();
    let shared = Arc::new(Shared { listener, mounts: Mutex::new(mounts), peers, agent });
    let gate = Arc::new(Gate(Barrier::new(CONNECTIONS_MAX + 2)));
    for number in 0..CONNECTIONS_MAX {
        let (shared, gate) = (Arc::clone(&shared), Arc::clone(&gate));
        let end = Ending(ends.clone());
        start(format!("mounter-{number}"), move || {
            let _end = end;
            gate.wait_here();
            shared.serve_connections();
        })?;
    }
    let signals_gate = Arc::clone(&gate);
    start("mounter-signals".to_owned(), move || {
        let end = Ending(ends);
        signals_gate.wait_here();
        pass_on(&signals, &end.0);
    })?;
    gate.wait_for_all();
    // No thread can be started from here on, and none has seen a request yet.
    sandbox::confine_all_threads().map_err(ServeError::Sandbox)?;
    gate.open();
    tracing::info!("serving");
    match ended.recv() {
        Ok(End::Signal) => serve_the_agent_to_its_end(&shared.agent, &ended),
        Ok(End::Thread) | Err(_) => Err(ServeError::Ended),
    }
}

/// Tells the main thread each signal, as long as it is there.
fn pass_on(signals: &StopSignals, ends: &mpsc::SyncSender<End>) {
    loop {
        if let Err(error) = signals.wait() {
            tracing::error!(%error, "signals cannot be waited for; stopping");
            return;
        }
        if ends.send(End::Signal).is_err() {
            return;
        }
    }
}

/// The agent is told to stop at the same moment, and takes back what it has begun: a tmpfs without
/// its files would stay mounted on a node that gets no other agent.
fn serve_the_agent_to_its_end(
    agent: &AgentProcess,
    ended: &mpsc::Receiver<End>,
) -> Result<(), ServeError> {
    let until = Instant::now() + AGENT_PATIENCE;
    if agent.is_running() {
        tracing::info!("stopping after the agent; a second signal stops the mounter now");
    }
    while agent.is_running() && Instant::now() < until {
        match ended.recv_timeout(LOOK_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(End::Signal) => break,
            Ok(End::Thread) | Err(RecvTimeoutError::Disconnected) => return Err(ServeError::Ended),
        }
    }
    Ok(())
}

fn start(name: String, run: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
    thread::Builder::new().name(name).spawn(run).map(drop).map_err(ServeError::Start)
}

/// Holds every thread between its start, which takes system calls that serving does not, and its
/// first request.
struct Gate(Barrier);

impl Gate {
    /// Of a thread: has started, waits until the gate opens.
    fn wait_here(&self) {
        self.0.wait();
        self.0.wait();
    }

    /// Of the main thread: until every other one waits.
    fn wait_for_all(&self) {
        self.0.wait();
    }

    /// Of the main thread: lets them go.
    fn open(&self) {
        self.0.wait();
    }
}

/// Tells the main thread that a thread has ended, however it did.
struct Ending(mpsc::SyncSender<End>);

impl Drop for Ending {
    fn drop(&mut self) {
        let _main_thread_is_gone = self.0.send(End::Thread);
    }
}

struct Shared {
    listener: OwnedFd,
    mounts: Mutex<Mounts>,
    peers: Peers,
    agent: AgentProcess,
}

impl Shared {
    /// Serves one connection after the other; returns when the socket fails.
    fn serve_connections(&self) {
        loop {
            match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(connection) => {
                    if let Err(error) = self.serve_one(&connection) {
                        tracing::warn!(%error, "connection dropped");
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    tracing::error!(%error, "no more connections can be accepted");
                    return;
                }
            }
        }
    }

    fn serve_one(&self, connection: &OwnedFd) -> io::Result<()> {
        set_socket_timeout(connection, Timeout::Recv, Some(PEER_PATIENCE))?;
        set_socket_timeout(connection, Timeout::Send, Some(PEER_PATIENCE))?;
        let uid = sys::peer_credentials(connection.as_fd())?.uid;
        if !self.peers.admit(uid) {
            tracing::warn!(uid, "refused a peer that is neither root nor the agent");
            return Ok(());
        }
        let mut packet = [0; REQUEST_BYTES_MAX];
        // A stop or a freeze interrupts calls on sockets with timeouts (signal(7)); so in `send`.
        let (_, length) = retry_on_intr(|| recv(connection, &mut packet, RecvFlags::TRUNC))?;
        // A packet of no bytes is how a connection ends.
        if length == 0 {
            return Ok(());
        }
        let request = packet.get(..length).and_then(|packet| Request::decode(packet).ok());
        let (reply, root) = match request {
            Some(request) => {
                self.agent.asks(connection.as_fd());
                let mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
                answer(&mounts, &request)
            }
            None => {
                tracing::warn!(length, "refused a packet that is no request");
                (Reply::Failed(Failure::Malformed), None)
            }
        };
        send(connection, &reply.encode(), root.as_ref())
    }
}

fn send(connection: &OwnedFd, packet: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let descriptors = descriptor.map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.as_slice().is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors.as_slice()));
    }
    let packet = [IoSlice::new(packet)];
    retry_on_intr(|| sendmsg(connection, &packet, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}
