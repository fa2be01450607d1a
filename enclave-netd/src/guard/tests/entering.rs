//! What a host may send in.

use super::*;

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
