//! UDP and ICMP echo.
//!
//! A UDP flow is a mapping: one host socket for each address and port of the enclave, whatever
//! the destinations (endpoint-independent mapping, RFC 4787 REQ-1), so that peers find the
//! enclave's program behind one address. What arrives at that socket is passed on whoever sent
//! it, as the program's own socket would take it. A published UDP port is a mapping that was
//! there from the start and does not end.
//!
//! An echo flow is one ping socket for each identifier of the enclave. The kernel puts its own
//! identifier on the wire; the enclave's is put back into the reply.

use super::drops::DropReason;
use super::route::{DENIED, Route};
use super::{DNS_PORT, Effect, Engine, Flow, FlowId, Outgoing};
use crate::budget::Permit;
use crate::limits::{ECHO_IDLE, UDP_IDLE, UDP_IDLE_ANSWERED};
use netd_proto::build::{self, EchoHeader, HOP_LIMIT, IcmpError};
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{Echo, FlowKey, Packet, Protocol, Transport};
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// UDP or echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramKind {
    /// UDP.
    Udp,
    /// ICMP or ICMPv6 echo.
    Echo,
}

#[derive(Debug)]
pub(super) struct DatagramFlow {
    pub(super) kind: DatagramKind,
    published: bool,
    answered: bool,
    /// Published ports are bounded by themselves.
    _permit: Option<Permit>,
}

impl DatagramFlow {
    fn idle(&self) -> Option<Duration> {
        match self.kind {
            _ if self.published => None,
            DatagramKind::Echo => Some(ECHO_IDLE),
            DatagramKind::Udp if self.answered => Some(UDP_IDLE_ANSWERED),
            DatagramKind::Udp => Some(UDP_IDLE),
        }
    }
}

/// The key of the one flow that everything from `src` shares.
fn mapping(protocol: Protocol, src: SocketAddr) -> FlowKey {
    let any = match src.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    FlowKey {
        protocol,
        src,
        dst: SocketAddr::new(any, 0),
    }
}

impl Engine {
    pub(super) fn handle_datagram<'p>(
        &mut self,
        packet: &Packet<'_>,
        transport: &Transport<'p>,
        segment: Option<u16>,
        now: Instant,
    ) -> Effect<'p> {
        match transport {
            Transport::Udp(udp) => {
                let src = SocketAddr::new(packet.src(), udp.source_port());
                let dst = SocketAddr::new(packet.dst(), udp.destination_port());
                let outgoing = Datagram {
                    kind: DatagramKind::Udp,
                    src,
                    dst,
                    sequence: 0,
                };
                self.handle_outgoing(packet, outgoing, udp.payload(), segment, now)
            }
            Transport::Echo(echo) if echo.request => {
                let src = SocketAddr::new(packet.src(), echo.identifier);
                let dst = SocketAddr::new(packet.dst(), 0);
                if dst.ip() == self.router.gateway(dst.ip()) {
                    self.answer_echo(src.ip(), dst.ip(), echo);
                    return Effect::None;
                }
                let sequence = echo.sequence;
                let outgoing = Datagram {
                    kind: DatagramKind::Echo,
                    src,
                    dst,
                    sequence,
                };
                self.handle_outgoing(packet, outgoing, echo.payload, None, now)
            }
            Transport::Echo(_) | Transport::Icmp { .. } => {
                self.dropped(DropReason::UnsolicitedIcmp)
            }
            Transport::Other(_) => {
                // Protocol unreachable (3/2); unrecognized next header, at its place in the
                // header (4/1).
                let error = match packet.src() {
                    IpAddr::V4(_) => IcmpError::Other(3, 2, 0),
                    IpAddr::V6(_) => IcmpError::Other(4, 1, 6),
                };
                self.refuse(packet, DropReason::Protocol, error);
                Effect::None
            }
            Transport::Tcp(_) | Transport::Fragment(_) => self.dropped(DropReason::Fragment),
        }
    }

    fn handle_outgoing<'p>(
        &mut self,
        packet: &Packet<'_>,
        datagram: Datagram,
        payload: &'p [u8],
        segment: Option<u16>,
        now: Instant,
    ) -> Effect<'p> {
        let Datagram {
            kind,
            src,
            dst,
            sequence,
        } = datagram;
        // Of many datagrams the first stands for all where they are refused.
        let first = segment.map_or(payload, |size| &payload[..usize::from(size)]);
        let protocol = datagram.protocol();
        let to = match self.router.route(protocol, dst, self.seconds(now)) {
            Route::Host(to) => to,
            Route::Gateway if dst.port() == DNS_PORT => {
                return Effect::Dns {
                    client: src,
                    gateway: dst,
                    query: Cow::Borrowed(payload),
                    segment,
                };
            }
            Route::Gateway => {
                self.quote_error(
                    self.router.gateway(dst.ip()),
                    IcmpError::PortUnreachable,
                    datagram,
                    first,
                );
                return Effect::None;
            }
            Route::Denied(reason) => {
                self.counters.drop(reason);
                tracing::debug!(reason = reason.name(), %src, %dst, "refused");
                self.quote_error(self.router.gateway(dst.ip()), DENIED, datagram, first);
                return Effect::None;
            }
        };
        let key = mapping(protocol, src);
        let (flow, is_new) = match self.table.get(&key) {
            Some(&flow) => (flow, false),
            None => {
                let (permit, mapping) = match self.admit_mapping() {
                    Ok(permits) => permits,
                    Err(reason) => {
                        self.limit_reached(reason, now);
                        self.quote_error(self.router.gateway(dst.ip()), DENIED, datagram, first);
                        return Effect::None;
                    }
                };
                let flow = DatagramFlow {
                    kind,
                    published: false,
                    answered: false,
                    _permit: Some(mapping),
                };
                (self.insert(key, Flow::Datagram(flow), permit), true)
            }
        };
        self.keep(flow, now, false);
        Effect::Datagram(Outgoing {
            flow,
            is_new,
            kind,
            to,
            hop_limit: packet.hop_limit().saturating_sub(1).max(1),
            // What came in parts may go in parts.
            dont_fragment: packet.dont_fragment()
                && !matches!(packet.transport(), Transport::Fragment(_)),
            sequence,
            payload: Cow::Borrowed(payload),
            segment,
        })
    }

    fn admit_mapping(&self) -> Result<(Permit, Permit), DropReason> {
        let shares = &self.allotment.shares;
        let mapping = shares.mappings.take().ok_or(DropReason::MappingLimit)?;
        let flow = shares.flows.take().ok_or(DropReason::FlowLimit)?;
        Ok((flow, mapping))
    }

    /// Begins a mapping for a published UDP port of the enclave, in the family of `like`. `None`
    /// if the port has one already, or there is no flow for it.
    pub fn publish_udp(&mut self, port: u16, like: IpAddr) -> Option<FlowId> {
        let enclave = SocketAddr::new(self.router.enclave(like), port);
        let key = mapping(Protocol::Udp, enclave);
        if self.table.contains_key(&key) {
            return None;
        }
        let flow = DatagramFlow {
            kind: DatagramKind::Udp,
            published: true,
            answered: true,
            _permit: None,
        };
        let permit = self.allotment.shares.flows.take()?;
        Some(self.insert(key, Flow::Datagram(flow), permit))
    }

    /// The mapping of a UDP port of the enclave, in the family of `like`.
    pub fn mapping(&self, port: u16, like: IpAddr) -> Option<FlowId> {
        let enclave = SocketAddr::new(self.router.enclave(like), port);
        self.table.get(&mapping(Protocol::Udp, enclave)).copied()
    }

    /// Restarts the idle time of a datagram flow.
    pub(super) fn keep(&mut self, id: FlowId, now: Instant, answered: bool) {
        let entry = &mut self.flows[id.index()];
        let Flow::Datagram(flow) = &mut entry.flow else {
            return;
        };
        flow.answered |= answered;
        entry.deadline.set(flow.idle().map(|idle| now + idle));
        self.timers.arm(id, &mut entry.deadline);
    }

    /// Tells the enclave that what it sent by flow `id` to `to` met `error` at `from`.
    /// `payload` is as much of the datagram as is known, after the ICMP header for echo;
    /// `sequence` is that of the echo request.
    pub fn datagram_error(
        &mut self,
        id: FlowId,
        from: Option<IpAddr>,
        to: SocketAddr,
        error: IcmpError,
        sequence: u16,
        payload: &[u8],
    ) {
        let to = SocketAddr::new(self.router.as_seen_by_enclave(to.ip()), to.port());
        let Some(entry) = self.entry(id) else { return };
        let src = entry.key.src;
        let Flow::Datagram(DatagramFlow { kind, .. }) = entry.flow else {
            return;
        };
        if to.is_ipv6() != src.is_ipv6() {
            return;
        }
        let from = from.map(|from| self.router.as_seen_by_enclave(from));
        let from = match from {
            // A router that happens to have the enclave's address.
            Some(from) if from == src.ip() => self.router.gateway(src.ip()),
            Some(from) => from,
            None => self.router.gateway(src.ip()),
        };
        if from.is_ipv6() != src.is_ipv6() || !self.router.may_be_a_host(from) {
            return;
        }
        self.quote_error(
            from,
            error,
            Datagram {
                kind,
                src,
                dst: to,
                sequence,
            },
            payload,
        );
    }

    fn quote_error(&mut self, from: IpAddr, error: IcmpError, datagram: Datagram, payload: &[u8]) {
        let Datagram {
            kind,
            src,
            dst,
            sequence,
        } = datagram;
        let quote = match kind {
            DatagramKind::Udp => build::quote_udp(src, dst, payload, payload.len()),
            DatagramKind::Echo => {
                let header = EchoHeader {
                    request: true,
                    identifier: src.port(),
                    sequence,
                };
                build::quote_echo(src.ip(), dst.ip(), header, payload)
            }
        };
        self.send_answer(|out| build::icmp_error(out, from, src.ip(), error, &quote));
    }

    fn answer_echo(&mut self, enclave: IpAddr, gateway: IpAddr, echo: &Echo<'_>) {
        let header = EchoHeader {
            request: false,
            identifier: echo.identifier,
            sequence: echo.sequence,
        };
        let headroom = build::echo_headroom(gateway.is_ipv6());
        self.send_packet(|out| {
            out[headroom..headroom + echo.payload.len()].copy_from_slice(echo.payload);
            build::echo(out, gateway, enclave, HOP_LIMIT, header, echo.payload.len())
        });
    }

    /// Sends the answer to an [`Effect::Dns`]. False when the link is full.
    pub fn dns_answer(&mut self, gateway: SocketAddr, client: SocketAddr, message: &[u8]) -> bool {
        let headroom = build::udp_headroom(client.is_ipv6());
        let message = &message[..message.len().min(build::MAX_UDP_PAYLOAD)];
        self.seal_run();
        let Some(space) = self.link.queue.packet_space() else {
            self.counters.drop(DropReason::LinkFull);
            return false;
        };
        let start = VnetHeader::LEN + headroom;
        space[start..start + message.len()].copy_from_slice(message);
        self.queue_udp(gateway, client, HOP_LIMIT, message.len());
        true
    }
}

/// Who sends what to whom.
#[derive(Clone, Copy, Debug)]
struct Datagram {
    kind: DatagramKind,
    /// The port is the identifier of an echo request.
    src: SocketAddr,
    /// The port is 0 for an echo request.
    dst: SocketAddr,
    sequence: u16,
}

impl Datagram {
    fn protocol(&self) -> Protocol {
        match self.kind {
            DatagramKind::Udp => Protocol::Udp,
            DatagramKind::Echo => Protocol::Icmp,
        }
    }
}
