//! The engine between its two sides: the clock, the link, the enclave's kernel with its sockets,
//! the host's sockets, and a data loop.
//!
//! The data loop here does what host-netd's `io/data.rs` and `io/work.rs` do, call for call, but
//! each of its steps happens when the schedule says so, and as much of it: one frame of the link,
//! one flow's turn, some bytes written.

mod data_loop;
mod enclave;
mod terms;

pub(crate) use terms::Terms;

use crate::datagrams::Datagrams;
use crate::host::Host;
use crate::ledger::{Dial, Ledger};
use crate::random::Random;
use crate::tcp::Tcp;
use crate::wire::{self, ACK, RST, SYN, Segment};
use host_netd::engine::drops::DropReason;
use host_netd::engine::{DialError, Engine, FlowId};
use host_netd::limits::{ENCLAVE_HANDSHAKE, ROUND};
use host_netd::local::LocalAddresses;
use netd_proto::build;
use netd_proto::frame::{Decoder, Kind};
use netd_proto::handshake::{Features, Hello, Lane, Network4, Network6, SessionId};
use netd_proto::packet::{Packet, Transport};
use netd_proto::policy::Policy;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Simulated time begins here; what follows from it does not depend on when that is.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Up to this length every packet's checksum is computed.
const SHORT: usize = 2000;

pub(crate) const ENCLAVE4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
pub(crate) const ENCLAVE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x6e65, 0x7464, 0, 0, 0, 0, 2);
pub(crate) const GATEWAY4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x6e65, 0x7464, 0, 0, 0, 0, 1);

fn hello(mtu: u16) -> Hello {
    let v6 = |last| Ipv6Addr::new(0xfd00, 0x6e65, 0x7464, 0, 0, 0, 0, last);
    Hello {
        features: Features::ALL,
        session: SessionId([1; 16]),
        lane: Lane(0),
        lanes: 1,
        mtu,
        v4: Network4 {
            enclave: ENCLAVE4,
            gateway: GATEWAY4,
            parent_loopback: Ipv4Addr::new(100, 64, 0, 3),
        },
        v6: Network6 {
            enclave: ENCLAVE6,
            gateway: GATEWAY6,
            parent_loopback: v6(3),
        },
    }
}

/// The enclave's address of the family of `like`.
pub(crate) fn enclave_of(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => ENCLAVE4.into(),
        SocketAddr::V6(_) => ENCLAVE6.into(),
    }
}

fn gateway(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => GATEWAY4.into(),
        SocketAddr::V6(_) => GATEWAY6.into(),
    }
}

/// One connection of the schedule, from its program's wish to its end.
pub(crate) struct Connection {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// The enclave's socket; none while the enclave does not know of an inbound connection.
    pub(crate) tcp: Option<Tcp>,
    pub(crate) ledger: Ledger,
    pub(crate) host: Option<Host>,
    pub(crate) flow: Option<FlowId>,
    /// Sequence number of the SYN that the engine sent for an inbound connection.
    syn: Option<u32>,
    opened: Instant,
    /// The engine saw the enclave's part of the handshake.
    shaken: bool,
}

impl Connection {
    /// Gives the host's socket buffers of that size.
    pub(crate) fn with_buffers(&mut self, bytes: usize) {
        if let Some(host) = &mut self.host {
            host.set_buffers(bytes);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Dialing(usize),
    Stream(usize),
    Datagram(usize),
}

struct Slot {
    id: FlowId,
    role: Role,
    queued: bool,
}

/// The simulated world.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) now: Instant,
    pub(crate) terms: Terms,
    pub(crate) connections: Vec<Connection>,
    /// The enclave's sockets, as its kernel finds them.
    sockets: HashMap<(SocketAddr, SocketAddr), usize>,
    pub(crate) datagrams: Datagrams,
    slots: Vec<Option<Slot>>,
    pub(crate) fresh: VecDeque<FlowId>,
    pub(crate) again: VecDeque<FlowId>,
    stalled: Vec<FlowId>,
    /// Frames of the enclave on their way to the engine.
    pub(crate) up: VecDeque<Vec<u8>>,
    /// What was written to the link for the enclave.
    decoder: Decoder,
    /// Frames that were handed over, in both directions, and turns that were given.
    pub(crate) moved: u64,
    pub(crate) random: Random,
    /// Nobody holds anything back any more.
    pub(crate) fair: bool,
    trace: Option<Vec<String>>,
}

impl World {
    /// Any enclave.
    pub(crate) fn new(mut random: Random, traced: bool) -> World {
        let terms = Terms::new(&mut random);
        World::with(terms, random, traced)
    }

    /// When simulated time begins.
    pub(crate) fn epoch() -> Instant {
        *EPOCH
    }

    pub(crate) fn with(terms: Terms, mut random: Random, traced: bool) -> World {
        let now = *EPOCH;
        let own = Arc::new(LocalAddresses::default());
        let policy = Policy::new(Vec::new());
        let engine = Engine::new(
            hello(terms.mtu),
            terms.features,
            policy,
            own,
            terms.limits,
            now,
        );
        let mut world = World {
            engine: engine.with_fixed_seed(random.any()),
            now,
            terms,
            connections: Vec::new(),
            sockets: HashMap::new(),
            datagrams: Datagrams::default(),
            slots: Vec::new(),
            fresh: VecDeque::new(),
            again: VecDeque::new(),
            stalled: Vec::new(),
            up: VecDeque::new(),
            decoder: Decoder::new(),
            moved: 0,
            random,
            fair: false,
            trace: traced.then(Vec::new),
        };
        world.note(|_| format!("{terms:?}"));
        world
    }

    /// Writes down what happens, if anybody wants to know.
    pub(crate) fn note(&mut self, what: impl FnOnce(&World) -> String) {
        if self.trace.is_some() {
            let line = what(self);
            let at = self.now.duration_since(*EPOCH);
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{at:>12?}  {line}"));
            }
        }
    }

    pub(crate) fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    /// What holds at any time.
    pub(crate) fn assert_bounds(&self) {
        let usage = self.engine.usage();
        let flows = self.slots.iter().flatten().count();
        assert_eq!(usage.flows, flows, "flows of the engine and of its caller");
        let dialing = self.slots.iter().flatten();
        let dialing = dialing.filter(|slot| matches!(slot.role, Role::Dialing(_)));
        assert_eq!(usage.dialing, dialing.count(), "dials");
        let limits = self.terms.limits;
        assert!(usage.flows <= limits.flows, "{usage:?} of {limits:?}");
        assert!(
            usage.ring_memory <= limits.most_ring_memory(),
            "{usage:?} of {limits:?}"
        );
    }

    // The link.

    /// Hands the next frame of the enclave to the engine. False if there is none.
    pub(crate) fn link_up(&mut self) -> bool {
        let Some(frame) = self.up.pop_front() else {
            return false;
        };
        self.moved += 1;
        self.note(|_| format!("  -> {}", describe(&frame)));
        let (vnet, packet) = wire::received(&frame);
        let segment = Segment::of(&packet, &vnet);
        let limits = [
            DropReason::FlowLimit,
            DropReason::DialLimit,
            DropReason::MemoryLimit,
        ];
        let before = limits.map(|limit| self.engine.counters().drops(limit));
        let (flows, expected) = (self.engine.flow_count(), self.expected_count());
        let full = self.engine.counters().drops(DropReason::LinkFull);
        let effect = self.engine.handle_packet(&frame, self.now);
        let after = limits.map(|limit| self.engine.counters().drops(limit));
        if let Some(segment) = &segment {
            if before[0] < after[0] {
                assert!(flows >= self.terms.limits.flows, "refused with room left");
            }
            self.attend(segment, before != after);
            self.act(effect, Some(segment));
            return true;
        }
        self.judge(&packet, &vnet, effect);
        if self.engine.counters().drops(DropReason::LinkFull) > full {
            self.expect_no_more_than(expected);
        }
        true
    }

    /// Notes what a segment from the enclave means for its connection.
    fn attend(&mut self, segment: &Segment<'_>, limit: bool) {
        let index = match self.by_syn(segment) {
            Some(index) if segment.has(SYN) && !segment.has(ACK) => index,
            _ => match self.open_flow(segment) {
                Some(index) => index,
                None => return,
            },
        };
        let connection = &mut self.connections[index];
        if connection.flow.is_some() {
            connection.shaken |= segment.has(ACK)
                && !segment.has(RST)
                && match connection.syn {
                    Some(syn) => segment.ack == syn.wrapping_add(1),
                    // A probe repeats the place of the SYN and is not taken for the handshake's end.
                    None => (connection.tcp.as_ref())
                        .is_some_and(|tcp| segment.seq == tcp.iss().wrapping_add(1)),
                };
            if limit {
                connection.ledger.cause("the limit of memory");
            }
        } else if segment.to.ip() == gateway(segment.to) && segment.to.port() != 53 {
            connection.ledger.dialed(Dial::Failed(DialError::Refused));
        } else if limit {
            connection.ledger.dialed(Dial::Limit);
        }
    }

    /// The connection that the enclave asked for with this SYN.
    fn by_syn(&self, segment: &Segment<'_>) -> Option<usize> {
        self.connections.iter().rposition(|connection| {
            let here = connection.local == segment.from && connection.remote == segment.to;
            here && (connection.tcp.as_ref()).is_some_and(|tcp| tcp.iss() == segment.seq)
        })
    }

    /// The connection whose flow a segment of the enclave belongs to.
    fn open_flow(&self, segment: &Segment<'_>) -> Option<usize> {
        self.connections.iter().rposition(|connection| {
            let here = connection.local == segment.from && connection.remote == segment.to;
            here && connection.flow.is_some()
        })
    }

    /// The link takes up to `most` bytes of what is queued for the enclave.
    pub(crate) fn link_down(&mut self, most: usize) {
        let queue = self.engine.queue();
        let pending = queue.pending();
        let space = self.decoder.space();
        let bytes = most.min(pending.len()).min(space.len());
        space[..bytes].copy_from_slice(&pending[..bytes]);
        self.decoder.advance(bytes);
        queue.consume(bytes);
        if queue.has_room() {
            self.again.extend(self.stalled.drain(..));
        }
    }

    /// The enclave's kernel takes the next packet from the link. False if there is none.
    pub(crate) fn link_deliver(&mut self) -> bool {
        let frame = match self.decoder.next().expect("the engine sends frames") {
            None => return false,
            Some(frame) => {
                assert_eq!(frame.kind, Kind::Packet);
                frame.payload.to_vec()
            }
        };
        self.moved += 1;
        self.note(|_| format!("  <- {}", describe(&frame)));
        let (vnet, packet) = wire::received(&frame);
        assert_eq!(vnet.check(&packet, self.terms.features), Ok(()));
        if packet.bytes().len() <= SHORT {
            let mut whole = packet.bytes().to_vec();
            build::complete_checksum(&mut whole, &vnet);
            let whole = Packet::parse(&whole).expect("only its checksum changed");
            assert!(whole.transport_checksum_is_right(), "a wrong checksum");
        }
        assert!(
            [IpAddr::from(ENCLAVE4), ENCLAVE6.into()].contains(&packet.dst()),
            "a packet for {}",
            packet.dst()
        );
        match packet.transport() {
            Transport::Tcp(_) => self.enclave_receives(&packet, &vnet),
            Transport::Icmp { kind, code } => self.enclave_told(&packet, *kind, *code),
            Transport::Udp(_) => self.enclave_gets_datagrams(&packet, &vnet),
            Transport::Echo(_) => self.enclave_gets_echo(&packet),
            other => panic!("nobody asked for {other:?}"),
        }
        true
    }

    // Time.

    /// Time passes; everybody's timers that are due by then run when they are looked at.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        for connection in &mut self.connections {
            let late = connection.opened + ENCLAVE_HANDSHAKE <= self.now;
            if connection.flow.is_some() && !connection.shaken && late {
                connection.ledger.cause("a handshake that took too long");
            }
            if let Some(tcp) = &mut connection.tcp {
                tcp.expire(self.now);
            }
        }
    }

    /// Gives flows whose time has come their turn, as many as in one round of the data loop.
    pub(crate) fn expire(&mut self) -> bool {
        let mut expired = false;
        for _ in 0..ROUND {
            let Some(effect) = self.engine.expired(self.now) else {
                self.assert_none_idle();
                break;
            };
            expired = true;
            self.note(|_| format!("time of {effect:?}"));
            self.act(effect, None);
        }
        expired
    }

    /// When the next timer of either side is due.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let tcp = (self.connections.iter()).filter_map(|connection| connection.tcp.as_ref());
        let enclave = tcp.filter_map(Tcp::next_timeout).min();
        [self.engine.next_timeout(), enclave]
            .into_iter()
            .flatten()
            .min()
    }
}

/// One line of a trace.
fn describe(frame: &[u8]) -> String {
    let (vnet, packet) = wire::received(frame);
    match Segment::of(&packet, &vnet) {
        Some(segment) => {
            let flags = [(SYN, 'S'), (wire::FIN, 'F'), (RST, 'R'), (ACK, '.')];
            let flags: String = (flags.iter())
                .filter(|(flag, _)| segment.has(*flag))
                .map(|(_, name)| name)
                .collect();
            format!(
                "{} > {} {flags} seq {} ack {} win {} len {} by {}",
                segment.from,
                segment.to,
                segment.seq,
                segment.ack,
                segment.window,
                segment.payload.len(),
                segment.size,
            )
        }
        None => format!(
            "{} > {} {:?}",
            packet.src(),
            packet.dst(),
            packet.transport()
        ),
    }
}
