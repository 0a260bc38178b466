//! The agent's side of the socket. Every request has a connection of its own, so a mounter that was
//! restarted is found again by itself.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, fstat};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendFlags, SocketAddrUnix, connect, recvmsg, sendmsg,
};

use super::MounterError;
use super::exchange::{Answer, Exchange};
use super::listener::socket;
use super::protocol::{ProtocolError, REPLY_BYTES_MAX, Reply, Request};
use super::tmpfs;
use crate::sys;

/// How long connecting and sending may take, and again how long the answer. Requests wait for each
/// other at the mounter; each takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// More descriptors than any reply has, so that surplus ones are seen, and closed.
const DESCRIPTORS_MAX: usize = 4;

/// Asks the mounter that listens on a socket.
#[derive(Debug, Clone)]
pub struct MounterClient {
    socket: PathBuf,
}

impl MounterClient {
    /// Connects anew for each request; the mounter need not run yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }
}

impl Exchange for MounterClient {
    fn exchange(&self, request: &Request) -> Result<Answer, MounterError> {
        exchange(&self.socket, request).map_err(|error| {
            let (request, socket) = (request.to_string(), self.socket.clone());
            match error {
                ExchangeError::Io(source) => MounterError::Unreachable { request, socket, source },
                ExchangeError::Answer(source) => MounterError::Answer { request, source },
            }
        })
    }
}

enum ExchangeError {
    Io(io::Error),
    Answer(ProtocolError),
}

impl<E: Into<io::Error>> From<E> for ExchangeError {
    fn from(error: E) -> Self {
        Self::Io(error.into())
    }
}

/// A process that is stopped and goes on, or is frozen, has its system calls on sockets with
/// timeouts interrupted (signal(7)), hence the repetitions.
fn exchange(path: &Path, request: &Request) -> Result<Answer, ExchangeError> {
    let connection = socket()?;
    set_socket_timeout(&connection, Timeout::Send, Some(PATIENCE))?;
    set_socket_timeout(&connection, Timeout::Recv, Some(PATIENCE))?;
    let address = SocketAddrUnix::new(path)?;
    retry_on_intr(|| connect(&connection, &address))?;
    // Files are written where its answer leads.
    if sys::peer_credentials(connection.as_fd())?.uid != 0 {
        return Err(io::Error::other("what listens there does not run as root").into());
    }
    let mut nothing = SendAncillaryBuffer::default();
    let packet = request.encode();
    retry_on_intr(|| {
        sendmsg(&connection, &[IoSlice::new(&packet)], &mut nothing, SendFlags::NOSIGNAL)
    })?;
    let (packet, descriptors) = receive(&connection)?;
    let reply = Reply::decode(&packet).map_err(ExchangeError::Answer)?;
    let expected = usize::from(matches!(reply, Reply::Prepared { .. }));
    if descriptors.len() != expected {
        let surplus = ProtocolError::Descriptors(descriptors.len(), expected);
        return Err(ExchangeError::Answer(surplus));
    }
    let root = descriptors.into_iter().next();
    if root.as_ref().is_some_and(|root| !is_tmpfs_directory(root)) {
        return Err(ExchangeError::Answer(ProtocolError::NotTmpfs));
    }
    Ok((reply, root))
}

/// One packet with its descriptors, which are closed again unless they are returned.
fn receive(connection: &OwnedFd) -> Result<(Vec<u8>, Vec<OwnedFd>), ExchangeError> {
    let mut packet = vec![0; REPLY_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry_on_intr(|| {
        let mut buffers = [IoSliceMut::new(&mut packet)];
        recvmsg(connection, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            descriptors.extend(received);
        }
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(ExchangeError::Answer(ProtocolError::TooLong(REPLY_BYTES_MAX)));
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        let surplus = ProtocolError::Descriptors(DESCRIPTORS_MAX + 1, 1);
        return Err(ExchangeError::Answer(surplus));
    }
    if message.bytes == 0 {
        let closed = "it closed the connection without an answer: it ended, or refuses this user";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, closed).into());
    }
    packet.truncate(message.bytes);
    Ok((packet, descriptors))
}

/// Secrets never touch a disk, whoever handed the directory over.
fn is_tmpfs_directory(root: &OwnedFd) -> bool {
    let directory =
        fstat(root).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    directory && tmpfs::holds(root)
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
