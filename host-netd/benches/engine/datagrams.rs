//! UDP datagrams out and in, over many mappings.

use crate::Load;
use crate::bed::{Bed, PACE, Round, shuffle};
use crate::packets::{Datagram, port, server};
use host_netd::engine::{Effect, FlowId, Received};
use std::hint::black_box;

/// A datagram of QUIC.
const PAYLOAD: usize = 1200;

const HOP_LIMIT: u8 = 60;

struct Mappings {
    bed: Bed,
    mappings: Round<(u16, FlowId)>,
    datagram: Datagram,
}

impl Mappings {
    fn new(flows: usize) -> Mappings {
        let mut bed = Bed::new();
        let mut datagram = Datagram::new(PAYLOAD);
        let mut mappings: Vec<_> = (0..flows)
            .map(|index| {
                let port = port(index);
                (port, send(&mut bed, datagram.patched(port)))
            })
            .collect();
        shuffle(&mut mappings);
        Mappings {
            bed,
            mappings: Round::new(mappings),
            datagram,
        }
    }
}

fn send(bed: &mut Bed, frame: &[u8]) -> FlowId {
    match bed.engine.handle_packet(frame, bed.now) {
        Effect::Datagram(outgoing) => black_box(outgoing).flow,
        other => panic!("not a datagram: {other:?}"),
    }
}

struct Out(Mappings);

/// From the enclave to the host's socket.
pub(crate) fn out(flows: usize) -> Box<dyn Load> {
    Box::new(Out(Mappings::new(flows)))
}

impl Load for Out {
    fn run(&mut self, iterations: usize) {
        let Mappings {
            bed,
            mappings,
            datagram,
        } = &mut self.0;
        for _ in 0..iterations {
            bed.pass(PACE);
            let &mut (port, id) = mappings.next();
            assert_eq!(send(bed, datagram.patched(port)), id);
        }
    }
}

struct In(Mappings);

/// From the host's socket to the enclave.
pub(crate) fn incoming(flows: usize) -> Box<dyn Load> {
    Box::new(In(Mappings::new(flows)))
}

impl Load for In {
    fn run(&mut self, iterations: usize) {
        let Mappings { bed, mappings, .. } = &mut self.0;
        let from = server();
        for _ in 0..iterations {
            bed.pass(PACE);
            let id = mappings.next().1;
            let space = bed.engine.datagram_space(id).expect("room");
            black_box(&mut space.place[..PAYLOAD]);
            let received = Received {
                from,
                length: PAYLOAD,
                segment: None,
                hop_limit: Some(HOP_LIMIT),
            };
            bed.engine.commit_datagram(id, received, bed.now);
            bed.engine.seal_run();
            let queue = bed.engine.queue();
            assert!(queue.len() > PAYLOAD);
            black_box(queue.pending());
            queue.clear();
        }
    }
}
