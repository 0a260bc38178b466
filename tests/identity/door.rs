//! The doors that liars knock at: whom a liar wants to be, and who judges it.

use std::fmt;

/// One door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// A socket that is the victim's: what is decided about a connection, asked for here.
    Victim,
    /// The socket in the victim's volume, where the agent's own server answers.
    PodSocket,
    /// The node's socket, where the agent's own server answers. Every liar has the victim's token.
    NodeSocket,
    /// The operator socket.
    Operator,
    /// The CSI driver's socket: whose connections are taken for the kubelet's.
    Kubelet,
    /// The same, of an agent that is a process of its own: what it does for the kubelet's calls.
    Driver,
}

/// Where a liar wants to be the victim.
pub(crate) const PODS: &[Door] = &[Door::Victim, Door::PodSocket, Door::NodeSocket];
/// Where the agent's own server answers.
pub(crate) const AGENTS: &[Door] = &[Door::PodSocket, Door::NodeSocket];
/// Where a token counts.
pub(crate) const NODES: &[Door] = &[Door::NodeSocket];
/// Where a liar wants to be an operator.
pub(crate) const OPERATORS: &[Door] = &[Door::Operator];
/// Where a liar wants to be root of the host.
pub(crate) const HOST: &[Door] = &[Door::Operator, Door::Kubelet];
/// Where calls of the kubelet's count.
pub(crate) const DRIVERS: &[Door] = &[Door::Driver];
pub(crate) const PODS_AND_OPERATORS: &[Door] =
    &[Door::Victim, Door::PodSocket, Door::NodeSocket, Door::Operator];
pub(crate) const ALL: &[Door] =
    &[Door::Victim, Door::PodSocket, Door::NodeSocket, Door::Operator, Door::Kubelet];

impl Door {
    /// Whether the agent's own server answers there.
    pub(crate) fn is_the_agents(self) -> bool {
        AGENTS.contains(&self)
    }

    /// Whether it opens for the victim.
    pub(crate) fn is_a_pods(self) -> bool {
        PODS.contains(&self)
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Victim => "the victim's door",
            Self::PodSocket => "the victim's socket",
            Self::NodeSocket => "the node's socket",
            Self::Operator => "the operators' door",
            Self::Kubelet => "the kubelet's door",
            Self::Driver => "the CSI driver",
        })
    }
}
