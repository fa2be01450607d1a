//! Single segments at the wrong time, and what smoltcp makes of them.

use super::*;

/// Lets the host's side of a flow send `bytes`.
fn host_sends(bed: &mut Bed, id: FlowId, bytes: usize) {
    let mut flow = bed.engine.tcp(id).expect("open");
    let sent = flow.send(|space| {
        let n = space.len().min(bytes);
        space[..n].fill(7);
        (n, n)
    });
    assert_eq!(sent, Some(bytes));
}

/// A SYN whose window is shut as soon as `window` bytes came: without scale.
fn small_window(bed: &mut Bed, window: u16) -> (FlowId, u32) {
    let syn = tcp(ENCLAVE, SERVER, SYN, 999, 0, &[]);
    let id = bed.dial(&syn);
    assert!(bed.engine.connected(id, bed.now));
    let ack = bed.egress(id).remove(0).segment().seq + 1;
    acknowledge(bed, (1000, ack), ACK, window);
    (id, ack)
}

/// Sends a segment without data that tells a window in units of `1 << WINDOW_SCALE`.
fn acknowledge(bed: &mut Bed, (seq, ack): (u32, u32), flags: u8, window: u16) {
    const WINDOW: usize = 34;
    let mut packet = tcp(ENCLAVE, SERVER, flags, seq, ack, &[]);
    packet[WINDOW..WINDOW + 2].copy_from_slice(&window.to_be_bytes());
    build::partial_tcp_checksum(&mut packet);
    build::complete_checksum(&mut packet, &VnetHeader::tcp(false, 20, 20, None));
    assert!(matches!(bed.send(&packet), Effect::Turn(_)));
}

#[test]
fn super_segments_say_how_they_are_to_be_cut_in_both_families() {
    for ends in BOTH {
        let mut bed = Bed::new();
        let connection = Connection::between(&mut bed, ends);

        host_sends(&mut bed, connection.id, 20_000);

        let sent = bed.egress(connection.id);
        assert_eq!(sent.len(), 1, "one super-segment");
        assert_eq!(sent[0].vnet.gso_size, 1460);
        assert_eq!(sent[0].segment().payload, 20_000);
    }
}

#[test]
fn a_shut_window_opens_again_behind_both_ends() {
    let mut bed = Bed::new();
    let (id, ack) = small_window(&mut bed, 8);
    // The enclave ends its half first, takes the 1,024 bytes that it has room for, and shuts.
    acknowledge(&mut bed, (1000, ack), FIN | ACK, 8);
    host_sends(&mut bed, id, 5000);
    bed.engine.tcp(id).expect("open").finish();
    let taken: usize = bed
        .egress(id)
        .iter()
        .map(|sent| sent.segment().payload)
        .sum();
    assert_eq!(taken, 1024);
    let ack = ack + 1024;
    acknowledge(&mut bed, (1001, ack), ACK, 0);
    assert!(bed.egress(id).is_empty());

    acknowledge(&mut bed, (1001, ack), ACK, 64);

    let sent: Vec<_> = bed.egress(id).iter().map(Sent::segment).collect();
    let bytes: usize = sent.iter().map(|segment| segment.payload).sum();
    assert_eq!(bytes, 5000 - 1024);
    assert_eq!(sent.last().map(|segment| segment.flags & FIN), Some(FIN));
}

#[test]
fn a_port_that_is_used_again_at_once_is_dialed() {
    let mut bed = Bed::new();
    let syn = tcp(ENCLAVE, SERVER, SYN, 999, 0, &[]);
    let id = bed.dial(&syn);
    assert!(bed.engine.connected(id, bed.now));
    // Both come in one read of the link, before the flow's turn.
    bed.send(&tcp(ENCLAVE, SERVER, RST, 1000, 0, &[]));

    let again = bed.dial(&tcp(ENCLAVE, SERVER, SYN, 5000, 0, &[]));

    assert_ne!(again, id);
    assert!(bed.sent().is_empty(), "no answer before the dial's");
    bed.engine.remove(id);
    assert!(bed.engine.connected(again, bed.now));
    assert_eq!(bed.egress(again).remove(0).segment().ack, 5001);
}

#[test]
fn what_a_slow_reader_has_to_come_outlives_the_port() {
    let mut bed = Bed::new();
    let mut connection = Connection::open(&mut bed);
    connection.send(&mut bed, FIN | ACK, &[7; 100]);
    bed.engine.tcp(connection.id).expect("open").finish();
    connection.replies(&mut bed);
    connection.ack += 1;
    connection.send(&mut bed, ACK, &[]);

    let again = bed.dial(&tcp(ENCLAVE, SERVER, SYN, 5000, 0, &[]));

    assert_eq!(connection.read_all(&mut bed), 100);
    let standing = bed.engine.tcp(connection.id).map(|flow| flow.standing());
    assert_eq!(standing, Some(Standing::Finished));
    bed.engine.remove(connection.id);
    let repeated = bed.send(&tcp(ENCLAVE, SERVER, SYN, 5000, 0, &[]));
    assert!(
        matches!(repeated, Effect::None),
        "the new flow has the port"
    );
    assert!(bed.engine.connected(again, bed.now));
}

#[test]
fn a_reset_of_the_former_connection_does_not_take_a_dial_back() {
    let mut bed = Bed::new();
    let id = bed.dial(&tcp(ENCLAVE, SERVER, SYN, 999, 0, &[]));

    // The answer to a late SYN-ACK of the former one.
    let effect = bed.send(&tcp(ENCLAVE, SERVER, RST, 77_000, 0, &[]));

    assert!(matches!(effect, Effect::None), "{effect:?}");
    assert!(bed.engine.connected(id, bed.now));
}

#[test]
fn an_acknowledgement_and_a_keep_alive_at_once_are_no_reason_to_reset() {
    let mut bed = Bed::new();
    let mut connection = Connection::open(&mut bed);
    bed.engine.tcp(connection.id).expect("open").finish();
    connection.replies(&mut bed);
    connection.ack += 1;
    let bytes = tcp(
        ENCLAVE,
        SERVER,
        ACK,
        connection.seq,
        connection.ack,
        &[7; 4],
    );
    bed.send(&bytes);

    bed.pass(crate::limits::ENCLAVE_KEEPALIVE * 2);
    bed.egress(connection.id);

    let standing = bed.engine.tcp(connection.id).map(|flow| flow.standing());
    assert_eq!(standing, Some(Standing::Open));
}

/// A flow whose host ended its half, and the enclave too: its FIN came behind 100 bytes that nobody
/// read, and was not acknowledged.
fn both_ended(bed: &mut Bed) -> (Connection, Vec<u8>) {
    let mut connection = Connection::open(bed);
    bed.engine.tcp(connection.id).expect("open").finish();
    connection.replies(bed);
    connection.ack += 1;
    let (seq, ack) = (connection.seq, connection.ack);
    bed.send(&tcp(ENCLAVE, SERVER, FIN | ACK, seq, ack, &[7; 100]));
    (
        connection,
        tcp(ENCLAVE, SERVER, FIN | ACK, seq + 100, ack, &[]),
    )
}

#[test]
fn a_repeated_fin_does_not_cost_the_last_acknowledgement_while_the_link_is_full() {
    let mut bed = Bed::new();
    let (connection, fin) = both_ended(&mut bed);
    while bed.engine.queue().packet_space().is_some() {
        bed.engine.queue().commit_packet(1000);
    }

    bed.send(&fin);

    bed.engine.queue().clear();
    let sent = bed.egress(connection.id);
    let acknowledged = sent.last().map(|sent| sent.segment().ack);
    assert_eq!(acknowledged, Some(connection.seq + 101));
}

#[test]
fn time_wait_forgets_no_bytes_when_its_last_acknowledgement_was_an_answer() {
    let mut bed = Bed::new();
    let (connection, fin) = both_ended(&mut bed);
    bed.send(&fin);
    assert_eq!(bed.one().segment().ack, connection.seq + 101);

    bed.pass(Duration::from_secs(60));
    bed.egress(connection.id);

    assert_eq!(connection.read_all(&mut bed), 100);
}
