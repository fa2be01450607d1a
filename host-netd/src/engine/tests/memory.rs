//! Ring memory: given back when idle, bounded by the budget.

use super::*;
use crate::limits::{RING_IDLE, SHORT_WINDOW};

/// Bytes of ring memory that the engine counts.
fn ring_memory(bed: &Bed) -> usize {
    bed.engine.memory.used()
}

#[test]
fn idle_rings_are_given_back_and_a_flow_goes_on_where_it_was() {
    let mut bed = Bed::new();
    let mut connection = Connection::open(&mut bed);
    for round in 0..3u8 {
        for _ in 0..50 {
            connection.send(&mut bed, ACK, &[round; 1000]);
            assert_eq!(connection.read_all(&mut bed), 1000);
            connection.replies(&mut bed);
        }
        let answer = |space: &mut [u8]| {
            space[..2000].fill(round);
            (2000, ())
        };
        bed.engine.tcp(connection.id).unwrap().send(answer).unwrap();
        let replies = bed.egress(connection.id);
        assert!(replies.iter().all(|r| r.bytes.ends_with(&[round; 1000])));
        assert_eq!(ring_memory(&bed), 52_000);

        // What was not acknowledged stays.
        bed.pass(2 * RING_IDLE);
        while bed.engine.expired(bed.now).is_some() {}
        assert_eq!(ring_memory(&bed), 52_000);
        connection.ack += 2000;
        connection.send(&mut bed, ACK, &[]);

        bed.pass(2 * RING_IDLE);
        while bed.engine.expired(bed.now).is_some() {}
        assert_eq!(ring_memory(&bed), 0);
    }
}

/// Bytes beyond a gap lie in the ring unseen: they are not given back with it.
#[test]
fn a_gap_keeps_the_rings() {
    let mut bed = Bed::new();
    let mut connection = Connection::open(&mut bed);
    let start = connection.seq;
    connection.seq += 100;
    connection.send(&mut bed, ACK, &[2; 100]);
    bed.pass(2 * RING_IDLE);
    while bed.engine.expired(bed.now).is_some() {}
    assert_eq!(ring_memory(&bed), 200, "the gap as well");

    connection.seq = start;
    connection.send(&mut bed, ACK, &[1; 100]);
    let mut flow = bed.engine.tcp(connection.id).unwrap();
    let bytes = flow.receive(|bytes| (bytes.len(), bytes.to_vec())).unwrap();
    assert_eq!(bytes, [[1; 100], [2; 100]].concat());
}

#[test]
fn short_memory_makes_windows_small_and_refuses_new_flows() {
    let mut bed = Bed::new();
    let mut held = Vec::new();
    let mut port = 1000;
    while !bed.engine.memory.is_used_up() {
        let enclave: &'static str = Box::leak(format!("100.64.0.2:{port}").into_boxed_str());
        port += 1;
        let mut connection = Connection::between(&mut bed, (enclave, SERVER));
        // Nobody reads: all that was promised is filled, and the window of a bulk flow with it.
        while connection.edge.wrapping_sub(connection.seq) >= 1400 {
            if connection.send(&mut bed, ACK, &[1; 1400]).is_empty() {
                break;
            }
        }
        held.push(connection);
    }
    let refused = bed.send(&tcp(ENCLAVE, SERVER, SYN, 999, 0, &[]));
    assert!(matches!(refused, Effect::None));
    assert_eq!(bed.one().segment().flags, RST | ACK);
    assert_eq!(bed.drops(DropReason::MemoryLimit), 1);
    assert!(ring_memory(&bed) <= LIMITS.most_ring_memory());

    // One that is emptied goes on with a small window.
    let connection = held.last_mut().expect("several");
    connection.read_all(&mut bed);
    let replies = connection.replies(&mut bed);
    let window = usize::from(replies.last().expect("an update").window) << SHIFT;
    assert!(window <= SHORT_WINDOW, "{window}");
}

#[test]
fn what_memory_has_no_room_for_is_taken_when_it_comes_again() {
    let limits = Limits {
        ring_memory: 1024 * 1024,
        ..LIMITS
    };
    let mut bed = Bed::made(Features::ALL, &[], limits);
    let open = |port| {
        let enclave: &'static str = Box::leak(format!("100.64.0.2:{port}").into_boxed_str());
        Connection::between(&mut bed, (enclave, SERVER))
    };
    // Each was promised as much, and nobody reads.
    let mut connections: Vec<_> = (1000..1000 + FLOWS).map(open).collect();
    let (mut modest, mut gapped) = (connections.remove(0), connections.remove(0));
    let start = gapped.seq;
    gapped.seq += 1000;
    gapped.send(&mut bed, ACK, &[2; 40_000]);
    let mut kept = Vec::new();
    let mut dropped = Vec::new();
    for mut connection in connections {
        let before = bed.drops(DropReason::MemoryLimit);
        let answers = connection.send(&mut bed, ACK, &[1; 60_000]);
        assert!(answers.iter().all(|answer| answer.flags & RST == 0));
        assert!(ring_memory(&bed) <= limits.most_ring_memory());
        if bed.drops(DropReason::MemoryLimit) > before {
            dropped.push(connection);
        } else {
            kept.push(connection);
        }
    }
    let drops = dropped.len() as u64;
    assert!(drops > 2, "the memory is never used up");
    assert_eq!(bed.drops(DropReason::MemoryLimit), drops);

    modest.send(&mut bed, ACK, b"a request");
    assert_eq!(modest.read_all(&mut bed), 9, "not for what others hold");
    gapped.seq = start;
    gapped.send(&mut bed, ACK, &[1; 1000]);
    assert_eq!(gapped.read_all(&mut bed), 41_000, "a gap is always filled");

    assert_eq!(bed.drops(DropReason::MemoryLimit), drops);
    for connection in &mut kept {
        assert_eq!(connection.read_all(&mut bed), 60_000);
        connection.replies(&mut bed);
    }
    for connection in &mut dropped {
        connection.seq -= 60_000;
        connection.send(&mut bed, ACK, &[1; 60_000]);
        assert_eq!(connection.read_all(&mut bed), 60_000);
        connection.replies(&mut bed);
    }
    assert_eq!(bed.drops(DropReason::MemoryLimit), drops);
}
