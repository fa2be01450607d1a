//! How connections begin, follow one another between the same ports, and are reset.

use super::*;
use crate::limits::{RESET_PATIENCE, SYN_GRACE, SYN_PAUSE};

/// What the deadlines bring.
fn expired(bed: &mut Bed) -> Option<Effect<'static>> {
    bed.engine.expired(bed.now)
}

#[test]
fn a_connect_that_the_enclave_asks_for_no_more_is_given_up_outside() {
    for (enclave, server) in BOTH {
        let mut bed = Bed::new();
        let syn = tcp(enclave, server, SYN, 999, 0, &[]);
        let id = bed.dial(&syn);
        // As Linux repeats it.
        for pause in [1, 2, 4, 8] {
            bed.pass(Duration::from_secs(pause));
            assert!(expired(&mut bed).is_none(), "after {pause} s");
            assert!(matches!(bed.send(&syn), Effect::None));
        }

        bed.pass(Duration::from_secs(16) + SYN_GRACE - Duration::from_millis(1));
        assert!(expired(&mut bed).is_none(), "it may still come");
        bed.pass(Duration::from_millis(1));
        assert!(matches!(expired(&mut bed), Some(Effect::Gone(gone)) if gone == id));

        assert_eq!(bed.engine.flow_count(), 0);
        assert!(bed.sent().is_empty(), "nothing is told");
        bed.dial(&syn);
    }
}

#[test]
fn a_connect_cancelled_at_once_is_given_up_after_the_first_pause() {
    let mut bed = Bed::new();
    let id = bed.dial(&tcp(ENCLAVE, SERVER, SYN, 999, 0, &[]));
    bed.pass(SYN_PAUSE * 2 + SYN_GRACE);
    assert!(matches!(expired(&mut bed), Some(Effect::Gone(gone)) if gone == id));
}

#[test]
fn only_a_reset_of_the_syn_takes_a_connect_back() {
    let mut bed = Bed::new();
    let id = bed.dial(&tcp(ENCLAVE, SERVER, SYN, 999, 0, &[]));
    for seq in [998, 5000] {
        let effect = bed.send(&tcp(ENCLAVE, SERVER, RST, seq, 0, &[]));
        assert!(matches!(effect, Effect::None), "{seq}: {effect:?}");
    }
    let effect = bed.send(&tcp(ENCLAVE, SERVER, RST, 1000, 0, &[]));
    assert!(matches!(effect, Effect::Gone(gone) if gone == id));
}

fn redialed(effect: &Effect<'_>, old: FlowId) -> FlowId {
    match effect {
        Effect::Redial { gone, id, .. } if *gone == old && *id != old => *id,
        other => panic!("not a redial: {other:?}"),
    }
}

#[test]
fn another_syn_between_the_same_ports_begins_another_connect() {
    let mut bed = Bed::new();
    let first = bed.dial(&tcp(ENCLAVE, SERVER, SYN, 999, 0, &[]));

    let second = redialed(&bed.send(&tcp(ENCLAVE, SERVER, SYN, 77_777, 0, &[])), first);

    assert!(!bed.engine.connected(first, bed.now), "nobody waits for it");
    assert!(bed.engine.connected(second, bed.now));
    let syn_ack = bed.egress(second).remove(0).segment();
    assert_eq!((syn_ack.flags, syn_ack.ack), (SYN | ACK, 77_778));
    assert_eq!(bed.engine.flow_count(), 1);
}

#[test]
fn another_syn_ends_a_connection_that_the_enclave_forgot() {
    for (enclave, server) in BOTH {
        let mut bed = Bed::new();
        let connection = Connection::between(&mut bed, (enclave, server));
        let repeated = bed.send(&tcp(enclave, server, SYN, 999, 0, &[]));
        assert!(matches!(repeated, Effect::Turn(_)), "{repeated:?}");
        assert!(bed.egress(connection.id).iter().all(|sent| {
            let flags = sent.segment().flags;
            flags & (SYN | RST) == 0
        }));

        let second = redialed(
            &bed.send(&tcp(enclave, server, SYN, 5, 0, &[])),
            connection.id,
        );

        assert!(bed.engine.tcp(connection.id).is_none());
        assert!(bed.sent().is_empty(), "nothing is said until it stands");
        assert!(bed.engine.connected(second, bed.now));
        assert_eq!(bed.egress(second).remove(0).segment().ack, 6);
    }
}

#[test]
fn another_syn_leaves_a_finished_connections_bytes_on_their_way_out() {
    for (enclave, server) in BOTH {
        let mut bed = Bed::new();
        let mut old = Connection::between(&mut bed, (enclave, server));
        bed.engine.tcp(old.id).unwrap().finish();
        old.replies(&mut bed);
        old.ack += 1;
        old.send(&mut bed, FIN | ACK, &[7; 5000]);

        let new = bed.dial(&tcp(enclave, server, SYN, 123_456, 0, &[]));

        assert!(bed.engine.connected(new, bed.now));
        assert_eq!(bed.egress(new).remove(0).segment().ack, 123_457);
        assert!(bed.egress(old.id).is_empty(), "it has nothing to say");
        assert_eq!(old.read_all(&mut bed), 5000);
        let standing = bed.engine.tcp(old.id).unwrap().standing();
        assert_eq!(standing, Standing::Finished);
        bed.engine.remove(old.id);
        bed.send(&tcp(enclave, server, ACK, 123_457, 0, &[]));
        assert!(bed.engine.tcp(new).is_some(), "the new one kept its place");
        assert_eq!(bed.drops(DropReason::UnknownFlow), 0);
    }
}

#[test]
fn a_reset_comes_behind_what_came_before_it() {
    let mut bed = Bed::new();
    let mut connection = Connection::open(&mut bed);
    let mut flow = bed.engine.tcp(connection.id).unwrap();
    let queued = flow.send(|space| (space.len(), space.len())).unwrap();
    assert!(queued > 60_000, "more than one window of the enclave");
    flow.abort_behind(true);

    let mut sent = connection.replies(&mut bed);
    let payload = |sent: &[Segment]| sent.iter().map(|s| s.payload).sum::<usize>();
    let mut acknowledged = payload(&sent);
    while acknowledged < queued {
        assert!(sent.iter().all(|s| s.flags & RST == 0), "{sent:?}");
        // Slow, but not too slow.
        bed.pass(RESET_PATIENCE - Duration::from_millis(1));
        connection.ack += u32::try_from(payload(&sent)).unwrap();
        sent = connection.send(&mut bed, ACK, &[]);
        acknowledged += payload(&sent);
    }

    let reset = sent.last().unwrap();
    assert_eq!(reset.flags & RST, RST);
    let end = connection.ack + u32::try_from(payload(&sent)).unwrap();
    assert_eq!(reset.seq, end, "where the enclave expects it");
    let standing = bed.engine.tcp(connection.id).unwrap().standing();
    assert_eq!(standing, Standing::Reset);
}

#[test]
fn a_reset_comes_behind_the_handshake() {
    let segments = |sent: &[Sent]| -> Vec<_> {
        let segments = sent.iter().map(Sent::segment);
        segments.map(|s| (s.flags, s.payload)).collect()
    };
    let mut bed = Bed::new();
    let id = bed.dial(&tcp(ENCLAVE, SERVER, SYN, 999, 0, &[]));
    assert!(bed.engine.connected(id, bed.now));
    bed.engine.tcp(id).unwrap().abort_behind(true);
    let sent = bed.egress(id);
    assert_eq!(segments(&sent), [(SYN | ACK, 0), (RST | ACK, 0)]);

    // Bytes that came with it wait for the enclave's end of the handshake.
    let mut bed = Bed::new();
    let id = bed.dial(&tcp(ENCLAVE, SERVER, SYN, 999, 0, &[]));
    assert!(bed.engine.connected(id, bed.now));
    let mut flow = bed.engine.tcp(id).unwrap();
    assert!(!flow.can_send());
    flow.abort_behind(false);
    let sent = bed.egress(id);
    assert_eq!(segments(&sent), [(SYN | ACK, 0)]);
    let ack = sent[0].segment().seq + 1;
    bed.send(&tcp(ENCLAVE, SERVER, ACK, 1000, ack, &[]));
    let mut flow = bed.engine.tcp(id).unwrap();
    flow.send(|_| (100, ()));
    flow.abort_behind(true);
    assert_eq!(segments(&bed.egress(id)), [(ACK, 100), (RST | ACK, 0)]);
}

#[test]
fn a_reset_does_not_wait_for_ever_before_a_shut_window() {
    let mut bed = Bed::new();
    let mut connection = Connection::open(&mut bed);
    let mut flow = bed.engine.tcp(connection.id).unwrap();
    flow.send(|space| (space.len(), ())).unwrap();
    connection.replies(&mut bed);
    bed.engine.tcp(connection.id).unwrap().abort_behind(false);
    assert!(connection.replies(&mut bed).is_empty());

    bed.pass(RESET_PATIENCE);
    let turn = expired(&mut bed);
    assert!(matches!(turn, Some(Effect::Turn(id)) if id == connection.id));
    let sent = connection.replies(&mut bed);
    assert_eq!(sent.last().unwrap().flags & RST, RST, "{sent:?}");
}

/// A flow that is idle for hours is asked now and then whether the enclave knows it, and stays.
#[test]
fn an_idle_flow_is_kept_for_as_long_as_the_enclave_keeps_it() {
    for (enclave, server) in BOTH {
        let mut bed = Bed::new();
        let mut connection = Connection::between(&mut bed, (enclave, server));
        connection.send(&mut bed, ACK, &[1]);
        connection.read_all(&mut bed);
        let (begin, mut probes) = (bed.now, 0);
        while bed.now - begin < Duration::from_secs(3 * 3600) {
            bed.now = bed.engine.next_timeout().expect("it is asked again");
            while let Some(effect) = expired(&mut bed) {
                assert!(matches!(effect, Effect::Turn(id) if id == connection.id));
                for probe in connection.replies(&mut bed) {
                    assert_eq!((probe.flags, probe.payload), (ACK, 1));
                    assert_eq!(probe.seq, connection.ack - 1);
                    probes += 1;
                    connection.send(&mut bed, ACK, &[]);
                }
            }
        }
        assert!((17..=19).contains(&probes), "{probes}");
        let standing = bed.engine.tcp(connection.id).unwrap().standing();
        assert_eq!(standing, Standing::Open);
    }
}

/// Kernels ask within the window, one byte before what is expected next.
#[test]
fn a_keep_alive_probe_is_answered() {
    for (enclave, server) in BOTH {
        let mut bed = Bed::new();
        let connection = Connection::between(&mut bed, (enclave, server));
        for _ in 0..5 {
            bed.pass(Duration::from_secs(1));
            let probe = tcp(
                enclave,
                server,
                ACK,
                connection.seq - 1,
                connection.ack,
                &[],
            );
            bed.send(&probe);
            let sent: Vec<_> = bed.sent().iter().map(Sent::segment).collect();
            let [answer] = &sent[..] else {
                panic!("one answer: {sent:?}")
            };
            assert_eq!((answer.flags, answer.ack), (ACK, connection.seq));
        }
    }
}
