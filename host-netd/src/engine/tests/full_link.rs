//! What must reach the enclave also while bulk data fills the link.

use super::*;
use netd_proto::frame::{ANSWER_RESERVE, HEADER};
use netd_proto::limits::{LINK_QUEUE, MAX_PACKET_FRAME};

/// Fills the link's queue up to where packets have to wait.
fn fill_link(bed: &mut Bed) {
    let packet = udp("192.0.2.9:9", ENCLAVE, &[0; 1400]);
    while let Some(space) = bed.engine.queue().packet_space() {
        let (header, bytes) = space.split_at_mut(VnetHeader::LEN);
        header.copy_from_slice(&VnetHeader::NONE.encode());
        bytes[..packet.len()].copy_from_slice(&packet);
        bed.engine
            .queue()
            .commit_packet(VnetHeader::LEN + packet.len());
    }
}

#[test]
fn errors_are_told() {
    let mut bed = Bed::new();
    let refused = bed.dial(&tcp(ENCLAVE, SERVER, SYN, 999, 0, &[]));
    let unreachable = bed.dial(&tcp(ENCLAVE, "192.0.2.2:443", SYN, 999, 0, &[]));
    fill_link(&mut bed);

    bed.engine.dial_failed(refused, DialError::Refused);
    let error = DialError::Icmp(IcmpError::HostUnreachable);
    bed.engine.dial_failed(unreachable, error);

    let sent = bed.sent();
    let [.., reset, icmp] = &sent[..] else {
        panic!("nothing was told")
    };
    assert_eq!(reset.segment().flags, RST | ACK);
    assert_eq!(icmp.icmp(), (3, 1));
    assert_eq!(bed.drops(DropReason::LinkFull), 0);
}

#[test]
fn a_window_that_opened_is_told_to_who_asks() {
    let mut bed = Bed::new();
    let mut connection = Connection::open(&mut bed);
    while connection.edge != connection.seq {
        let length = (connection.edge - connection.seq).min(1400);
        connection.send(&mut bed, ACK, &vec![1; length as usize]);
    }
    connection.read_all(&mut bed);
    fill_link(&mut bed);

    let probe = tcp(
        ENCLAVE,
        SERVER,
        ACK,
        connection.seq - 1,
        connection.ack,
        &[],
    );
    bed.send(&probe);

    let mut told = bed.sent();
    told.extend(bed.egress(connection.id));
    let window = |sent: &Sent| match sent.packet().transport() {
        Transport::Tcp(tcp) => tcp.window_size(),
        _ => 0,
    };
    assert!(told.iter().any(|sent| window(sent) > 0));
}

#[test]
fn answers_are_bounded() {
    let mut bed = Bed::new();
    fill_link(&mut bed);
    for _ in 0..10_000 {
        bed.send(&tcp(ENCLAVE, SERVER, ACK, 1, 1, &[]));
    }
    let bound = LINK_QUEUE + HEADER + MAX_PACKET_FRAME + ANSWER_RESERVE;
    assert!(bed.engine.queue().len() <= bound);
    assert!(bed.drops(DropReason::LinkFull) > 0);
}
