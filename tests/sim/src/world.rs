//! The engine between its two sides: the clock, the link, the enclave's kernel with its sockets,
//! the host's sockets, and a data loop.
//!
//! The data loop here does what host-netd's `io/data.rs` and `io/work.rs` do, call for call, but
//! each of its steps happens when the schedule says so, and as much of it: one frame of the link,
//! one flow's turn, some bytes written.

use crate::datagrams::Datagrams;
use crate::host::{Host, Turn};
use crate::ledger::{Dial, Ledger, Side, Told};
use crate::random::Random;
use crate::tcp::{Habits, Seen, Tcp};
use crate::wire::{self, ACK, RST, SYN, Segment};
use host_netd::engine::drops::DropReason;
use host_netd::engine::{DialError, DialTarget, Effect, Engine, FlowId, Limits};
use host_netd::limits::{ENCLAVE_HANDSHAKE, ROUND};
use host_netd::local::LocalAddresses;
use netd_proto::build;
use netd_proto::frame::{Decoder, HEADER, Kind};
use netd_proto::handshake::{Features, Hello, Lane, Network4, Network6, SessionId};
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{Packet, Transport};
use netd_proto::policy::Policy;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Simulated time begins here; what follows from it does not depend on when that is.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Less than can be configured, so that a few flows use it up. What one flow may add at once, a full
/// ring, is still a small part.
const LEAST_MEMORY: usize = 2 << 20;

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
pub(crate) fn enclave(like: SocketAddr) -> IpAddr {
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

/// What the enclave and its link agreed on, and what it may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) features: Features,
    pub(crate) mtu: u16,
    pub(crate) limits: Limits,
    /// Bytes that programs write and read at once, at most.
    pub(crate) amount: usize,
    pub(crate) publishes_udp: bool,
}

impl Terms {
    pub(crate) fn new(random: &mut Random) -> Terms {
        let features = match random.below(10) {
            0 => Features::default(),
            1 => Features::CHECKSUM,
            2 => Features::CHECKSUM.or(Features::TSO4),
            _ => Features::ALL,
        };
        let mtu = if random.percent(70) {
            1500
        } else {
            random.pick(&[1280, 1400, 9001, 65_535])
        };
        let scarce = random.percent(10);
        let flows = match random.percent(20) {
            true => random.within(1..=4),
            false => 50,
        };
        let limits = Limits {
            flows,
            all_flows: flows,
            ring_memory: if scarce { LEAST_MEMORY } else { 64 << 20 },
            ..Limits::DEFAULT
        };
        let amount = match scarce {
            true => 1_000_000,
            false => random.pick(&[1000, 20_000, 200_000, 1_000_000]),
        };
        Terms {
            features,
            mtu,
            limits,
            amount,
            publishes_udp: limits.flows > 4 && random.percent(30),
        }
    }
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

    // The enclave's programs and kernel.

    pub(crate) fn habits(&mut self, ipv6: bool) -> Habits {
        let Terms { features, mtu, .. } = self.terms;
        let checksum = features.contains(Features::CHECKSUM);
        let tso = if ipv6 { Features::TSO6 } else { Features::TSO4 };
        let tso = checksum && features.contains(tso);
        Habits::new(&mut self.random, mtu, ipv6, checksum, tso)
    }

    /// A program in the enclave connects. Nothing happens if the addresses are in use.
    pub(crate) fn connect(&mut self, local: SocketAddr, remote: SocketAddr) {
        if let Some(&index) = self.sockets.get(&(local, remote))
            && !self.may_be_used_again(index)
        {
            return;
        }
        let habits = self.habits(local.is_ipv6());
        self.connect_as(local, remote, habits);
    }

    /// The same, of a kernel and program that are so.
    pub(crate) fn connect_as(&mut self, local: SocketAddr, remote: SocketAddr, habits: Habits) {
        let ledger = Ledger::new(&mut self.random, local.is_ipv6());
        let identity = (self.random.any() as u32, ledger.stream(Side::Enclave));
        let tcp = Tcp::connect((local, remote), habits, identity, self.now);
        let index = self.connections.len();
        self.note(|_| format!("#{index} {local} connects to {remote}, {habits:?}"));
        self.sockets.insert((local, remote), index);
        self.add(local, remote, Some(tcp), ledger);
    }

    /// Whether the enclave's kernel lets a program use the addresses of a connection again: at once
    /// where it has no socket any more.
    fn may_be_used_again(&self, index: usize) -> bool {
        let connection = &self.connections[index];
        match &connection.tcp {
            Some(tcp) if tcp.is_in_time_wait() => connection.flow.is_none(),
            Some(tcp) => tcp.is_gone(),
            None => true,
        }
    }

    fn add(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        tcp: Option<Tcp>,
        ledger: Ledger,
    ) -> &mut Connection {
        self.connections.push(Connection {
            local,
            remote,
            tcp,
            ledger,
            host: None,
            flow: None,
            syn: None,
            opened: self.now,
            shaken: false,
        });
        self.connections.last_mut().expect("just pushed")
    }

    /// A program in the enclave writes up to `most` bytes.
    pub(crate) fn enclave_writes(&mut self, index: usize, most: u64) {
        let connection = &mut self.connections[index];
        let Some(tcp) = &mut connection.tcp else {
            return;
        };
        let bytes = tcp.write(most);
        if bytes > 0 {
            connection.ledger.wrote(Side::Enclave, bytes as usize);
            self.note(|_| format!("#{index} enclave writes {bytes}"));
        }
    }

    pub(crate) fn enclave_reads(&mut self, index: usize, most: u64) {
        let Some(tcp) = &mut self.connections[index].tcp else {
            return;
        };
        let bytes = tcp.read(most);
        if bytes > 0 {
            self.note(|_| format!("#{index} enclave reads {bytes}"));
        }
    }

    pub(crate) fn enclave_finishes(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if let Some(tcp) = &mut connection.tcp
            && tcp.is_open()
            && !connection.ledger.is_finished(Side::Enclave)
        {
            tcp.finish();
            connection.ledger.finished(Side::Enclave);
            self.note(|_| format!("#{index} enclave ends its half"));
        }
    }

    pub(crate) fn enclave_closes(&mut self, index: usize, by_reset: bool) {
        let connection = &mut self.connections[index];
        let Some(tcp) = &mut connection.tcp else {
            return;
        };
        if tcp.is_gone() || tcp.is_half_open() || connection.ledger.has_left(Side::Enclave) {
            return;
        }
        let cancelled = tcp.is_connecting();
        connection.ledger.left(Side::Enclave);
        let reset = if by_reset {
            tcp.abort(&mut self.up);
            true
        } else {
            tcp.close(&mut self.up)
        };
        if reset || cancelled {
            connection.ledger.cause("the enclave closed its socket");
        }
        self.note(|_| format!("#{index} enclave closes, by reset: {reset}"));
    }

    pub(crate) fn enclave_transmits(&mut self, index: usize, most: usize) {
        let now = self.now;
        if let Some(tcp) = &mut self.connections[index].tcp {
            tcp.transmit(most, &mut self.up, now);
        }
    }

    pub(crate) fn enclave_repeats(&mut self, index: usize) {
        let now = self.now;
        if let Some(tcp) = &mut self.connections[index].tcp {
            tcp.repeat_for_nothing(&mut self.up, now);
        }
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

    fn enclave_receives(&mut self, packet: &Packet<'_>, vnet: &VnetHeader) {
        let segment = Segment::of(packet, vnet).expect("TCP");
        let index = self.sockets.get(&(segment.to, segment.from)).copied();
        let asks = segment.has(SYN) && !segment.has(ACK);
        let index = match index {
            Some(index) if !asks => index,
            Some(index) if !self.enclave_has_forgotten(index) => index,
            _ if asks => return self.enclave_accepts(packet, &segment),
            _ => {
                self.up.extend(wire::reset(packet));
                return;
            }
        };
        let connection = &mut self.connections[index];
        let (Some(tcp), ledger) = (&mut connection.tcp, &mut connection.ledger) else {
            return;
        };
        tcp.receive(&segment, &mut self.up, self.now, &mut |seen| {
            show(ledger, seen);
        });
    }

    fn enclave_has_forgotten(&self, index: usize) -> bool {
        (self.connections[index].tcp.as_ref()).is_none_or(Tcp::is_gone)
    }

    /// A SYN for a port of the enclave.
    fn enclave_accepts(&mut self, packet: &Packet<'_>, syn: &Segment<'_>) {
        let Some(index) = self.connections.iter().rposition(|connection| {
            let here = connection.local == syn.to && connection.remote == syn.from;
            here && connection.syn == Some(syn.seq) && connection.tcp.is_none()
        }) else {
            self.up.extend(wire::reset(packet));
            return;
        };
        match self.random.below(20) {
            0 => {
                let ledger = &mut self.connections[index].ledger;
                ledger.cause("nobody listens in the enclave");
                ledger.left(Side::Enclave);
                self.up.extend(wire::reset(packet));
            }
            // As a full backlog does.
            1 if !self.fair => self.note(|_| format!("#{index} enclave ignores a SYN")),
            _ => {
                let habits = self.habits(syn.to.is_ipv6());
                let stream = self.connections[index].ledger.stream(Side::Enclave);
                let identity = (self.random.any() as u32, stream);
                let tcp = Tcp::accept(syn, habits, identity, self.now);
                self.note(|_| format!("#{index} enclave accepts, {habits:?}"));
                self.connections[index].tcp = Some(tcp);
                self.sockets.insert((syn.to, syn.from), index);
            }
        }
    }

    /// An ICMP error reached the enclave.
    fn enclave_told(&mut self, packet: &Packet<'_>, kind: u8, code: u8) {
        let quoted = &packet.bytes()[packet.transport_offset() + 8..];
        let ipv6 = packet.is_ipv6();
        if quoted[if ipv6 { 6 } else { 9 }] != wire::TCP {
            return self.enclave_gets_error((kind, code), quoted);
        }
        let quoted = Packet::parse(quoted).expect("a SYN is quoted whole");
        let segment = Segment::of(&quoted, &VnetHeader::NONE).expect("TCP");
        let index = self.by_syn(&segment).expect("a SYN of the enclave");
        let connection = &mut self.connections[index];
        let Some(tcp) = &mut connection.tcp else {
            return;
        };
        if tcp.is_connecting() {
            tcp.unreachable();
            connection.ledger.told(Told::Icmp(kind, code));
            give_up(&mut connection.ledger);
        }
    }

    // The data loop.

    pub(crate) fn place(&mut self, id: FlowId, role: Role) {
        if self.slots.len() <= id.index() {
            self.slots.resize_with(id.index() + 1, || None);
        }
        self.slots[id.index()] = Some(Slot {
            id,
            role,
            queued: false,
        });
    }

    fn slot(&mut self, id: FlowId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.index())?.as_mut();
        slot.filter(|slot| slot.id == id)
    }

    pub(crate) fn enqueue(&mut self, id: FlowId) {
        if let Some(slot) = self.slot(id)
            && !slot.queued
        {
            slot.queued = true;
            self.fresh.push_back(id);
        }
    }

    fn act(&mut self, effect: Effect<'_>, segment: Option<&Segment<'_>>) {
        match effect {
            Effect::None => {}
            Effect::Turn(id) => self.enqueue(id),
            Effect::Dial(id, target) => {
                let syn = segment.expect("only a SYN is dialed");
                self.dial(id, target, syn);
            }
            Effect::Redial { gone, id, target } => {
                self.gone(gone, false);
                self.act(Effect::Dial(id, target), segment);
            }
            Effect::Gone(id) => self.gone(id, segment.is_none()),
            other => panic!("nobody asked for {other:?}"),
        }
    }

    /// A flow is no more; `late` where its time had come.
    fn gone(&mut self, id: FlowId, late: bool) {
        let slot = self.slots[id.index()].take().expect("a flow of ours");
        match slot.role {
            Role::Dialing(index) => {
                let connection = &mut self.connections[index];
                connection.flow = None;
                assert!(
                    late || connection.ledger.has_left(Side::Enclave),
                    "a dial is given up that the enclave waits for"
                );
            }
            Role::Datagram(index) => self.forget_datagrams(index),
            Role::Stream(index) => {
                let connection = &mut self.connections[index];
                connection.flow = None;
                let host = connection.host.as_mut().expect("a stream has a socket");
                host.reset_on_close(&mut connection.ledger);
            }
        }
    }

    fn dial(&mut self, id: FlowId, target: DialTarget, syn: &Segment<'_>) {
        let expected = match syn.to.port() {
            53 => DialTarget::Dns,
            _ => DialTarget::Host(syn.to),
        };
        assert_eq!(target, expected, "dialed for {syn:?}");
        let index = self.by_syn(syn).expect("a SYN of the enclave");
        let connection = &mut self.connections[index];
        let waits = (connection.tcp.as_ref()).is_some_and(Tcp::is_connecting);
        let index = if waits && connection.flow.is_none() {
            connection.ledger.dialed_again();
            index
        } else {
            self.add_stray(syn)
        };
        self.connections[index].flow = Some(id);
        self.connections[index].opened = self.now;
        self.place(id, Role::Dialing(index));
    }

    /// A repeated SYN whose program has its answer by now: the enclave's kernel will reset what
    /// comes of it.
    fn add_stray(&mut self, syn: &Segment<'_>) -> usize {
        let index = self.connections.len();
        self.note(|_| format!("#{index} comes of a repeated SYN"));
        let mut ledger = Ledger::new(&mut self.random, syn.from.is_ipv6());
        give_up(&mut ledger);
        self.add(syn.from, syn.to, None, ledger);
        index
    }

    /// Whether a connection waits for its dial to be answered.
    pub(crate) fn is_dialing(&mut self, index: usize) -> bool {
        let Some(id) = self.connections[index].flow else {
            return false;
        };
        let role = self.slot(id).map(|slot| slot.role);
        role == Some(Role::Dialing(index))
    }

    /// What became of a dial, unless the link is full: then it is told later.
    pub(crate) fn answer(&mut self, index: usize, answer: Result<(), DialError>) {
        if !self.engine.queue().has_room() || !self.is_dialing(index) {
            return;
        }
        self.note(|_| format!("#{index} dialed: {answer:?}"));
        let connection = &mut self.connections[index];
        let id = connection.flow.expect("it is dialing");
        match answer {
            Ok(()) => {
                connection.ledger.dialed(Dial::Stands);
                connection.host = Some(Host::new(&mut self.random));
                connection.opened = self.now;
                connection.shaken = false;
                assert!(self.engine.connected(id, self.now), "a dial is refused");
                self.place(id, Role::Stream(index));
                self.enqueue(id);
            }
            Err(error) => {
                connection.ledger.dialed(Dial::Failed(error));
                connection.flow = None;
                self.engine.dial_failed(id, error);
                self.slots[id.index()] = None;
            }
        }
    }

    /// A client of a published port was accepted.
    pub(crate) fn accept(&mut self, client: SocketAddr, port: u16) {
        if !self.engine.queue().has_room() {
            return;
        }
        let local = SocketAddr::new(enclave(client), port);
        let usage = self.engine.usage();
        let limits = self.terms.limits;
        let taken = (self.connections.iter()).any(|connection| {
            (connection.local, connection.remote) == (local, client) && connection.flow.is_some()
        });
        match self.engine.accept(client, port, self.now) {
            Ok(id) => {
                assert!(!taken, "two flows of {local} and {client}");
                let index = self.connections.len();
                self.note(|_| format!("#{index} {client} connects to {local}"));
                let ledger = Ledger::new(&mut self.random, local.is_ipv6());
                let host = Host::new(&mut self.random);
                let connection = self.add(local, client, None, ledger);
                connection.ledger.dialed(Dial::Stands);
                connection.host = Some(host);
                connection.flow = Some(id);
                self.place(id, Role::Stream(index));
                self.enqueue(id);
            }
            Err(reason) => {
                let right = match reason {
                    DropReason::FlowLimit => usage.flows >= limits.flows,
                    DropReason::MemoryLimit => usage.ring_memory >= limits.ring_memory,
                    DropReason::InboundCollision => taken,
                    _ => false,
                };
                assert!(right, "a client is refused for {reason:?} at {usage:?}");
            }
        }
    }

    /// The data loop hears what the host's kernel has to tell of a connection.
    pub(crate) fn poll_host(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if let (Some(host), Some(id)) = (&mut connection.host, connection.flow)
            && host.poll()
        {
            self.enqueue(id);
        }
    }

    /// The next flow's turn: one that something happened to, or one that had more to do.
    pub(crate) fn serve(&mut self, fresh: bool) -> bool {
        let next = if fresh {
            self.fresh.pop_front()
        } else {
            self.again.pop_front()
        };
        let Some(id) = next else { return false };
        self.turn(id);
        true
    }

    fn turn(&mut self, id: FlowId) {
        let Some(slot) = self.slot(id) else { return };
        slot.queued = false;
        let role = slot.role;
        self.moved += 1;
        let turn = match role {
            Role::Dialing(_) => return,
            Role::Datagram(index) => match self.receive_datagrams(index) {
                true if self.engine.queue().has_room() => Turn::Again,
                true => Turn::LinkFull,
                false => Turn::Idle,
            },
            Role::Stream(index) => self.stream_turn(id, index),
        };
        self.note(|_| format!("{role:?} turn: {turn:?}"));
        match turn {
            Turn::Idle => return,
            Turn::Again => self.again.push_back(id),
            Turn::LinkFull => self.stalled.push(id),
            Turn::Ended => {
                if let Role::Stream(index) = role {
                    self.connections[index].flow = None;
                }
                self.engine.remove(id);
                self.slots[id.index()] = None;
                return;
            }
        }
        if let Some(slot) = self.slot(id) {
            slot.queued = true;
        }
    }

    fn stream_turn(&mut self, id: FlowId, index: usize) -> Turn {
        let connection = &mut self.connections[index];
        let host = connection.host.as_mut().expect("a stream has a socket");
        let queued = self.engine.queue().len();
        let turn = host.turn(&mut self.engine, id, &mut connection.ledger, self.now);
        if connection.tcp.is_none() && connection.syn.is_none() {
            connection.syn = first_syn(&self.engine.queue().pending()[queued..]);
        }
        turn
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

/// The sequence number of the SYN that the first of these frames carries.
fn first_syn(frames: &[u8]) -> Option<u32> {
    let packet = frames.get(HEADER + VnetHeader::LEN..)?;
    let tcp = &packet[if packet[0] >> 4 == 6 { 40 } else { 20 }..];
    let sequence = u32::from_be_bytes(*tcp[4..].first_chunk()?);
    (tcp[13] & (SYN | ACK) == SYN).then_some(sequence)
}

/// The enclave's program has its answer, and its socket is gone.
fn give_up(ledger: &mut Ledger) {
    ledger.left(Side::Enclave);
    ledger.cause("the enclave gave up");
}

/// What the enclave's program sees.
fn show(ledger: &mut Ledger, seen: Seen<'_>) {
    match seen {
        Seen::Connected => ledger.told(Told::Connected),
        Seen::Refused => {
            ledger.told(Told::Refused);
            give_up(ledger);
        }
        Seen::Bytes(bytes) => ledger.reads(Side::Enclave, bytes),
        Seen::End => ledger.sees_end(Side::Enclave),
        Seen::Reset => ledger.sees_reset(Side::Enclave),
        Seen::Unwanted => ledger.cause("bytes for a closed socket in the enclave"),
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
