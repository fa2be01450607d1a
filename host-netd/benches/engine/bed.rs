//! The engine, a clock, and the calls that the data loop makes of them. What the engine offers is
//! used here and nowhere else.
//!
//! The host's sockets are missing: bytes are taken from a flow and given to it without being
//! copied from or to a kernel. The link is missing too: what is queued for it is forgotten once
//! its length was seen to be right.

use crate::packets::{ENCLAVE, HEADERS, Mark, Segment, port};
use host_netd::engine::{DialTarget, Effect, Egress, Engine, FlowId, Limits, Standing};
use host_netd::limits::{DIALS_A_SECOND, MAX_FLOWS, MAX_RING_MEMORY_MIB, QUANTUM};
use host_netd::local::LocalAddresses;
use netd_proto::frame::HEADER;
use netd_proto::handshake::{Features, Hello, Lane, Network4, Network6, SessionId};
use netd_proto::offload::VnetHeader;
use netd_proto::policy::Policy;
use nix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the queue holds of a segment besides its payload.
const QUEUED_HEADERS: usize = HEADER + VnetHeader::LEN + HEADERS;

/// What the queue holds of a question for an acknowledgement that is late.
const QUESTION: usize = QUEUED_HEADERS + 1;

/// Memory is no scarcer beside many flows than alone.
const LIMITS: Limits = Limits {
    mappings: MAX_FLOWS,
    flows: MAX_FLOWS,
    ring_memory: MAX_RING_MEMORY_MIB << 20,
    ..Limits::DEFAULT
};

/// Time that passes for each packet unless a scenario says otherwise: with 10,000 flows each has one in
/// two milliseconds, and meets its deadline, the earliest of which is 20 ms away, once in ten packets.
pub(crate) const PACE: Duration = Duration::from_nanos(200);

pub(crate) struct Bed {
    pub(crate) engine: Engine,
    pub(crate) now: Instant,
}

/// The enclave's side of a TCP connection.
pub(crate) struct Connection {
    pub(crate) id: FlowId,
    pub(crate) port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
}

/// The segments without data that every connection needs.
pub(crate) struct Signals {
    syn: Segment,
    ack: Segment,
    fin: Segment,
}

impl Signals {
    pub(crate) fn new() -> Signals {
        Signals {
            syn: Segment::new(Mark::Syn, 0),
            ack: Segment::new(Mark::Ack, 0),
            fin: Segment::new(Mark::Fin, 0),
        }
    }
}

impl Bed {
    pub(crate) fn new() -> Bed {
        let hello = Hello {
            features: Features::ALL,
            session: SessionId([1; 16]),
            lane: Lane(0),
            lanes: 1,
            mtu: 1500,
            v4: Network4 {
                enclave: ENCLAVE.into(),
                gateway: Ipv4Addr::new(100, 64, 0, 1),
                parent_loopback: Ipv4Addr::new(100, 64, 0, 3),
            },
            v6: Network6 {
                enclave: Ipv6Addr::new(0xfd00, 0x6e65, 0x7464, 0, 0, 0, 0, 2),
                gateway: Ipv6Addr::new(0xfd00, 0x6e65, 0x7464, 0, 0, 0, 0, 1),
                parent_loopback: Ipv6Addr::new(0xfd00, 0x6e65, 0x7464, 0, 0, 0, 0, 3),
            },
        };
        let now = whole_second();
        let (policy, own) = (Policy::new(Vec::new()), Arc::new(LocalAddresses::default()));
        let engine = Engine::new(hello, Features::ALL, policy, own, LIMITS, now);
        Bed { engine, now }
    }

    /// Lets time pass, and gives flows whose time has come their turn.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        while let Some(effect) = self.engine.expired(self.now) {
            match effect {
                Effect::Turn(id) => {
                    let queued = self.turn(id, 0);
                    assert!(queued == 0 || queued == QUESTION, "nothing is resent");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Hands over a segment of an open flow.
    pub(crate) fn deliver(&mut self, frame: &[u8]) {
        match self.engine.handle_packet(frame, self.now) {
            Effect::Turn(id) => {
                black_box(id);
            }
            other => panic!("not a segment of an open flow: {other:?}"),
        }
    }

    /// A flow's turn as in the data loop: takes what came from the enclave, gives it `bytes`, and
    /// lets it send. Returns the bytes that were queued for the link, frames and all.
    pub(crate) fn turn(&mut self, id: FlowId, mut bytes: usize) -> usize {
        let room = self.engine.queue().has_room();
        let mut flow = self.engine.tcp(id).expect("the flow is open");
        while flow
            .receive(|received| (black_box(received).len(), ()))
            .is_some()
        {}
        if flow.enclave_finished() {
            // The server does the same.
            flow.finish();
        }
        while room && bytes > 0 {
            let given = flow.send(|space| {
                let length = space.len().min(bytes);
                black_box(&mut space[..length]);
                (length, length)
            });
            bytes -= given.expect("the ring has room");
        }
        let egress = self.engine.egress(id, QUANTUM, self.now);
        assert_eq!(egress, Egress::Done);
        let queue = self.engine.queue();
        let queued = queue.len();
        black_box(queue.pending());
        queue.consume(queued);
        queued
    }

    /// Opens a connection from the enclave's `index`th port.
    pub(crate) fn open(&mut self, index: usize, signals: &mut Signals) -> Connection {
        // At the pace at which connects are begun.
        self.now += Duration::from_secs(1) / DIALS_A_SECOND;
        let port = port(index);
        let syn = signals.syn.patched(port, 999, 0);
        let id = match self.engine.handle_packet(syn, self.now) {
            Effect::Dial(id, DialTarget::Host(to)) => {
                black_box::<SocketAddr>(to);
                id
            }
            other => panic!("not a dial: {other:?}"),
        };
        assert!(self.engine.connected(id, self.now));
        assert_eq!(self.engine.egress(id, QUANTUM, self.now), Egress::Done);
        let syn_ack = self.engine.queue().pending();
        let seq = syn_ack[HEADER + VnetHeader::LEN + 24..].first_chunk();
        let seq = u32::from_be_bytes(*seq.expect("a SYN-ACK"));
        self.engine.queue().clear();
        let connection = Connection {
            id,
            port,
            seq: 1000,
            ack: seq.wrapping_add(1),
        };
        self.deliver(signals.ack.patched(port, connection.seq, connection.ack));
        assert_eq!(self.turn(id, 0), 0);
        connection
    }

    /// Ends a connection, the enclave first, and forgets it.
    pub(crate) fn close(&mut self, connection: &Connection, signals: &mut Signals) {
        let Connection { id, port, seq, ack } = *connection;
        self.deliver(signals.fin.patched(port, seq, ack));
        // Its acknowledgement and the server's FIN, in one or in two.
        assert!(self.turn(id, 0) > 0);
        let acknowledged = signals
            .ack
            .patched(port, seq.wrapping_add(1), ack.wrapping_add(1));
        self.deliver(acknowledged);
        assert_eq!(self.turn(id, 0), 0);
        let standing = self.engine.tcp(id).map(|flow| flow.standing());
        assert_eq!(standing, Some(Standing::Finished));
        self.engine.remove(id);
    }

    /// `flows` open connections, in an order that has nothing to do with that of their opening.
    pub(crate) fn open_all(&mut self, flows: usize) -> Vec<Connection> {
        let mut signals = Signals::new();
        let mut connections: Vec<_> = (0..flows).map(|i| self.open(i, &mut signals)).collect();
        shuffle(&mut connections);
        connections
    }
}

/// The last whole second. Sums of times carry from nanoseconds to seconds or do not, so where a
/// run begins within a second would show in its count.
fn whole_second() -> Instant {
    let clock = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has it");
    let since = u64::try_from(clock.tv_nsec()).expect("not negative");
    Instant::now() - Duration::from_nanos(since)
}

/// Whether what was queued is exactly one segment with `payload` bytes.
pub(crate) fn is_segment(queued: usize, payload: usize) -> bool {
    queued == QUEUED_HEADERS + payload
}

/// Fisher and Yates with Knuth's generator: the same order in every run.
pub(crate) fn shuffle<T>(items: &mut [T]) {
    let mut state = 1_u64;
    for last in (1..items.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let other = usize::try_from(state >> 33).expect("31 bits") % (last + 1);
        items.swap(last, other);
    }
}

/// Goes through a list again and again.
pub(crate) struct Round<T> {
    items: Vec<T>,
    next: usize,
}

impl<T> Round<T> {
    pub(crate) fn new(items: Vec<T>) -> Round<T> {
        Round { items, next: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn next(&mut self) -> &mut T {
        let at = self.next;
        self.next = if at + 1 == self.items.len() {
            0
        } else {
            at + 1
        };
        &mut self.items[at]
    }
}
