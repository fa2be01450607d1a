//! From the sockets of datagram flows to the link.
//!
//! What a socket receives is written once, by the kernel, to its place in the link's queue. Where
//! the enclave takes super-datagrams, consecutive datagrams of one sender are gathered into a
//! [`Run`]: the next payload is received right behind the last, and what does not belong there (it
//! is longer, or of another sender) is moved to a packet of its own. A run is open only while its
//! socket is being read; [`Engine::seal_run`] closes it.

use super::datagram::{DatagramFlow, DatagramKind};
use super::drops::DropReason;
use super::{Engine, Flow, FlowId};
use netd_proto::build::{self, EchoHeader, HOP_LIMIT};
use netd_proto::frame::HEADER;
use netd_proto::handshake::Features;
use netd_proto::limits::{LINK_QUEUE, MAX_PACKET_FRAME};
use netd_proto::offload::VnetHeader;
use netd_proto::run::{Run, mark_super_datagram};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

const ICMP_HEADER: usize = 8;

/// Where the next datagram goes: its first bytes to `place`, and what is longer to `spill`.
/// Together they hold any datagram.
#[derive(Debug)]
pub struct DatagramSpace<'a> {
    /// In the link's queue.
    pub place: &'a mut [u8],
    /// Elsewhere; may be empty.
    pub spill: &'a mut [u8],
}

/// What came to a datagram flow's socket.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Who sent it.
    pub from: SocketAddr,
    /// Bytes: of the UDP payload, or of the ICMP message.
    pub length: usize,
    /// Where the kernel put many datagrams together: the length of each but the last.
    pub segment: Option<u16>,
    /// If it is known.
    pub hop_limit: Option<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    flow: FlowId,
    from: SocketAddr,
    run: Run,
}

/// The run that is being gathered, and room for what does not fit it.
#[derive(Debug)]
pub(super) struct Inbound {
    open: Option<Open>,
    spare: Box<[u8]>,
}

impl Default for Inbound {
    fn default() -> Self {
        Inbound {
            open: None,
            spare: vec![0; MAX_PACKET_FRAME].into_boxed_slice(),
        }
    }
}

/// Where a flow's payload begins in the space of a packet.
fn payload_start(kind: DatagramKind, ipv6: bool) -> usize {
    VnetHeader::LEN
        + match kind {
            DatagramKind::Udp => build::udp_headroom(ipv6),
            DatagramKind::Echo => build::echo_headroom(ipv6) - ICMP_HEADER,
        }
}

impl Engine {
    /// Whether the enclave takes many datagrams in one packet.
    pub fn takes_super_datagrams(&self) -> bool {
        self.link
            .features
            .contains(Features::CHECKSUM.or(Features::USO))
    }

    /// Room for the next thing from a datagram flow's socket: a UDP payload, or a whole ICMP
    /// message. Tell [`commit_datagram`](Self::commit_datagram) what came, and
    /// [`seal_run`](Self::seal_run) when nothing more comes. `None` when the link is full or the
    /// flow is gone.
    pub fn datagram_space(&mut self, id: FlowId) -> Option<DatagramSpace<'_>> {
        if let Some(Open { flow, run, .. }) = self.inbound.open {
            // What does not fit the run must find room behind it.
            let room_behind = self.link.queue.len() + HEADER + run.end() < LINK_QUEUE;
            if flow == id && run.may_grow() && room_behind {
                let space = self.link.queue.packet_space()?;
                return Some(DatagramSpace {
                    place: &mut space[run.end()..run.end() + run.segment()],
                    spill: &mut self.inbound.spare[run.segment()..],
                });
            }
            self.seal_run();
        }
        let entry = self
            .flows
            .get(id.index())
            .filter(|e| e.generation == id.generation)?;
        let Flow::Datagram(flow) = &entry.flow else {
            return None;
        };
        let start = payload_start(flow.kind, entry.key.src.is_ipv6());
        self.link.queue.packet_space().map(|space| DatagramSpace {
            place: &mut space[start..],
            spill: &mut [],
        })
    }

    /// Passes on what was received into [`datagram_space`](Self::datagram_space).
    pub fn commit_datagram(&mut self, id: FlowId, received: Received, now: Instant) {
        let Received { from, length, .. } = received;
        let from = SocketAddr::new(self.router.as_seen_by_enclave(from.ip()), from.port());
        let Some(entry) = self.entry(id) else { return };
        let enclave = entry.key.src;
        let Flow::Datagram(DatagramFlow { kind, .. }) = entry.flow else {
            return;
        };
        if from.is_ipv6() != enclave.is_ipv6() || from.ip() == enclave.ip() {
            return;
        }
        let hop_limit = received.hop_limit.unwrap_or(HOP_LIMIT);
        match kind {
            DatagramKind::Udp => {
                if !self.join_run(from, &received) {
                    self.begin_run(id, from, enclave, hop_limit, &received);
                }
            }
            DatagramKind::Echo => {
                if !self.commit_echo(from.ip(), enclave, hop_limit, length) {
                    return;
                }
            }
        }
        self.keep(id, now, true);
    }

    /// Puts the run that is open into the link's queue.
    pub fn seal_run(&mut self) {
        let Some(Open { run, .. }) = self.inbound.open.take() else {
            return;
        };
        // A run is begun only where a packet has room, and nothing is queued while it is open.
        let Some(space) = self.link.queue.packet_space() else {
            return;
        };
        let length = run.seal(space);
        self.link.queue.commit_packet(length);
        self.link.traffic.count(length - VnetHeader::LEN);
    }

    /// Lets a datagram join the open run, behind which it was received. Otherwise, the run is
    /// sealed and the datagram moved to the place of the next packet's.
    fn join_run(&mut self, from: SocketAddr, received: &Received) -> bool {
        let Some(open) = &mut self.inbound.open else {
            return false;
        };
        let Received {
            length, segment, ..
        } = *received;
        let (at, in_place) = (open.run.end(), length.min(open.run.segment()));
        if open.from == from && segment.is_none() && open.run.join(length) {
            return true;
        }
        let start = payload_start(DatagramKind::Udp, from.is_ipv6());
        if let Some(space) = self.link.queue.packet_space() {
            self.inbound.spare[..in_place].copy_from_slice(&space[at..at + in_place]);
        }
        self.seal_run();
        if let Some(space) = self.link.queue.packet_space() {
            space[start..start + length].copy_from_slice(&self.inbound.spare[..length]);
        }
        false
    }

    /// Writes the headers of what is in its place, and begins a run with it if more may join.
    fn begin_run(
        &mut self,
        flow: FlowId,
        from: SocketAddr,
        to: SocketAddr,
        hop_limit: u8,
        received: &Received,
    ) {
        let length = received.length;
        let runs = self.takes_super_datagrams();
        match received.segment {
            Some(_) if !runs || length > build::MAX_UDP_PAYLOAD => {
                self.counters.drop(DropReason::Offload);
            }
            Some(segment) => {
                let Some(space) = self.link.queue.packet_space() else {
                    return;
                };
                let (total, _) =
                    build::udp(&mut space[VnetHeader::LEN..], from, to, hop_limit, length);
                let frame = &mut space[..VnetHeader::LEN + total];
                mark_super_datagram(from.is_ipv6(), segment, frame);
                self.link.queue.commit_packet(VnetHeader::LEN + total);
                self.link.traffic.count(total);
            }
            None => match Run::new(from.is_ipv6(), length).filter(|run| runs && run.may_grow()) {
                Some(run) => {
                    let Some(space) = self.link.queue.packet_space() else {
                        return;
                    };
                    let (header, packet) = space.split_at_mut(VnetHeader::LEN);
                    let (_, vnet) = build::udp(packet, from, to, hop_limit, length);
                    header.copy_from_slice(&vnet.encode());
                    self.inbound.open = Some(Open { flow, from, run });
                }
                None => self.queue_udp(from, to, hop_limit, length),
            },
        }
    }

    /// Queues one datagram whose payload is in its place.
    pub(super) fn queue_udp(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        hop_limit: u8,
        length: usize,
    ) {
        let Some(space) = self.link.queue.packet_space() else {
            return;
        };
        let (header, packet) = space.split_at_mut(VnetHeader::LEN);
        let (total, mut vnet) = build::udp(packet, from, to, hop_limit, length);
        if !self.link.features.contains(Features::CHECKSUM) {
            build::complete_checksum(&mut packet[..total], &vnet);
            vnet = VnetHeader::NONE;
        }
        header.copy_from_slice(&vnet.encode());
        self.link.queue.commit_packet(VnetHeader::LEN + total);
        self.link.traffic.count(total);
    }

    fn commit_echo(
        &mut self,
        from: IpAddr,
        enclave: SocketAddr,
        hop_limit: u8,
        length: usize,
    ) -> bool {
        let Some(space) = self.link.queue.packet_space() else {
            return false;
        };
        let packet = &mut space[VnetHeader::LEN..];
        let start = build::echo_headroom(from.is_ipv6()) - ICMP_HEADER;
        let message = &packet[start..start + length];
        let reply = if from.is_ipv6() { 129 } else { 0 };
        if message.len() < ICMP_HEADER || message[0] != reply {
            return false;
        }
        let sequence = u16::from_be_bytes([message[6], message[7]]);
        let header = EchoHeader {
            request: false,
            identifier: enclave.port(),
            sequence,
        };
        let payload = length - ICMP_HEADER;
        let total = build::echo(packet, from, enclave.ip(), hop_limit, header, payload);
        space[..VnetHeader::LEN].copy_from_slice(&VnetHeader::NONE.encode());
        self.link.queue.commit_packet(VnetHeader::LEN + total);
        self.link.traffic.count(total);
        true
    }
}
