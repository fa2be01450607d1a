//! TCP flows: the enclave's connections, ended here.
//!
//! ```text
//! outbound:  SYN --> Dialing --the real connect stands--> Open
//!                       \--refused: RST or ICMP, silent: nothing--> gone
//! inbound:   a client was accepted --> Open (SYN sent to the enclave)
//! Open:      bytes both ways; a FIN on one side is passed on when all before it was, and the
//!            other half stays open; ends when both are closed, or at a reset of either side
//! ```
//!
//! A dialing flow is just its SYN. It is fed to a smoltcp [`Stack`] only once the real connection
//! stands, so the enclave's kernel sees a SYN-ACK then and not earlier, and a flow that is never
//! answered costs no rings.
//!
//! A kernel says nothing when a program gives up a connect; it only stops to repeat its SYN. So a
//! dial ends when the next SYN is long overdue.
//!
//! The link neither repeats nor delays a segment. So a SYN with another sequence number than that
//! of the flow it belongs to begins another connection: the kernel has forgotten the first.

use super::drops::DropReason;
use super::effect::{DialError, DialTarget, Effect, Egress};
use super::memory::Memory;
use super::route::{DENIED, Route};
use super::stack::{Stack, Standing};
use super::{DNS_PORT, Engine, Entry, Flow, FlowId};
use crate::budget::Permit;
use crate::limits::{FIRST_WINDOW, MAX_SYN, SHORT_WINDOW, SYN_GRACE, SYN_PAUSE};
use etherparse::TcpSlice;
use netd_proto::packet::{FlowKey, Packet, Protocol, Transport};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// A connect that is not answered yet.
#[derive(Debug)]
pub(super) struct Dialing {
    /// The enclave's SYN.
    syn: Vec<u8>,
    number: u32,
    /// Whom it is for, if that is a host.
    pub(super) to: Option<IpAddr>,
    _permit: Option<Permit>,
    /// When the enclave last sent it, and the longest pause before it did so again.
    asked: Instant,
    pause: Duration,
}

impl Dialing {
    fn new(
        syn: Vec<u8>,
        number: u32,
        to: Option<IpAddr>,
        permit: Option<Permit>,
        now: Instant,
    ) -> Dialing {
        Dialing {
            syn,
            number,
            to,
            _permit: permit,
            asked: now,
            pause: SYN_PAUSE,
        }
    }

    /// The enclave repeats its SYN.
    fn ask(&mut self, now: Instant) {
        self.pause = self.pause.max(now.duration_since(self.asked));
        self.asked = now;
    }

    /// When the next SYN is long overdue: kernels at most double the pause (RFC 6298, 5.5).
    fn end(&self) -> Instant {
        self.asked + self.pause * 2 + SYN_GRACE
    }

    /// Whether a reset is about the SYN.
    fn is_taken_back_by(&self, reset: &TcpSlice<'_>) -> bool {
        let ahead = reset.sequence_number().wrapping_sub(self.number);
        usize::try_from(ahead).is_ok_and(|ahead| ahead <= self.syn.len())
    }
}

impl Engine {
    pub(super) fn handle_tcp<'p>(&mut self, packet: &Packet<'p>, now: Instant) -> Effect<'p> {
        let (Transport::Tcp(tcp), Some(key)) = (packet.transport(), packet.flow_key()) else {
            return Effect::None;
        };
        let Some(&id) = self.table.get(&key) else {
            return self.handle_first_segment(tcp, key, packet, now);
        };
        if !self.is_followed_by(id, tcp) {
            return self.handle_segment(id, packet, now);
        }
        let gone = self.make_way(id, key);
        match (gone, self.handle_first_segment(tcp, key, packet, now)) {
            (None, effect) => effect,
            (Some(gone), Effect::Dial(id, target)) => Effect::Redial { gone, id, target },
            (Some(gone), _) => Effect::Gone(gone),
        }
    }

    /// Whether a segment begins another connection between the ports of flow `id`.
    fn is_followed_by(&self, id: FlowId, tcp: &TcpSlice<'_>) -> bool {
        let opens = tcp.syn() && !tcp.ack() && !tcp.rst();
        opens
            && match &self.flows[id.index()].flow {
                Flow::Dialing(dialing) => dialing.number != tcp.sequence_number(),
                Flow::Tcp(stack) => stack.is_followed_by(tcp.sequence_number()),
                Flow::Datagram(_) => false,
            }
    }

    /// Makes way for another flow of this key. Tells the flow if it is gone; one that is over for
    /// the enclave goes on with what the host's peer has not taken yet.
    fn make_way(&mut self, id: FlowId, key: FlowKey) -> Option<FlowId> {
        if let Flow::Tcp(stack) = &mut self.flows[id.index()].flow
            && stack.part()
        {
            self.table.remove(&key);
            return None;
        }
        self.remove(id);
        Some(id)
    }

    fn handle_first_segment<'p>(
        &mut self,
        tcp: &TcpSlice<'_>,
        key: FlowKey,
        packet: &Packet<'p>,
        now: Instant,
    ) -> Effect<'p> {
        if tcp.rst() {
            return self.dropped(DropReason::UnknownFlow);
        }
        if !tcp.syn() || tcp.ack() {
            if self.router.may_be_a_host(key.dst.ip()) {
                self.reset(packet);
            }
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
        if packet.bytes().len() > MAX_SYN {
            self.reset(packet);
            return self.dropped(DropReason::Malformed);
        }
        let (to, pace) = match target {
            DialTarget::Host(to) => (Some(to.ip()), &mut self.dial_pace),
            DialTarget::Dns => (None, &mut self.dns_pace),
        };
        if !pace.admits(now) {
            return self.dropped(DropReason::DialPace);
        }
        let (permit, dialing) = match self.admit_dial(to) {
            Ok(permits) => permits,
            Err(reason) => {
                self.reset(packet);
                self.limit_reached(reason, now);
                return Effect::None;
            }
        };
        let syn = packet.bytes().to_vec();
        let dialing = Dialing::new(syn, tcp.sequence_number(), to, dialing, now);
        let end = dialing.end();
        let id = self.insert(key, Flow::Dialing(dialing), permit);
        let entry = &mut self.flows[id.index()];
        entry.deadline.set(Some(end));
        self.timers.arm(id, &mut entry.deadline);
        Effect::Dial(id, target)
    }

    /// What a new connect to `to` needs: a flow, and a place among those that are not answered. The
    /// gateway answers by itself.
    fn admit_dial(&mut self, to: Option<IpAddr>) -> Result<(Permit, Option<Permit>), DropReason> {
        let shares = &self.allotment.shares;
        if self.memory.is_used_up() {
            return Err(DropReason::MemoryLimit);
        }
        let Some(to) = to else {
            let flow = shares.flows.take().ok_or(DropReason::FlowLimit)?;
            return Ok((flow, None));
        };
        let pending = self.dials_to.get(&to);
        if pending.is_some_and(|pending| *pending >= shares.dials_per_destination) {
            return Err(DropReason::DestinationLimit);
        }
        let dial = shares.dials.take().ok_or(DropReason::DialLimit)?;
        let flow = shares.flows.take().ok_or(DropReason::FlowLimit)?;
        *self.dials_to.entry(to).or_default() += 1;
        Ok((flow, Some(dial)))
    }

    /// Takes note that a connect is no longer pending.
    pub(super) fn dial_ended(&mut self, dialing: &Dialing) {
        let Some(to) = dialing.to else { return };
        if let Some(pending) = self.dials_to.get_mut(&to) {
            *pending -= 1;
            if *pending == 0 {
                self.dials_to.remove(&to);
            }
        }
    }

    fn handle_segment<'p>(&mut self, id: FlowId, packet: &Packet<'p>, now: Instant) -> Effect<'p> {
        let at = self.micros(now);
        let entry = &mut self.flows[id.index()];
        match &mut entry.flow {
            Flow::Dialing(dialing) => {
                // A repeated SYN waits like the first; a reset takes it back.
                let Transport::Tcp(tcp) = packet.transport() else {
                    return Effect::None;
                };
                if tcp.rst() && dialing.is_taken_back_by(tcp) {
                    self.remove(id);
                    return Effect::Gone(id);
                }
                if tcp.syn() {
                    dialing.ask(now);
                    entry.deadline.set(Some(dialing.end()));
                    self.timers.arm(id, &mut entry.deadline);
                }
                Effect::None
            }
            Flow::Tcp(stack) => {
                // A flow that holds little goes on whatever others hold.
                let overdraws = |stack: &Stack, memory: &Memory| {
                    let more = stack.would_touch(packet);
                    more > 0
                        && memory.would_be_overdrawn(more)
                        && stack.touched() + more > SHORT_WINDOW
                };
                if overdraws(stack, &self.memory) {
                    stack.release();
                    stack.account(&mut self.memory);
                }
                if overdraws(stack, &self.memory) {
                    // Not acknowledged, so the enclave's kernel sends it again.
                    self.limit_reached(DropReason::MemoryLimit, now);
                    return Effect::Turn(id);
                }
                let share = self.windows.from_enclave.of(&stack.recent_in);
                let allowance = self.memory.allowance(share);
                let bytes = stack.ingress(packet, &mut self.link, allowance, at);
                self.windows
                    .from_enclave
                    .moved(&mut stack.recent_in, bytes, at);
                if self.memory.is_short() {
                    stack.release();
                }
                stack.account(&mut self.memory);
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
        let seed = self.seeds.of(id);
        let Some(entry) = self.entry(id) else {
            return false;
        };
        let (key, Flow::Dialing(Dialing { syn, .. })) = (entry.key, &mut entry.flow) else {
            return false;
        };
        let syn = std::mem::take(syn);
        let (Some(socket), Ok(packet)) = (self.rings.socket(), Packet::parse(&syn)) else {
            self.limit_reached(DropReason::MemoryLimit, now);
            if let Flow::Dialing(dialing) = &mut self.flows[id.index()].flow {
                dialing.syn = syn;
            }
            self.dial_failed(id, DialError::Refused);
            return false;
        };
        let mut stack = Stack::listen(&key, socket, &mut self.link, at, seed);
        let allowance = self.memory.allowance(FIRST_WINDOW);
        stack.ingress(&packet, &mut self.link, allowance, at);
        let flow = Flow::Tcp(Box::new(stack));
        if let Flow::Dialing(dialing) = std::mem::replace(&mut self.flows[id.index()].flow, flow) {
            self.dial_ended(&dialing);
        }
        true
    }

    /// The dial of `id` failed: the enclave is told, and the flow is gone.
    pub fn dial_failed(&mut self, id: FlowId, error: DialError) {
        let Some(Entry {
            flow: Flow::Dialing(dialing),
            ..
        }) = self.entry(id)
        else {
            return;
        };
        let syn = std::mem::take(&mut dialing.syn);
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
    /// A limit is reached, the client's address is not one the enclave could answer, or
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
        let key = FlowKey {
            protocol: Protocol::Tcp,
            src: enclave,
            dst: SocketAddr::new(seen, client.port()),
        };
        let shares = &self.allotment.shares;
        let taken = if self.memory.is_used_up() {
            Err(DropReason::MemoryLimit)
        } else if self.table.contains_key(&key) || seen == enclave.ip() {
            Err(DropReason::InboundCollision)
        } else {
            let half_open = shares.half_open.take().ok_or(DropReason::HalfOpenLimit);
            half_open.and_then(|half_open| {
                let flow = shares.flows.take().ok_or(DropReason::FlowLimit)?;
                let socket = self.rings.socket().ok_or(DropReason::MemoryLimit)?;
                Ok((half_open, flow, socket))
            })
        };
        let (half_open, permit, socket) = match taken {
            Ok(taken) => taken,
            Err(reason) => {
                self.limit_reached(reason, now);
                return Err(reason);
            }
        };
        // The seed is that of the flow, which the stack is made for.
        let at = self.micros(now);
        let seed = self.seeds.of(self.next_id());
        let stack = Stack::connect(&key, socket, half_open, &mut self.link, at, seed);
        Ok(self.insert(key, Flow::Tcp(Box::new(stack)), permit))
    }

    /// An open TCP flow.
    pub fn tcp(&mut self, id: FlowId) -> Option<TcpFlow<'_>> {
        let entry = self.flows.get_mut(id.index())?;
        let Flow::Tcp(stack) = &mut entry.flow else {
            return None;
        };
        if entry.generation != id.generation {
            return None;
        }
        let share = self.windows.to_enclave.of(&stack.recent_out);
        let mut room = self.memory.allowance(share);
        if self.memory.is_used_up() {
            // A ring that is never empty keeps the pages it touched, and may not touch more.
            stack.release();
            stack.account(&mut self.memory);
            if !stack.has_sent_nothing() {
                room = 0;
            }
        }
        Some(TcpFlow { stack, room })
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
        let share = self.windows.from_enclave.of(&stack.recent_in);
        let allowance = self.memory.allowance(share);
        let begun = self.link.queue.len();
        let result = loop {
            if !self.link.queue.has_room() {
                break Egress::LinkFull;
            }
            if !stack.egress(&mut self.link, allowance, at) {
                break Egress::Done;
            }
            if self.link.queue.len() - begun >= quantum {
                break Egress::More;
            }
        };
        let sent = std::mem::take(&mut stack.unaccounted);
        self.windows
            .to_enclave
            .moved(&mut stack.recent_out, sent, at);
        if self.memory.is_short() {
            stack.release();
        }
        stack.account(&mut self.memory);
        if result == Egress::Done {
            let poll_at = stack.poll_at(at).map(|at| self.epoch + micros(at));
            entry.deadline.set(poll_at);
            self.timers.arm(id, &mut entry.deadline);
        }
        result
    }
}

fn micros(at: smoltcp::time::Instant) -> Duration {
    Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0))
}

/// An open TCP flow: bytes from and to the enclave.
#[derive(Debug)]
pub struct TcpFlow<'a> {
    stack: &'a mut Stack,
    /// Bytes to the enclave that may wait.
    room: usize,
}

impl TcpFlow<'_> {
    /// Lends the next bytes from the enclave; `take` tells how many it took, and anything else.
    /// `None` if there are none now.
    pub fn receive<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        self.stack.receive(take)
    }

    /// Lends room for bytes to the enclave; `fill` tells how many it wrote, and anything else.
    /// `None` if there is no room now.
    pub fn send<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        self.stack.send(self.room, fill)
    }

    /// Whether there is room for bytes to the enclave.
    pub fn can_send(&self) -> bool {
        self.stack.room(self.room) > 0
    }

    /// Whether everything the enclave sent was taken, and it sends nothing more.
    pub fn enclave_finished(&self) -> bool {
        self.stack.enclave_finished()
    }

    /// The host side sends nothing more: FIN, behind what was sent.
    pub fn finish(&mut self) {
        self.stack.finish();
    }

    /// RST with the next [`Engine::egress`].
    pub fn abort(&mut self) {
        self.stack.abort();
    }

    /// RST with an [`Engine::egress`] to come: behind what was sent before, or when the enclave
    /// takes none of it for [`RESET_PATIENCE`](crate::limits::RESET_PATIENCE). `complete` tells
    /// whether all of it was sent.
    pub fn abort_behind(&mut self, complete: bool) {
        self.stack.abort_behind(complete);
    }

    /// Where the flow stands.
    pub fn standing(&self) -> Standing {
        self.stack.standing()
    }
}
