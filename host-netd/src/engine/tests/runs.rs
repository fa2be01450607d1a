//! Many datagrams in one packet, both ways.

use super::*;

/// The datagrams that the enclave's kernel makes of what was sent: sender and payload of each.
fn datagrams(sent: &[Sent]) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut all = Vec::new();
    for one in sent {
        let packet = one.packet();
        let Transport::Udp(udp) = packet.transport() else {
            panic!("{packet:?}")
        };
        let from = SocketAddr::new(packet.src(), udp.source_port());
        let size = one.vnet.datagram_size().map_or(usize::MAX, usize::from);
        let payload = udp.payload();
        all.extend(payload.chunks(size).map(|part| (from, part.to_vec())));
        if payload.is_empty() {
            all.push((from, Vec::new()));
        }
    }
    all
}

#[test]
fn what_comes_in_a_row_is_one_packet_and_every_boundary_is_kept() {
    let (a, b) = ("192.0.2.1:7", "192.0.2.2:7");
    let burst = [
        (a, 1400),
        (a, 1400),
        (a, 1400),
        (a, 10),
        (a, 1400),
        (b, 1400),
        (b, 0),
        (b, 1400),
        (b, 1399),
        (a, 1400),
        (a, 1401),
        (a, 9000),
        (a, 9000),
        (b, 65_507),
        (b, 1),
        (b, 1),
    ];
    for (features, packets) in [(Features::ALL, 10), (Features::CHECKSUM, burst.len())] {
        let mut bed = Bed::with(features, &[]);
        let id = datagram(bed.send(&udp(ENCLAVE, SERVER, b"one"))).flow;
        let mut expected = Vec::new();
        let mut sent = Vec::new();
        for (index, (from, length)) in burst.into_iter().enumerate() {
            let payload = vec![u8::try_from(index).unwrap(); length];
            while arrive(&mut bed, id, from, &payload, None).is_none() {
                bed.engine.seal_run();
                sent.extend(bed.sent());
            }
            expected.push((from.parse().unwrap(), payload));
        }
        bed.engine.seal_run();
        sent.extend(bed.sent());
        assert!(datagrams(&sent) == expected, "{features}");
        assert_eq!(sent.len(), packets, "{features}");
    }
}

#[test]
fn what_the_host_s_kernel_gathered_stays_together() {
    let mut bed = Bed::new();
    let id = datagram(bed.send(&udp(ENCLAVE, SERVER, b"one"))).flow;
    let from = "192.0.2.1:7";
    arrive(&mut bed, id, from, &[1; 100], None).expect("room");
    arrive(&mut bed, id, from, &[2; 250], Some(100)).expect("room");
    arrive(&mut bed, id, from, &[3; 100], None).expect("room");
    bed.engine.seal_run();

    let lengths: Vec<_> = datagrams(&bed.sent())
        .into_iter()
        .map(|(_, payload)| (payload[0], payload.len()))
        .collect();
    assert_eq!(lengths, [(1, 100), (2, 100), (2, 100), (2, 50), (3, 100)]);
}

#[test]
fn an_error_in_between_neither_loses_nor_mixes_datagrams() {
    let mut bed = Bed::new();
    let id = datagram(bed.send(&udp(ENCLAVE, SERVER, b"one"))).flow;
    arrive(&mut bed, id, "192.0.2.1:7", &[1; 100], None).expect("room");
    let to = SERVER.parse().unwrap();
    bed.engine
        .datagram_error(id, None, to, IcmpError::PortUnreachable, 0, b"one");
    arrive(&mut bed, id, "192.0.2.1:7", &[2; 100], None).expect("room");
    bed.engine.seal_run();
    let sent = bed.sent();
    assert_eq!(sent.len(), 3);
    assert_eq!(sent[1].icmp(), (3, 3));
    assert_eq!(datagrams(&sent[..1])[0].1, [1; 100]);
    assert_eq!(datagrams(&sent[2..])[0].1, [2; 100]);
}

#[test]
fn an_error_of_a_router_with_the_enclave_s_address_comes_from_the_gateway() {
    let mut bed = Bed::new();
    let id = datagram(bed.send(&udp(ENCLAVE, SERVER, b"one"))).flow;
    let to = SERVER.parse().unwrap();
    for (router, told) in [
        ("100.64.0.2", "100.64.0.1"),
        ("198.51.100.1", "198.51.100.1"),
    ] {
        let router = Some(router.parse().unwrap());
        bed.engine
            .datagram_error(id, router, to, IcmpError::TimeExceeded, 0, b"one");
        assert_eq!(bed.one().packet().src().to_string(), told);
    }
}

/// Hands a super-datagram to the engine, as the enclave's kernel makes it.
fn send_many(bed: &mut Bed, to: &str, payload: &[u8], size: u16) -> Effect<'static> {
    let mut frame = VnetHeader::NONE.encode().to_vec();
    frame.extend(udp(ENCLAVE, to, payload));
    netd_proto::run::mark_super_datagram(false, size, &mut frame);
    bed.engine.handle_packet(&frame, bed.now).into_owned()
}

#[test]
fn a_super_datagram_leaves_with_its_boundaries_or_is_refused() {
    let mut bed = Bed::new();
    let out = datagram(send_many(&mut bed, SERVER, &[1; 250], 100));
    assert_eq!((out.payload.len(), out.segment), (250, Some(100)));
    match send_many(&mut bed, "100.64.0.1:53", &[1; 250], 100) {
        Effect::Dns { query, segment, .. } => assert_eq!((query.len(), segment), (250, Some(100))),
        other => panic!("{other:?}"),
    }

    // What is refused is answered as its first datagram would be.
    send_many(&mut bed, "100.64.0.1:54", &[1; 250], 100);
    let error = bed.one();
    assert_eq!(error.icmp(), (3, 3));
    assert_eq!(error.bytes.len(), 20 + 8 + 20 + 8 + 100);

    let mut bed = Bed::with(Features::CHECKSUM.or(Features::TSO4), &[]);
    let effect = send_many(&mut bed, SERVER, &[1; 250], 100);
    assert!(matches!(effect, Effect::None), "not agreed on");
    assert_eq!(bed.engine.counters().drops(DropReason::Offload), 1);
}
