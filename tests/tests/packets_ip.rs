//! IP itself, packet by packet: fragments, options, malformed packets, errors and path MTU.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_proto::build::{self, EchoHeader};
use netd_proto::handshake::Features;
use netd_proto::packet::{Packet, Transport};
use netd_tests::packets::{Wire, dropped, stream_bytes};
use netd_tests::{Family, Lab, Process, address, until};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

struct Bed {
    lab: Lab,
    host: Process,
    wire: Wire,
    servers: [UdpSocket; 2],
}

impl Bed {
    fn new() -> Bed {
        let lab = Lab::new();
        let host = lab.start_host(&[]);
        let wire = Wire::open(&lab, Features::default());
        let servers = Family::BOTH.map(|family| {
            let at = family.at(address::SERVER, 9000);
            let socket = lab.internet.inside(|| UdpSocket::bind(at)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            socket
        });
        Bed {
            lab,
            host,
            wire,
            servers,
        }
    }

    /// The next datagram outside is this one.
    #[track_caller]
    fn arrives(&self, family: Family, payload: &[u8]) {
        let mut buffer = vec![0; 65_536];
        let n = self.servers[family as usize]
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("{family:?}: {} bytes: {error}", payload.len()));
        assert!(
            buffer[..n] == *payload,
            "{family:?}: {} bytes came as {n}",
            payload.len()
        );
    }

    /// Sends a datagram that comes after all others, and looks that none of them came.
    #[track_caller]
    fn nothing_arrived(&self, family: Family) {
        self.wire.send(&datagram(family, b"last"));
        self.arrives(family, b"last");
        let server = &self.servers[family as usize];
        server.set_nonblocking(true).unwrap();
        let error = server.recv(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        server.set_nonblocking(false).unwrap();
    }
}

fn ends(family: Family) -> (SocketAddr, SocketAddr) {
    (
        family.at(address::ENCLAVE, 5000),
        family.at(address::SERVER, 9000),
    )
}

fn datagram(family: Family, payload: &[u8]) -> Vec<u8> {
    let (from, to) = ends(family);
    Wire::udp(from, to, payload)
}

fn echo(from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; build::echo_headroom(from.is_ipv6())];
    packet.extend(payload);
    let header = EchoHeader {
        request: true,
        identifier: 7,
        sequence: 3,
    };
    build::echo(&mut packet, from, to, 64, header, payload.len());
    packet
}

/// Puts the right checksum into an IPv4 header.
fn seal(packet: &mut [u8]) {
    let length = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let sum: u32 = packet[..length]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    packet[10..12].copy_from_slice(&(!folded).to_be_bytes());
}

/// Cuts the payload of a packet at these places.
fn fragments(packet: &[u8], identification: u16, cuts: &[usize]) -> Vec<Vec<u8>> {
    let header = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let payload = &packet[header..];
    let mut places = vec![0];
    places.extend(cuts);
    places.push(payload.len());
    places
        .windows(2)
        .map(|part| {
            let more = part[1] < payload.len();
            fragment(
                packet,
                identification,
                part[0],
                &payload[part[0]..part[1]],
                more,
            )
        })
        .collect()
}

/// A fragment with the header of a whole packet.
fn fragment(like: &[u8], identification: u16, at: usize, payload: &[u8], more: bool) -> Vec<u8> {
    let offset = u16::try_from(at / 8).unwrap();
    if like[0] >> 4 == 4 {
        let mut part = [&like[..20], payload].concat();
        let total = u16::try_from(part.len()).unwrap();
        part[2..4].copy_from_slice(&total.to_be_bytes());
        part[4..6].copy_from_slice(&identification.to_be_bytes());
        let flags = offset | (u16::from(more) << 13);
        part[6..8].copy_from_slice(&flags.to_be_bytes());
        seal(&mut part);
        return part;
    }
    let flags = (offset << 3 | u16::from(more)).to_be_bytes();
    let [a, b] = identification.to_be_bytes();
    extended(
        like,
        44,
        [0, 0, flags[0], flags[1], 0, 0, a, b],
        Some(payload),
    )
}

/// An IPv6 packet with an extension header before its payload, or before another one.
fn extended(like: &[u8], kind: u8, mut header: [u8; 8], payload: Option<&[u8]>) -> Vec<u8> {
    header[0] = like[6];
    let mut packet = [&like[..40], &header, payload.unwrap_or(&like[40..])].concat();
    packet[6] = kind;
    let length = u16::try_from(packet.len() - 40).unwrap();
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

#[test]
fn datagrams_in_parts_come_whole_in_whatever_order() {
    let bed = Bed::new();
    for family in Family::BOTH {
        for (id, length) in (1..).zip([100, 1473, 4000, 9000, 65_000_usize]) {
            let payload = stream_bytes(1, u32::try_from(length).unwrap() + 1);
            let whole = datagram(family, &payload);
            let cuts: Vec<usize> = (1..)
                .map(|n| n * 1472)
                .take_while(|at| *at < length)
                .collect();
            let parts = fragments(&whole, id, if length == 100 { &[48] } else { &cuts });
            for part in &parts {
                bed.wire.send(part);
            }
            bed.arrives(family, &payload);
            for part in parts.iter().rev() {
                bed.wire.send(part);
            }
            bed.arrives(family, &payload);
            // With parts that come twice.
            for part in [&parts[..1], &parts].concat() {
                bed.wire.send(&part);
            }
            bed.arrives(family, &payload);
        }
        // Two at once, one of which is never whole.
        let one = fragments(&datagram(family, &[1; 2000]), 50, &[1000]);
        let other = fragments(&datagram(family, &[2; 2000]), 51, &[1000]);
        for part in [&one[1], &other[0], &other[1]] {
            bed.wire.send(part);
        }
        bed.arrives(family, &[2; 2000]);
        bed.nothing_arrived(family);
    }
}

#[test]
fn fragments_are_bounded_and_wrong_ones_are_counted() {
    let bed = Bed::new();
    for family in Family::BOTH {
        let whole = datagram(family, &[9; 3000]);
        let before = dropped(&bed.host, "fragment");
        // Too long together, a part in the middle of a unit, two ends, and a part of TCP.
        bed.wire
            .send(&fragment(&whole, 1, 65_528, &[0; 100], false));
        bed.wire.send(&fragment(&whole, 2, 0, &[0; 1001], true));
        bed.wire.send(&fragment(&whole, 3, 1000, &[0; 100], false));
        bed.wire.send(&fragment(&whole, 3, 2000, &[0; 100], false));
        let tcp = bed.wire.tcp(family, 40_000, ends(family).1);
        let syn = tcp.packet("S 0 mss 1460");
        bed.wire.send(&fragments(&syn, 4, &[16])[0]);
        bed.nothing_arrived(family);
        assert_eq!(dropped(&bed.host, "fragment"), before + 4, "{family:?}");
    }
    // First parts only. Both families share the bound.
    let before = dropped(&bed.host, "fragment_limit");
    for id in 100..400 {
        let family = Family::BOTH[usize::from(id % 2)];
        let parts = fragments(&datagram(family, &[9; 3000]), id, &[1000]);
        bed.wire.send(&parts[0]);
    }
    for family in Family::BOTH {
        bed.nothing_arrived(family);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", bed.host.pid())).unwrap();
    let (_, peak) = status.split_once("VmHWM:").unwrap();
    let kib: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 100 * 1024, "{kib} KiB");
    let refused = dropped(&bed.host, "fragment_limit") - before;
    assert!((230..300).contains(&refused), "{refused}");
}

#[test]
fn options_and_malformed_packets_are_dropped_and_counted() {
    let bed = Bed::new();
    let (v4, v6) = (
        datagram(Family::V4, b"whatever"),
        datagram(Family::V6, b"whatever"),
    );
    let patched = |packet: &[u8], at: usize, bytes: &[u8]| {
        let mut packet = packet.to_vec();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        if packet[0] >> 4 == 4 {
            seal(&mut packet);
        }
        packet
    };
    let with_options = |options: &[u8]| {
        let mut packet = [&v4[..20], options, &v4[20..]].concat();
        packet[0] = 0x40 | u8::try_from(5 + options.len() / 4).unwrap();
        let total = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        seal(&mut packet);
        packet
    };
    let mut bad_sum = v4.clone();
    bad_sum[10] ^= 1;
    let spoofed = |from: &str, family| {
        let (_, to) = ends(family);
        Wire::udp(from.parse().unwrap(), to, b"whatever")
    };
    let extension = |kind| extended(&v6, kind, [0, 0, 1, 4, 0, 0, 0, 0], None);
    let table: Vec<(&str, &str, Vec<u8>)> = vec![
        ("ip_options", "no operation", with_options(&[1, 1, 1, 0])),
        (
            "ip_options",
            "loose source route",
            with_options(&[131, 7, 4, 192, 0, 2, 3, 0]),
        ),
        (
            "ip_options",
            "record route",
            with_options(&[7, 7, 4, 0, 0, 0, 0, 0]),
        ),
        ("ip_options", "router alert", with_options(&[148, 4, 0, 0])),
        ("ip_options", "hop-by-hop", extension(0)),
        ("ip_options", "destination options", extension(60)),
        (
            "ip_options",
            "routing",
            extended(&v6, 43, [0, 0, 0, 0, 0, 0, 0, 0], None),
        ),
        ("header_checksum", "checksum", bad_sum),
        ("malformed", "version 5", patched(&v4, 0, &[0x55])),
        ("malformed", "header of 16 bytes", patched(&v4, 0, &[0x44])),
        ("malformed", "longer than it is", patched(&v4, 2, &[0, 200])),
        ("malformed", "shorter than it is", patched(&v4, 2, &[0, 30])),
        (
            "malformed",
            "longer than it is, 6",
            patched(&v6, 4, &[0, 200]),
        ),
        (
            "malformed",
            "shorter than it is, 6",
            patched(&v6, 4, &[0, 10]),
        ),
        ("malformed", "UDP length", patched(&v4, 24, &[0, 200])),
        ("malformed", "UDP length, 6", patched(&v6, 44, &[0, 200])),
        ("malformed", "cut off", v4[..24].to_vec()),
        ("malformed", "cut off, 6", v6[..44].to_vec()),
        ("malformed", "nothing", Vec::new()),
        ("spoofed", "source", spoofed("100.64.0.9:5000", Family::V4)),
        (
            "spoofed",
            "source, 6",
            spoofed("[2001:db8:1::2]:5000", Family::V6),
        ),
    ];
    for (reason, what, packet) in table {
        let before = dropped(&bed.host, reason);
        bed.wire.send(&packet);
        for family in Family::BOTH {
            bed.nothing_arrived(family);
        }
        assert_eq!(dropped(&bed.host, reason), before + 1, "{what}");
    }
    // Other protocols are refused as a host refuses them.
    for (family, told) in Family::BOTH.into_iter().zip([(3, 2), (4, 1)]) {
        let at = [9, 6][family as usize];
        bed.wire
            .send(&patched(&datagram(family, b"whatever"), at, &[132]));
        let answer = bed.wire.find(5, |seen| seen.icmp);
        let (kind, code, _) = answer.expect("it is told");
        assert_eq!((kind, code), told, "{family:?}");
    }
}

/// The ICMP error that comes for a packet to `to`, with its second word.
fn error_about(wire: &Wire, to: IpAddr, packet: &[u8]) -> (u8, u8, u32) {
    // Routers send few errors a second: ask again, as programs do.
    until(5, &format!("an error about {to}"), || {
        wire.send(packet);
        wire.find_within(Duration::from_millis(300), |seen| {
            let flow = seen.flow?;
            seen.icmp.filter(|_| flow.dst.ip() == to)
        })
    })
}

#[test]
fn errors_name_their_kind_and_the_paths_mtu() {
    let bed = Bed::new();
    // The parent's own wire is narrow, and the next one is narrower.
    bed.lab
        .parent
        .run("ip", &["link", "set", "veth0", "mtu", "1400"])
        .ok();
    bed.lab
        .internet
        .run("ip", &["link", "set", "far0", "mtu", "1300"])
        .ok();
    for family in Family::BOTH {
        let from = family.at(address::ENCLAVE, 5000);
        let too_big = [(3, 4), (2, 0)][family as usize];
        let table = [
            (address::SERVER, 9999, 10, [(3, 3), (1, 4)], 0),
            (address::ABSENT, 9000, 10, [(3, 1), (1, 3)], 0),
            (address::UNROUTED, 9000, 10, [(3, 0), (1, 0)], 0),
            (address::PROHIBITED, 9000, 10, [(3, 13), (1, 1)], 0),
            (address::PARENT, 9000, 10, [(3, 13), (1, 1)], 0),
            (address::SERVER, 9000, 1380, [too_big; 2], 1400),
            (address::FAR, 9000, 1280, [too_big; 2], 1300),
        ];
        for (to, port, length, told, word) in table {
            let to = family.at(to, port);
            let packet = Wire::udp(from, to, &vec![1; length]);
            let (kind, code, rest) = error_about(&bed.wire, to.ip(), &packet);
            assert_eq!((kind, code), told[family as usize], "{to}");
            assert_eq!(rest, word, "{to}");
        }
        // The same for echo, whatever its size.
        let table = [
            (address::ABSENT, 10, [(3, 1), (1, 3)], 0),
            (address::UNROUTED, 1000, [(3, 0), (1, 0)], 0),
            (address::PROHIBITED, 1000, [(3, 13), (1, 1)], 0),
            (address::SERVER, 1380, [too_big; 2], 1400),
            (address::FAR, 1280, [too_big; 2], 1300),
        ];
        for (to, length, told, word) in table {
            let to = family.of(to);
            let packet = echo(from.ip(), to, &vec![1; length]);
            let (kind, code, rest) = error_about(&bed.wire, to, &packet);
            assert_eq!((kind, code), told[family as usize], "echo to {to}");
            assert_eq!(rest, word, "echo to {to}");
        }
        // In parts it may be cut again: too long for the path is no error.
        let payload = stream_bytes(1, 4001);
        for part in fragments(&datagram(family, &payload), 9, &[1472, 2944]) {
            bed.wire.send(&part);
        }
        bed.arrives(family, &payload);
    }
}

#[test]
fn echoes_of_every_size_come_back_as_they_went() {
    let bed = Bed::new();
    for family in Family::BOTH {
        let (from, to) = (family.of(address::ENCLAVE), family.of(address::SERVER));
        for (id, length) in (1..).zip([0, 1, 56, 1400, 4000, 30_000, 65_400_usize]) {
            let payload = stream_bytes(1, u32::try_from(length).unwrap() + 1);
            let request = echo(from, to, &payload);
            let cuts: Vec<usize> = (1..)
                .map(|n| n * 1440)
                .take_while(|at| *at < length)
                .collect();
            for part in fragments(&request, id, &cuts) {
                bed.wire.send(&part);
            }
            let reply = bed.wire.find(5, |seen| {
                let packet = Packet::parse(&seen.bytes).ok()?;
                let Transport::Echo(reply) = packet.transport() else {
                    return None;
                };
                assert!(!reply.request && (reply.identifier, reply.sequence) == (7, 3));
                Some((packet.src(), reply.payload.to_vec()))
            });
            let (src, got) = reply.unwrap_or_else(|| panic!("{family:?}: {length} bytes"));
            assert_eq!(src, to);
            assert!(got == payload, "{family:?}: {length} came as {}", got.len());
        }
    }
}
