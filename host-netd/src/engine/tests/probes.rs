//! Acknowledgements that the enclave's kernel dropped.

use super::*;
use crate::limits::{PROBE_AFTER, PROBES};

fn send(bed: &mut Bed, connection: &mut Connection, length: usize) -> usize {
    let mut flow = bed.engine.tcp(connection.id).unwrap();
    flow.send(|space| (length.min(space.len()), ())).unwrap();
    connection.replies(bed).len()
}

/// What the flow sends when its time has come within `time`.
fn after(bed: &mut Bed, connection: &Connection, time: Duration) -> Vec<Segment> {
    bed.pass(time);
    let mut segments = Vec::new();
    while let Some(effect) = bed.engine.expired(bed.now) {
        assert!(matches!(effect, Effect::Turn(id) if id == connection.id));
        segments.extend(bed.egress(connection.id).iter().map(Sent::segment));
    }
    segments
}

#[test]
fn a_lost_acknowledgement_is_asked_for_long_before_data_is_sent_again() {
    for pair in BOTH {
        let mut bed = Bed::new();
        let mut connection = Connection::between(&mut bed, pair);
        assert!(send(&mut bed, &mut connection, 2000) > 0);
        assert_eq!(after(&mut bed, &connection, PROBE_AFTER / 2), []);

        let probes = after(&mut bed, &connection, PROBE_AFTER);
        let [probe] = &probes[..] else {
            panic!("{probes:?}")
        };
        let told = (probe.flags, probe.seq, probe.ack, probe.payload);
        assert_eq!(told, (ACK, connection.ack - 1, connection.seq, 1));
        let edge = probe.ack + (u32::from(probe.window) << SHIFT);
        assert!(edge <= connection.edge && connection.edge - edge < 1 << SHIFT);

        connection.ack += 2000;
        connection.send(&mut bed, ACK, &[]);
        assert_eq!(after(&mut bed, &connection, Duration::from_millis(900)), []);
    }
}

#[test]
fn an_answer_ends_the_asking_and_silence_goes_on_for_some_time_only() {
    for answers in [true, false] {
        let mut bed = Bed::new();
        let mut connection = Connection::open(&mut bed);
        send(&mut bed, &mut connection, 2000);
        let mut seen = Vec::new();
        for _ in 0..30_000 {
            let sent = after(&mut bed, &connection, Duration::from_millis(1));
            if answers && !sent.is_empty() {
                // It has not received more.
                connection.send(&mut bed, ACK, &[]);
            }
            seen.extend(sent);
        }
        let probes = seen.iter().filter(|segment| segment.payload == 1).count();
        let most = if answers { 1 } else { PROBES };
        assert_eq!(probes, usize::try_from(most).unwrap(), "{answers}");
        let again = seen.iter().any(|segment| segment.payload == 2000);
        assert!(again, "smoltcp sends it again: {seen:?}");
    }
}
