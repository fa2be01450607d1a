use super::*;
use etherparse::{Icmpv4Type, Icmpv6Type, IpFragOffset, PacketBuilder, TcpHeader};
use netd_proto::build::{IcmpError, icmp_error};
use proptest::collection::vec;
use proptest::prelude::*;

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
fn a_name_in_a_rule_is_what_the_resolver_said() {
    let mut guard = guard(&[], &[], &["allow tcp kms.example.com:443", "deny *"]);
    let address: IpAddr = PEER[0].parse().expect("valid");
    let connect = tcp(US[0], PEER[0], (1, 443), "S");
    let answer = |from: &str, ports: (u16, u16)| {
        let mut bytes = Vec::new();
        let message = crate::dns::tests::message("kms.example.com", &[address], 30);
        ip(from, US[0])
            .udp(ports.0, ports.1)
            .write(&mut bytes, &message)
            .expect("built");
        bytes
    };
    leave(&mut guard, &udp(US[0], "100.64.0.1", (5000, 53)), NOW);
    assert_eq!(leave(&mut guard, &connect, NOW), Egress::Prohibit);
    enter(&mut guard, &answer(PEER[0], (53, 5000)), NOW);
    enter(&mut guard, &answer("100.64.0.1", (54, 5000)), NOW);
    enter(&mut guard, &answer("100.64.0.1", (53, 5001)), NOW);
    assert_eq!(
        leave(&mut guard, &connect, NOW),
        Egress::Prohibit,
        "not the resolver's answer"
    );

    assert_eq!(
        enter(&mut guard, &answer("100.64.0.1", (53, 5000)), NOW),
        "deliver"
    );

    assert_eq!(leave(&mut guard, &connect, NOW), Egress::Send);
    assert_eq!(
        leave(&mut guard, &tcp(US[0], PEER[0], (1, 80), "S"), NOW),
        Egress::Prohibit
    );
    assert_eq!(
        leave(&mut guard, &connect, Seconds(NOW.0 + 599)),
        Egress::Send
    );
    assert_eq!(
        leave(&mut guard, &connect, Seconds(NOW.0 + 600)),
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

#[test]
fn echo_replies_and_errors_enter_and_nothing_else_of_icmp() {
    let mut guard = guard(&[], &[], &[]);
    let echo = etherparse::IcmpEchoHeader { id: 1, seq: 1 };
    let raw4 = |kind| Icmpv4Type::Unknown {
        type_u8: kind,
        code_u8: 0,
        bytes5to8: [0; 4],
    };
    let raw6 = |kind| Icmpv6Type::Unknown {
        type_u8: kind,
        code_u8: 0,
        bytes5to8: [0; 4],
    };
    let mut enter4 = |kind| enter(&mut guard, &icmp4(PEER[0], US[0], kind), NOW);
    assert_eq!(enter4(Icmpv4Type::EchoReply(echo)), "deliver");
    assert_eq!(enter4(Icmpv4Type::EchoRequest(echo)), "in_protocol");
    for (kind, word) in [(3, "deliver"), (11, "deliver"), (12, "deliver")] {
        assert_eq!(enter4(raw4(kind)), word);
    }
    for kind in [4, 5, 9, 13, 17] {
        assert_eq!(enter4(raw4(kind)), "in_protocol", "type {kind}");
    }
    let mut enter6 = |kind| enter(&mut guard, &icmp6(PEER[1], US[1], kind), NOW);
    assert_eq!(enter6(Icmpv6Type::EchoReply(echo)), "deliver");
    assert_eq!(enter6(Icmpv6Type::EchoRequest(echo)), "in_protocol");
    for kind in 1..=4 {
        assert_eq!(enter6(raw6(kind)), "deliver", "type {kind}");
    }
    for kind in [130, 133, 134, 135, 136, 137] {
        assert_eq!(enter6(raw6(kind)), "in_protocol", "type {kind}");
    }
}

#[test]
fn forged_addresses_do_not_enter() {
    let mut guard = guard(&[80], &[], &[]);
    let mut word = |src, dst| enter(&mut guard, &tcp(src, dst, (1, 80), "S"), NOW);
    for dst in [
        "100.64.0.1",
        "100.64.0.3",
        "127.0.0.1",
        "255.255.255.255",
        "224.0.0.1",
    ] {
        assert_eq!(word(PEER[0], dst), "in_destination", "{dst}");
    }
    for src in [
        US[0],
        "127.0.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        assert_eq!(word(src, US[0]), "in_source", "{src}");
    }
    for dst in ["::1", "ff02::1", "fd00:6e65:7464::3", "fe80::1"] {
        assert_eq!(word(PEER[1], dst), "in_destination", "{dst}");
    }
    for src in [US[1], "::1", "::", "ff02::1", "::ffff:192.0.2.1", "fe80::1"] {
        assert_eq!(word(src, US[1]), "in_source", "{src}");
    }
}

#[test]
fn malformed_packets_do_not_enter() {
    let mut guard = guard(&[80], &[], &[]);
    let good = tcp(PEER[0], US[0], (1, 80), "A");
    assert_eq!(enter(&mut guard, &good, NOW), "deliver");
    for length in 0..good.len() {
        assert_eq!(
            enter(&mut guard, &good[..length], NOW),
            "in_malformed",
            "{length} bytes"
        );
    }
    for length in 0..VnetHeader::LEN {
        let frame = &framed(&good)[..length];
        assert_eq!(
            guard.ingress(frame, NOW),
            Ingress::Drop(DropReason::InMalformed)
        );
    }
    let longer = [good.as_slice(), &[0]].concat();
    assert_eq!(enter(&mut guard, &longer, NOW), "in_malformed");
    let mut wrong_sum = good.clone();
    wrong_sum[10] ^= 1;
    assert_eq!(enter(&mut guard, &wrong_sum, NOW), "in_malformed");
    let mut wrong_data = good.clone();
    *wrong_data.last_mut().expect("not empty") ^= 1;
    assert_eq!(enter(&mut guard, &wrong_data, NOW), "in_offload");
}

#[test]
fn fragments_leave_and_do_not_enter() {
    let mut guard = guard(&[], &[53], &["deny udp 192.0.2.0/24:7"]);
    let fragment = |src: &str, dst: &str, offset: u16, port: u16, id: u16| {
        let mut bytes = udp(src, dst, (1, port));
        let mut header = etherparse::Ipv4Header::from_slice(&bytes).expect("valid").0;
        header.fragment_offset = IpFragOffset::try_new(offset).expect("small");
        header.more_fragments = offset == 0;
        header.identification = id;
        header.dont_fragment = false;
        header.header_checksum = header.calc_header_checksum();
        bytes[..20].copy_from_slice(&header.to_bytes());
        bytes
    };
    assert_eq!(
        leave(&mut guard, &fragment(US[0], PEER[0], 0, 8, 1), NOW),
        Egress::Send
    );
    assert_eq!(
        leave(&mut guard, &fragment(US[0], PEER[0], 0, 7, 2), NOW),
        Egress::Prohibit
    );
    assert_eq!(
        leave(&mut guard, &fragment(US[0], PEER[0], 185, 7, 2), NOW),
        Egress::Drop(DropReason::OutPolicy),
        "the rest of what was refused"
    );
    assert_eq!(
        leave(&mut guard, &fragment(US[0], PEER[0], 185, 8, 1), NOW),
        Egress::Send
    );
    assert_eq!(
        enter(&mut guard, &fragment(PEER[0], US[0], 0, 53, 3), NOW),
        "in_fragment"
    );
    assert_eq!(
        enter(&mut guard, &udp(PEER[0], US[0], (9, 1)), NOW),
        "deliver",
        "port 1 asked"
    );
}

#[test]
fn offload_fields_that_point_elsewhere_do_not_enter() {
    let mut guard = guard(&[], &[], &[]);
    let packet = tcp(PEER[0], US[0], (1, 80), "A");
    let good = VnetHeader::tcp(false, 20, 20, None);
    let mut word = |vnet: VnetHeader| {
        let frame = [vnet.encode().as_slice(), &packet].concat();
        match guard.ingress(&frame, NOW) {
            Ingress::Deliver(..) => "deliver",
            Ingress::Reset(_) => "reset",
            Ingress::Drop(reason) => reason.name(),
        }
    };
    assert_eq!(word(good), "deliver");
    assert_eq!(
        word(VnetHeader {
            gso_type: 1,
            gso_size: 1000,
            ..good
        }),
        "deliver"
    );
    for wrong in [
        VnetHeader {
            csum_start: 0,
            ..good
        },
        VnetHeader {
            csum_start: 60_000,
            ..good
        },
        VnetHeader {
            csum_offset: 6,
            ..good
        },
        VnetHeader {
            flags: 0xF0,
            ..good
        },
        VnetHeader {
            gso_type: 4,
            gso_size: 1000,
            ..good
        },
        VnetHeader {
            gso_type: 3,
            gso_size: 1000,
            ..good
        },
        VnetHeader {
            gso_type: 1,
            gso_size: 0,
            ..good
        },
        VnetHeader {
            gso_type: 1,
            gso_size: 1000,
            hdr_len: 60_000,
            ..good
        },
    ] {
        assert_eq!(word(wrong), "in_offload", "{wrong:?}");
    }
}

#[test]
fn extension_headers_do_not_enter() {
    let mut guard = guard(&[], &[], &[]);
    let inner = tcp(PEER[1], US[1], (1, 80), "A");
    let mut bytes = inner[..40].to_vec();
    bytes[6] = 0;
    let length = u16::try_from(inner.len() - 40 + 8).expect("small");
    bytes[4..6].copy_from_slice(&length.to_be_bytes());
    bytes.extend([6, 0, 5, 2, 0, 0, 1, 0]);
    bytes.extend(&inner[40..]);
    assert_eq!(enter(&mut guard, &bytes, NOW), "in_protocol");
}

#[test]
fn an_icmp_error_about_a_datagram_of_ours_goes_both_ways() {
    let mut guard = guard(&[], &[], &[]);
    let about = udp(US[0], PEER[0], (1, 2));
    let mut error = vec![0; 200];
    let to = US[0].parse().expect("valid");
    let from = PEER[0].parse().expect("valid");
    let length = icmp_error(&mut error, from, to, IcmpError::PortUnreachable, &about);
    assert_eq!(enter(&mut guard, &error[..length], NOW), "deliver");
    let length = icmp_error(&mut error, to, from, IcmpError::PortUnreachable, &about);
    assert_eq!(leave(&mut guard, &error[..length], NOW), Egress::Send);
}

/// A valid packet to us with up to three bytes of its frame changed.
fn nearly_valid() -> impl Strategy<Value = Vec<u8>> {
    let packet = prop_oneof![
        Just(tcp(PEER[0], US[0], (1, 80), "A")),
        Just(tcp(PEER[1], US[1], (1, 80), "S")),
        Just(udp(PEER[0], US[0], (1, 53))),
        Just(udp(PEER[1], US[1], (1, 53))),
        vec(any::<u8>(), 0..100),
    ];
    (
        packet,
        vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    )
        .prop_map(|(packet, changes)| {
            let mut frame = framed(&packet);
            for (at, byte) in changes {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            frame
        })
}

#[test]
fn super_datagrams_enter_where_the_link_agreed_on_them() {
    for (family, us) in US.into_iter().enumerate() {
        let mut bytes = Vec::new();
        ip(PEER[family], us)
            .udp(53, 5000)
            .write(&mut bytes, &[7; 3000])
            .expect("built");
        let mut frame = framed(&bytes);
        netd_proto::run::mark_super_datagram(family == 1, 1400, &mut frame);
        let word = |guard: &mut Guard| match guard.ingress(&frame, NOW) {
            Ingress::Deliver(vnet, _) => format!("deliver {:?}", vnet.datagram_size()),
            Ingress::Reset(_) => "reset".to_owned(),
            Ingress::Drop(reason) => reason.name().to_owned(),
        };
        let mut guard = guard(&[], &[5000], &[]);
        assert_eq!(word(&mut guard), "deliver Some(1400)");
        guard.agree(Features::CHECKSUM.or(Features::TSO4).or(Features::TSO6));
        assert_eq!(word(&mut guard), DropReason::InOffload.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the host sends: no panic, and what enters is a whole packet to us, from somebody
    /// else, whose offload header fits.
    #[test]
    fn what_enters_is_sound(frame in nearly_valid()) {
        let mut guard = guard(&[80], &[53], &[]);
        let delivered = match guard.ingress(&frame, NOW) {
            Ingress::Deliver(..) => true,
            Ingress::Reset(packet) => {
                prop_assert!(addresses().is_ours(packet.dst()));
                false
            }
            Ingress::Drop(reason) => {
                prop_assert_eq!(guard.drops.of(reason), 1);
                false
            }
        };
        if delivered {
            let (vnet, bytes) = VnetHeader::split(&frame).expect("checked");
            let packet = Packet::parse(bytes).expect("checked");
            prop_assert!(addresses().is_ours(packet.dst()));
            prop_assert!(!addresses().is_ours(packet.src()));
            prop_assert!(is_unicast(packet.src()));
            prop_assert_eq!(vnet.check(&packet, Features::ALL), Ok(()));
            let reaches_udp = match packet.transport() {
                Transport::Udp(udp) => udp.destination_port() == 53,
                _ => true,
            };
            prop_assert!(reaches_udp);
        }
    }
}
