//! What packets pass through: the steps of the [`pump`](crate::pump)'s loop, and the state of the
//! link between them. Nothing here waits.

use crate::drops::DropReason;
use crate::guard::{Addresses, Egress, Guard, Ingress};
use crate::limits::{
    DRAIN_EVERY, GOODBYE_TIMEOUT, LINK_READ_BUDGET, LINK_WRITE_BUDGET, TUN_BUDGET,
};
use crate::link::Link;
use crate::memory::Seconds;
use crate::offline::Reply;
use crate::outbound::{Outbound, Taken};
use crate::socket;
use crate::sweep::Sweep;
use crate::tun::Tun;
use netd_proto::build::{IcmpError, tcp_reset};
use netd_proto::control::{Control, ControlError, Goodbye, Reason};
use netd_proto::frame::{Decoder, FrameError, Kind, Queue};
use netd_proto::handshake::Features;
use netd_proto::limits::{LINK_DEAD_AFTER, LINK_READ, PING_AFTER, VSOCK_WRITE};
use netd_proto::offload::VnetHeader;
use netd_proto::packet::Packet;
use netd_proto::report::Exit;
use netd_proto::run::Run;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};
use thiserror::Error;
use tracing::{info, warn};

/// Why a link ended.
#[derive(Debug, Error)]
pub(crate) enum LinkEnd {
    #[error("the parent closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Io(io::Error),
    #[error("the parent said goodbye: {0}")]
    Goodbye(Goodbye),
    #[error("nothing came from the parent for {} s", LINK_DEAD_AFTER.as_secs())]
    Silent,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl LinkEnd {
    /// What the other side is told, if it may still listen.
    fn reply(&self) -> Option<Goodbye> {
        let reason = match self {
            LinkEnd::Closed | LinkEnd::Io(_) | LinkEnd::Goodbye(_) => return None,
            LinkEnd::Silent => Reason::Timeout,
            LinkEnd::Frame(_) | LinkEnd::Control(_) => Reason::Protocol,
        };
        Some(Goodbye::new(reason, self.to_string()))
    }
}

/// What packets pass through.
pub(crate) struct Datapath {
    tun: Tun,
    tun_ready: bool,
    guard: Guard,
    addresses: Addresses,
    /// The longest single write to the link.
    write_limit: usize,
    queue: Queue,
    outbound: Outbound,
    /// Whether the host takes many datagrams in one packet.
    gathers: bool,
    reply: Reply,
    live: Option<Live>,
    sweep: Option<Sweep>,
    started: Instant,
}

/// An established link.
struct Live {
    stream: File,
    decoder: Decoder,
    readable: bool,
    writable: bool,
    /// The peer will send no more: every read matters until there is nothing left.
    closing: bool,
    /// A write failed: the link ends when everything was read.
    broken: Option<io::Error>,
    /// When a ping is due.
    ping_at: Instant,
    /// The first ping that nothing followed. Death is counted from here, not from the silence:
    /// a daemon that was itself stopped for long must ask before it judges.
    asked: Option<Instant>,
    pings: u64,
    since: Instant,
    takes_log: bool,
    /// The last that is said was queued: no packet follows it.
    concluded: bool,
}

impl Live {
    fn dead_at(&self) -> Option<Instant> {
        self.asked.map(|at| at + (LINK_DEAD_AFTER - PING_AFTER))
    }
}

impl Datapath {
    pub(crate) fn new(tun: Tun, guard: Guard, addresses: Addresses, is_vsock: bool) -> Datapath {
        let now = Instant::now();
        Datapath {
            tun,
            tun_ready: true,
            guard,
            addresses,
            write_limit: if is_vsock { VSOCK_WRITE } else { usize::MAX },
            queue: Queue::new(),
            outbound: Outbound::new(),
            gathers: false,
            reply: Reply::new(),
            live: None,
            sweep: Some(Sweep::new(now)),
            started: now,
        }
    }

    /// How long the loop may wait: not at all where a budget ran out.
    pub(crate) fn timeout(&self, now: Instant) -> Option<Duration> {
        let tun_waits = self.tun_ready && self.queue.has_room() && !self.is_concluded();
        let link_waits = |live: &Live| live.readable || (live.writable && !self.queue.is_empty());
        if tun_waits || self.live.as_ref().is_some_and(link_waits) {
            return Some(Duration::ZERO);
        }
        let ping = self.live.as_ref().map(|live| live.ping_at);
        let dead = self.live.as_ref().and_then(Live::dead_at);
        let sweep = self.sweep.as_ref().map(Sweep::next);
        let next = [ping, dead, sweep].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(now))
    }

    /// Takes note of what the kernel tells about the link.
    pub(crate) fn link_event(&mut self, event: &mio::event::Event) {
        let Some(live) = &mut self.live else { return };
        live.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        live.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        live.closing |= event.is_read_closed() || event.is_error();
    }

    fn seconds(&self, now: Instant) -> Seconds {
        let seconds = now.saturating_duration_since(self.started).as_secs();
        Seconds(u32::try_from(seconds).unwrap_or(u32::MAX))
    }

    /// Uses `link` from now on. Returns its descriptor, to be watched.
    ///
    /// # Errors
    /// The tun cannot be set to what the host is able to do.
    pub(crate) fn adopt(&mut self, link: Link, now: Instant) -> io::Result<RawFd> {
        let Link {
            stream,
            decoder,
            established,
        } = link;
        let fd = stream.as_raw_fd();
        let offload = self.tun.limit_offload(established.features)?;
        info!(
            session = %established.session,
            features = %established.features,
            offload = ?offload,
            "link to the parent established"
        );
        self.guard.agree(established.features);
        self.gathers = established
            .features
            .contains(Features::CHECKSUM.or(Features::USO));
        self.queue.clear();
        self.live = Some(Live {
            stream,
            decoder,
            readable: true,
            writable: true,
            closing: false,
            broken: None,
            ping_at: now + PING_AFTER,
            asked: None,
            pings: 0,
            since: now,
            takes_log: established.features.contains(Features::LOG),
            concluded: false,
        });
        Ok(fd)
    }

    /// Takes what the link brought, within a budget.
    ///
    /// # Errors
    /// The link ended.
    pub(crate) fn receive(&mut self, now: Instant) -> Result<(), LinkEnd> {
        self.take_frames(now)?;
        for _ in 0..LINK_READ_BUDGET {
            let Some(live) = self.live.as_mut().filter(|live| live.readable) else {
                break;
            };
            let space = live.decoder.space();
            let wanted = space.len().min(LINK_READ);
            match (&live.stream).read(&mut space[..wanted]) {
                Ok(0) => return Err(LinkEnd::Closed),
                Ok(n) => {
                    live.decoder.advance(n);
                    live.ping_at = now + PING_AFTER;
                    live.asked = None;
                    // What comes after a short read makes an event of its own, but for the end.
                    live.readable = n == wanted || live.closing;
                    self.take_frames(now)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    live.readable = false;
                    if let Some(error) = live.broken.take() {
                        return Err(LinkEnd::Io(error));
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(LinkEnd::Io(error)),
            }
        }
        Ok(())
    }

    fn take_frames(&mut self, now: Instant) -> Result<(), LinkEnd> {
        let seconds = self.seconds(now);
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        while let Some(frame) = live.decoder.next()? {
            if frame.kind == Kind::Packet {
                match self.guard.ingress(frame.payload, seconds) {
                    Ingress::Deliver(vnet, packet) => {
                        if self.tun.deliver(&vnet, &packet, frame.payload).is_err() {
                            self.guard.drops.count(DropReason::InTunRefused);
                        }
                    }
                    Ingress::Reset(packet) => {
                        if !queue_reset(&mut self.queue, &packet) {
                            self.guard.drops.count(DropReason::InNoRoom);
                        }
                    }
                    Ingress::Drop(_) => {}
                }
                continue;
            }
            match Control::decode(frame.kind, frame.payload)? {
                // Where even the reserve is full the peer asks again.
                Control::Ping(number) => {
                    self.queue.push_control(Kind::Pong, &number.to_be_bytes());
                }
                Control::Pong(_) => {}
                Control::Goodbye(goodbye) => return Err(LinkEnd::Goodbye(goodbye)),
            }
        }
        Ok(())
    }

    /// Asks a silent host whether it lives.
    ///
    /// # Errors
    /// It did not answer.
    pub(crate) fn keep_alive(&mut self, now: Instant) -> Result<(), LinkEnd> {
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        if live.dead_at().is_some_and(|at| now >= at) {
            return Err(LinkEnd::Silent);
        }
        if now >= live.ping_at {
            live.ping_at = now + PING_AFTER;
            live.asked.get_or_insert(now);
            live.pings += 1;
            self.queue
                .push_control(Kind::Ping, &live.pings.to_be_bytes());
        }
        Ok(())
    }

    /// Takes packets from the tun, within a budget, and answers those that may not leave.
    ///
    /// # Errors
    /// The tun failed.
    pub(crate) fn transmit(&mut self, now: Instant) -> io::Result<()> {
        let result = self.take_packets(now);
        self.outbound.seal(&mut self.queue);
        result
    }

    fn take_packets(&mut self, now: Instant) -> io::Result<()> {
        let seconds = self.seconds(now);
        for _ in 0..TUN_BUDGET {
            if !self.tun_ready || self.is_concluded() {
                break;
            }
            let n = match self.outbound.take(&self.tun, &mut self.queue) {
                Ok(Taken::Packet(n)) => n,
                Ok(Taken::Joined) => continue,
                Ok(Taken::Full) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.tun_ready = false;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let Some(space) = self.queue.packet_space() else {
                break;
            };
            let parsed =
                VnetHeader::split(&space[..n]).map(|(vnet, bytes)| (vnet, Packet::parse(bytes)));
            let Some((vnet, Ok(packet))) = parsed else {
                self.guard.drops.count(DropReason::OutMalformed);
                continue;
            };
            let gateway = self.addresses.gateway(packet.src());
            let write = |answer: &[u8]| {
                // Like any ICMP error or reset, an answer may be lost.
                let _ = self.tun.write(answer);
            };
            match self.guard.egress(&packet, seconds) {
                Egress::Send if self.live.is_some() => {
                    let gathers = self.gathers && !self.guard.must_see(&packet);
                    let run = gathers.then(|| Run::begin(&vnet, &packet)).flatten();
                    self.outbound.queue(n, run, &mut self.queue);
                }
                Egress::Send => {
                    self.guard.drops.count(DropReason::OutNoLink);
                    let error = IcmpError::NetUnreachable;
                    self.reply.unreachable(&packet, gateway, error, write);
                }
                Egress::Prohibit => {
                    let error = IcmpError::Prohibited;
                    self.reply.unreachable(&packet, gateway, error, write);
                }
                Egress::Drop(_) => {}
            }
        }
        Ok(())
    }

    /// Sends what is queued, within a budget.
    pub(crate) fn flush(&mut self) {
        let Some(live) = &mut self.live else {
            return;
        };
        let mut budget = LINK_WRITE_BUDGET;
        while live.writable && budget > 0 && !self.queue.is_empty() {
            let pending = self.queue.pending();
            match (&live.stream).write(&pending[..pending.len().min(self.write_limit)]) {
                Ok(n) => {
                    self.queue.consume(n);
                    budget = budget.saturating_sub(n);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => live.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    // A goodbye may wait to be read.
                    live.writable = false;
                    live.readable = true;
                    live.broken = Some(error);
                }
            }
        }
    }

    /// Whether there is a link whose parent takes log lines.
    pub(crate) fn takes_log(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.takes_log)
    }

    /// Queues the payload of a log line. False when there is no room; without a parent that takes
    /// it, it is nobody's.
    pub(crate) fn queue_line(&mut self, line: &[u8]) -> bool {
        !self.takes_log() || self.queue.push_log(line)
    }

    /// Tells the parent how the program ended, and goodbye. The link goes on until it closes.
    pub(crate) fn conclude(&mut self, exit: Exit) {
        let Some(live) = &mut self.live else { return };
        if live.takes_log {
            self.queue.push_control(Kind::Exit, &exit.encode());
        }
        let goodbye = Goodbye::new(Reason::Shutdown, "the program has ended");
        self.queue.push_control(Kind::Goodbye, &goodbye.encode());
        live.concluded = true;
    }

    fn is_concluded(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.concluded)
    }

    /// Whether the link ended because everything was said and heard.
    pub(crate) fn has_concluded(&self, end: &LinkEnd) -> bool {
        // Where the connection broke, nobody knows what the parent has read.
        let in_order = matches!(end, LinkEnd::Closed | LinkEnd::Goodbye(_));
        in_order && self.is_concluded() && self.queue.is_empty()
    }

    /// Forgets the link, and what was on its way; open flows are reset from the next turn on.
    pub(crate) fn lose(&mut self, end: &LinkEnd, now: Instant) {
        let Some(live) = self.live.take() else { return };
        let lasted = now.saturating_duration_since(live.since);
        warn!(reason = %end, ?lasted, "link to the parent lost; connecting again");
        self.report();
        if let Some(goodbye) = end.reply() {
            self.send_last(&live.stream, &goodbye);
        }
        self.queue.clear();
        self.sweep = Some(Sweep::new(now));
    }

    /// Logs how many packets were dropped, and why.
    pub(crate) fn report(&self) {
        self.guard.drops.report();
    }

    pub(crate) fn tun_fd(&self) -> RawFd {
        self.tun.as_raw_fd()
    }

    pub(crate) fn link_fd(&self) -> Option<RawFd> {
        self.live.as_ref().map(|live| live.stream.as_raw_fd())
    }

    /// Takes note that the tun has packets.
    pub(crate) fn tun_event(&mut self) {
        self.tun_ready = true;
    }

    /// Ends the link in good order.
    pub(crate) fn say_goodbye(&mut self) {
        if let Some(live) = self.live.take() {
            let goodbye = Goodbye::new(Reason::Shutdown, "enclave-netd ends");
            self.send_last(&live.stream, &goodbye);
        }
    }

    /// Sends what is queued and a goodbye, as far as it goes within a moment.
    fn send_last(&mut self, mut stream: &File, goodbye: &Goodbye) {
        self.queue.push_control(Kind::Goodbye, &goodbye.encode());
        let ready = socket::set_timeout(stream, GOODBYE_TIMEOUT)
            .and_then(|()| socket::set_nonblocking(stream, false));
        if ready.is_ok() {
            for part in self.queue.pending().chunks(self.write_limit) {
                if stream.write_all(part).is_err() {
                    return;
                }
            }
        }
    }

    /// Goes on resetting what a lost link carried.
    ///
    /// # Errors
    /// The tun failed.
    pub(crate) fn sweep_if_due(&mut self, now: Instant) -> io::Result<()> {
        let Some(mut sweep) = self.sweep.take_if(|sweep| sweep.next() <= now) else {
            return Ok(());
        };
        let (addresses, linked) = (self.addresses, self.live.is_some());
        let mut since_drained = 0;
        let mut failed = Ok(());
        let again = sweep.provoke(&addresses, linked, now, |packet| {
            let _ = self.tun.write(packet);
            since_drained += 1;
            if since_drained >= DRAIN_EVERY && failed.is_ok() {
                since_drained = 0;
                self.tun_ready = true;
                failed = self.transmit(now);
            }
        });
        failed?;
        if again {
            self.sweep = Some(sweep);
        }
        self.tun_ready = true;
        self.transmit(now)
    }
}

fn queue_reset(queue: &mut Queue, packet: &Packet<'_>) -> bool {
    let Some(space) = queue.packet_space() else {
        return false;
    };
    let (header, bytes) = space.split_at_mut(VnetHeader::LEN);
    header.copy_from_slice(&VnetHeader::NONE.encode());
    if let Some(length) = tcp_reset(bytes, packet) {
        queue.commit_packet(VnetHeader::LEN + length);
    }
    true
}
