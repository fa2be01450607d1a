//! The engine: turns an enclave's packets into flows, and flows into packets.
//!
//! It does no I/O and never asks the clock. Its caller, the data loop, does five things:
//!
//! * hands it every packet from the link ([`Engine::handle_packet`]) and does what the returned
//!   [`Effect`] says: dial, send a datagram, ask DNS, give a flow its turn;
//! * tells it what happened on the host's sockets ([`connected`](Engine::connected),
//!   [`dial_failed`](Engine::dial_failed), [`accept`](Engine::accept), datagrams);
//! * moves bytes between host sockets and [`Engine::tcp`] flows, on the flow's own rings;
//! * lets it write to the link ([`Engine::egress`], [`Engine::queue`]);
//! * calls it when time has come ([`Engine::next_timeout`], [`Engine::expired`]).
//!
//! There is one table for TCP, UDP and echo. A packet costs one look-up in it and the work of its
//! own flow; nothing on the way of a packet looks at other flows.

pub mod drops;

mod datagram;
mod device;
mod fragments;
mod rings;
mod route;
mod tcp;
mod timers;

pub use datagram::{DatagramKind, MAX_IP_HEADER};
pub use tcp::Standing;

use crate::limits::{MAX_DIALS, MAX_SYN};
use crate::local::LocalAddresses;
use datagram::DatagramFlow;
use device::LinkDevice;
use drops::{Counters, DropReason};
use fragments::{FragmentError, Reassembly};
use hashbrown::HashMap;
use netd_proto::build::{self, IcmpError};
use netd_proto::frame::Queue;
use netd_proto::handshake::{Features, Hello};
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{FlowKey, Packet, Protocol, Transport};
use netd_proto::policy::Policy;
use rings::RingPool;
use route::{DENIED, Route, Router};
use slab::Slab;
use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tcp::Stack;
use timers::{Deadline, Timers};

/// Names one flow of an engine; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    index: u32,
    generation: u32,
}

impl FlowId {
    /// As one number, for an event loop's token.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The flow of such a number.
    #[expect(clippy::cast_possible_truncation, reason = "takes the number apart")]
    pub fn from_bits(bits: u64) -> FlowId {
        FlowId {
            index: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }

    /// Its place in a table beside the engine's.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// What the caller has to do for a packet.
#[derive(Debug)]
pub enum Effect<'p> {
    /// Nothing.
    None,
    /// A TCP flow may have something to move: give it its turn.
    Turn(FlowId),
    /// A new TCP flow: connect, then tell [`Engine::connected`] or [`Engine::dial_failed`].
    Dial(FlowId, DialTarget),
    /// The enclave gave up a flow that was being dialed; it is gone.
    Gone(FlowId),
    /// Send a datagram or echo request from the flow's socket.
    Datagram(Outgoing<'p>),
    /// Answer a DNS query that came by UDP, with [`Engine::dns_answer`].
    Dns {
        /// Who asks.
        client: SocketAddr,
        /// Which of the gateway's addresses was asked.
        gateway: SocketAddr,
        /// The message.
        query: Cow<'p, [u8]>,
    },
}

/// Where a new TCP flow leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialTarget {
    /// To a host.
    Host(SocketAddr),
    /// To the gateway's own DNS.
    Dns,
}

/// A datagram on its way out.
#[derive(Debug)]
pub struct Outgoing<'p> {
    /// Whose socket to use.
    pub flow: FlowId,
    /// Whether the flow is new and has no socket yet.
    pub is_new: bool,
    /// UDP or echo.
    pub kind: DatagramKind,
    /// Destination; the port is 0 for an echo request.
    pub to: SocketAddr,
    /// Time to live of the outgoing packet.
    pub hop_limit: u8,
    /// Whether the sender forbids to cut it.
    pub dont_fragment: bool,
    /// Sequence number of an echo request.
    pub sequence: u16,
    /// UDP or echo payload.
    pub payload: Cow<'p, [u8]>,
}

/// Why a dial did not succeed, in what the enclave can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialError {
    /// RST.
    Refused,
    /// The ICMP error.
    Icmp(IcmpError),
    /// Nothing: the program's own timers run.
    Silent,
}

/// How far [`Engine::egress`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// The flow has nothing more to send now.
    Done,
    /// It used its quantum up.
    More,
    /// The link is full.
    LinkFull,
}

#[derive(Debug)]
enum Flow {
    /// A TCP flow whose real connect is not answered: its SYN.
    Dialing(Vec<u8>),
    Tcp(Box<Stack>),
    Datagram(DatagramFlow),
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    key: FlowKey,
    deadline: Deadline,
    flow: Flow,
}

/// All flows of one enclave.
#[derive(Debug)]
pub struct Engine {
    epoch: Instant,
    features: Features,
    router: Router,
    max_flows: usize,
    table: HashMap<FlowKey, FlowId>,
    flows: Slab<Entry>,
    dialing: usize,
    next_generation: u32,
    timers: Timers,
    rings: RingPool,
    reassembly: Reassembly,
    queue: Queue,
    counters: Counters,
    seeds: RandomState,
}

impl Engine {
    /// An engine for the enclave that said `hello`, over a link with `features`.
    pub fn new(
        hello: Hello,
        features: Features,
        policy: Policy,
        own: Arc<LocalAddresses>,
        max_flows: usize,
        now: Instant,
    ) -> Engine {
        Engine {
            epoch: now,
            features,
            router: Router::new(hello, policy, own),
            max_flows,
            table: HashMap::new(),
            flows: Slab::new(),
            dialing: 0,
            next_generation: 0,
            timers: Timers::default(),
            rings: RingPool::default(),
            reassembly: Reassembly::default(),
            queue: Queue::new(),
            counters: Counters::default(),
            seeds: RandomState::new(),
        }
    }

    /// Frames for the link.
    pub fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// What happened so far.
    pub fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Flows that are open now.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// Notes what DNS handed out, for rules with names.
    pub fn learn(&mut self, name: &str, addresses: &[IpAddr], keep: Duration, now: Instant) {
        let seconds = self.seconds(now);
        let until = seconds + keep.as_secs();
        if !self.router.policy().learn(name, addresses, seconds, until) {
            tracing::warn!(
                name,
                "too many addresses learnt: a rule with a name may not match"
            );
        }
    }

    /// Takes the payload of one packet frame.
    pub fn handle_packet<'p>(&mut self, frame: &'p [u8], now: Instant) -> Effect<'p> {
        let Some((vnet, bytes)) = VnetHeader::split(frame) else {
            return self.dropped(DropReason::Malformed);
        };
        self.counters.from_enclave.count(bytes.len());
        let packet = match Packet::parse(bytes) {
            Ok(packet) => packet,
            Err(error) => return self.dropped(error.into()),
        };
        if vnet.check(&packet).is_err() {
            return self.dropped(DropReason::Offload);
        }
        if packet.src() != self.router.enclave(packet.src()) {
            return self.dropped(DropReason::Spoofed);
        }
        if packet.hop_limit() <= 1 && packet.dst() != self.router.gateway(packet.dst()) {
            self.refuse(&packet, DropReason::HopLimit, IcmpError::TimeExceeded);
            return Effect::None;
        }
        match packet.transport() {
            Transport::Tcp(_) => self.handle_tcp(&packet, now),
            Transport::Fragment(fragment) => {
                match self
                    .reassembly
                    .add(packet.src(), packet.dst(), fragment, now)
                {
                    Ok(None) => Effect::None,
                    Ok(Some((protocol, payload))) => {
                        let effect = self.handle_reassembled(&packet, protocol, &payload, now);
                        self.reassembly.recycle(payload);
                        effect
                    }
                    Err(FragmentError::Invalid) => self.dropped(DropReason::Fragment),
                    Err(FragmentError::Limit) => self.dropped(DropReason::FragmentLimit),
                }
            }
            transport => self.handle_datagram(&packet, transport, now),
        }
    }

    fn handle_reassembled(
        &mut self,
        last: &Packet<'_>,
        protocol: u8,
        payload: &[u8],
        now: Instant,
    ) -> Effect<'static> {
        match Transport::parse(protocol, payload, last.is_ipv6()) {
            Ok(transport) => into_owned(self.handle_datagram(last, &transport, now)),
            Err(error) => self.dropped(error.into()),
        }
    }

    fn handle_tcp<'p>(&mut self, packet: &Packet<'p>, now: Instant) -> Effect<'p> {
        let (Transport::Tcp(tcp), Some(key)) = (packet.transport(), packet.flow_key()) else {
            return Effect::None;
        };
        if let Some(&id) = self.table.get(&key) {
            return self.handle_segment(id, packet, now);
        }
        if tcp.rst() {
            return self.dropped(DropReason::UnknownFlow);
        }
        if !tcp.syn() || tcp.ack() {
            self.reset(packet);
            return self.dropped(DropReason::UnknownFlow);
        }
        let target = match self.router.route(Protocol::Tcp, key.dst, self.seconds(now)) {
            Route::Host(to) => DialTarget::Host(to),
            Route::Gateway if key.dst.port() == DNS_PORT => DialTarget::Dns,
            Route::Gateway => {
                self.reset(packet);
                return Effect::None;
            }
            Route::Denied(reason) => {
                self.refuse(packet, reason, DENIED);
                return Effect::None;
            }
        };
        let limit = if self.flows.len() >= self.max_flows {
            Some(DropReason::FlowLimit)
        } else if self.dialing >= MAX_DIALS {
            Some(DropReason::DialLimit)
        } else if packet.bytes().len() > MAX_SYN {
            Some(DropReason::Malformed)
        } else {
            None
        };
        if let Some(reason) = limit {
            self.reset(packet);
            return self.dropped(reason);
        }
        self.dialing += 1;
        let id = self.insert(key, Flow::Dialing(packet.bytes().to_vec()));
        Effect::Dial(id, target)
    }

    fn handle_segment<'p>(&mut self, id: FlowId, packet: &Packet<'p>, now: Instant) -> Effect<'p> {
        let at = self.micros(now);
        let entry = &mut self.flows[id.index()];
        match &mut entry.flow {
            Flow::Dialing(_) => {
                // A repeated SYN waits like the first; a reset takes it back.
                let Transport::Tcp(tcp) = packet.transport() else {
                    return Effect::None;
                };
                if !tcp.rst() {
                    return Effect::None;
                }
                self.remove(id);
                Effect::Gone(id)
            }
            Flow::Tcp(stack) => {
                let mut device = LinkDevice {
                    received: Some(packet.bytes()),
                    queue: &mut self.queue,
                    features: self.features,
                    mtu: self.router.mtu(),
                    traffic: &mut self.counters.to_enclave,
                };
                stack.ingress(&mut device, at);
                Effect::Turn(id)
            }
            Flow::Datagram(_) => unreachable!("a TCP key leads to a TCP flow"),
        }
    }

    /// The dial of `id` succeeded: the enclave's SYN is answered with the flow's next
    /// [`egress`](Self::egress). False when the flow is gone or there is no memory for it: the
    /// host's socket is to be closed.
    pub fn connected(&mut self, id: FlowId, now: Instant) -> bool {
        let at = self.micros(now);
        let seed = self.seed(id);
        let Some(entry) = self.entry(id) else {
            return false;
        };
        let Flow::Dialing(syn) = &mut entry.flow else {
            return false;
        };
        let (syn, key) = (std::mem::take(syn), entry.key);
        self.dialing -= 1;
        let Some(socket) = self.rings.socket() else {
            tracing::warn!("no memory for the rings of a flow: it is refused");
            self.dialing += 1;
            self.flows[id.index()].flow = Flow::Dialing(syn);
            self.dial_failed(id, DialError::Refused);
            return false;
        };
        let mut device = LinkDevice {
            received: Some(&syn),
            queue: &mut self.queue,
            features: self.features,
            mtu: self.router.mtu(),
            traffic: &mut self.counters.to_enclave,
        };
        let mut stack = Stack::listen(&key, socket, &mut device, at, seed);
        stack.ingress(&mut device, at);
        self.flows[id.index()].flow = Flow::Tcp(Box::new(stack));
        true
    }

    /// The dial of `id` failed: the enclave is told, and the flow is gone.
    pub fn dial_failed(&mut self, id: FlowId, error: DialError) {
        let Some(Entry {
            flow: Flow::Dialing(syn),
            ..
        }) = self.entry(id)
        else {
            return;
        };
        let syn = std::mem::take(syn);
        self.remove(id);
        let Ok(packet) = Packet::parse(&syn) else {
            return;
        };
        match error {
            DialError::Refused => self.reset(&packet),
            DialError::Icmp(error) => self.icmp_error(&packet, error),
            DialError::Silent => {}
        }
    }

    /// A client of a published port was accepted: opens a flow to the enclave's `port`.
    ///
    /// # Errors
    /// The flow limit is reached, the client's address is not one the enclave could answer, or
    /// another flow uses it. The client is to be reset.
    pub fn accept(
        &mut self,
        client: SocketAddr,
        port: u16,
        now: Instant,
    ) -> Result<FlowId, DropReason> {
        let outside = client.ip().to_canonical();
        let seen = self.router.as_seen_by_enclave(outside);
        let enclave = SocketAddr::new(self.router.enclave(seen), port);
        let key = tcp::inbound_key(enclave, SocketAddr::new(seen, client.port()));
        let reason = if self.flows.len() >= self.max_flows {
            Some(DropReason::FlowLimit)
        } else if self.table.contains_key(&key) || seen == enclave.ip() {
            Some(DropReason::InboundCollision)
        } else {
            None
        };
        if let Some(reason) = reason {
            self.counters.drop(reason);
            return Err(reason);
        }
        let Some(socket) = self.rings.socket() else {
            self.counters.drop(DropReason::FlowLimit);
            return Err(DropReason::FlowLimit);
        };
        let id = self.insert(key, Flow::Dialing(Vec::new()));
        let (at, seed) = (self.micros(now), self.seed(id));
        let mut device = self.device();
        let stack = Stack::connect(&key, socket, &mut device, at, seed);
        self.flows[id.index()].flow = Flow::Tcp(Box::new(stack));
        Ok(id)
    }

    /// An open TCP flow.
    pub fn tcp(&mut self, id: FlowId) -> Option<TcpFlow<'_>> {
        match self.entry(id)? {
            Entry {
                flow: Flow::Tcp(stack),
                ..
            } => Some(TcpFlow(stack)),
            _ => None,
        }
    }

    /// Sends what a TCP flow has to send, up to `quantum` bytes and the link's bound.
    pub fn egress(&mut self, id: FlowId, quantum: usize, now: Instant) -> Egress {
        let at = self.micros(now);
        let Some(entry) = self.flows.get_mut(id.index()) else {
            return Egress::Done;
        };
        let Flow::Tcp(stack) = &mut entry.flow else {
            return Egress::Done;
        };
        if entry.generation != id.generation {
            return Egress::Done;
        }
        let begun = self.queue.len();
        loop {
            if !self.queue.has_room() {
                return Egress::LinkFull;
            }
            let mut device = LinkDevice {
                received: None,
                queue: &mut self.queue,
                features: self.features,
                mtu: self.router.mtu(),
                traffic: &mut self.counters.to_enclave,
            };
            if !stack.egress(&mut device, at) {
                break;
            }
            if self.queue.len() - begun >= quantum {
                return Egress::More;
            }
        }
        let poll_at = stack.poll_at(at).map(|at| self.epoch + micros(at));
        entry.deadline.set(poll_at);
        self.timers.arm(id, &mut entry.deadline);
        Egress::Done
    }

    /// Forgets a flow and gives its buffers back. Its host socket is to be closed.
    pub fn remove(&mut self, id: FlowId) {
        if self.entry(id).is_none() {
            return;
        }
        let entry = self.flows.remove(id.index());
        self.table.remove(&entry.key);
        match entry.flow {
            Flow::Dialing(_) => self.dialing -= 1,
            Flow::Tcp(stack) => self.rings.recycle(stack.into_socket()),
            Flow::Datagram(_) => {}
        }
        if self.timers.is_stale(self.flows.len()) {
            self.timers
                .rebuild(self.flows.iter_mut().map(|(index, entry)| {
                    #[expect(clippy::cast_possible_truncation, reason = "bounded by max_flows")]
                    let id = FlowId {
                        index: index as u32,
                        generation: entry.generation,
                    };
                    (id, &mut entry.deadline)
                }));
        }
    }

    /// When [`expired`](Self::expired) may have something.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The next flow whose time has come. A TCP flow is to be given its turn; a datagram flow was
    /// idle too long and is gone.
    pub fn expired(&mut self, now: Instant) -> Option<Effect<'static>> {
        let at = self.micros(now);
        while let Some((fired, id)) = self.timers.pop(now) {
            let Some(entry) = self.flows.get_mut(id.index()) else {
                continue;
            };
            if entry.generation != id.generation
                || !self.timers.due(id, &mut entry.deadline, fired, now)
            {
                continue;
            }
            match &mut entry.flow {
                Flow::Dialing(_) => {}
                Flow::Tcp(stack) => {
                    stack.expire(at);
                    return Some(Effect::Turn(id));
                }
                Flow::Datagram(_) => {
                    self.remove(id);
                    return Some(Effect::Gone(id));
                }
            }
        }
        None
    }

    fn entry(&mut self, id: FlowId) -> Option<&mut Entry> {
        self.flows
            .get_mut(id.index())
            .filter(|entry| entry.generation == id.generation)
    }

    fn insert(&mut self, key: FlowKey, flow: Flow) -> FlowId {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        let entry = Entry {
            generation,
            key,
            deadline: Deadline::default(),
            flow,
        };
        #[expect(clippy::cast_possible_truncation, reason = "bounded by max_flows")]
        let id = FlowId {
            index: self.flows.insert(entry) as u32,
            generation,
        };
        self.table.insert(key, id);
        self.counters.flows_opened += 1;
        id
    }

    fn device(&mut self) -> LinkDevice<'_> {
        LinkDevice {
            received: None,
            queue: &mut self.queue,
            features: self.features,
            mtu: self.router.mtu(),
            traffic: &mut self.counters.to_enclave,
        }
    }

    fn dropped<'p>(&mut self, reason: DropReason) -> Effect<'p> {
        self.counters.drop(reason);
        Effect::None
    }

    /// Counts a refusal and tells the sender of `packet`.
    fn refuse(&mut self, packet: &Packet<'_>, reason: DropReason, error: IcmpError) {
        self.counters.drop(reason);
        tracing::debug!(
            reason = reason.name(),
            dst = %packet.dst(),
            flow = packet.flow_key().map(tracing::field::display),
            "refused"
        );
        self.icmp_error(packet, error);
    }

    fn icmp_error(&mut self, packet: &Packet<'_>, error: IcmpError) {
        let from = self.router.gateway(packet.src());
        self.send_packet(|out| build::icmp_error(out, from, packet.src(), error, packet.bytes()));
    }

    fn reset(&mut self, packet: &Packet<'_>) {
        self.send_packet(|out| build::tcp_reset(out, packet).unwrap_or(0));
    }

    /// Queues a packet that `write` makes, complete with its checksum.
    fn send_packet(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        let Some(space) = self.queue.packet_space() else {
            self.counters.drop(DropReason::LinkFull);
            return;
        };
        let (header, packet) = space.split_at_mut(VnetHeader::LEN);
        let length = write(packet);
        if length > 0 {
            header.copy_from_slice(&VnetHeader::NONE.encode());
            self.queue.commit_packet(VnetHeader::LEN + length);
            self.counters.to_enclave.count(length);
        }
    }

    fn micros(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = now.duration_since(self.epoch).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    fn seconds(&self, now: Instant) -> u64 {
        now.duration_since(self.epoch).as_secs()
    }

    fn seed(&self, id: FlowId) -> u64 {
        self.seeds.hash_one(id)
    }
}

/// The gateway's DNS port.
const DNS_PORT: u16 = 53;

fn micros(at: smoltcp::time::Instant) -> Duration {
    Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0))
}

fn into_owned(effect: Effect<'_>) -> Effect<'static> {
    match effect {
        Effect::None => Effect::None,
        Effect::Turn(id) => Effect::Turn(id),
        Effect::Dial(id, target) => Effect::Dial(id, target),
        Effect::Gone(id) => Effect::Gone(id),
        Effect::Datagram(outgoing) => {
            let payload = Cow::Owned(outgoing.payload.into_owned());
            Effect::Datagram(Outgoing {
                payload,
                ..outgoing
            })
        }
        Effect::Dns {
            client,
            gateway,
            query,
        } => Effect::Dns {
            client,
            gateway,
            query: Cow::Owned(query.into_owned()),
        },
    }
}

/// An open TCP flow: bytes from and to the enclave.
#[derive(Debug)]
pub struct TcpFlow<'a>(&'a mut Stack);

impl TcpFlow<'_> {
    /// Lends the next bytes from the enclave; `take` tells how many it took, and anything else.
    /// `None` if there are none now.
    pub fn receive<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        self.0.receive(take)
    }

    /// Lends room for bytes to the enclave; `fill` tells how many it wrote, and anything else.
    /// `None` if there is no room now.
    pub fn send<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        self.0.send(fill)
    }

    /// Whether there is room for bytes to the enclave.
    pub fn can_send(&self) -> bool {
        self.0.can_send()
    }

    /// Whether everything the enclave sent was taken, and it sends nothing more.
    pub fn enclave_finished(&self) -> bool {
        self.0.enclave_finished()
    }

    /// The host side sends nothing more: FIN, behind what was sent.
    pub fn finish(&mut self) {
        self.0.finish();
    }

    /// RST with the next [`Engine::egress`].
    pub fn abort(&mut self) {
        self.0.abort();
    }

    /// Where the flow stands.
    pub fn standing(&self) -> Standing {
        self.0.standing()
    }
}

#[cfg(test)]
mod tests;
