//! The enclave's kernel: one TCP connection as Linux would carry it over a tun device.
//!
//! It is written for this bed and shares nothing with smoltcp. The link loses and reorders nothing,
//! so there is no reassembly and no congestion control. What there is, is what makes life hard for
//! the other end: super-segments and unfinished checksums, windows of any size and scale that shut
//! and open, delayed acknowledgements, repeated SYNs, data and FINs that were not lost, probes of a
//! shut window and of an idle connection, data sent up to the last byte of the window, half-closed
//! connections, sockets that go with data unread.
//!
//! It also judges the segments that it gets: a sender stays within the window and the segment size
//! it was told, leaves no gap, acknowledges only what was sent, and takes no window back.
//!
//! Places in a stream count from the SYN: it is 0, the first byte 1, a FIN one behind the last
//! byte.

mod habits;
mod receive;

pub(crate) use habits::Habits;

use crate::stream::Stream;
use crate::wire::{self, ACK, FIN, Head, Offload, PSH, RST, SYN, Segment};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// First retransmission of a SYN.
const SYN_TIMEOUT: Duration = Duration::from_secs(1);
/// First retransmission of anything else.
const TIMEOUT: Duration = Duration::from_millis(200);
const DELAYED_ACK: Duration = Duration::from_millis(40);
const KEEPALIVE: Duration = Duration::from_secs(75);
/// So often a timeout doubles.
const MAX_BACKOFF: u32 = 9;

/// What a program, or the ledger for it, gets to see.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seen<'a> {
    Connected,
    Refused,
    Bytes(&'a [u8]),
    End,
    Reset,
    /// Not the program, which closed its socket: its kernel resets the connection because bytes
    /// came.
    Unwanted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    SynSent,
    SynReceived,
    Open,
    /// Closed in good order by this side first: repeated FINs are still acknowledged.
    TimeWait,
    /// There is no socket.
    Gone,
}

/// One connection in the enclave's kernel.
#[derive(Debug)]
pub(crate) struct Tcp {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    habits: Habits,
    stream: Stream,
    phase: Phase,
    iss: u32,
    acked: u64,
    sent: u64,
    /// End of the window that the other side promised.
    edge: u64,
    their_scale: u8,
    our_scale: u8,
    written: u64,
    finishing: bool,
    /// The program closed its socket.
    closed: bool,
    irs: u32,
    got: u64,
    unread: u64,
    promised: u64,
    they_finished: bool,
    we_finished_first: bool,
    ack_now: bool,
    ack_later: Option<Instant>,
    /// When what is not acknowledged, or a shut window, is asked for again.
    retry: Option<Instant>,
    retry_now: bool,
    backoff: u32,
    heard: Instant,
}

impl Tcp {
    /// A connection that the program asks for.
    pub(crate) fn connect(
        (local, remote): (SocketAddr, SocketAddr),
        habits: Habits,
        (iss, stream): (u32, Stream),
        now: Instant,
    ) -> Tcp {
        Tcp {
            local,
            remote,
            habits,
            stream,
            phase: Phase::SynSent,
            iss,
            acked: 0,
            sent: 0,
            edge: 1,
            their_scale: 0,
            our_scale: 0,
            written: 0,
            finishing: false,
            closed: false,
            irs: 0,
            got: 0,
            unread: 0,
            promised: 0,
            they_finished: false,
            we_finished_first: false,
            ack_now: false,
            ack_later: None,
            retry: None,
            retry_now: false,
            backoff: 0,
            heard: now,
        }
    }

    /// A connection that `syn` asks for, at a socket that listens.
    pub(crate) fn accept(
        syn: &Segment<'_>,
        habits: Habits,
        identity: (u32, Stream),
        now: Instant,
    ) -> Tcp {
        let mut tcp = Tcp::connect((syn.to, syn.from), habits, identity, now);
        tcp.phase = Phase::SynReceived;
        tcp.take_syn(syn);
        // Nothing is sent before the acknowledgement, and that tells the window anew.
        tcp.edge = 0;
        tcp
    }

    pub(crate) fn iss(&self) -> u32 {
        self.iss
    }

    /// Whether its program has a socket that may still see something.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone | Phase::TimeWait)
    }

    pub(crate) fn is_in_time_wait(&self) -> bool {
        self.phase == Phase::TimeWait
    }

    pub(crate) fn is_connecting(&self) -> bool {
        self.phase == Phase::SynSent
    }

    /// Whether the other side's SYN was answered and its acknowledgement did not come.
    pub(crate) fn is_half_open(&self) -> bool {
        self.phase == Phase::SynReceived
    }

    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Bytes of the program that wait to be sent, or to be acknowledged.
    fn queued(&self) -> u64 {
        (self.written + 1).saturating_sub(self.acked.max(1))
    }

    /// The program writes up to `most` bytes. Returns how many fit.
    pub(crate) fn write(&mut self, most: u64) -> u64 {
        if !self.is_open() || self.finishing {
            return 0;
        }
        let bytes = most.min(self.habits.send_buffer.saturating_sub(self.queued()));
        self.written += bytes;
        bytes
    }

    /// The program reads up to `most` bytes.
    pub(crate) fn read(&mut self, most: u64) -> u64 {
        let bytes = most.min(self.unread);
        self.unread -= bytes;
        let open = self.promised.saturating_sub(self.got);
        let free = self.habits.receive_buffer.saturating_sub(self.unread);
        let worth_telling = free >= 2 * open && free - open >= u64::from(self.habits.mss).min(free);
        if bytes > 0 && worth_telling && self.is_open() && !self.they_finished {
            self.ack_now = true;
        }
        bytes
    }

    /// The program ends its half.
    pub(crate) fn finish(&mut self) {
        self.we_finished_first |= !self.finishing && !self.they_finished;
        self.finishing = true;
    }

    /// The program closes its socket: with a reset if it left bytes unread. True if it did.
    pub(crate) fn close(&mut self, up: &mut VecDeque<Vec<u8>>) -> bool {
        if self.unread > 0 {
            self.abort(up);
            return true;
        }
        if self.phase == Phase::SynSent {
            // Linux says nothing; a late answer meets no socket.
            self.phase = Phase::Gone;
        }
        self.closed = true;
        self.finish();
        false
    }

    /// The program resets the connection.
    pub(crate) fn abort(&mut self, up: &mut VecDeque<Vec<u8>>) {
        let head = self.head(RST | ACK, self.sent, 0);
        up.push_back(wire::segment(&head, 0, self.offload(None), |_| {}));
        self.phase = Phase::Gone;
    }

    /// Its kernel was told by ICMP that it cannot connect.
    pub(crate) fn unreachable(&mut self) {
        self.phase = Phase::Gone;
    }

    fn offload(&self, segment: Option<u16>) -> Offload {
        Offload {
            checksum: self.habits.offload_checksum || segment.is_some(),
            segment,
        }
    }

    fn seq(&self, place: u64) -> u32 {
        self.iss.wrapping_add(place as u32)
    }

    fn head(&self, flags: u8, place: u64, window: u16) -> Head {
        Head {
            from: self.local,
            to: self.remote,
            flags,
            seq: self.seq(place),
            ack: if flags & ACK != 0 {
                self.irs.wrapping_add(self.got as u32)
            } else {
                0
            },
            window,
            mss: None,
            scale: None,
        }
    }

    /// The window to tell, which is promised from then on.
    fn window(&mut self) -> u16 {
        let free = self.habits.receive_buffer.saturating_sub(self.unread);
        let promised = self.promised.saturating_sub(self.got);
        let (room, kept) = (
            free >> self.our_scale,
            promised.div_ceil(1 << self.our_scale),
        );
        let field = room.max(kept).min(65_535);
        self.promised = self.got + (field << self.our_scale);
        field as u16
    }

    fn emit(
        &mut self,
        flags: u8,
        place: u64,
        payload: usize,
        up: &mut VecDeque<Vec<u8>>,
        now: Instant,
    ) {
        let syn = flags & SYN != 0;
        let window = if syn {
            let window = self.habits.receive_buffer.min(65_535) as u16;
            self.promised = self.promised.max(self.got + u64::from(window));
            window
        } else {
            self.window()
        };
        let mut head = self.head(flags, place, window);
        if syn {
            head.mss = Some(self.habits.mss);
            head.scale = self.habits.scale;
        }
        let mss = self.habits.mss;
        let many = (payload > usize::from(mss)).then_some(mss);
        let stream = self.stream;
        let frame = wire::segment(&head, payload, self.offload(many), |bytes| {
            stream.fill(place.saturating_sub(1), bytes);
        });
        up.push_back(frame);
        if flags & ACK != 0 {
            self.ack_now = false;
            self.ack_later = None;
        }
        let length = payload as u64 + u64::from(syn) + u64::from(flags & FIN != 0);
        if length > 0 && self.retry.is_none() {
            self.retry = Some(now + self.timeout());
        }
    }

    fn timeout(&self) -> Duration {
        let first = if self.acked == 0 {
            SYN_TIMEOUT
        } else {
            TIMEOUT
        };
        first * 2u32.pow(self.backoff.min(MAX_BACKOFF))
    }

    /// Sends up to `most` segments of what there is to send. True if it sent something.
    pub(crate) fn transmit(
        &mut self,
        most: usize,
        up: &mut VecDeque<Vec<u8>>,
        now: Instant,
    ) -> bool {
        let before = up.len();
        if self.retry_now {
            self.retry_now = false;
            self.repeat(up, now);
        }
        for _ in 0..most {
            if !self.send_next(up, now) {
                break;
            }
        }
        let waits = matches!(self.phase, Phase::Open | Phase::TimeWait);
        if waits && (self.ack_now || self.ack_later.is_some_and(|at| at <= now)) {
            self.emit(ACK, self.sent, 0, up, now);
        }
        if self.retry.is_none() && self.is_shut_out() {
            self.retry = Some(now + self.timeout());
        }
        up.len() > before
    }

    /// Whether something waits for the window alone.
    fn is_shut_out(&self) -> bool {
        let all = self.written + 1 + u64::from(self.finishing);
        self.phase == Phase::Open && self.acked == self.sent && self.sent < all
    }

    fn send_next(&mut self, up: &mut VecDeque<Vec<u8>>, now: Instant) -> bool {
        match self.phase {
            Phase::SynSent | Phase::SynReceived if self.sent == 0 => {
                self.sent = 1;
                let answer = self.phase == Phase::SynReceived;
                self.emit(if answer { SYN | ACK } else { SYN }, 0, 0, up, now);
                true
            }
            Phase::Open => {
                let end = self.written + 1;
                let bytes = end.min(self.edge).saturating_sub(self.sent);
                let bytes = bytes.min(self.habits.longest as u64);
                let place = self.sent;
                let last = place + bytes == end;
                let fin = self.finishing
                    && last
                    && (self.edge > place + bytes || !self.habits.fin_needs_window);
                if bytes == 0 && !(fin && self.sent == end) {
                    return false;
                }
                self.sent += bytes + u64::from(fin);
                let flags = ACK | if fin { FIN } else { 0 } | if last { PSH } else { 0 };
                self.emit(flags, place, bytes as usize, up, now);
                true
            }
            _ => false,
        }
    }

    /// Sends the oldest segment that was not acknowledged again, or asks after a shut window.
    fn repeat(&mut self, up: &mut VecDeque<Vec<u8>>, now: Instant) {
        // Who had it before need not look at its acknowledgement and window.
        let owed = (self.ack_now, self.ack_later);
        let end = self.written + 1;
        match self.phase {
            Phase::SynSent if self.sent > 0 => self.emit(SYN, 0, 0, up, now),
            Phase::SynReceived if self.sent > 0 => self.emit(SYN | ACK, 0, 0, up, now),
            Phase::Open if self.acked < self.sent => {
                let bytes = self.sent.min(end).saturating_sub(self.acked);
                let bytes = bytes.min(u64::from(self.habits.mss));
                let fin = self.sent > end && self.acked + bytes == end;
                let flags = ACK | if fin { FIN } else { 0 };
                self.emit(flags, self.acked, bytes as usize, up, now);
            }
            // Below what was acknowledged: asks for an acknowledgement and its window.
            Phase::Open => self.emit(ACK, self.sent - 1, 0, up, now),
            Phase::SynSent | Phase::SynReceived | Phase::TimeWait | Phase::Gone => {}
        }
        (self.ack_now, self.ack_later) = owed;
    }

    /// Sends something again though nothing was lost.
    pub(crate) fn repeat_for_nothing(&mut self, up: &mut VecDeque<Vec<u8>>, now: Instant) {
        self.repeat(up, now);
    }

    /// When its timers want to run.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        if self.is_gone() {
            return None;
        }
        [self.retry, self.ack_later, self.keepalive_at()]
            .into_iter()
            .flatten()
            .min()
    }

    fn keepalive_at(&self) -> Option<Instant> {
        (self.habits.keeps_alive && self.phase == Phase::Open).then(|| self.heard + KEEPALIVE)
    }

    /// Lets timers run that are due; what they send goes with [`transmit`](Self::transmit).
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            if self.acked < self.sent || self.is_shut_out() {
                self.backoff += 1;
                self.retry_now = true;
                self.retry = Some(now + self.timeout());
            }
        }
        if self.keepalive_at().is_some_and(|at| at <= now) {
            self.heard = now;
            self.retry_now = true;
        }
    }
}
