//! Who is asking, as proved by the kernel or by our own configuration; never as claimed.

use std::fmt;
use std::sync::Arc;

use crate::domain::{ConsumerId, VolumeName};

pub mod cgroup;
pub mod peer;
pub mod token;

/// How an identity was proved, weakest first so that policy can name the least it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProofStrength {
    /// `SO_PEERCRED` only (kernels before 6.5): the pid may have been reused.
    PeerCred,
    /// `SO_PEERPIDFD`: a handle on the very process that connected.
    PidFd,
    /// Our own configuration: no caller is involved.
    Declared,
}

impl fmt::Display for ProofStrength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PeerCred => "peercred",
            Self::PidFd => "pidfd",
            Self::Declared => "declared",
        })
    }
}

/// Which door the request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Listener {
    /// The operator socket.
    Operator,
    /// The host socket.
    Host,
    /// A declared volume: no socket at all.
    Volume,
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "operator",
            Self::Host => "host",
            Self::Volume => "volume",
        })
    }
}

/// Who the caller is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A user of this host, outside every container, in the initial user namespace.
    HostUser {
        /// Effective uid of the connecting process.
        uid: u32,
        /// Effective gid first, then supplementary groups, sorted and without duplicates.
        gids: Arc<[u32]>,
    },
    /// A volume declared in our configuration.
    Volume(VolumeName),
}

/// A proved caller. Only this folder constructs one. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    subject: Subject,
    strength: ProofStrength,
    listener: Listener,
}

impl Identity {
    /// The identity of a declared volume.
    pub fn declared_volume(name: VolumeName) -> Self {
        Self {
            subject: Subject::Volume(name),
            strength: ProofStrength::Declared,
            listener: Listener::Volume,
        }
    }

    /// The identity of a user of this host: what [`peer`] proved, or what an operator supposes when
    /// asking why somebody would be allowed or denied (explaining reads nothing).
    pub(crate) fn host_user(
        uid: u32,
        gid: u32,
        supplementary: &[u32],
        strength: ProofStrength,
        listener: Listener,
    ) -> Self {
        let mut others: Vec<u32> = supplementary.iter().copied().filter(|g| *g != gid).collect();
        others.sort_unstable();
        others.dedup();
        let gids = std::iter::once(gid).chain(others).collect();
        Self { subject: Subject::HostUser { uid, gids }, strength, listener }
    }

    /// Who it is.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// How that was proved.
    pub fn strength(&self) -> ProofStrength {
        self.strength
    }

    /// Which door it came through.
    pub fn listener(&self) -> Listener {
        self.listener
    }

    /// The consumer whose dynamic credentials this caller gets.
    pub fn consumer(&self) -> ConsumerId {
        match &self.subject {
            Subject::HostUser { uid, .. } => ConsumerId::host_user(*uid),
            Subject::Volume(name) => ConsumerId::volume(name),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.consumer())
    }
}
