//! What a hostile host sends, and why it is dropped.

use crate::common::segments::build;
use crate::packets::{
    GATEWAY, PEER, UDP, US, address, changed, fragment, framed, icmp, other, tcp, udp,
    with_extension,
};
use etherparse::{IpNumber, Ipv4Header};
use netd_proto::offload::VnetHeader;

/// A frame of a hostile host.
pub struct Hostile {
    pub what: String,
    pub reason: &'static str,
    pub frame: Vec<u8>,
}

/// Collects frames of one family.
struct Rows {
    ipv6: usize,
    rows: Vec<Hostile>,
}

impl Rows {
    fn frame(&mut self, reason: &'static str, what: &str, frame: Vec<u8>) {
        let what = format!("{what}, {}", ["IPv4", "IPv6"][self.ipv6]);
        self.rows.push(Hostile {
            what,
            reason,
            frame,
        });
    }

    fn packet(&mut self, reason: &'static str, what: &str, packet: &[u8]) {
        self.frame(reason, what, framed(VnetHeader::NONE, packet));
    }
}

pub fn hostile(family: usize) -> Vec<Hostile> {
    let mut rows = Rows {
        ipv6: family,
        rows: Vec::new(),
    };
    malformed(&mut rows, family);
    offload(&mut rows, family);
    addresses(&mut rows, family);
    protocols(&mut rows, family);
    rows.packet(
        "in_tcp_closed",
        "a SYN to a closed port",
        &build(
            address(PEER[family], 1),
            address(US[family], 3001),
            1,
            None,
            "S",
        ),
    );
    rows.packet(
        "in_tcp_closed",
        "a SYN with FIN",
        &build(
            address(PEER[family], 1),
            address(US[family], 22),
            1,
            None,
            "SF",
        ),
    );
    rows.packet(
        "in_udp_closed",
        "a datagram that nobody asked for",
        &udp(PEER[family], US[family], 5354, b"text"),
    );
    rows.packet(
        "in_udp_closed",
        "an answer of a resolver that was not asked",
        &udp(GATEWAY[family], US[family], 40_000, b"text"),
    );
    rows.rows
}

fn malformed(rows: &mut Rows, family: usize) {
    const REASON: &str = "in_malformed";
    let header = [20, 40][family];
    let (good, datagram) = (
        tcp(PEER[family], US[family]),
        udp(PEER[family], US[family], UDP, b"text"),
    );
    rows.frame(REASON, "nothing", Vec::new());
    rows.frame(REASON, "half an offload header", vec![0; 9]);
    rows.packet(REASON, "an offload header alone", &[]);
    for length in [1, header - 1, header, header + 19, good.len() - 1] {
        rows.packet(
            REASON,
            &format!("{length} bytes of a segment"),
            &good[..length],
        );
    }
    rows.packet(REASON, "a byte behind it", &[&good[..], &[0]].concat());
    rows.packet(REASON, "another version", &changed(&good, 0, 0x55));
    rows.packet(
        REASON,
        "a TCP header beyond the end",
        &changed(&good, header + 12, 0xF0),
    );
    rows.packet(
        REASON,
        "a TCP header that is too short",
        &changed(&good, header + 12, 0x40),
    );
    rows.packet(
        REASON,
        "a datagram longer than it is",
        &changed(&datagram, header + 5, 200),
    );
    rows.packet(
        REASON,
        "a datagram shorter than it is",
        &changed(&datagram, header + 5, 9),
    );
    rows.packet(
        REASON,
        "a datagram shorter than its header",
        &changed(&datagram, header + 5, 7),
    );
    let protocol = [IpNumber::ICMP, IpNumber::IPV6_ICMP][family];
    rows.packet(
        REASON,
        "a cut ICMP message",
        &other(family, protocol, &[0; 7]),
    );
    if family == 0 {
        rows.packet(
            REASON,
            "a total length beyond the end",
            &changed(&good, 3, 200),
        );
        rows.packet(REASON, "a total length of nothing", &changed(&good, 3, 0));
        rows.packet(
            REASON,
            "a header that is too short",
            &changed(&good, 0, 0x44),
        );
        rows.packet("in_protocol", "options", &with_options(&good));
        rows.packet(
            REASON,
            "a wrong header checksum",
            &changed(&good, 10, !good[10]),
        );
    } else {
        rows.packet(REASON, "a payload beyond the end", &changed(&good, 5, 200));
        rows.packet(REASON, "a payload of nothing", &changed(&good, 5, 0));
    }
}

/// With a no-operation option, of which routers once made source routes.
fn with_options(packet: &[u8]) -> Vec<u8> {
    let mut header = Ipv4Header::from_slice(packet).expect("valid").0;
    header.options = [1; 4].into();
    header.total_len += 4;
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes()[..], &packet[20..]].concat()
}

fn offload(rows: &mut Rows, family: usize) {
    const REASON: &str = "in_offload";
    let ipv6 = family == 1;
    let header = [20, 40][family];
    let (good, datagram) = (
        tcp(PEER[family], US[family]),
        udp(PEER[family], US[family], UDP, b"text"),
    );
    let wrong = |packet: &[u8], at: usize| changed(packet, at, !packet[at]);
    rows.packet(
        REASON,
        "a wrong TCP checksum",
        &wrong(&good, usize::from(header) + 16),
    );
    rows.packet(
        REASON,
        "a wrong UDP checksum",
        &wrong(&datagram, usize::from(header) + 6),
    );
    let reply = icmp(family, [0, 129][family]);
    rows.packet(
        REASON,
        "a wrong checksum of a reply",
        &wrong(&reply, usize::from(header) + 2),
    );
    if ipv6 {
        let none = changed(&changed(&datagram, 46, 0), 47, 0);
        rows.packet(REASON, "no UDP checksum", &none);
    }
    let right = VnetHeader::tcp(ipv6, header, 20, None);
    let (tso, other_tso) = ([1, 4][family], [4, 1][family]);
    let segments = VnetHeader {
        gso_type: tso,
        gso_size: 1000,
        ..right
    };
    for (what, vnet) in [
        (
            "a checksum at the start",
            VnetHeader {
                csum_start: 0,
                ..right
            },
        ),
        (
            "a checksum beyond the end",
            VnetHeader {
                csum_start: 60_000,
                ..right
            },
        ),
        (
            "a checksum that wraps",
            VnetHeader {
                csum_start: u16::MAX,
                csum_offset: u16::MAX,
                ..right
            },
        ),
        (
            "a checksum in the ports",
            VnetHeader {
                csum_offset: 0,
                ..right
            },
        ),
        (
            "the checksum of another protocol",
            VnetHeader {
                csum_offset: 6,
                ..right
            },
        ),
        (
            "unknown flags",
            VnetHeader {
                flags: 0xF0,
                ..right
            },
        ),
        (
            "segments of the other family",
            VnetHeader {
                gso_type: other_tso,
                ..segments
            },
        ),
        (
            "UFO",
            VnetHeader {
                gso_type: 3,
                ..segments
            },
        ),
        (
            "datagrams of TCP",
            VnetHeader {
                gso_type: 5,
                ..segments
            },
        ),
        (
            "an unknown kind of segments",
            VnetHeader {
                gso_type: 0x7F,
                ..segments
            },
        ),
        (
            "segments of nothing",
            VnetHeader {
                gso_size: 0,
                ..segments
            },
        ),
        (
            "segments of a byte",
            VnetHeader {
                gso_size: 1,
                ..segments
            },
        ),
        (
            "headers beyond the end",
            VnetHeader {
                hdr_len: 60_000,
                ..segments
            },
        ),
        (
            "segments without their checksum",
            VnetHeader {
                flags: 0,
                ..segments
            },
        ),
    ] {
        rows.frame(REASON, what, framed(vnet, &good));
    }
    let many = udp(PEER[family], US[family], UDP, &[7; 1000]);
    for (what, size) in [
        ("datagrams of nothing", 0),
        ("more datagrams than any kernel sends", 7),
        ("one datagram that says many", 1000),
    ] {
        rows.frame(
            REASON,
            what,
            framed(VnetHeader::udp(header, Some(size)), &many),
        );
    }
    let segmented = VnetHeader {
        gso_type: tso,
        gso_size: 500,
        ..VnetHeader::udp(header, None)
    };
    rows.frame(REASON, "segments of UDP", framed(segmented, &many));
}

fn addresses(rows: &mut Rows, family: usize) {
    let destinations: &[&str] = [
        &[
            "100.64.0.1",
            "100.64.0.3",
            "127.0.0.1",
            "255.255.255.255",
            "224.0.0.1",
            "0.0.0.0",
            "192.0.2.8",
        ][..],
        &[
            "fd00:6e65:7464::1",
            "fd00:6e65:7464::3",
            "::1",
            "ff02::1",
            "fe80::1",
            "::",
            "2001:db8::8",
        ],
    ][family];
    for to in destinations {
        rows.packet(
            "in_destination",
            &format!("to {to}"),
            &tcp(PEER[family], to),
        );
        rows.packet(
            "in_destination",
            &format!("a datagram to {to}"),
            &udp(PEER[family], to, UDP, b"text"),
        );
    }
    let sources: &[&str] = [
        &[
            "100.64.0.2",
            "127.0.0.1",
            "127.255.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
        ][..],
        &[
            "fd00:6e65:7464::2",
            "::1",
            "::",
            "ff02::1",
            "fe80::1",
            "::ffff:192.0.2.1",
            "::ffff:127.0.0.1",
        ],
    ][family];
    for from in sources {
        rows.packet("in_source", &format!("from {from}"), &tcp(from, US[family]));
        rows.packet(
            "in_source",
            &format!("a datagram from {from}"),
            &udp(from, US[family], UDP, b"text"),
        );
    }
}

fn protocols(rows: &mut Rows, family: usize) {
    let datagram = udp(PEER[family], US[family], UDP, &[7; 64]);
    for (what, offset, more) in [("a first fragment", 0, true), ("a last fragment", 8, false)] {
        rows.packet("in_fragment", what, &fragment(&datagram, offset, more));
    }
    const REASON: &str = "in_protocol";
    let messages: &[u8] = [
        &[5, 8, 9, 10, 13, 15, 17][..],
        &[128, 130, 133, 134, 135, 136, 137, 143],
    ][family];
    for kind in messages {
        rows.packet(
            REASON,
            &format!("ICMP of type {kind}"),
            &icmp(family, *kind),
        );
    }
    for protocol in [2, 4, 41, 47, 50, 132, 253] {
        rows.packet(
            REASON,
            &format!("protocol {protocol}"),
            &other(family, IpNumber(protocol), &[0; 40]),
        );
    }
    let foreign = [IpNumber::IPV6_ICMP, IpNumber::ICMP][family];
    rows.packet(
        REASON,
        "the other family's ICMP",
        &other(family, foreign, &[0; 40]),
    );
    if family == 1 {
        let segment = tcp(PEER[1], US[1]);
        for (what, kind) in [
            ("hop-by-hop options", 0),
            ("a routing header", 43),
            ("destination options", 60),
        ] {
            rows.packet(REASON, what, &with_extension(&segment, kind));
        }
    }
}
