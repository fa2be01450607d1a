//! TCP: data out of the enclave, into it, requests and responses, and whole connections.
//!
//! "Out" is from the enclave to the host. The flows take turns in a shuffled order, one packet
//! each, so that nothing of a flow is still at hand when its next packet comes.

use crate::bed::{Bed, Connection, PACE, Round, Signals, is_segment};
use crate::packets::{MSS, Mark, SUPER_SEGMENT, Segment};
use crate::{Load, NoMemory};
use host_netd::limits::RECEIVE_RING;
use std::hint::black_box;
use std::time::Duration;

/// A small request, and its response.
const SMALL: usize = 64;

/// smoltcp's shortest retransmission timeout.
const RETRANSMISSION: Duration = Duration::from_secs(1);

/// What one iteration does on one flow, in this order.
#[derive(Clone, Copy)]
struct Step {
    /// Bytes that the enclave sends in one packet.
    out: usize,
    /// Bytes that the host sends.
    back: usize,
    /// Whether the enclave acknowledges them at once, not with its next data.
    ack: bool,
}

/// Exchanges on open flows.
struct Exchange {
    bed: Bed,
    flows: Round<Connection>,
    pace: Duration,
    step: Step,
    data: Segment,
    ack: Segment,
}

impl Exchange {
    fn new(flows: usize, step: Step, pace: Duration) -> Exchange {
        let mut bed = Bed::new();
        let connections = bed.open_all(flows);
        let mut exchange = Exchange {
            bed,
            flows: Round::new(connections),
            pace: each_once_a_second(flows) * 9 / 10,
            step,
            data: Segment::new(Mark::Ack, step.out),
            ack: Segment::new(Mark::Ack, 0),
        };
        // Twice around in less than two seconds: now the timers of the handshakes, which began all
        // at once, have fired, and those of the data are spread over a second.
        exchange.run(2 * flows);
        exchange.pace = pace;
        exchange
    }
}

fn each_once_a_second(flows: usize) -> Duration {
    RETRANSMISSION / u32::try_from(flows).expect("few")
}

impl Load for Exchange {
    fn run(&mut self, iterations: usize) {
        let Step { out, back, ack } = self.step;
        for _ in 0..iterations {
            self.bed.pass(self.pace);
            let flow = self.flows.next();
            if out > 0 {
                let data = self.data.patched(flow.port, flow.seq, flow.ack);
                self.bed.deliver(data);
                flow.seq = flow.seq.wrapping_add(bytes(out));
            }
            let queued = self.bed.turn(flow.id, back);
            assert!(is_segment(queued, back));
            flow.ack = flow.ack.wrapping_add(bytes(back));
            if ack {
                let ack = self.ack.patched(flow.port, flow.seq, flow.ack);
                self.bed.deliver(ack);
                assert_eq!(self.bed.turn(flow.id, 0), 0);
            }
        }
    }

    /// Received bytes walk through a flow's whole ring, and a page is new only once.
    fn settle(&mut self) -> Result<(), NoMemory> {
        let flows = self.flows.len();
        if self.step.out < MSS {
            self.run(2 * flows);
            return Ok(());
        }
        if !fits_memory(flows) {
            return Err(NoMemory);
        }
        let step = self.step;
        let data = std::mem::replace(&mut self.data, Segment::new(Mark::Ack, SUPER_SEGMENT));
        self.step = out(SUPER_SEGMENT);
        self.run(flows * (RECEIVE_RING / SUPER_SEGMENT + 1));
        (self.step, self.data) = (step, data);
        Ok(())
    }
}

/// Whether the receive rings of so many flows fit into memory, and something beside them.
fn fits_memory(flows: usize) -> bool {
    let available = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find(|line| line.starts_with("MemAvailable:"))?;
            line.split_whitespace().nth(1)?.parse::<usize>().ok()
        });
    available.is_some_and(|kib| kib / 2 > flows * (RECEIVE_RING / 1024))
}

fn bytes(length: usize) -> u32 {
    u32::try_from(length).expect("a packet")
}

const fn out(bytes: usize) -> Step {
    Step {
        out: bytes,
        back: 0,
        ack: false,
    }
}

const fn back(bytes: usize) -> Step {
    Step {
        out: 0,
        back: bytes,
        ack: true,
    }
}

const fn echo(ack: bool) -> Step {
    Step {
        out: SMALL,
        back: SMALL,
        ack,
    }
}

/// A full segment from the enclave, taken, acknowledged.
pub(crate) fn out_segments(flows: usize) -> Box<dyn Load> {
    Box::new(Exchange::new(flows, out(MSS), PACE))
}

/// The same with super-segments.
pub(crate) fn out_super_segments(flows: usize) -> Box<dyn Load> {
    Box::new(Exchange::new(flows, out(SUPER_SEGMENT), PACE))
}

/// A full segment's bytes from the host, sent, and the enclave's acknowledgement.
pub(crate) fn in_segments(flows: usize) -> Box<dyn Load> {
    Box::new(Exchange::new(flows, back(MSS), PACE))
}

/// The same with super-segments.
pub(crate) fn in_super_segments(flows: usize) -> Box<dyn Load> {
    Box::new(Exchange::new(flows, back(SUPER_SEGMENT), PACE))
}

/// A small request from the enclave and the response, which the next request acknowledges.
pub(crate) fn busy_echo(flows: usize) -> Box<dyn Load> {
    Box::new(Exchange::new(flows, echo(false), PACE))
}

/// The same once a second on each flow, and acknowledged at once: the flow's timer fires in between.
pub(crate) fn sparse_echo(flows: usize) -> Box<dyn Load> {
    Box::new(Exchange::new(flows, echo(true), each_once_a_second(flows)))
}

/// Whole connections: SYN, connected, SYN-ACK, ACK, FIN both ways, forgotten; beside other flows.
struct Connections {
    bed: Bed,
    signals: Signals,
    /// Which port comes next: none is used again soon.
    ports: Round<usize>,
}

/// Time between two connections: 10,000 a second.
const CONNECTION_PACE: Duration = Duration::from_micros(100);

pub(crate) fn connections(flows: usize) -> Box<dyn Load> {
    let mut bed = Bed::new();
    bed.open_all(flows);
    Box::new(Connections {
        bed,
        signals: Signals::new(),
        ports: Round::new((flows..flows + 20_000).collect()),
    })
}

impl Load for Connections {
    fn run(&mut self, iterations: usize) {
        for _ in 0..iterations {
            self.bed.pass(CONNECTION_PACE);
            let connection = self.bed.open(*self.ports.next(), &mut self.signals);
            self.bed.close(&connection, &mut self.signals);
        }
    }
}

/// What the others do besides calling the engine, for comparison.
struct Driver {
    flows: Round<Connection>,
    data: Segment,
}

pub(crate) fn driver(flows: usize) -> Box<dyn Load> {
    let mut bed = Bed::new();
    Box::new(Driver {
        flows: Round::new(bed.open_all(flows)),
        data: Segment::new(Mark::Ack, MSS),
    })
}

impl Load for Driver {
    fn run(&mut self, iterations: usize) {
        for _ in 0..iterations {
            let flow = self.flows.next();
            black_box(self.data.patched(flow.port, flow.seq, flow.ack));
            flow.seq = flow.seq.wrapping_add(bytes(MSS));
        }
    }
}
