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

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod drops;

mod datagram;
mod device;
mod effect;
mod fragments;
mod inbound;
mod memory;
mod pace;
mod probe;
mod receiver;
mod rings;
mod route;
mod seeds;
mod stack;
mod tcp;
mod timers;
mod usage;
mod window;

pub use crate::budget::Limits;
pub use datagram::DatagramKind;
pub use effect::{DialError, DialTarget, Effect, Egress, Outgoing};
pub use inbound::{DatagramSpace, Received};
pub use stack::Standing;
pub use tcp::TcpFlow;
pub use usage::Usage;

use crate::budget::{Allotment, Permit, Shares};
use crate::limits::{DIALS_A_SECOND, DIALS_AT_ONCE, DNS_STREAMS_A_SECOND, WARN_INTERVAL};
use crate::local::LocalAddresses;
use datagram::DatagramFlow;
use device::LinkSide;
use drops::{Counters, DropReason, Traffic};
use fragments::{FragmentError, Reassembly};
use hashbrown::HashMap;
use inbound::Inbound;
use memory::Memory;
use netd_proto::build::{self, IcmpError};
use netd_proto::frame::Queue;
use netd_proto::handshake::{Features, Hello};
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{FlowKey, Packet, Transport};
use netd_proto::policy::Policy;
use pace::Pace;
use rings::RingPool;
use route::Router;
use seeds::Seeds;
use slab::Slab;
use stack::Stack;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tcp::Dialing;
use timers::{Deadline, Timers};
use window::Windows;

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

#[derive(Debug)]
enum Flow {
    /// A TCP flow whose real connect is not answered.
    Dialing(Dialing),
    Tcp(Box<Stack>),
    Datagram(DatagramFlow),
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    key: FlowKey,
    deadline: Deadline,
    flow: Flow,
    permit: Arc<Permit>,
}

/// All flows of one enclave.
#[derive(Debug)]
pub struct Engine {
    epoch: Instant,
    router: Router,
    allotment: Allotment,
    table: HashMap<FlowKey, FlowId>,
    flows: Slab<Entry>,
    /// Connects that are not answered, by the address they are for.
    dials_to: HashMap<IpAddr, usize>,
    next_generation: u32,
    timers: Timers,
    rings: RingPool,
    memory: Memory,
    windows: Windows,
    reassembly: Reassembly,
    link: LinkSide,
    inbound: Inbound,
    counters: Counters,
    /// How fast connects may be begun: to hosts, and to the gateway's DNS.
    dial_pace: Pace,
    dns_pace: Pace,
    seeds: Seeds,
    /// When each limit was last warned of.
    warned: [Option<Instant>; DropReason::ALL.len()],
    /// The same of addresses that the policy has no room for.
    learn_warned: Option<Instant>,
}

impl Engine {
    /// An engine for the enclave that said `hello`, over a link with `features`. It uses no more
    /// than was allotted to it.
    pub fn new(
        hello: Hello,
        features: Features,
        policy: Policy,
        own: Arc<LocalAddresses>,
        allotment: impl Into<Allotment>,
        now: Instant,
    ) -> Engine {
        let allotment = allotment.into();
        let link = LinkSide {
            queue: Queue::new(),
            features,
            mtu: hello.mtu,
            traffic: Traffic::default(),
        };
        Engine {
            epoch: now,
            router: Router::new(hello, policy, own),
            memory: Memory::new(allotment.shares.memory.clone()),
            allotment,
            table: HashMap::new(),
            flows: Slab::new(),
            dials_to: HashMap::new(),
            next_generation: 0,
            timers: Timers::default(),
            rings: RingPool::default(),
            windows: Windows::default(),
            reassembly: Reassembly::default(),
            link,
            inbound: Inbound::default(),
            counters: Counters::default(),
            dial_pace: Pace::new(DIALS_A_SECOND, DIALS_AT_ONCE),
            dns_pace: Pace::new(DNS_STREAMS_A_SECOND, DIALS_AT_ONCE),
            seeds: Seeds::default(),
            warned: [None; DropReason::ALL.len()],
            learn_warned: None,
        }
    }

    /// Frames for the link.
    pub fn queue(&mut self) -> &mut Queue {
        &mut self.link.queue
    }

    /// Packets and bytes to the enclave so far.
    pub fn to_enclave(&self) -> Traffic {
        self.link.traffic
    }

    /// What happened so far.
    pub fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Flows that are open now.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// Bytes of ring memory in use.
    pub fn ring_memory(&self) -> usize {
        self.memory.used()
    }

    /// What it may use.
    pub fn shares(&self) -> &Arc<Shares> {
        &self.allotment.shares
    }

    /// What stands for the open file of a flow: to be kept for as long as the file is.
    pub fn permit(&self, id: FlowId) -> Option<Arc<Permit>> {
        let entry = self.flows.get(id.index())?;
        (entry.generation == id.generation).then(|| Arc::clone(&entry.permit))
    }

    /// Notes what DNS handed out, for rules with names.
    pub fn learn(&mut self, name: &str, addresses: &[IpAddr], keep: Duration, now: Instant) {
        let seconds = self.seconds(now);
        let until = seconds + keep.as_secs();
        let mut addresses = addresses.to_vec();
        addresses.retain(|address| self.router.may_be_named(*address));
        if !self.router.policy().learn(name, &addresses, seconds, until)
            && (self.learn_warned).is_none_or(|at| at + WARN_INTERVAL <= now)
        {
            self.learn_warned = Some(now);
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
        if vnet.check(&packet, self.link.features).is_err() {
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
            transport => self.handle_datagram(&packet, transport, vnet.datagram_size(), now),
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
            Ok(transport) if !transport.checksum_is_right(last.src(), last.dst(), payload) => {
                self.dropped(DropReason::Offload)
            }
            Ok(transport) => self
                .handle_datagram(last, &transport, None, now)
                .into_owned(),
            Err(error) => self.dropped(error.into()),
        }
    }

    /// Forgets a flow and gives its buffers back. Its host socket is to be closed.
    pub fn remove(&mut self, id: FlowId) {
        if self.entry(id).is_none() {
            return;
        }
        let entry = self.flows.remove(id.index());
        // A flow that parted has no place in the table, and another one may have taken it.
        if self.table.get(&entry.key) == Some(&id) {
            self.table.remove(&entry.key);
        }
        match entry.flow {
            Flow::Dialing(dialing) => self.dial_ended(&dialing),
            Flow::Tcp(stack) => {
                let (socket, touched) = stack.into_socket(&mut self.memory);
                self.rings.recycle(socket, touched);
            }
            Flow::Datagram(_) => {}
        }
    }

    /// When [`expired`](Self::expired) may have something.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The next flow whose time has come. An open TCP flow is to be given its turn; a connect that
    /// the enclave does not wait for any more, or a datagram flow that was idle too long, is gone.
    pub fn expired(&mut self, now: Instant) -> Option<Effect<'static>> {
        self.tidy_timers();
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
                Flow::Dialing(_) => {
                    self.remove(id);
                    return Some(Effect::Gone(id));
                }
                Flow::Tcp(stack) => {
                    stack.expire(at);
                    stack.account(&mut self.memory);
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

    /// Rids the timers of the entries that removed flows and overtaken deadlines left behind.
    fn tidy_timers(&mut self) {
        if self.timers.is_stale(self.flows.len()) {
            self.timers
                .rebuild(self.flows.iter_mut().map(|(index, entry)| {
                    #[expect(clippy::cast_possible_truncation, reason = "flows are bounded")]
                    let id = FlowId {
                        index: index as u32,
                        generation: entry.generation,
                    };
                    (id, &mut entry.deadline)
                }));
        }
    }

    fn entry(&mut self, id: FlowId) -> Option<&mut Entry> {
        self.flows
            .get_mut(id.index())
            .filter(|entry| entry.generation == id.generation)
    }

    /// What the next flow is called.
    fn next_id(&self) -> FlowId {
        #[expect(clippy::cast_possible_truncation, reason = "flows are bounded")]
        let index = self.flows.vacant_key() as u32;
        FlowId {
            index,
            generation: self.next_generation,
        }
    }

    fn insert(&mut self, key: FlowKey, flow: Flow, permit: Permit) -> FlowId {
        let id = self.next_id();
        self.next_generation = self.next_generation.wrapping_add(1);
        self.flows.insert(Entry {
            generation: id.generation,
            key,
            deadline: Deadline::default(),
            flow,
            permit: Arc::new(permit),
        });
        self.table.insert(key, id);
        self.counters.flows_opened += 1;
        id
    }

    fn dropped<'p>(&mut self, reason: DropReason) -> Effect<'p> {
        self.counters.drop(reason);
        Effect::None
    }

    /// Counts what was refused because a limit is reached, and says so now and then.
    pub fn limit_reached(&mut self, reason: DropReason, now: Instant) {
        self.counters.drop(reason);
        let warned = &mut self.warned[reason as usize];
        if warned.is_none_or(|at| at + WARN_INTERVAL <= now) {
            *warned = Some(now);
            let shares = &self.allotment.shares;
            tracing::warn!(
                limit = reason.name(),
                setting = reason.setting(),
                flows = shares.flows.used(),
                dials = shares.dials.used(),
                mappings = shares.mappings.used(),
                half_open = shares.half_open.used(),
                ring_memory = self.memory.used(),
                "new flows are refused: a limit is reached"
            );
        }
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
        self.send_answer(|out| build::icmp_error(out, from, packet.src(), error, packet.bytes()));
    }

    fn reset(&mut self, packet: &Packet<'_>) {
        self.send_answer(|out| build::tcp_reset(out, packet).unwrap_or(0));
    }

    /// Queues a short packet that `write` makes and that is lost unless it goes now: an ICMP error
    /// or a reset. It may use the reserve of a full queue.
    fn send_answer(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        self.seal_run();
        let sent = send(self.link.queue.answer_space(), write);
        self.sent_packet(sent);
    }

    /// Queues a packet that `write` makes, complete with its checksum.
    fn send_packet(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        self.seal_run();
        let sent = send(self.link.queue.packet_space(), write);
        self.sent_packet(sent);
    }

    fn sent_packet(&mut self, length: Option<usize>) {
        match length {
            None => self.counters.drop(DropReason::LinkFull),
            Some(0) => {}
            Some(length) => {
                self.link.queue.commit_packet(VnetHeader::LEN + length);
                self.link.traffic.count(length);
            }
        }
    }

    fn micros(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = now.duration_since(self.epoch).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    fn seconds(&self, now: Instant) -> u64 {
        now.duration_since(self.epoch).as_secs()
    }
}

/// Writes a packet and the header of one that needs nothing into `space`; returns its length.
fn send(space: Option<&mut [u8]>, write: impl FnOnce(&mut [u8]) -> usize) -> Option<usize> {
    let (header, packet) = space?.split_at_mut(VnetHeader::LEN);
    header.copy_from_slice(&VnetHeader::NONE.encode());
    Some(write(packet))
}

/// The gateway's DNS port.
const DNS_PORT: u16 = 53;

#[cfg(test)]
mod tests;
