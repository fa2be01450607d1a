//! What the engine and its caller say to each other.

use super::FlowId;
use super::datagram::DatagramKind;
use netd_proto::build::IcmpError;
use std::borrow::Cow;
use std::net::SocketAddr;

/// What the caller has to do for a packet.
#[derive(Debug)]
pub enum Effect<'p> {
    /// Nothing.
    None,
    /// A TCP flow may have something to move: give it its turn.
    Turn(FlowId),
    /// A new TCP flow: connect, then tell [`Engine::connected`](super::Engine::connected) or [`Engine::dial_failed`](super::Engine::dial_failed).
    Dial(FlowId, DialTarget),
    /// The enclave gave up a flow; it is gone. A host socket of it is to be reset.
    Gone(FlowId),
    /// [`Gone`](Self::Gone), then [`Dial`](Self::Dial): the enclave began another connection
    /// between the same ports.
    Redial {
        /// The flow that is gone.
        gone: FlowId,
        /// The new one.
        id: FlowId,
        /// Where it leads.
        target: DialTarget,
    },
    /// Send a datagram or echo request from the flow's socket.
    Datagram(Outgoing<'p>),
    /// Answer a DNS query that came by UDP, with [`Engine::dns_answer`](super::Engine::dns_answer).
    Dns {
        /// Who asks.
        client: SocketAddr,
        /// Which of the gateway's addresses was asked.
        gateway: SocketAddr,
        /// The message.
        query: Cow<'p, [u8]>,
        /// Where there are many messages: the length of each but the last.
        segment: Option<u16>,
    },
}

/// Where a new TCP flow leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialTarget {
    /// To a host.
    Host(SocketAddr),
    /// To the gateway's own DNS.
    Dns,
}

/// A datagram on its way out.
#[derive(Debug)]
pub struct Outgoing<'p> {
    /// Whose socket to use.
    pub flow: FlowId,
    /// Whether the flow is new and has no socket yet.
    pub is_new: bool,
    /// UDP or echo.
    pub kind: DatagramKind,
    /// Destination; the port is 0 for an echo request.
    pub to: SocketAddr,
    /// Time to live of the outgoing packet.
    pub hop_limit: u8,
    /// Whether the sender forbids to cut it.
    pub dont_fragment: bool,
    /// Sequence number of an echo request.
    pub sequence: u16,
    /// UDP or echo payload.
    pub payload: Cow<'p, [u8]>,
    /// Where the payload is that of many datagrams: the length of each but the last.
    pub segment: Option<u16>,
}

/// Why a dial did not succeed, in what the enclave can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialError {
    /// RST.
    Refused,
    /// The ICMP error.
    Icmp(IcmpError),
    /// Nothing: the program's own timers run.
    Silent,
}

/// How far [`Engine::egress`](super::Engine::egress) came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// The flow has nothing more to send now.
    Done,
    /// It used its quantum up.
    More,
    /// The link is full.
    LinkFull,
}

impl Effect<'_> {
    /// Whether something has to be begun for it: a socket, a connect, a look-up.
    pub fn begins(&self) -> bool {
        match self {
            Effect::Dial(..) | Effect::Redial { .. } | Effect::Dns { .. } => true,
            Effect::Datagram(outgoing) => outgoing.is_new,
            Effect::None | Effect::Turn(_) | Effect::Gone(_) => false,
        }
    }

    /// The same, independent of the packet it came from.
    pub(super) fn into_owned(self) -> Effect<'static> {
        match self {
            Effect::None => Effect::None,
            Effect::Turn(id) => Effect::Turn(id),
            Effect::Dial(id, target) => Effect::Dial(id, target),
            Effect::Gone(id) => Effect::Gone(id),
            Effect::Redial { gone, id, target } => Effect::Redial { gone, id, target },
            Effect::Datagram(outgoing) => {
                let payload = Cow::Owned(outgoing.payload.into_owned());
                Effect::Datagram(Outgoing {
                    payload,
                    ..outgoing
                })
            }
            Effect::Dns {
                client,
                gateway,
                query,
                segment,
            } => Effect::Dns {
                client,
                gateway,
                segment,
                query: Cow::Owned(query.into_owned()),
            },
        }
    }
}
