//! UDP, echo and DNS: what crosses the world as single datagrams.
//!
//! The model is short, because the link loses and reorders nothing: what a program in the enclave
//! sends asks for exactly one effect, with the same bytes, for the same peer, on the one flow of its
//! port; and what the engine took for the enclave is received there once, whole, in that order, by
//! whom it was for. A flow ends when it was idle for as long as its kind says, not earlier and not
//! later.

mod enclave;

use crate::random::Random;
use crate::stream::Stream;
use crate::world::{GATEWAY4, GATEWAY6, Role, World, enclave_of};
use host_netd::engine::drops::DropReason;
use host_netd::engine::{DatagramKind, Effect, FlowId, Outgoing, Received};
use host_netd::limits::{DATAGRAM_QUANTUM, ECHO_IDLE, UDP_IDLE, UDP_IDLE_ANSWERED};
use netd_proto::build::IcmpError;
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{Packet, Transport};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Something that the enclave is to receive next. The port of an echo's address is its identifier.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Expected {
    Udp {
        from: SocketAddr,
        to: SocketAddr,
        payload: Vec<u8>,
    },
    Echo {
        from: IpAddr,
        to: SocketAddr,
        sequence: u16,
        payload: Vec<u8>,
    },
    Error {
        what: (u8, u8),
        about: (SocketAddr, SocketAddr),
    },
}

impl std::fmt::Debug for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = |payload: &[u8]| (payload.len(), payload[..payload.len().min(8)].to_vec());
        match self {
            Expected::Udp { from, to, payload } => {
                write!(f, "UDP {from} > {to} {:?}", bytes(payload))
            }
            Expected::Echo {
                from,
                to,
                sequence,
                payload,
            } => write!(f, "echo {from} > {to} {sequence} {:?}", bytes(payload)),
            Expected::Error { what, about } => write!(f, "{what:?} about {about:?}"),
        }
    }
}

/// A datagram at a host socket.
#[derive(Clone, Debug)]
struct Arrived {
    from: SocketAddr,
    /// For echo, the whole message.
    bytes: Vec<u8>,
    segment: Option<u16>,
}

/// A flow and its host socket.
#[derive(Debug)]
pub(crate) struct Mapping {
    kind: DatagramKind,
    enclave: SocketAddr,
    id: FlowId,
    published: bool,
    answered: bool,
    used: Instant,
    arrived: VecDeque<Arrived>,
    /// The data loop was told of what arrived.
    told: bool,
    /// The last request, for its reply or an error.
    last: Option<(SocketAddr, u16, Vec<u8>)>,
}

impl Mapping {
    fn idle(&self) -> Option<Duration> {
        match self.kind {
            _ if self.published => None,
            DatagramKind::Echo => Some(ECHO_IDLE),
            DatagramKind::Udp if self.answered => Some(UDP_IDLE_ANSWERED),
            DatagramKind::Udp => Some(UDP_IDLE),
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.idle().is_some_and(|idle| self.used + idle <= now)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Datagrams {
    pub(crate) mappings: Vec<Option<Mapping>>,
    expected: VecDeque<Expected>,
    /// Who asked which of the gateway's addresses.
    queries: Vec<(SocketAddr, SocketAddr)>,
}

/// Where a program may send to: servers, the gateway, what is denied.
fn destination(random: &mut Random, ipv6: bool) -> SocketAddr {
    let last = random.within(1..=2) as u16;
    let server: IpAddr = match ipv6 {
        false => Ipv4Addr::new(192, 0, 2, last as u8).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into(),
    };
    let (gateway, denied): (IpAddr, IpAddr) = match ipv6 {
        false => (GATEWAY4.into(), Ipv4Addr::new(169, 254, 169, 254).into()),
        true => (
            GATEWAY6.into(),
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
        ),
    };
    match random.below(12) {
        0 | 1 => SocketAddr::new(gateway, 53),
        2 => SocketAddr::new(gateway, 123),
        3 => SocketAddr::new(denied, 80),
        _ => SocketAddr::new(server, random.pick(&[443, 4433])),
    }
}

/// How a destination is to be treated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    Dns,
    Closed,
    Denied,
}

fn way(to: SocketAddr) -> Way {
    let gateway = [IpAddr::from(GATEWAY4), GATEWAY6.into()].contains(&to.ip());
    match to.port() {
        53 if gateway => Way::Dns,
        _ if gateway => Way::Closed,
        80 => Way::Denied,
        _ => Way::Out,
    }
}

fn told_as(error: IcmpError, ipv6: bool) -> (u8, u8) {
    match (error, ipv6) {
        (IcmpError::PortUnreachable, false) => (3, 3),
        (IcmpError::PortUnreachable, true) => (1, 4),
        (IcmpError::HostUnreachable, false) => (3, 1),
        (IcmpError::HostUnreachable, true) => (1, 3),
        (IcmpError::PacketTooBig { .. }, false) => (3, 4),
        (IcmpError::PacketTooBig { .. }, true) => (2, 0),
        (IcmpError::Prohibited, false) => (3, 13),
        (IcmpError::Prohibited, true) => (1, 1),
        other => panic!("the bed knows no {other:?}"),
    }
}

fn payload(random: &mut Random, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Stream::new(random).fill(random.any() >> 16, &mut bytes);
    bytes
}

impl World {
    /// The engine's answer to a datagram or echo request of the enclave.
    pub(crate) fn judge(&mut self, packet: &Packet<'_>, vnet: &VnetHeader, effect: Effect<'_>) {
        let sent = match packet.transport() {
            Transport::Udp(udp) => Sent {
                kind: DatagramKind::Udp,
                from: SocketAddr::new(packet.src(), udp.source_port()),
                to: SocketAddr::new(packet.dst(), udp.destination_port()),
                sequence: 0,
                payload: udp.payload(),
                segment: vnet.datagram_size(),
            },
            Transport::Echo(echo) => Sent {
                kind: DatagramKind::Echo,
                from: SocketAddr::new(packet.src(), echo.identifier),
                to: SocketAddr::new(packet.dst(), 0),
                sequence: echo.sequence,
                payload: echo.payload,
                segment: None,
            },
            other => panic!("the bed sends no {other:?}"),
        };
        match (effect, sent.way()) {
            (
                Effect::Dns {
                    client,
                    gateway,
                    query,
                    segment,
                },
                Way::Dns,
            ) => {
                assert_eq!((client, gateway), (sent.from, sent.to));
                assert_eq!((&query[..], segment), (sent.payload, sent.segment));
                self.datagrams.queries.push((client, gateway));
            }
            (Effect::Datagram(out), Way::Out) => self.judge_outgoing(&sent, &out),
            (Effect::None, Way::Out) => {
                let full = self.engine.flow_count() >= self.terms.limits.flows;
                let known = self.mapping_of(sent.kind, sent.from).is_some();
                assert!(full && !known, "{sent:?} goes nowhere");
                self.expect_error(&sent, IcmpError::Prohibited);
            }
            (Effect::None, Way::Closed) if sent.kind == DatagramKind::Udp => {
                self.expect_error(&sent, IcmpError::PortUnreachable);
            }
            (Effect::None, Way::Closed) => self.expect(Expected::Echo {
                from: sent.to.ip(),
                to: sent.from,
                sequence: sent.sequence,
                payload: sent.payload.to_vec(),
            }),
            (Effect::None, Way::Denied) => self.expect_error(&sent, IcmpError::Prohibited),
            (effect, _) => panic!("{sent:?} is answered by {effect:?}"),
        }
    }

    fn judge_outgoing(&mut self, sent: &Sent<'_>, out: &Outgoing<'_>) {
        assert_eq!((out.kind, out.to), (sent.kind, sent.to), "{sent:?}");
        assert_eq!((out.sequence, out.segment), (sent.sequence, sent.segment));
        assert_eq!((&out.payload[..], out.hop_limit), (sent.payload, 63));
        let known = self.mapping_of(sent.kind, sent.from);
        assert_eq!(out.is_new, known.is_none(), "{sent:?}");
        let index = known.unwrap_or_else(|| self.add_mapping(sent.kind, sent.from, out.flow));
        let now = self.now;
        let mapping = self.mapping(index);
        assert_eq!(mapping.id, out.flow, "{sent:?} on another's flow");
        mapping.used = now;
        mapping.last = Some((sent.to, sent.sequence, sent.payload.to_vec()));
    }

    fn mapping_of(&self, kind: DatagramKind, from: SocketAddr) -> Option<usize> {
        self.datagrams.mappings.iter().position(|mapping| {
            (mapping.as_ref()).is_some_and(|one| (one.kind, one.enclave) == (kind, from))
        })
    }

    fn mapping(&mut self, index: usize) -> &mut Mapping {
        self.datagrams.mappings[index].as_mut().expect("it is open")
    }

    fn add_mapping(&mut self, kind: DatagramKind, enclave: SocketAddr, id: FlowId) -> usize {
        let index = self.datagrams.mappings.len();
        self.datagrams.mappings.push(Some(Mapping {
            kind,
            enclave,
            id,
            published: false,
            answered: false,
            used: self.now,
            arrived: VecDeque::new(),
            told: false,
            last: None,
        }));
        self.place(id, Role::Datagram(index));
        index
    }

    /// A UDP port of the enclave is published, from the start.
    pub(crate) fn publish_udp(&mut self, port: u16) {
        for like in [
            SocketAddr::from(([192, 0, 2, 1], 0)),
            SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 0)),
        ] {
            let id = self.engine.publish_udp(port, like.ip()).expect("free");
            let index = self.add_mapping(
                DatagramKind::Udp,
                SocketAddr::new(enclave_of(like), port),
                id,
            );
            self.mapping(index).published = true;
            assert_eq!(self.engine.publish_udp(port, like.ip()), None, "a second");
        }
    }

    // The outside.

    fn any_mapping(&mut self) -> Option<usize> {
        let open: Vec<usize> = (self.datagrams.mappings.iter().enumerate())
            .filter(|(_, mapping)| mapping.is_some())
            .map(|(index, _)| index)
            .collect();
        (!open.is_empty()).then(|| self.random.pick(&open))
    }

    /// Something arrives at a host socket.
    pub(crate) fn outside_sends(&mut self) {
        let Some(index) = self.any_mapping() else {
            return;
        };
        let gathers = self.engine.takes_super_datagrams();
        let random = &mut self.random;
        let mapping = self.datagrams.mappings[index].as_mut().expect("open");
        let ipv6 = mapping.enclave.is_ipv6();
        match (mapping.kind, &mapping.last) {
            (DatagramKind::Udp, _) => {
                let from = std::iter::repeat_with(|| destination(random, ipv6))
                    .find(|from| way(*from) == Way::Out)
                    .expect("most are");
                // Of one size often, so that they are gathered.
                let size = random.pick(&[0, 1, 700, 1200, 1200, 1200, 9000]);
                for _ in 0..random.magnitude(1..=40) {
                    let many = gathers && size > 0 && random.percent(10);
                    let count = if many { random.within(2..=5) } else { 1 };
                    let cut = if random.percent(20) {
                        random.below(size + 1)
                    } else {
                        0
                    };
                    let length = size * count - cut;
                    let segment = (many && length > size).then_some(size as u16);
                    mapping.arrived.push_back(Arrived {
                        from,
                        bytes: payload(random, length),
                        segment,
                    });
                }
            }
            (DatagramKind::Echo, Some((to, sequence, request))) => {
                let reply = if ipv6 { 129 } else { 0 };
                let [high, low] = sequence.to_be_bytes();
                // The kernel's own identifier, which the enclave does not know.
                let mut bytes = vec![reply, 0, 0, 0, 77, 78, high, low];
                bytes.extend(request);
                let from = *to;
                let segment = None;
                mapping.arrived.push_back(Arrived {
                    from,
                    bytes,
                    segment,
                });
            }
            (DatagramKind::Echo, None) => {}
        }
    }

    /// A network outside says why a datagram did not arrive.
    pub(crate) fn outside_complains(&mut self) {
        let Some(index) = self.any_mapping() else {
            return;
        };
        let error = self.random.pick(&[
            IcmpError::PortUnreachable,
            IcmpError::HostUnreachable,
            IcmpError::PacketTooBig { mtu: 1300 },
        ]);
        let mapping = self.mapping(index);
        let (id, kind, from) = (mapping.id, mapping.kind, mapping.enclave);
        let Some((to, sequence, payload)) = mapping.last.clone() else {
            return;
        };
        let before = self.link_full();
        let quoted = &payload[..payload.len().min(500)];
        self.engine
            .datagram_error(id, None, to, error, sequence, quoted);
        let sent = Sent {
            kind,
            from,
            to,
            sequence,
            payload: &payload,
            segment: None,
        };
        if self.link_full() == before {
            self.expect_error(&sent, error);
        }
    }

    /// A DNS answer is ready.
    pub(crate) fn dns_answers(&mut self) {
        let count = self.datagrams.queries.len();
        // Answers wait while the link is full.
        if count == 0 || !self.engine.queue().has_room() {
            return;
        }
        let which = self.random.below(count);
        let (client, gateway) = self.datagrams.queries.swap_remove(which);
        let length = self.random.within(12..=1232);
        let message = payload(&mut self.random, length);
        if self.engine.dns_answer(gateway, client, &message) {
            self.expect(Expected::Udp {
                from: gateway,
                to: client,
                payload: message,
            });
        }
    }

    // The data loop.

    /// The data loop hears that something arrived.
    pub(crate) fn poll_datagrams(&mut self) {
        let mut due = Vec::new();
        for mapping in self.datagrams.mappings.iter_mut().flatten() {
            if !mapping.arrived.is_empty() && !mapping.told {
                mapping.told = true;
                due.push(mapping.id);
            }
        }
        for id in due {
            self.enqueue(id);
        }
    }

    /// A flow's turn: passes on what arrived. True if there may be more.
    pub(crate) fn receive_datagrams(&mut self, index: usize) -> bool {
        let id = self.mapping(index).id;
        let more = self.receive_some(index, id);
        self.engine.seal_run();
        more
    }

    fn receive_some(&mut self, index: usize, id: FlowId) -> bool {
        for _ in 0..DATAGRAM_QUANTUM {
            let Some(space) = self.engine.datagram_space(id) else {
                return true;
            };
            let mapping = self.datagrams.mappings[index].as_mut().expect("open");
            let Some(Arrived {
                from,
                bytes,
                segment,
            }) = mapping.arrived.pop_front()
            else {
                mapping.told = false;
                return false;
            };
            let (here, there) = bytes.split_at(bytes.len().min(space.place.len()));
            space.place[..here.len()].copy_from_slice(here);
            space.spill[..there.len()].copy_from_slice(there);
            mapping.used = self.now;
            mapping.answered = true;
            let (kind, to) = (mapping.kind, mapping.enclave);
            let received = Received {
                from,
                length: bytes.len(),
                segment,
                hop_limit: None,
            };
            self.engine.commit_datagram(id, received, self.now);
            match kind {
                DatagramKind::Echo => self.expect(Expected::Echo {
                    from: from.ip(),
                    to,
                    sequence: u16::from_be_bytes([bytes[6], bytes[7]]),
                    payload: bytes[8..].to_vec(),
                }),
                DatagramKind::Udp if bytes.is_empty() => self.expect(Expected::Udp {
                    from,
                    to,
                    payload: bytes,
                }),
                DatagramKind::Udp => {
                    let size = segment.map_or(bytes.len(), usize::from);
                    for part in bytes.chunks(size) {
                        let payload = part.to_vec();
                        self.expect(Expected::Udp { from, to, payload });
                    }
                }
            }
        }
        true
    }

    /// The engine says that a flow was idle too long.
    pub(crate) fn forget_datagrams(&mut self, index: usize) {
        let mapping = self.datagrams.mappings[index].take().expect("open");
        assert!(
            mapping.is_due(self.now),
            "ended {:?} after its last use: {mapping:?}",
            self.now - mapping.used
        );
    }

    /// No flow outlives its idle time once timers were looked at.
    pub(crate) fn assert_none_idle(&self) {
        let mut open = self.datagrams.mappings.iter().flatten();
        let late = open.find(|mapping| mapping.is_due(self.now));
        assert!(late.is_none(), "outlives its idle time: {late:?}");
    }

    /// Whether host sockets hold something that was not passed on.
    pub(crate) fn datagrams_wait(&self) -> bool {
        let mut open = self.datagrams.mappings.iter().flatten();
        open.any(|mapping| !mapping.arrived.is_empty())
    }

    /// What the engine took for the enclave reached it.
    pub(crate) fn assert_all_received(&self) {
        let missing = &self.datagrams.expected;
        assert!(missing.is_empty(), "never came: {missing:?}");
    }

    // The enclave's kernel.

    fn link_full(&mut self) -> u64 {
        self.engine.counters().drops(DropReason::LinkFull)
    }

    fn expect(&mut self, expected: Expected) {
        self.datagrams.expected.push_back(expected);
    }

    fn expect_error(&mut self, sent: &Sent<'_>, error: IcmpError) {
        let what = told_as(error, sent.from.is_ipv6());
        let about = (sent.from, sent.to);
        self.expect(Expected::Error { what, about });
    }

    /// Takes back what was expected, because there was no room for it on the link.
    pub(crate) fn expect_no_more_than(&mut self, count: usize) {
        self.datagrams.expected.truncate(count);
    }

    pub(crate) fn expected_count(&self) -> usize {
        self.datagrams.expected.len()
    }

    fn sees(&mut self, seen: Expected) {
        let expected = self.datagrams.expected.pop_front();
        assert_eq!(Some(seen), expected, "seen and expected");
    }
}

/// What a program in the enclave sent.
#[derive(Clone, Copy)]
struct Sent<'a> {
    kind: DatagramKind,
    from: SocketAddr,
    to: SocketAddr,
    sequence: u16,
    payload: &'a [u8],
    segment: Option<u16>,
}

impl Sent<'_> {
    fn way(&self) -> Way {
        let like = |port| SocketAddr::new(self.to.ip(), port);
        match self.kind {
            DatagramKind::Udp => way(self.to),
            // An echo request has no port: the gateway answers, and the denied stays denied.
            DatagramKind::Echo if way(like(1)) == Way::Closed => Way::Closed,
            DatagramKind::Echo if is_link_local(self.to.ip()) => Way::Denied,
            DatagramKind::Echo => Way::Out,
        }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

impl std::fmt::Debug for Sent<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} {} > {} of {} bytes",
            self.kind,
            self.from,
            self.to,
            self.payload.len()
        )
    }
}
