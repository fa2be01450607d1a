//! The smoltcp end of one TCP flow.
//!
//! smoltcp scans all sockets of an interface for every packet, so each flow has an interface and
//! a socket of its own (about 1.4 KiB besides the rings). The interface's address is the flow's
//! destination with prefix 0: everything is on its link and no routes are needed. The link loses
//! nothing, so there is no congestion control, no delayed ACK and no Nagle; smoltcp has no
//! timeouts for half-open states, [`ENCLAVE_HANDSHAKE`] and [`ENCLAVE_KEEPALIVE`] stand in.

mod ending;

pub use ending::Standing;

use super::device::{LinkDevice, LinkSide};
use super::memory::Memory;
use super::probe::Probe;
use super::receiver::Receiver;
use super::rings::FlowSocket;
use super::window::{Recent, Window, is_after};
use crate::budget::Permit;
use crate::limits::{ENCLAVE_HANDSHAKE, ENCLAVE_KEEPALIVE, RECEIVE_RING, RING_IDLE, SEND_RING};
use ending::Resetting;
use etherparse::TcpSlice;
use netd_proto::packet::{FlowKey, Packet, Transport};
use smoltcp::iface::{Config, Interface, PollResult};
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr, IpEndpoint};
use std::fmt;

/// The smoltcp end of an open flow.
pub(super) struct Stack {
    interface: Interface,
    socket: FlowSocket,
    opened: Instant,
    /// Sequence number of the enclave's SYN.
    syn: Option<u32>,
    /// The enclave's FIN was received: nothing more comes from it.
    enclave_finished: bool,
    /// The sequence number behind it.
    enclave_end: u32,
    /// The host side sends nothing more.
    host_finished: bool,
    /// The last acknowledgement of TIME-WAIT went out, as an answer or of itself. From then on
    /// smoltcp is not asked for more: at the end of TIME-WAIT it would forget received bytes that
    /// a slow reader outside has not taken yet.
    silent: bool,
    /// Until the enclave answers the SYN of an inbound connection.
    half_open: Option<Permit>,
    resetting: Option<Resetting>,
    /// Segments sent in FIN-WAIT-2 after which another was due at once.
    restless: u8,
    key: FlowKey,
    window: Window,
    receiver: Receiver,
    probe: Probe,
    /// How much came from the enclave lately.
    pub(super) recent_in: Recent,
    /// How much went to it lately.
    pub(super) recent_out: Recent,
    /// What is not in `recent_out` yet.
    pub(super) unaccounted: usize,
    /// Bytes that passed through each ring since it was last given back, up to its length: its
    /// touched pages.
    received: usize,
    sent: usize,
    /// Sequence number of the first byte of `received`; none before the SYN.
    received_from: Option<u32>,
    /// What of it is counted in [`Memory`].
    counted: usize,
    /// Bytes moved since the last look at `moved_at`.
    moved: bool,
    moved_at: Instant,
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Stack {
    /// A stack that waits for the enclave's SYN of `key`.
    pub(super) fn listen(
        key: &FlowKey,
        socket: FlowSocket,
        link: &mut LinkSide,
        now: Instant,
        seed: u64,
    ) -> Stack {
        let mut stack = Stack::new(key, socket, link, now, seed);
        let listening = stack.socket.socket().listen(IpEndpoint::from(key.dst));
        debug_assert_eq!(listening, Ok(()), "a fresh socket listens");
        stack
    }

    /// A stack that connects to the enclave's `key.src`, coming from `key.dst`.
    pub(super) fn connect(
        key: &FlowKey,
        socket: FlowSocket,
        half_open: Permit,
        link: &mut LinkSide,
        now: Instant,
        seed: u64,
    ) -> Stack {
        let mut stack = Stack::new(key, socket, link, now, seed);
        stack.half_open = Some(half_open);
        let context = stack.interface.context();
        let (remote, local) = (IpEndpoint::from(key.src), IpEndpoint::from(key.dst));
        let connecting = stack.socket.socket().connect(context, remote, local);
        debug_assert_eq!(connecting, Ok(()), "a fresh socket connects");
        stack
    }

    fn new(
        key: &FlowKey,
        mut socket: FlowSocket,
        link: &mut LinkSide,
        now: Instant,
        seed: u64,
    ) -> Stack {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let ipv6 = key.src.is_ipv6();
        let (mut window, mut receiver) = (Window::default(), Receiver::default());
        let mut device = LinkDevice {
            received: None,
            link,
            window: &mut window,
            allowance: 0,
            receiver: &mut receiver,
            ipv6,
        };
        let mut interface = Interface::new(config, &mut device, now);
        interface.update_ip_addrs(|addresses| {
            // NOTE: the vector holds two.
            let _ = addresses.push(IpCidr::new(key.dst.ip().into(), 0));
        });
        let tcp = socket.socket();
        tcp.set_nagle_enabled(false);
        tcp.set_ack_delay(None);
        tcp.set_keep_alive(Some(ENCLAVE_KEEPALIVE.into()));
        Stack {
            interface,
            socket,
            opened: now,
            syn: None,
            enclave_finished: false,
            enclave_end: 0,
            host_finished: false,
            silent: false,
            half_open: None,
            resetting: None,
            restless: 0,
            key: *key,
            window,
            receiver,
            probe: Probe::new(now),
            recent_in: Recent::default(),
            recent_out: Recent::default(),
            unaccounted: 0,
            received: 0,
            sent: 0,
            received_from: None,
            counted: 0,
            moved: false,
            moved_at: now,
        }
    }

    /// Gives the rings back, and tells how many bytes of them have pages.
    pub(super) fn into_socket(self, memory: &mut Memory) -> (FlowSocket, usize) {
        memory.count(self.counted, 0);
        let touched = self.touched();
        (self.socket, touched)
    }

    fn tcp(&mut self) -> &mut Socket<'static> {
        self.socket.socket()
    }

    fn state(&self) -> State {
        self.socket.socket_ref().state()
    }

    /// How much more of its receive ring is touched if it takes this segment. What fills a gap
    /// touches nothing: the bytes beyond the gap did.
    pub(super) fn would_touch(&self, packet: &Packet<'_>) -> usize {
        match packet.transport() {
            Transport::Tcp(tcp) => self.reach(tcp).saturating_sub(self.received),
            _ => 0,
        }
    }

    /// How far into its receive ring a segment goes, in bytes since the ring was given back.
    fn reach(&self, tcp: &TcpSlice<'_>) -> usize {
        let Some(from) = self.received_from else {
            return 0;
        };
        if self.received == RECEIVE_RING || tcp.payload().is_empty() {
            return self.received;
        }
        let end = self.window.end_within(tcp);
        if is_after(end, from) {
            (end.wrapping_sub(from) as usize).min(RECEIVE_RING)
        } else {
            0
        }
    }

    /// Takes a segment of this flow, and tells how many bytes it carried.
    pub(super) fn ingress(
        &mut self,
        packet: &Packet<'_>,
        link: &mut LinkSide,
        allowance: usize,
        now: Instant,
    ) -> usize {
        let Transport::Tcp(tcp) = packet.transport() else {
            return 0;
        };
        if self.state() == State::TimeWait && !link.queue.has_room() {
            // A repeated FIN. smoltcp would answer at once, which a full link loses, and not send
            // the last acknowledgement any more.
            return 0;
        }
        let bytes = tcp.payload().len();
        #[expect(clippy::cast_possible_truncation, reason = "a packet has 64 KiB")]
        let end = tcp.sequence_number().wrapping_add(bytes as u32);
        // smoltcp would take what comes behind a FIN for a part of the stream.
        if self.enclave_finished && bytes > 0 && is_after(end, self.enclave_end) {
            return 0;
        }
        // And it would take a FIN behind bytes that do not fit the window for the end without them.
        if tcp.fin() && bytes > 0 && self.window.ends_before(end) {
            return 0;
        }
        self.window.received(tcp);
        self.receiver.received(tcp);
        if tcp.ack() {
            self.probe.heard(tcp.acknowledgment_number(), now);
        }
        if tcp.syn() {
            let syn = *self.syn.get_or_insert(tcp.sequence_number());
            self.received_from.get_or_insert(syn.wrapping_add(1));
        }
        self.received = self.received.max(self.reach(tcp));
        self.moved |= bytes > 0;
        let mut device = LinkDevice {
            received: Some(packet.bytes()),
            link,
            window: &mut self.window,
            allowance,
            receiver: &mut self.receiver,
            ipv6: self.key.src.is_ipv6(),
        };
        self.interface
            .poll_ingress_single(now, &mut device, self.socket.set());
        if self.half_open.is_some() && self.state() != State::SynSent {
            self.half_open = None;
        }
        if !self.enclave_finished
            && matches!(
                self.state(),
                State::CloseWait | State::Closing | State::LastAck | State::TimeWait
            )
        {
            self.enclave_finished = true;
            self.enclave_end = end.wrapping_add(1);
        }
        bytes
    }

    /// Sends one segment if there is one to send. The link is known to have room.
    pub(super) fn egress(&mut self, link: &mut LinkSide, allowance: usize, now: Instant) -> bool {
        if self.silent {
            return false;
        }
        if self.is_to_be_reset(now) {
            self.abort();
        }
        self.end_if_there_is_room();
        let before = self.state();
        self.silent = before == State::TimeWait;
        if self.silent && self.window.has_no_gap() {
            return false;
        }
        let mut device = LinkDevice {
            received: None,
            link,
            window: &mut self.window,
            allowance,
            receiver: &mut self.receiver,
            ipv6: self.key.src.is_ipv6(),
        };
        let sent = self
            .interface
            .poll_egress(now, &mut device, self.socket.set())
            == PollResult::SocketStateChanged;
        if sent && before == State::FinWait2 && self.state() == State::FinWait2 {
            self.end_if_restless(now);
        }
        if sent {
            self.probe.said(now);
        } else if self.probe_at().is_some_and(|at| at <= now) {
            self.probe.send(&self.key, link, self.window.told(), now);
            return true;
        }
        sent
    }

    /// When to ask for an acknowledgement that does not come.
    fn probe_at(&self) -> Option<Instant> {
        use State::{CloseWait, Closing, Established, FinWait1, LastAck};
        let carries_data = matches!(
            self.state(),
            Established | CloseWait | FinWait1 | Closing | LastAck
        );
        (carries_data && !self.has_sent_all())
            .then(|| self.probe.at())
            .flatten()
    }

    /// When it wants its next turn though nothing comes. Not meaningful while the link is full.
    pub(super) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        if self.silent {
            return None;
        }
        if std::mem::take(&mut self.moved) {
            self.moved_at = now;
        }
        let at = self.interface.poll_at(now, self.socket.set_ref());
        let reset = self.resetting.and_then(|resetting| resetting.until);
        let ends = [self.handshake_end(), self.idle_from(), reset];
        [at, self.probe_at()]
            .into_iter()
            .chain(ends)
            .flatten()
            .min()
    }

    /// Bytes of its rings' touched pages.
    pub(super) fn touched(&self) -> usize {
        self.received + self.sent.min(SEND_RING)
    }

    /// Counts its rings among those of all flows.
    pub(super) fn account(&mut self, memory: &mut Memory) {
        let touched = self.touched();
        memory.count(self.counted, touched);
        self.counted = touched;
    }

    /// When its rings are to be given back, if nothing moves until then.
    fn idle_from(&self) -> Option<Instant> {
        (self.touched() > 0 && self.is_drained()).then(|| self.moved_at + RING_IDLE.into())
    }

    fn is_drained(&self) -> bool {
        self.has_received_nothing() && self.has_sent_all()
    }

    fn has_received_nothing(&self) -> bool {
        self.socket.socket_ref().recv_queue() == 0 && self.window.has_no_gap()
    }

    fn has_sent_all(&self) -> bool {
        self.socket.socket_ref().send_queue() == 0
    }

    /// Gives the pages of the rings back in which nothing lies; false if something lies in the
    /// receive ring.
    pub(super) fn release(&mut self) -> bool {
        if self.sent > 0 && self.has_sent_all() {
            self.socket.release_send();
            self.sent = 0;
        }
        let nothing = self.has_received_nothing();
        if nothing && self.received > 0 {
            self.socket.release_receive();
            self.received = 0;
            self.received_from = Some(self.window.acknowledged());
        }
        nothing
    }

    /// Whether its send ring has no pages.
    pub(super) fn has_sent_nothing(&self) -> bool {
        self.sent == 0
    }

    fn handshake_end(&self) -> Option<Instant> {
        matches!(self.state(), State::SynSent | State::SynReceived)
            .then(|| self.opened + Duration::from(ENCLAVE_HANDSHAKE))
    }

    /// Resets a connection whose handshake the enclave does not complete, and gives rings back
    /// that were idle for long.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.handshake_end().is_some_and(|end| end <= now) {
            self.tcp().abort();
        }
        if self.idle_from().is_some_and(|at| at <= now) {
            self.release();
        }
    }

    /// Lends the next bytes from the enclave; `take` tells how many it took. `None` if there are
    /// none now.
    pub(super) fn receive<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        let tcp = self.tcp();
        if !tcp.can_recv() {
            return None;
        }
        tcp.recv(|bytes| take(bytes)).ok()
    }

    /// Lends room for bytes to the enclave, as long as less than `most` wait; `fill` tells how
    /// many it wrote. `None` if there is no room now.
    pub(super) fn send<R>(
        &mut self,
        most: usize,
        fill: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Option<R> {
        let room = self.room(most);
        if room == 0 {
            return None;
        }
        let mut written = 0;
        let result = self.tcp().send(|space| {
            let length = space.len().min(room);
            let (n, result) = fill(&mut space[..length]);
            written = n;
            (n, result)
        });
        self.sent += written;
        self.receiver.queued(written);
        self.unaccounted += written;
        self.moved |= written > 0;
        result.ok()
    }

    /// Bytes to the enclave that would be taken if `most` may wait.
    pub(super) fn room(&self, most: usize) -> usize {
        let tcp = self.socket.socket_ref();
        if tcp.can_send() {
            most.saturating_sub(tcp.send_queue())
        } else {
            0
        }
    }
}
