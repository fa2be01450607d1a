//! The data loop: one epoll loop on one thread, which owns a link and all its flows.
//!
//! A round goes in a fixed order, each step with a budget:
//!
//! 1. wait for events, unless work is left over;
//! 2. read the link once (256 KiB) and hand its frames to the engine; of a flood of small ones some,
//!    and the rest in the next rounds, before the link is read again;
//! 3. take results from tokio: connects, accepted clients, DNS answers;
//! 4. give flows whose time has come their turn;
//! 5. give each flow that something happened to its turn, then some of those that had more to do
//!    than their quantum: so a small request overtakes bulk data;
//! 6. write the link.
//!
//! Reading never depends on writing: a full link makes flows wait ([`Turn::LinkFull`](super::flow::Turn::LinkFull)) while
//! everything from the enclave is still taken. All events are edge-triggered; each socket keeps
//! what it was told until a system call says otherwise.

use super::LinkStream;
use super::handle::{Command, Handle, Services};
use super::work::Work;
use crate::engine::{Engine, FlowId};
use crate::limits::{BEGINNINGS, COMMANDS, LINK_BATCH, PACKETS, ROUND};
use crate::publish::Lent;
use crate::record::Writer;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use netd_proto::control::{Control, Goodbye, Reason};
use netd_proto::frame::{Decoder, Kind};
use netd_proto::limits::{LINK_DEAD_AFTER, PING_AFTER};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const LINK: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// One link, its flows and their sockets.
pub struct DataLoop {
    poll: Poll,
    link: LinkStream,
    link_readable: bool,
    link_writable: bool,
    /// The enclave will send nothing more: read on until the end is seen.
    link_closed: bool,
    decoder: Decoder,
    /// The decoder may hold whole frames.
    frames_waiting: bool,
    work: Work,
    commands: mpsc::Receiver<Command>,
    commands_waiting: bool,
    heard: Instant,
    pinged: Option<Instant>,
}

/// Why a session ended.
#[derive(Debug)]
struct Ended {
    why: String,
    /// The enclave said so.
    told: bool,
}

impl Ended {
    fn by(why: impl Into<String>) -> Ended {
        Ended {
            why: why.into(),
            told: false,
        }
    }
}

impl DataLoop {
    /// A loop over a link whose handshake is done. `decoder` may hold frames that came behind it;
    /// `published` are UDP sockets for ports of the enclave; `record` is where it reports to.
    ///
    /// # Errors
    /// The kernel refuses an epoll instance.
    pub fn new(
        link: LinkStream,
        decoder: Decoder,
        engine: Engine,
        services: Services,
        published: Vec<Lent>,
        record: Writer,
        now: Instant,
    ) -> io::Result<(DataLoop, Handle)> {
        let poll = Poll::new()?;
        link.set_nonblocking()?;
        let registry = poll.registry().try_clone()?;
        let both = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut SourceFd(&link.as_raw_fd()), LINK, both)?;
        let (sender, commands) = mpsc::channel(COMMANDS);
        let waker = Arc::new(Waker::new(&registry, WAKER)?);
        let handle = Handle::new(sender, waker, Arc::clone(engine.shares()));
        record.attach(handle.clone());
        let mut work = Work::new(engine, services, registry, handle.clone(), record);
        for lent in published {
            work.publish_udp(lent)?;
        }
        let data_loop = DataLoop {
            poll,
            link,
            link_readable: true,
            link_writable: true,
            link_closed: false,
            decoder,
            // Some may have come with the handshake.
            frames_waiting: true,
            work,
            commands,
            commands_waiting: false,
            heard: now,
            pinged: None,
        };
        Ok((data_loop, handle))
    }

    /// Runs until the link ends or [`Handle::close`] asks for it.
    pub fn run(mut self) {
        let Ended { why, told } = match self.rounds() {
            Ok(never) => match never {},
            Err(ended) => ended,
        };
        let figures = self.work.figures();
        self.work.record.tell(figures);
        self.work.close();
        self.work.report(&format!("session ended: {why}"));
        self.work.record.end(&why, told);
    }

    fn rounds(&mut self) -> Result<std::convert::Infallible, Ended> {
        let mut events = Events::with_capacity(1024);
        loop {
            let timeout = self.timeout(Instant::now());
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(Ended::by(format!("epoll: {error}")));
                }
                _ => {}
            }
            let now = Instant::now();
            for event in &events {
                match event.token() {
                    LINK => {
                        self.link_readable |= event.is_readable() || event.is_error();
                        self.link_writable |= event.is_writable();
                        self.link_closed |= event.is_read_closed() || event.is_error();
                    }
                    WAKER => self.commands_waiting = true,
                    Token(bits) => self.work.ready(FlowId::from_bits(bits as u64), event),
                }
            }
            if let Some(goodbye) = self.work.closing() {
                return Err(self.goodbye(goodbye.reason, goodbye.text));
            }
            self.work.tell_figures();
            self.write_link()?;
            self.read_link(now)?;
            self.take_commands(now)?;
            // Flows that were opened together expire together: the rest has to wait its turn.
            for _ in 0..ROUND {
                let Some(effect) = self.work.engine.expired(now) else {
                    break;
                };
                self.work.act(effect, now);
            }
            self.serve(now)?;
            self.check_peer(now)?;
            self.write_link()?;
        }
    }

    fn timeout(&mut self, now: Instant) -> Option<Duration> {
        let room = self.work.engine.queue().has_room();
        let work_left = self.link_readable
            || self.frames_waiting
            || !self.work.fresh.is_empty()
            || (room && (!self.work.again.is_empty() || self.commands_waiting));
        if work_left {
            return Some(Duration::ZERO);
        }
        let peer = self.peer_dead_at().unwrap_or(self.heard + PING_AFTER);
        let next = self
            .work
            .engine
            .next_timeout()
            .map_or(peer, |timer| timer.min(peer));
        Some(next.saturating_duration_since(now))
    }

    fn read_link(&mut self, now: Instant) -> Result<(), Ended> {
        // The decoder has room for a read once it holds no whole frame.
        if self.frames_waiting || !self.link_readable {
            return self.take_frames(now);
        }
        match self.link.read(&mut self.decoder) {
            Ok(more) => {
                self.link_readable = more.is_some_and(|more| more.0 || self.link_closed);
                if more.is_some() {
                    self.heard = now;
                    self.pinged = None;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Ended::by("the enclave closed the link"));
            }
            Err(error) => return Err(Ended::by(format!("the link broke: {error}"))),
        }
        self.take_frames(now)
    }

    fn take_frames(&mut self, now: Instant) -> Result<(), Ended> {
        let (mut packets, mut beginnings) = (PACKETS, BEGINNINGS);
        self.frames_waiting = true;
        loop {
            if packets == 0 || beginnings == 0 {
                return Ok(());
            }
            let frame = match self.decoder.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.frames_waiting = false;
                    return Ok(());
                }
                Err(error) => return Err(self.goodbye(Reason::Protocol, error.to_string())),
            };
            packets -= 1;
            if frame.kind == Kind::Packet {
                if let Some(tap) = &self.work.services.tap {
                    tap.packet(frame.payload);
                }
                let effect = self.work.engine.handle_packet(frame.payload, now);
                beginnings -= usize::from(effect.begins());
                self.work.act(effect, now);
                continue;
            }
            if self.work.record.takes(frame.kind) {
                // Up to 4 KiB are looked at one by one, about as long as a socket takes to open.
                beginnings -= 1;
                if let Err(error) = self.work.record.take(frame.kind, frame.payload) {
                    return Err(self.goodbye(Reason::Protocol, error.to_string()));
                }
                continue;
            }
            match Control::decode(frame.kind, frame.payload) {
                Ok(Control::Ping(number)) => {
                    // Without room the enclave asks again.
                    self.work
                        .engine
                        .queue()
                        .push_control(Kind::Pong, &number.to_be_bytes());
                }
                Ok(Control::Pong(_)) => {}
                Ok(Control::Goodbye(goodbye)) => {
                    let why = format!("the enclave says goodbye: {goodbye}");
                    // The others end a link, not a run.
                    let told = goodbye.reason == Reason::Shutdown;
                    return Err(Ended { why, told });
                }
                Err(error) => return Err(self.goodbye(Reason::Protocol, error.to_string())),
            }
        }
    }

    fn write_link(&mut self) -> Result<(), Ended> {
        let queue = self.work.engine.queue();
        if !self.link_writable || queue.is_empty() {
            return Ok(());
        }
        let tap = &self.work.services.tap;
        let seen = |bytes: &[u8]| {
            if let Some(tap) = tap {
                tap.sent(bytes);
            }
        };
        let written = self.link.write(queue, seen);
        self.link_writable =
            written.map_err(|error| Ended::by(format!("the link broke: {error}")))?;
        if self.work.engine.queue().has_room() {
            self.work.again.extend(self.work.stalled.drain(..));
        }
        Ok(())
    }

    fn take_commands(&mut self, now: Instant) -> Result<(), Ended> {
        if !self.commands_waiting {
            return Ok(());
        }
        // Most commands send something: they wait while the link is full.
        while self.work.engine.queue().has_room() {
            match self.commands.try_recv() {
                Ok(command) => self.work.command(command, now),
                Err(_) => {
                    self.commands_waiting = false;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn serve(&mut self, now: Instant) -> Result<(), Ended> {
        for _ in 0..self.work.fresh.len() {
            self.serve_one(|work| work.fresh.pop_front(), now)?;
        }
        for _ in 0..self.work.again.len().min(ROUND) {
            self.serve_one(|work| work.again.pop_front(), now)?;
        }
        Ok(())
    }

    fn serve_one(
        &mut self,
        next: impl FnOnce(&mut Work) -> Option<FlowId>,
        now: Instant,
    ) -> Result<(), Ended> {
        if let Some(id) = next(&mut self.work) {
            self.work.turn(id, now);
        }
        if self.work.engine.queue().len() >= LINK_BATCH {
            self.write_link()
        } else {
            Ok(())
        }
    }

    /// Asks a silent enclave whether it lives. Death is counted from the question, not from the
    /// silence: a daemon that was itself stopped for long must ask before it judges.
    fn check_peer(&mut self, now: Instant) -> Result<(), Ended> {
        if self.peer_dead_at().is_some_and(|at| at <= now) {
            let text = format!("nothing was heard for {} s", LINK_DEAD_AFTER.as_secs());
            return Err(self.goodbye(Reason::Timeout, text));
        }
        if self.pinged.is_none() && self.heard + PING_AFTER <= now {
            self.pinged = Some(now);
            let silent = now.saturating_duration_since(self.heard).as_secs();
            self.work
                .engine
                .queue()
                .push_control(Kind::Ping, &silent.to_be_bytes());
        }
        Ok(())
    }

    fn peer_dead_at(&self) -> Option<Instant> {
        self.pinged.map(|at| at + (LINK_DEAD_AFTER - PING_AFTER))
    }

    /// Tells the enclave, as far as the link takes it at once, and ends.
    fn goodbye(&mut self, reason: Reason, text: String) -> Ended {
        let goodbye = Goodbye::new(reason, text);
        let queue = self.work.engine.queue();
        queue.push_control(Kind::Goodbye, &goodbye.encode());
        // A link that takes no more is closed without a word.
        let _ = self.link.write(queue, |_| {});
        Ended::by(goodbye.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Dns;
    use crate::engine::Limits;
    use crate::listen::Peer;
    use crate::local::LocalAddresses;
    use crate::record::{Facts, Records};
    use netd_proto::build::{self, EchoHeader};
    use netd_proto::frame;
    use netd_proto::handshake::{Features, Hello, Lane, Network4, Network6, SessionId};
    use netd_proto::offload::VnetHeader;
    use netd_proto::policy::Policy;
    use std::io::Write;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::os::unix::net::UnixStream;

    const ENCLAVE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);

    fn data_loop() -> (DataLoop, UnixStream) {
        let v6 = |host| Ipv6Addr::new(0xfd00, 0x6e65, 0x7464, 0, 0, 0, 0, host);
        let hello = Hello {
            features: Features::ALL,
            session: SessionId([1; 16]),
            lane: Lane(0),
            lanes: 1,
            mtu: 1500,
            v4: Network4 {
                enclave: ENCLAVE,
                gateway: GATEWAY,
                parent_loopback: Ipv4Addr::new(100, 64, 0, 3),
            },
            v6: Network6 {
                enclave: v6(2),
                gateway: v6(1),
                parent_loopback: v6(3),
            },
        };
        let (now, own) = (Instant::now(), LocalAddresses::fixed(&[]));
        let policy = Policy::new(Vec::new());
        let engine = Engine::new(hello, Features::ALL, policy, own, Limits::DEFAULT, now);
        let services = Services {
            runtime: tokio::runtime::Handle::current(),
            dns: Dns::start("/dev/null".into(), 1),
            tap: None,
        };
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let link = LinkStream::unix(ours.into());
        let record = Records::new().begin(Facts {
            peer: Peer::Unix,
            session: hello.session,
            features: Features::ALL,
            addresses: (hello.v4.enclave, hello.v6.enclave),
        });
        let decoder = Decoder::new();
        let made = DataLoop::new(link, decoder, engine, services, Vec::new(), record, now);
        (made.expect("an epoll instance").0, theirs)
    }

    fn framed(packet: &[u8]) -> Vec<u8> {
        let header = frame::header(Kind::Packet, VnetHeader::LEN + packet.len());
        [&header[..], &VnetHeader::NONE.encode(), packet].concat()
    }

    /// Packets that each round looks at, until there are no more.
    fn rounds(data_loop: &mut DataLoop) -> Vec<u64> {
        let mut rounds = Vec::new();
        loop {
            let before = data_loop.work.engine.counters().from_enclave.packets;
            data_loop
                .read_link(Instant::now())
                .expect("the link stands");
            data_loop.work.engine.queue().clear();
            let now = data_loop.work.engine.counters().from_enclave.packets;
            if now == before {
                return rounds;
            }
            rounds.push(now - before);
            assert!(
                !data_loop.frames_waiting
                    || data_loop.timeout(Instant::now()) == Some(Duration::ZERO)
            );
        }
    }

    #[tokio::test]
    async fn a_flood_is_worked_off_in_rounds_and_none_of_it_is_lost() {
        let (mut data_loop, mut theirs) = data_loop();
        assert!(rounds(&mut data_loop).is_empty());

        let mut ping = vec![0; build::echo_headroom(false)];
        let echo = EchoHeader {
            request: true,
            identifier: 1,
            sequence: 1,
        };
        build::echo(&mut ping, ENCLAVE.into(), GATEWAY.into(), 64, echo, 0);
        // In one piece: the socket has no room for many.
        let flood = framed(&ping).repeat(600);
        theirs.write_all(&flood).expect("the socket has room");
        assert_eq!(rounds(&mut data_loop), [256, 256, 88]);

        // Each asks for a socket of its own.
        let mut flood = Vec::new();
        for port in 1..=70 {
            let (from, to) = (
                SocketAddr::from((ENCLAVE, port)),
                SocketAddr::from(([192, 0, 2, 1], 9)),
            );
            let mut datagram = vec![0; build::udp_headroom(false)];
            let (_, vnet) = build::udp(&mut datagram, from, to, 64, 0);
            build::complete_checksum(&mut datagram, &vnet);
            flood.extend(framed(&datagram));
        }
        theirs.write_all(&flood).expect("the socket has room");
        // What an event would tell.
        data_loop.link_readable = true;
        assert_eq!(rounds(&mut data_loop), [32, 32, 6]);
    }
}
