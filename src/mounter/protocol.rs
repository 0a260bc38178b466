//! What agent and mounter say to each other: one request, one reply, and the connection ends. Pure.
//!
//! A message is one packet of a `SOCK_SEQPACKET` socket: a version byte, then JSON. The sets are
//! closed; whatever does not fit is no message. Only the reply to `prepare` has a descriptor with
//! it.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Failure, Mounted, TmpfsSize, VolumeKey};

/// Both ends are one binary, so there is no negotiation: another version is an error.
const VERSION: u8 = 1;
/// The longest request: a target's path and a key.
pub const REQUEST_BYTES_MAX: usize = 4096;
/// The longest reply: a page of volumes, or inodes.
pub const REPLY_BYTES_MAX: usize = 64 * 1024;
/// Volumes in one reply, at most 200 bytes each.
pub const VOLUMES_PER_REPLY: usize = 200;
/// Inodes in one reply, at most 21 bytes each.
pub const INODES_PER_REPLY: usize = 2000;

/// What the agent may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Make or find the private tmpfs.
    Prepare {
        /// Of which volume.
        key: VolumeKey,
        /// How large.
        size: TmpfsSize,
    },
    /// Bind it onto its target.
    Bind {
        /// Which volume.
        key: VolumeKey,
        /// The kubelet's target path.
        target: String,
    },
    /// Unmount a target and remove its directory.
    Unbind {
        /// The kubelet's target path.
        target: String,
    },
    /// Unmount the private tmpfs.
    Discard {
        /// Of which volume.
        key: VolumeKey,
    },
    /// The volumes behind this one, in order.
    List {
        /// `None` begins.
        after: Option<VolumeKey>,
    },
    /// What of a volume is mounted elsewhere.
    MountedBelow {
        /// Which volume.
        key: VolumeKey,
    },
}

/// What the mounter answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// The tmpfs is there; its root comes along.
    Prepared {
        /// Whether the kernel keeps it out of swap.
        noswap: bool,
    },
    /// Bound, unbound, discarded.
    Done,
    /// Some volumes, in order.
    Volumes {
        /// At most [`VOLUMES_PER_REPLY`].
        volumes: Vec<Mounted>,
        /// Whether there are more behind the last one.
        more: bool,
    },
    /// What of a volume is mounted elsewhere.
    Inodes(Vec<u64>),
    /// It did not work.
    Failed(Failure),
}

impl Request {
    /// Whether it is about more than looking.
    pub fn changes_something(&self) -> bool {
        !matches!(self, Self::List { .. } | Self::MountedBelow { .. })
    }

    /// As a packet.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// From a packet.
    pub fn decode(packet: &[u8]) -> Result<Self, ProtocolError> {
        decode(packet, REQUEST_BYTES_MAX)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepare { key, .. } => write!(f, "prepare volume '{key}'"),
            Self::Bind { key, .. } => write!(f, "bind volume '{key}' onto its target"),
            // Not parsed yet: escaped, so that it stays one line of the log.
            Self::Unbind { target } => write!(f, "unbind '{}'", target.escape_debug()),
            Self::Discard { key } => write!(f, "discard volume '{key}'"),
            Self::List { .. } => f.write_str("list volumes"),
            Self::MountedBelow { key } => write!(f, "see what of volume '{key}' is mounted"),
        }
    }
}

impl Reply {
    /// As a packet.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// From a packet.
    pub fn decode(packet: &[u8]) -> Result<Self, ProtocolError> {
        decode(packet, REPLY_BYTES_MAX)
    }
}

/// Why a packet is no message.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Without a version.
    #[error("the packet is empty")]
    Empty,
    /// Over the bound.
    #[error("the packet has more than {0} bytes")]
    TooLong(usize),
    /// Another version.
    #[error("the packet has version {0}, expected {VERSION}")]
    Version(u8),
    /// Not one of the messages.
    #[error("the packet is not one of the messages")]
    Content(#[source] serde_json::Error),
    /// A reply to something else.
    #[error("the reply does not answer the request")]
    Unexpected,
    /// Descriptors that do not belong to this reply, or none where one does.
    #[error("the reply has {0} descriptors, expected {1}")]
    Descriptors(usize, usize),
    /// The descriptor is not the root of a tmpfs.
    #[error("the reply's descriptor is no directory on a tmpfs")]
    NotTmpfs,
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut packet = vec![VERSION];
    serde_json::to_writer(&mut packet, message)
        .expect("messages have no maps, and a vector takes every write");
    packet
}

fn decode<T: DeserializeOwned>(packet: &[u8], bytes_max: usize) -> Result<T, ProtocolError> {
    if packet.len() > bytes_max {
        return Err(ProtocolError::TooLong(bytes_max));
    }
    let (version, content) = packet.split_first().ok_or(ProtocolError::Empty)?;
    if *version != VERSION {
        return Err(ProtocolError::Version(*version));
    }
    serde_json::from_slice(content).map_err(ProtocolError::Content)
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
