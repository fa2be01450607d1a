//! The guard, between programs in the enclave that do as they like and a hostile host.
//!
//! An input is a list of operations: packets from the tun, packets from the link (as an honest host
//! would send them, damaged, or any bytes), DNS answers, and time. A model beside the guard knows
//! what left and which names were told; whatever the guard lets in must be what the model, the
//! configuration and the kernel behind it permit.

use super::craft::{ACK, SYN, Segment, damage, echo, fragment, frame, icmp, ip, tcp, udp};
use super::{Input, shape};
use enclave_netd::fuzzing::{Entered, Gate};
use netd_proto::build::{EchoHeader, MAX_ICMP_ERROR, tcp_reset};
use netd_proto::handshake::Features;
use netd_proto::packet::{FlowKey, Packet, Protocol, Transport};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

/// Operations of one input: more makes a run slow and finds no more.
const STEPS: usize = 500;

/// Ports that the configurations below publish.
const TCP_PORT: u16 = 443;
const UDP_PORT: u16 = 5353;

const NAME: &str = "a.example";

/// What is configured: without rules, closed but for one address, closed but for one name.
const CONFIGS: [&str; 3] = [
    "publish = ['443', '5353/udp']",
    "publish = ['443', '5353/udp']\nrules = ['allow tcp 192.0.2.1:443', 'deny *']",
    "publish = ['443', '5353/udp']\nrules = ['allow a.example', 'deny *']",
];

/// An input drives a guard; see the module's text.
pub fn guard(input: &[u8]) {
    let mut input = Input::new(input);
    let mut world = World::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
}

struct World {
    gate: Gate,
    config: usize,
    features: Features,
    now: u32,
    /// When each port last sent a datagram.
    sent: HashMap<(bool, u16), u32>,
    /// Who sent to the published UDP port.
    callers: HashSet<SocketAddr>,
    /// Addresses that any answer of the gateway held.
    told: HashSet<IpAddr>,
    refused: u64,
}

impl World {
    fn new(input: &mut Input<'_>) -> World {
        let config = input.below(CONFIGS.len());
        let features = Features(u32::from(input.byte()) & Features::ALL.0);
        let mut gate = Gate::new(CONFIGS[config]).expect("a valid configuration");
        gate.agree(features);
        World {
            gate,
            config,
            features,
            now: 1000,
            sent: HashMap::new(),
            callers: HashSet::new(),
            told: HashSet::new(),
            refused: 0,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 12 {
            0 | 1 => {
                let packet = packet(input, true);
                self.out(&packet);
            }
            2..=6 => {
                let mut frame = frame(packet(input, false), shape::offload(input));
                if input.byte() >= 0xe0 {
                    damage(&mut frame, input);
                }
                self.enter(&frame);
            }
            7 => {
                let n = usize::from(input.byte());
                let frame = input.take(n).to_vec();
                self.enter(&frame);
            }
            8 | 9 => self.answer(input),
            10 => self.now += u32::from(input.byte()),
            _ => {
                self.features = Features(u32::from(input.byte()) & Features::ALL.0);
                self.gate.agree(self.features);
            }
        }
    }

    /// A packet from the tun.
    fn out(&mut self, bytes: &[u8]) {
        let Ok(packet) = Packet::parse(bytes) else {
            return;
        };
        let leaves = self.gate.leaves(&packet, self.now);
        self.refused += u64::from(!leaves);
        assert_eq!(self.gate.refused(), self.refused, "not counted");
        if !leaves {
            return;
        }
        let (src, dst) = (packet.src(), packet.dst());
        assert_eq!(src, enclave(src), "leaves with another's address");
        assert!(dst != enclave(dst) && is_unicast(dst), "leaves to {dst}");
        if let Transport::Udp(udp) = packet.transport() {
            let port = (packet.is_ipv6(), udp.source_port());
            self.sent.insert(port, self.now);
        }
        if let Transport::Fragment(part) = packet.transport()
            && part.offset == 0
            && let [a, b, ..] = part.payload
        {
            let port = u16::from_be_bytes([*a, *b]);
            self.sent.insert((packet.is_ipv6(), port), self.now);
        }
        if let Some(key) = packet.flow_key() {
            assert!(self.may_begin(&packet, &key), "{key} leaves");
        }
    }

    /// Whether the configuration lets this packet leave.
    fn may_begin(&self, packet: &Packet<'_>, key: &FlowKey) -> bool {
        let (to, port) = (key.dst.ip(), key.dst.port());
        let opens = match packet.transport() {
            Transport::Tcp(tcp) => tcp.syn() && !tcp.ack(),
            _ => true,
        };
        let is_gateway = to == gateway(to) && (port == 53 || key.protocol == Protocol::Icmp);
        let answers = key.protocol == Protocol::Udp
            && key.src.port() == UDP_PORT
            && self.callers.contains(&key.dst);
        !opens
            || is_gateway
            || answers
            || match self.config {
                0 => true,
                1 => {
                    let permitted = SocketAddr::from(([192, 0, 2, 1], 443));
                    key.protocol == Protocol::Tcp && key.dst == permitted
                }
                _ => self.told.contains(&to),
            }
    }

    /// A packet from the link.
    fn enter(&mut self, frame: &[u8]) {
        match self.gate.enters(frame, self.now) {
            Entered::Dropped => self.refused += 1,
            Entered::Reset(packet) => {
                self.refused += 1;
                let Transport::Tcp(tcp) = packet.transport() else {
                    panic!("a reset of what is not TCP");
                };
                assert!(tcp.syn() && !tcp.ack() && tcp.destination_port() != TCP_PORT);
                let mut out = [0; MAX_ICMP_ERROR];
                let answered = tcp_reset(&mut out, &packet).is_some();
                assert!(answered || tcp.rst());
            }
            Entered::Delivered(vnet, packet) => {
                vnet.check(&packet, self.features).expect("as agreed");
                let (src, dst) = (packet.src(), packet.dst());
                assert_eq!(dst, enclave(dst), "for someone else");
                assert!(src != enclave(src) && is_unicast(src), "from {src}");
                let header = if packet.is_ipv6() { 40 } else { 20 };
                assert_eq!(packet.transport_offset(), header, "options");
                self.may_enter(&packet);
            }
        }
        assert_eq!(self.gate.refused(), self.refused, "not counted");
    }

    fn may_enter(&mut self, packet: &Packet<'_>) {
        match packet.transport() {
            Transport::Tcp(tcp) => {
                let opens = tcp.syn() && !tcp.ack();
                assert!(!opens || tcp.destination_port() == TCP_PORT);
            }
            Transport::Udp(udp) => {
                let port = udp.destination_port();
                let from = SocketAddr::new(packet.src(), udp.source_port());
                if port == UDP_PORT {
                    self.callers.insert(from);
                } else {
                    let last = self.sent.get(&(packet.is_ipv6(), port));
                    assert!(last.is_some_and(|last| self.now - last <= 180), "{port}");
                }
                if from == SocketAddr::new(gateway(packet.src()), 53) {
                    self.told.extend(addresses_in(udp.payload()));
                }
            }
            Transport::Echo(echo) => assert!(!echo.request),
            Transport::Icmp { kind, .. } => {
                let errors: &[u8] = if packet.is_ipv6() {
                    &[1, 2, 3, 4]
                } else {
                    &[3, 11, 12]
                };
                assert!(errors.contains(kind), "ICMP type {kind}");
            }
            Transport::Fragment(_) | Transport::Other(_) => panic!("{packet:?}"),
        }
    }

    /// A datagram of the gateway's resolver, to a port that asked.
    fn answer(&mut self, input: &mut Input<'_>) {
        let family = if input.flag() { PEER[1] } else { PEER[0] };
        let like: IpAddr = family.parse().expect("an address");
        let resolver = SocketAddr::new(gateway(like), 53);
        let client = SocketAddr::new(enclave(like), 4000);
        self.out(&udp((client, resolver), 64, b"question"));
        let message = if input.flag() {
            let mut message = vec![0, 0, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in NAME.split('.') {
                message.push(u8::try_from(label.len()).expect("short"));
                message.extend(label.bytes());
            }
            message.extend([0, 0, 1, 0, 1]);
            let records = input.below(5);
            message[7] = u8::try_from(records).expect("few");
            for _ in 0..records {
                let address = address(input, false);
                message.extend([0xc0, 12]);
                let (kind, data) = match address {
                    IpAddr::V4(v4) => (1, v4.octets().to_vec()),
                    IpAddr::V6(v6) => (28, v6.octets().to_vec()),
                };
                message.extend([0, kind, 0, 1]);
                message.extend(input.long().to_be_bytes());
                message.extend([0, u8::try_from(data.len()).expect("short")]);
                message.extend(data);
            }
            message
        } else {
            let n = usize::from(input.byte());
            input.take(n).to_vec()
        };
        let mut frame = frame(udp((resolver, client), 64, &message), shape::offload(input));
        if input.byte() >= 0xe0 {
            damage(&mut frame, input);
        }
        self.enter(&frame);
    }
}

/// Whatever four or sixteen bytes of a message may be addresses to a reader of it.
fn addresses_in(message: &[u8]) -> impl Iterator<Item = IpAddr> {
    let v4 = message
        .windows(4)
        .map(|b| IpAddr::from(<[u8; 4]>::try_from(b).expect("four")));
    let v6 = message
        .windows(16)
        .map(|b| IpAddr::from(<[u8; 16]>::try_from(b).expect("sixteen")));
    v4.chain(v6)
}

const US: [&str; 2] = ["100.64.0.2", "fd00:6e65:7464::2"];
const PEER: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

fn enclave(like: IpAddr) -> IpAddr {
    let ours = if like.is_ipv4() { US[0] } else { US[1] };
    ours.parse().expect("an address")
}

fn gateway(like: IpAddr) -> IpAddr {
    let text = if like.is_ipv4() {
        "100.64.0.1"
    } else {
        "fd00:6e65:7464::1"
    };
    text.parse().expect("an address")
}

/// What may stand in a packet's address on the other side of the enclave's (RFC 1122, 3.2.1.3;
/// RFC 4291, 2.4 and 2.7).
fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            first != 0 && first != 127 && first < 224
        }
        IpAddr::V6(v6) => {
            let top = v6.segments()[0];
            let low = u128::from(v6) <= 1;
            !low && top < 0xff00 && top & 0xffc0 != 0xfe80 && v6.to_ipv4_mapped().is_none()
        }
    }
}

/// An address outside, now and then one that cannot be.
fn address(input: &mut Input<'_>, ipv6: bool) -> IpAddr {
    const V4: [&str; 12] = [
        PEER[0],
        PEER[0],
        "192.0.2.2",
        "100.64.0.1",
        "100.64.0.1",
        "100.64.0.2",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "240.0.0.1",
        "169.254.169.254",
    ];
    const V6: [&str; 12] = [
        PEER[1],
        PEER[1],
        "2001:db8::2",
        "fd00:6e65:7464::1",
        "fd00:6e65:7464::1",
        "fd00:6e65:7464::2",
        "::1",
        "ff02::1",
        "fe80::1",
        "::",
        "::ffff:192.0.2.1",
        "64:ff9b::1",
    ];
    let choices = if ipv6 || input.byte() & 7 == 7 {
        V6
    } else {
        V4
    };
    input.pick(&choices).parse().expect("an address")
}

/// A packet out of the enclave or into it, with the addresses of its direction in most cases.
fn packet(input: &mut Input<'_>, out: bool) -> Vec<u8> {
    let ipv6 = input.flag();
    let outside = loop {
        let address = address(input, ipv6);
        if address.is_ipv6() == ipv6 {
            break address;
        }
    };
    let ours = match input.byte() {
        0xf0.. => outside,
        _ => enclave(outside),
    };
    let (our_port, other_port) = (
        input.pick(&[4000, TCP_PORT, UDP_PORT, 22]),
        input.pick(&[443, 53, 5353]),
    );
    let (us, them) = (
        SocketAddr::new(ours, our_port),
        SocketAddr::new(outside, other_port),
    );
    let ends = if out { (us, them) } else { (them, us) };
    let ips = (ends.0.ip(), ends.1.ip());
    let hops = shape::hop_limit(input);
    let payload = vec![0x44; shape::length(input).min(65_400)];
    match input.byte() & 15 {
        0..=3 => {
            let flags = input.pick(&[SYN, SYN | ACK, ACK]);
            let segment = Segment {
                flags,
                options: shape::options(input, flags),
                ..Segment::default()
            };
            tcp(ends, hops, &segment, &payload)
        }
        4 => {
            let flags = shape::flags(input);
            let segment = Segment {
                flags,
                ..Segment::default()
            };
            tcp(ends, hops, &segment, &payload)
        }
        5..=8 => udp(ends, hops, &payload),
        9 | 10 => {
            let header = EchoHeader {
                request: input.flag(),
                identifier: our_port,
                sequence: 1,
            };
            echo(ips, hops, header, &payload)
        }
        11 | 12 => icmp(ips, hops, (input.byte(), input.byte()), &payload),
        13 => {
            let whole = udp(ends, hops, &payload);
            let body = &whole[if ipv6 { 40 } else { 20 }..];
            let from = u16::from(input.byte() & 3);
            fragment(&whole, 7, from, body, input.flag())
        }
        14 => {
            let next = input.pick(&[0, 43, 60, 44, 51, 6, 17]);
            let n = input.below(64);
            ip(ips, next, hops, input.take(n))
        }
        _ => {
            let protocol = input.byte();
            ip(ips, protocol, hops, &payload[..payload.len().min(64)])
        }
    }
}
