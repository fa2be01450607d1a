//! Every reason for which a packet is dropped: what a hostile host sends does not reach the
//! kernel, and what a program may not send does not reach the host.

#![expect(unsafe_code, reason = "packets as only a packet socket sends them")]

mod common;

use common::counters::{dropped, entered, settle};
use common::host::{Host, Link};
use common::segments::{build, ip, segment};
use common::{Daemon, Enclave, eventually, in_enclave, run};
use etherparse::{Icmpv4Type, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader};
use netd_proto::frame::Kind;
use netd_proto::handshake::Features;
use netd_proto::offload::VnetHeader;
use netd_proto::run::mark_super_datagram;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

const US: [&str; 2] = ["100.64.0.2", "fd00:6e65:7464::2"];
const PEER: [&str; 2] = ["192.0.2.7", "2001:db8::7"];
const GATEWAY: [&str; 2] = ["100.64.0.1", "fd00:6e65:7464::1"];
/// Published, so that only what is wrong with a packet keeps it out.
const TCP: u16 = 3000;
const UDP: u16 = 5353;
const CONFIG: &str = "publish = ['3000/tcp', '5353/udp']";

fn up(enclave: &Enclave, config: &str, features: Features) -> (Host, Daemon, Link) {
    let host = Host::listen(enclave);
    let mut daemon = enclave.start_configured(config, &[]);
    let link = host.accept_with(features);
    daemon.wait_for("ready");
    (host, daemon, link)
}

/// A frame of a hostile host.
struct Hostile {
    what: String,
    reason: &'static str,
    frame: Vec<u8>,
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

fn framed(vnet: VnetHeader, packet: &[u8]) -> Vec<u8> {
    [vnet.encode().as_slice(), packet].concat()
}

fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().expect(text), port)
}

/// A segment that the guard lets in and the kernel answers with a reset.
fn tcp(from: &str, to: &str) -> Vec<u8> {
    build(address(from, 443), address(to, TCP), 1, Some(1), "")
}

fn udp(from: &str, to: &str, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(from.parse().expect(from), to.parse().expect(to))
        .udp(443, port)
        .write(&mut bytes, payload)
        .expect("built");
    bytes
}

/// An IP header before any bytes.
fn other(family: usize, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(
        PEER[family].parse().expect("valid"),
        US[family].parse().expect("valid"),
    )
    .write(&mut bytes, protocol, payload)
    .expect("built");
    bytes
}

fn icmp(family: usize, kind: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (code_u8, bytes5to8) = (0, [0; 4]);
    let ip = ip(
        PEER[family].parse().expect("valid"),
        US[family].parse().expect("valid"),
    );
    let written = if family == 0 {
        let unknown = Icmpv4Type::Unknown {
            type_u8: kind,
            code_u8,
            bytes5to8,
        };
        ip.icmpv4(unknown).write(&mut bytes, &[0; 24])
    } else {
        let unknown = Icmpv6Type::Unknown {
            type_u8: kind,
            code_u8,
            bytes5to8,
        };
        ip.icmpv6(unknown).write(&mut bytes, &[0; 24])
    };
    written.expect("built");
    bytes
}

fn changed(packet: &[u8], at: usize, byte: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[at] = byte;
    if packet[0] == 0x45 && at < 20 && at != 10 {
        // Only the change is to be found fault with.
        if let Ok((header, _)) = Ipv4Header::from_slice(&packet) {
            packet[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        }
    }
    packet
}

fn hostile(family: usize) -> Vec<Hostile> {
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
        rows.packet(REASON, "options", &with_options(&good));
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

fn fragment(packet: &[u8], offset: u16, more: bool) -> Vec<u8> {
    let place = IpFragOffset::try_new(offset).expect("small");
    if packet[0] >> 4 == 4 {
        let mut header = Ipv4Header::from_slice(packet).expect("valid").0;
        (header.fragment_offset, header.more_fragments) = (place, more);
        header.dont_fragment = false;
        header.header_checksum = header.calc_header_checksum();
        return [&header.to_bytes()[..], &packet[20..]].concat();
    }
    let header = Ipv6FragmentHeader::new(IpNumber::UDP, place, more, 7);
    insert(packet, 44, &header.to_bytes())
}

/// An extension header of eight bytes, padded.
fn with_extension(packet: &[u8], kind: u8) -> Vec<u8> {
    insert(packet, kind, &[packet[6], 0, 1, 4, 0, 0, 0, 0])
}

fn insert(packet: &[u8], kind: u8, extension: &[u8]) -> Vec<u8> {
    let length = u16::try_from(packet.len() - 40 + extension.len()).expect("short");
    let mut all = [&packet[..40], extension, &packet[40..]].concat();
    all[4..6].copy_from_slice(&length.to_be_bytes());
    all[6] = kind;
    all
}

#[test]
fn nothing_hostile_reaches_the_kernel() {
    in_enclave(|enclave| {
        let (_host, mut daemon, mut link) = up(&enclave, CONFIG, Features::ALL);
        // So that there is something to count, and to be sure that what enters is seen.
        link.send(Kind::Packet, &[]);
        for family in [0, 1] {
            let before = entered();
            link.send_packet(&tcp(PEER[family], US[family]));
            let reset = link.packet(|_, packet| segment(packet));
            assert_eq!(reset.flags, "R", "the kernel's answer");
            assert_eq!(entered()[0], before[0] + 1);
        }

        for Hostile {
            what,
            reason,
            frame,
        } in hostile(0).into_iter().chain(hostile(1))
        {
            let (before, mut expected) = (entered(), dropped(&mut daemon));
            *expected.entry(reason.to_owned()).or_default() += 1;

            link.send(Kind::Packet, &frame);
            let answers = settle(&mut link);

            assert_eq!(dropped(&mut daemon), expected, "{what}");
            assert_eq!(entered(), before, "{what}: it reached the kernel");
            let resets = usize::from(reason == "in_tcp_closed");
            assert_eq!(answers.len(), resets, "{what}: {answers:?}");
        }
    });
}

#[test]
fn what_was_not_agreed_on_does_not_enter() {
    in_enclave(|enclave| {
        let (_host, mut daemon, mut link) = up(&enclave, CONFIG, Features::default());
        for family in [0, 1] {
            let header = [20, 40][family];
            let gso_type = [1, 4][family];
            let checksum = VnetHeader::tcp(family == 1, header, 20, None);
            let segments = VnetHeader {
                gso_type,
                gso_size: 1000,
                ..checksum
            };
            let mut datagrams = framed(
                VnetHeader::NONE,
                &udp(PEER[family], US[family], UDP, &[7; 3000]),
            );
            mark_super_datagram(family == 1, 1400, &mut datagrams);
            let segment = tcp(PEER[family], US[family]);
            for frame in [
                framed(checksum, &segment),
                framed(segments, &segment),
                datagrams,
            ] {
                let before = entered();
                link.send(Kind::Packet, &frame);
                assert!(settle(&mut link).is_empty());
                assert_eq!(entered(), before);
            }
        }
        assert_eq!(dropped(&mut daemon), [("in_offload".to_owned(), 6)].into());
    });
}

#[test]
fn what_the_kernel_does_not_take_is_counted() {
    in_enclave(|enclave| {
        let (_host, mut daemon, mut link) = up(&enclave, CONFIG, Features::ALL);
        run("ip", &["link", "set", "netd0", "down"]);
        link.send_packet(&tcp(PEER[0], US[0]));
        link.send_packet(&tcp(PEER[1], US[1]));
        settle(&mut link);
        assert_eq!(
            dropped(&mut daemon),
            [("in_tun_refused".to_owned(), 2)].into()
        );
    });
}

/// Sends bytes out of the tun as a program with CAP_NET_RAW may: no kernel looks at them.
fn send_raw(family: usize, bytes: &[u8]) {
    let raw = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::empty(),
        None,
    );
    let raw = raw.expect("root makes packet sockets");
    let index = nix::net::if_::if_nametoindex("netd0").expect("it is there");
    // SAFETY: plain numbers.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).expect("small");
    let protocol = [libc::ETH_P_IP, libc::ETH_P_IPV6][family];
    to.sll_protocol = u16::try_from(protocol).expect("small").to_be();
    to.sll_ifindex = index.cast_signed();
    let length = libc::socklen_t::try_from(size_of_val(&to)).expect("small");
    let (data, to) = (bytes.as_ptr().cast(), (&raw const to).cast());
    // SAFETY: the lengths are those of the bytes and of the address, which outlive the call.
    let sent = unsafe { libc::sendto(raw.as_raw_fd(), data, bytes.len(), 0, to, length) };
    assert_eq!(Errno::result(sent), Ok(bytes.len().cast_signed()));
}

/// What no packet of a program may be, and why.
fn unwelcome(family: usize) -> Vec<(&'static str, Vec<u8>)> {
    let (us, peer) = (US[family], PEER[family]);
    let leaving = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        let (from, to, size) = [(12, 16, 4), (8, 24, 16)][family];
        let (a, b) = (
            packet[from..from + size].to_vec(),
            packet[to..to + size].to_vec(),
        );
        packet[from..from + size].copy_from_slice(&b);
        packet[to..to + size].copy_from_slice(&a);
        packet
    };
    let mut rows = vec![
        ("out_malformed", vec![[0x45, 0x60][family]; 30]),
        ("out_malformed", tcp(us, peer)[..30].to_vec()),
        (
            "out_source",
            tcp(["192.0.2.9", "2001:db8::9"][family], peer),
        ),
        ("out_source", tcp(["127.0.0.1", "::1"][family], peer)),
        ("out_destination", udp(us, us, 1, b"text")),
        (
            "out_protocol",
            leaving(&other(family, IpNumber::GRE, &[0; 40])),
        ),
        ("out_protocol", leaving(&icmp(family, [5, 137][family]))),
        (
            "out_policy",
            udp(us, ["198.51.100.1", "2001:db8:1::1"][family], 1, b"text"),
        ),
    ];
    let to: &[&str] = [
        &["224.0.0.1", "127.0.0.1", "255.255.255.255", "0.0.0.0"][..],
        &["ff02::1", "::1", "fe80::1", "::"],
    ][family];
    rows.extend(
        to.iter()
            .map(|to| ("out_destination", udp(us, to, 1, b"text"))),
    );
    rows
}

#[test]
fn nothing_unwelcome_reaches_the_host() {
    in_enclave(|enclave| {
        let rules = "rules = ['deny 198.51.100.0/24', 'deny 2001:db8:1::/48']";
        let (_host, mut daemon, mut link) = up(&enclave, rules, Features::ALL);
        for family in [0, 1] {
            // What is right leaves, and something is counted.
            send_raw(family, &udp(US[family], PEER[family], 1, b"right"));
            link.packet(|_, packet| packet.ends_with(b"right").then_some(()));
            link.send(Kind::Packet, &[]);
            for (reason, packet) in unwelcome(family) {
                let mut expected = dropped(&mut daemon);
                *expected.entry(reason.to_owned()).or_default() += 1;

                send_raw(family, &packet);

                eventually(reason, || dropped(&mut daemon) == expected);
                let left = settle(&mut link);
                assert!(left.is_empty(), "{reason}: {left:?}");
            }
        }
    });
}

#[test]
fn what_leaves_without_a_link_is_counted() {
    in_enclave(|enclave| {
        let (host, mut daemon, link) = up(&enclave, "", Features::ALL);
        drop((host, link));
        daemon.wait_for("link to the parent lost");
        for (any, peer) in [("0.0.0.0:0", PEER[0]), ("[::]:0", PEER[1])] {
            let socket = UdpSocket::bind(any).expect("bound");
            socket.send_to(b"text", address(peer, 1)).expect("sent");
        }
        // Nothing else leaves by itself; the pump may look at the tun after the signal.
        eventually("both are counted", || {
            daemon.signal(nix::sys::signal::Signal::SIGUSR1);
            daemon
                .wait_for("dropped since the start")
                .contains("out_no_link=2")
        });
    });
}
