use super::*;
use etherparse::{Icmpv4Type, Icmpv6Type, IpFragOffset, PacketBuilder, TcpHeader};
use netd_proto::build::{IcmpError, icmp_error};
use proptest::collection::vec;
use proptest::prelude::*;

mod entering;
mod names;

const NOW: Seconds = Seconds(1000);

fn addresses() -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(100, 64, 0, 2),
        v6: "fd00:6e65:7464::2".parse().expect("valid"),
        gateway4: Ipv4Addr::new(100, 64, 0, 1),
        gateway6: "fd00:6e65:7464::1".parse().expect("valid"),
    }
}

fn guard(tcp: &[u16], udp: &[u16], rules: &[&str]) -> Guard {
    let mut published = Published::default();
    tcp.iter().for_each(|port| published.tcp.insert(*port));
    udp.iter().for_each(|port| published.udp.insert(*port));
    let rules = rules.iter().map(|rule| rule.parse().expect(rule)).collect();
    let mut guard = Guard::new(addresses(), published, rules);
    guard.agree(Features::ALL);
    guard
}

const US: [&str; 2] = ["100.64.0.2", "fd00:6e65:7464::2"];
const PEER: [&str; 2] = ["192.0.2.7", "2001:db8::7"];

type Step = etherparse::PacketBuilderStep<etherparse::IpHeaders>;

fn ip(src: &str, dst: &str) -> Step {
    match (src.parse().expect(src), dst.parse().expect(dst)) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
        _ => panic!("two families"),
    }
}

fn tcp(src: &str, dst: &str, ports: (u16, u16), flags: &str) -> Vec<u8> {
    let mut header = TcpHeader::new(ports.0, ports.1, 1, 100);
    header.syn = flags.contains('S');
    header.ack = flags.contains('A');
    header.fin = flags.contains('F');
    header.rst = flags.contains('R');
    let mut bytes = Vec::new();
    ip(src, dst)
        .tcp_header(header)
        .write(&mut bytes, b"data")
        .expect("built");
    bytes
}

fn udp(src: &str, dst: &str, ports: (u16, u16)) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(src, dst)
        .udp(ports.0, ports.1)
        .write(&mut bytes, b"data")
        .expect("built");
    bytes
}

fn icmp4(src: &str, dst: &str, kind: Icmpv4Type) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(src, dst)
        .icmpv4(kind)
        .write(&mut bytes, &[0; 32])
        .expect("built");
    bytes
}

fn icmp6(src: &str, dst: &str, kind: Icmpv6Type) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(src, dst)
        .icmpv6(kind)
        .write(&mut bytes, &[0; 32])
        .expect("built");
    bytes
}

fn leave(guard: &mut Guard, bytes: &[u8], now: Seconds) -> Egress {
    guard.egress(&Packet::parse(bytes).expect("valid"), now)
}

fn framed(packet: &[u8]) -> Vec<u8> {
    [VnetHeader::NONE.encode().as_slice(), packet].concat()
}

/// What became of the packet, in one word.
fn enter(guard: &mut Guard, packet: &[u8], now: Seconds) -> &'static str {
    match guard.ingress(&framed(packet), now) {
        Ingress::Deliver(..) => "deliver",
        Ingress::Reset(_) => "reset",
        Ingress::Drop(reason) => reason.name(),
    }
}

#[test]
fn without_rules_everything_of_ours_leaves() {
    let mut guard = guard(&[], &[], &[]);
    for family in [0, 1] {
        let (us, peer) = (US[family], PEER[family]);
        for flags in ["S", "A", "SA", "FA", "R"] {
            assert_eq!(
                leave(&mut guard, &tcp(us, peer, (1, 2), flags), NOW),
                Egress::Send
            );
        }
        assert_eq!(leave(&mut guard, &udp(us, peer, (1, 2)), NOW), Egress::Send);
    }
    let echo = etherparse::IcmpEchoHeader { id: 1, seq: 1 };
    let ping = icmp4(US[0], PEER[0], Icmpv4Type::EchoRequest(echo));
    assert_eq!(leave(&mut guard, &ping, NOW), Egress::Send);
    let ping = icmp6(US[1], PEER[1], Icmpv6Type::EchoRequest(echo));
    assert_eq!(leave(&mut guard, &ping, NOW), Egress::Send);
    assert_eq!(guard.drops.nonzero().count(), 0);
}

#[test]
fn what_is_not_ours_or_goes_nowhere_stays_and_is_counted() {
    let mut guard = guard(&[], &[], &[]);
    let cases = [
        (udp("100.64.0.9", PEER[0], (1, 2)), DropReason::OutSource),
        (udp("fe80::1", PEER[1], (1, 2)), DropReason::OutSource),
        (
            icmp6(
                "fe80::1",
                "ff02::2",
                Icmpv6Type::Unknown {
                    type_u8: 133,
                    code_u8: 0,
                    bytes5to8: [0; 4],
                },
            ),
            DropReason::OutSource,
        ),
        (
            udp(US[0], "224.0.0.251", (1, 2)),
            DropReason::OutDestination,
        ),
        (
            udp(US[0], "255.255.255.255", (1, 2)),
            DropReason::OutDestination,
        ),
        (udp(US[0], "127.0.0.1", (1, 2)), DropReason::OutDestination),
        (udp(US[1], "ff02::fb", (1, 2)), DropReason::OutDestination),
        (
            icmp6(
                US[1],
                PEER[1],
                Icmpv6Type::Unknown {
                    type_u8: 135,
                    code_u8: 0,
                    bytes5to8: [0; 4],
                },
            ),
            DropReason::OutProtocol,
        ),
    ];
    for (packet, reason) in &cases {
        assert_eq!(leave(&mut guard, packet, NOW), Egress::Drop(*reason));
    }
    assert_eq!(guard.drops.of(DropReason::OutDestination), 4);
}

#[test]
fn rules_decide_on_what_opens_a_flow() {
    let mut guard = guard(
        &[],
        &[],
        &["allow tcp *:443", "deny 192.0.2.0/24", "deny icmp *"],
    );

    assert_eq!(
        leave(&mut guard, &tcp(US[0], PEER[0], (1, 443), "S"), NOW),
        Egress::Send
    );
    assert_eq!(
        leave(&mut guard, &tcp(US[0], PEER[0], (1, 80), "S"), NOW),
        Egress::Prohibit
    );
    assert_eq!(
        leave(&mut guard, &udp(US[0], PEER[0], (1, 443)), NOW),
        Egress::Prohibit
    );
    assert_eq!(
        leave(&mut guard, &udp(US[0], "198.51.100.1", (1, 1)), NOW),
        Egress::Send
    );
    // A reply of a service in the enclave, to a client where no flow may be opened to.
    assert_eq!(
        leave(&mut guard, &tcp(US[0], PEER[0], (80, 4000), "SA"), NOW),
        Egress::Send
    );
    assert_eq!(guard.drops.of(DropReason::OutPolicy), 2);
}

#[test]
fn the_gateway_serves_dns_and_ping_whatever_the_rules() {
    let mut guard = guard(&[], &[], &["deny *"]);
    let gateway = "100.64.0.1";
    let echo = etherparse::IcmpEchoHeader { id: 1, seq: 1 };
    for packet in [
        udp(US[0], gateway, (1, 53)),
        tcp(US[0], gateway, (1, 53), "S"),
        icmp4(US[0], gateway, Icmpv4Type::EchoRequest(echo)),
        udp(US[1], "fd00:6e65:7464::1", (1, 53)),
    ] {
        assert_eq!(leave(&mut guard, &packet, NOW), Egress::Send);
    }
    assert_eq!(
        leave(&mut guard, &udp(US[0], gateway, (1, 123)), NOW),
        Egress::Prohibit
    );
    assert_eq!(
        leave(&mut guard, &udp(US[0], PEER[0], (1, 53)), NOW),
        Egress::Prohibit
    );
}

#[test]
fn tcp_is_opened_from_outside_to_published_ports_only() {
    let mut guard = guard(&[3000], &[], &[]);
    for family in [0, 1] {
        let (us, peer) = (US[family], PEER[family]);
        assert_eq!(
            enter(&mut guard, &tcp(peer, us, (9, 3000), "S"), NOW),
            "deliver"
        );
        assert_eq!(
            enter(&mut guard, &tcp(peer, us, (9, 3001), "S"), NOW),
            "reset"
        );
        assert_eq!(
            enter(&mut guard, &tcp(peer, us, (9, 3001), "SF"), NOW),
            "reset"
        );
        for flags in ["SA", "A", "FA", "R", "RA"] {
            assert_eq!(
                enter(&mut guard, &tcp(peer, us, (9, 3001), flags), NOW),
                "deliver"
            );
        }
    }
    assert_eq!(guard.drops.of(DropReason::InTcpClosed), 4);
}

#[test]
fn datagrams_enter_for_published_ports_and_for_those_that_asked() {
    let mut guard = guard(&[], &[53], &[]);
    let answer = udp(PEER[0], US[0], (123, 5000));
    assert_eq!(
        enter(&mut guard, &udp(PEER[0], US[0], (9, 53)), NOW),
        "deliver"
    );
    assert_eq!(enter(&mut guard, &answer, NOW), "in_udp_closed");

    assert_eq!(
        leave(&mut guard, &udp(US[0], PEER[0], (5000, 123)), NOW),
        Egress::Send
    );

    assert_eq!(enter(&mut guard, &answer, NOW), "deliver");
    let elsewhere = udp("203.0.113.5", US[0], (1, 5000));
    assert_eq!(
        enter(&mut guard, &elsewhere, NOW),
        "deliver",
        "endpoint-independent"
    );
    assert_eq!(
        enter(&mut guard, &udp(PEER[1], US[1], (123, 5000)), NOW),
        "in_udp_closed"
    );
    assert_eq!(enter(&mut guard, &answer, Seconds(NOW.0 + 180)), "deliver");
    assert_eq!(
        enter(&mut guard, &answer, Seconds(NOW.0 + 181)),
        "in_udp_closed"
    );
}

#[test]
fn a_denied_datagram_does_not_open_its_port() {
    let mut guard = guard(&[], &[], &["deny 192.0.2.0/24"]);
    assert_eq!(
        leave(&mut guard, &udp(US[0], PEER[0], (5000, 1)), NOW),
        Egress::Prohibit
    );
    assert_eq!(
        enter(&mut guard, &udp(PEER[0], US[0], (1, 5000)), NOW),
        "in_udp_closed"
    );
}

#[test]
fn a_published_udp_service_answers_its_callers_and_nobody_else() {
    let mut guard = guard(&[], &[53], &["deny *"]);
    let answer = udp(US[0], PEER[0], (53, 9));
    assert_eq!(leave(&mut guard, &answer, NOW), Egress::Prohibit);

    assert_eq!(
        enter(&mut guard, &udp(PEER[0], US[0], (9, 53)), NOW),
        "deliver"
    );

    assert_eq!(leave(&mut guard, &answer, NOW), Egress::Send);
    assert_eq!(
        leave(&mut guard, &udp(US[0], PEER[0], (53, 10)), NOW),
        Egress::Prohibit
    );
    assert_eq!(
        leave(&mut guard, &udp(US[0], PEER[0], (54, 9)), NOW),
        Egress::Prohibit
    );
    assert_eq!(
        leave(&mut guard, &answer, Seconds(NOW.0 + 181)),
        Egress::Prohibit
    );
}
