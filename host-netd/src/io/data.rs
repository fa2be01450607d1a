//! The data loop: one epoll loop on one thread, which owns a link and all its flows.
//!
//! A round goes in a fixed order, each step with a budget:
//!
//! 1. wait for events, unless work is left over;
//! 2. read the link once (256 KiB) and hand its frames to the engine;
//! 3. take results from tokio: connects, accepted clients, DNS answers;
//! 4. give flows whose time has come their turn;
//! 5. give each flow that something happened to its turn, then some of those that had more to do
//!    than their quantum: so a small request overtakes bulk data;
//! 6. write the link.
//!
//! Reading never depends on writing: a full link makes flows wait ([`Turn::LinkFull`]) while
//! everything from the enclave is still taken. All events are edge-triggered; each socket keeps
//! what it was told until a system call says otherwise.

use super::LinkStream;
use super::datagram::DatagramSocket;
use super::errors::{dial_error, icmp_of};
use super::flow::{FlowStream, HostStream, Turn};
use crate::capture::Tap;
use crate::dns::{self, Dns, Resolved, Transport};
use crate::engine::drops::DropReason;
use crate::engine::{DatagramKind, DialError, DialTarget, Effect, Engine, FlowId, Outgoing};
use crate::limits::{COMMANDS, LEARNT_GRACE, LINK_BATCH, MAX_DNS_QUERIES, ROUND};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use netd_proto::build::IcmpError;
use netd_proto::control::{Control, Goodbye, Reason};
use netd_proto::frame::{Decoder, Kind};
use netd_proto::limits::{LINK_DEAD_AFTER, PING_AFTER};
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

const LINK: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// What tokio's side tells a data loop.
#[derive(Debug)]
pub enum Command {
    /// A connect ended.
    Dialed(FlowId, io::Result<TcpStream>),
    /// A client of a published port was accepted, for this port of the enclave.
    Accepted(TcpStream, SocketAddr, u16),
    /// A DNS query was answered, or could not be.
    DnsAnswer {
        /// Who asked.
        client: SocketAddr,
        /// Which of the gateway's addresses.
        gateway: SocketAddr,
        /// The message.
        message: Option<Vec<u8>>,
    },
    /// DNS handed addresses out.
    Learnt(Resolved),
    /// Write the counters to the log.
    Report,
    /// End the session.
    Close(Goodbye),
}

/// The way to a data loop.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    waker: Arc<Waker>,
}

impl Handle {
    /// Hands a command over, waiting while the loop has too many. False if the loop has ended.
    pub async fn send(&self, command: Command) -> bool {
        self.commands.send(command).await.is_ok() && self.waker.wake().is_ok()
    }

    /// Whether the loop has ended.
    pub fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }
}

/// What a data loop uses of the rest of the daemon.
#[derive(Clone)]
pub struct Services {
    /// Where connects and DNS run.
    pub runtime: tokio::runtime::Handle,
    /// Behind the gateway's port 53.
    pub dns: Dns,
    /// Records what crosses the link.
    pub tap: Option<Tap>,
}

enum Socket {
    Dialing(AbortHandle),
    Stream(FlowStream),
    Datagram(DatagramSocket),
}

struct Slot {
    id: FlowId,
    socket: Socket,
    /// Waits for its turn in one of the queues.
    queued: bool,
}

/// One link, its flows and their sockets.
pub struct DataLoop {
    poll: Poll,
    link: LinkStream,
    link_readable: bool,
    link_writable: bool,
    decoder: Decoder,
    work: Work,
    commands: mpsc::Receiver<Command>,
    commands_waiting: bool,
    heard: Instant,
    pinged: Option<Instant>,
}

/// Everything but the link: apart from it, so that frames can stay in the decoder's buffer while
/// they are worked on.
struct Work {
    engine: Engine,
    slots: Vec<Option<Slot>>,
    /// Flows that something happened to.
    fresh: VecDeque<FlowId>,
    /// Flows that had more to do than their quantum.
    again: VecDeque<FlowId>,
    /// Flows that wait for room on the link.
    stalled: Vec<FlowId>,
    registry: mio::Registry,
    services: Services,
    handle: Handle,
    dns_queries: usize,
    scratch: Vec<u8>,
}

/// Why a session ended.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) String);

impl DataLoop {
    /// A loop over a link whose handshake is done. `decoder` may hold frames that came behind it;
    /// `published` are UDP sockets for ports of the enclave.
    ///
    /// # Errors
    /// The kernel refuses an epoll instance.
    pub fn new(
        link: LinkStream,
        decoder: Decoder,
        engine: Engine,
        services: Services,
        published: Vec<(UdpSocket, u16)>,
        now: Instant,
    ) -> io::Result<(DataLoop, Handle)> {
        let poll = Poll::new()?;
        link.set_nonblocking()?;
        let registry = poll.registry().try_clone()?;
        let both = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut SourceFd(&link.as_raw_fd()), LINK, both)?;
        let (sender, commands) = mpsc::channel(COMMANDS);
        let waker = Arc::new(Waker::new(&registry, WAKER)?);
        let handle = Handle {
            commands: sender,
            waker,
        };
        let mut work = Work {
            engine,
            slots: Vec::new(),
            fresh: VecDeque::new(),
            again: VecDeque::new(),
            stalled: Vec::new(),
            registry,
            services,
            handle: handle.clone(),
            dns_queries: 0,
            scratch: Vec::new(),
        };
        for (socket, port) in published {
            work.publish_udp(socket, port)?;
        }
        let data_loop = DataLoop {
            poll,
            link,
            link_readable: true,
            link_writable: true,
            decoder,
            work,
            commands,
            commands_waiting: false,
            heard: now,
            pinged: None,
        };
        Ok((data_loop, handle))
    }

    /// Runs until the link ends or [`Command::Close`] comes.
    pub fn run(mut self) {
        let Ended(reason) = match self.rounds() {
            Ok(never) => match never {},
            Err(ended) => ended,
        };
        for slot in self.work.slots.iter_mut().flatten() {
            match &slot.socket {
                Socket::Dialing(task) => task.abort(),
                Socket::Stream(flow) => flow.stream.reset_on_close(),
                Socket::Datagram(_) => {}
            }
        }
        self.work.report(&format!("session ended: {reason}"));
    }

    fn rounds(&mut self) -> Result<std::convert::Infallible, Ended> {
        let mut events = Events::with_capacity(1024);
        // Frames that came with the handshake.
        self.take_frames(Instant::now())?;
        loop {
            let timeout = self.timeout(Instant::now());
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(Ended(format!("epoll: {error}")));
                }
                _ => {}
            }
            let now = Instant::now();
            for event in &events {
                match event.token() {
                    LINK => {
                        self.link_readable |= event.is_readable() || event.is_error();
                        self.link_writable |= event.is_writable();
                    }
                    WAKER => self.commands_waiting = true,
                    Token(bits) => self.work.ready(FlowId::from_bits(bits as u64), event),
                }
            }
            self.write_link()?;
            self.read_link(now)?;
            self.take_commands(now)?;
            while let Some(effect) = self.work.engine.expired(now) {
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
            || !self.work.fresh.is_empty()
            || (room && (!self.work.again.is_empty() || self.commands_waiting));
        if work_left {
            return Some(Duration::ZERO);
        }
        let peer = self
            .pinged
            .map_or(self.heard + PING_AFTER, |_| self.heard + LINK_DEAD_AFTER);
        let next = self
            .work
            .engine
            .next_timeout()
            .map_or(peer, |timer| timer.min(peer));
        Some(next.saturating_duration_since(now))
    }

    fn read_link(&mut self, now: Instant) -> Result<(), Ended> {
        if !self.link_readable {
            return Ok(());
        }
        match self.link.read(&mut self.decoder) {
            Ok(more) => {
                self.link_readable = more.is_some_and(|more| more.0);
                if more.is_some() {
                    self.heard = now;
                    self.pinged = None;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Ended("the enclave closed the link".into()));
            }
            Err(error) => return Err(Ended(format!("the link broke: {error}"))),
        }
        self.take_frames(now)
    }

    fn take_frames(&mut self, now: Instant) -> Result<(), Ended> {
        loop {
            let frame = match self.decoder.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.goodbye(Reason::Protocol, error.to_string())),
            };
            if frame.kind == Kind::Packet {
                if let Some(tap) = &self.work.services.tap {
                    tap.packet(frame.payload);
                }
                let effect = self.work.engine.handle_packet(frame.payload, now);
                self.work.act(effect, now);
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
                    return Err(Ended(format!("the enclave says goodbye: {goodbye}")));
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
        self.link_writable = written.map_err(|error| Ended(format!("the link broke: {error}")))?;
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
                Ok(Command::Close(goodbye)) => {
                    return Err(self.goodbye(goodbye.reason, goodbye.text));
                }
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

    fn check_peer(&mut self, now: Instant) -> Result<(), Ended> {
        let silent = now.saturating_duration_since(self.heard);
        if silent >= LINK_DEAD_AFTER {
            let text = format!("nothing was heard for {} s", silent.as_secs());
            return Err(self.goodbye(Reason::Timeout, text));
        }
        if silent >= PING_AFTER && self.pinged.is_none() {
            self.pinged = Some(now);
            self.work
                .engine
                .queue()
                .push_control(Kind::Ping, &silent.as_secs().to_be_bytes());
        }
        Ok(())
    }

    /// Tells the enclave, as far as the link takes it at once, and ends.
    fn goodbye(&mut self, reason: Reason, text: String) -> Ended {
        let goodbye = Goodbye::new(reason, text);
        let queue = self.work.engine.queue();
        queue.push_control(Kind::Goodbye, &goodbye.encode());
        // A link that takes no more is closed without a word.
        let _ = self.link.write(queue, |_| {});
        Ended(goodbye.to_string())
    }
}

impl Work {
    fn slot(&mut self, id: FlowId) -> Option<&mut Slot> {
        self.slots
            .get_mut(id.index())?
            .as_mut()
            .filter(|slot| slot.id == id)
    }

    fn place(&mut self, id: FlowId, socket: Socket) {
        if self.slots.len() <= id.index() {
            self.slots.resize_with(id.index() + 1, || None);
        }
        self.slots[id.index()] = Some(Slot {
            id,
            socket,
            queued: false,
        });
    }

    fn register(&self, id: FlowId, socket: &impl AsRawFd, interest: Interest) -> io::Result<()> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "usize has 64 bits on all targets"
        )]
        let token = Token(id.to_bits() as usize);
        self.registry
            .register(&mut SourceFd(&socket.as_raw_fd()), token, interest)
    }

    fn ready(&mut self, id: FlowId, event: &mio::event::Event) {
        let Some(slot) = self.slot(id) else { return };
        match &mut slot.socket {
            Socket::Dialing(_) => {}
            Socket::Stream(flow) => flow.ready(event),
            Socket::Datagram(socket) => socket.ready(event),
        }
        self.enqueue(id);
    }

    fn enqueue(&mut self, id: FlowId) {
        if let Some(slot) = self.slot(id)
            && !slot.queued
        {
            slot.queued = true;
            self.fresh.push_back(id);
        }
    }

    fn turn(&mut self, id: FlowId, now: Instant) {
        let Some(slot) = self.slots.get_mut(id.index()).and_then(Option::as_mut) else {
            return;
        };
        if slot.id != id {
            return;
        }
        slot.queued = false;
        let turn = match &mut slot.socket {
            Socket::Dialing(_) => Turn::Idle,
            Socket::Stream(flow) => flow.turn(&mut self.engine, id, now),
            Socket::Datagram(socket) => match socket.receive(&mut self.engine, id, now) {
                true if self.engine.queue().has_room() => Turn::Again,
                true => Turn::LinkFull,
                false => Turn::Idle,
            },
        };
        match turn {
            Turn::Idle => return,
            Turn::Again => self.again.push_back(id),
            Turn::LinkFull => self.stalled.push(id),
            Turn::Ended => {
                self.engine.remove(id);
                self.slots[id.index()] = None;
                return;
            }
        }
        slot.queued = true;
    }

    fn act(&mut self, effect: Effect<'_>, now: Instant) {
        match effect {
            Effect::None => {}
            Effect::Turn(id) => self.enqueue(id),
            Effect::Dial(id, DialTarget::Host(to)) => self.dial(id, to),
            Effect::Dial(id, DialTarget::Dns) => self.dns_stream(id, now),
            Effect::Gone(id) => {
                if let Some(slot) = self.slots.get_mut(id.index()).and_then(Option::take)
                    && let Socket::Dialing(task) = slot.socket
                {
                    task.abort();
                }
            }
            Effect::Datagram(out) => self.send_datagram(&out),
            Effect::Dns {
                client,
                gateway,
                query,
            } => {
                self.dns_query(client, gateway, query.into_owned());
            }
        }
    }

    fn dial(&mut self, id: FlowId, to: SocketAddr) {
        let handle = self.handle.clone();
        let task = self.services.runtime.spawn(async move {
            let dialed = connect(to).await;
            handle.send(Command::Dialed(id, dialed)).await;
        });
        self.place(id, Socket::Dialing(task.abort_handle()));
    }

    fn dns_stream(&mut self, id: FlowId, now: Instant) {
        let (ours, theirs) = match UnixStream::pair() {
            Ok(pair) => pair,
            Err(error) => {
                tracing::warn!(%error, "no socket for DNS over TCP");
                self.engine.dial_failed(id, DialError::Refused);
                return;
            }
        };
        let (dns, handle) = (self.services.dns.clone(), self.handle.clone());
        self.services.runtime.spawn(async move {
            let stream = theirs
                .set_nonblocking(true)
                .and_then(|()| tokio::net::UnixStream::from_std(theirs));
            match stream {
                Ok(stream) => {
                    let learn = |resolved| {
                        // Without room the rule with this name waits for the next look-up.
                        let _ = handle.commands.try_send(Command::Learnt(resolved));
                        let _ = handle.waker.wake();
                    };
                    dns::serve_stream(dns, stream, learn).await;
                }
                Err(error) => tracing::warn!(%error, "no DNS over TCP"),
            }
        });
        let ready = ours.set_nonblocking(true);
        self.opened(id, ready.map(|()| HostStream::Local(ours)), now);
    }

    /// The host's end of a dialed flow stands, or not.
    fn opened(&mut self, id: FlowId, stream: io::Result<HostStream>, now: Instant) {
        let both = Interest::READABLE | Interest::WRITABLE;
        let registered =
            stream.and_then(|stream| self.register(id, &stream, both).map(|()| stream));
        match registered {
            Ok(stream) => {
                if self.engine.connected(id, now) {
                    self.place(id, Socket::Stream(FlowStream::new(stream)));
                    self.enqueue(id);
                } else {
                    stream.reset_on_close();
                }
            }
            Err(error) => {
                tracing::debug!(?id, %error, "connect failed");
                warn_of_limits(&error);
                self.engine.dial_failed(id, dial_error(&error));
                if self.slot(id).is_some() {
                    self.slots[id.index()] = None;
                }
            }
        }
    }

    fn accepted(&mut self, stream: TcpStream, client: SocketAddr, port: u16, now: Instant) {
        let stream = HostStream::Tcp(stream);
        match self.engine.accept(client, port, now) {
            Ok(id) => {
                let both = Interest::READABLE | Interest::WRITABLE;
                if let Err(error) = self.register(id, &stream, both) {
                    tracing::warn!(%error, "client of a published port not served");
                    stream.reset_on_close();
                    self.engine.remove(id);
                    return;
                }
                self.place(id, Socket::Stream(FlowStream::new(stream)));
                self.enqueue(id);
            }
            Err(reason) => {
                tracing::debug!(%client, port, reason = reason.name(), "client refused");
                stream.reset_on_close();
            }
        }
    }

    fn publish_udp(&mut self, socket: UdpSocket, port: u16) -> io::Result<()> {
        let address = socket.local_addr()?;
        let Some(id) = self.engine.publish_udp(port, address.ip()) else {
            return Ok(());
        };
        let socket = DatagramSocket::over(socket, DatagramKind::Udp, address.is_ipv6());
        self.register(id, &socket, Interest::READABLE)?;
        self.place(id, Socket::Datagram(socket));
        self.enqueue(id);
        Ok(())
    }

    fn send_datagram(&mut self, out: &Outgoing<'_>) {
        let id = out.flow;
        if out.is_new
            && let Err(error) = self.open_datagram(id, out)
        {
            warn_of_limits(&error);
            let forbidden =
                out.kind == DatagramKind::Echo && error.kind() == io::ErrorKind::PermissionDenied;
            let reason = if forbidden {
                DropReason::PingForbidden
            } else {
                DropReason::HostRefused
            };
            self.engine.counters().drop(reason);
            let icmp = icmp_of(&error).unwrap_or(IcmpError::Prohibited);
            self.engine
                .datagram_error(id, None, out.to, icmp, out.sequence, &out.payload);
            self.engine.remove(id);
            return;
        }
        let Some(slot) = self.slots.get_mut(id.index()).and_then(Option::as_mut) else {
            return;
        };
        if let Socket::Datagram(socket) = &mut slot.socket {
            socket.send(&mut self.engine, out, &mut self.scratch);
        }
    }

    fn open_datagram(&mut self, id: FlowId, out: &Outgoing<'_>) -> io::Result<()> {
        let socket = DatagramSocket::open(out.kind, out.to.is_ipv6())?;
        self.register(id, &socket, Interest::READABLE)?;
        self.place(id, Socket::Datagram(socket));
        Ok(())
    }

    fn dns_query(&mut self, client: SocketAddr, gateway: SocketAddr, query: Vec<u8>) {
        if self.dns_queries >= MAX_DNS_QUERIES {
            self.engine.counters().drop(DropReason::DnsLimit);
            return;
        }
        self.dns_queries += 1;
        let (dns, handle) = (self.services.dns.clone(), self.handle.clone());
        self.services.runtime.spawn(async move {
            let answer = dns.answer(&query, Transport::Udp).await;
            let (message, resolved) = match answer {
                Some(answer) => (Some(answer.message), answer.resolved),
                None => (None, None),
            };
            // First, so that the policy knows the addresses when the program uses them.
            if let Some(resolved) = resolved {
                handle.send(Command::Learnt(resolved)).await;
            }
            handle
                .send(Command::DnsAnswer {
                    client,
                    gateway,
                    message,
                })
                .await;
        });
    }

    fn command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Dialed(id, stream) => self.opened(id, stream.map(HostStream::Tcp), now),
            Command::Accepted(stream, client, port) => self.accepted(stream, client, port, now),
            Command::DnsAnswer {
                client,
                gateway,
                message,
            } => {
                self.dns_queries -= 1;
                if let Some(message) = message {
                    self.engine.dns_answer(gateway, client, &message);
                }
            }
            Command::Learnt(Resolved {
                name,
                addresses,
                ttl,
            }) => {
                self.engine
                    .learn(&name, &addresses, ttl + LEARNT_GRACE, now);
            }
            Command::Report => self.report("counters"),
            Command::Close(_) => unreachable!("the loop takes this one itself"),
        }
    }

    fn report(&mut self, what: &str) {
        let flows = self.engine.flow_count();
        let counters = self.engine.counters();
        tracing::info!(
            flows,
            flows_opened = counters.flows_opened,
            packets_from_enclave = counters.from_enclave.packets,
            bytes_from_enclave = counters.from_enclave.bytes,
            packets_to_enclave = counters.to_enclave.packets,
            bytes_to_enclave = counters.to_enclave.bytes,
            drops = %counters.drop_summary(),
            "{what}"
        );
    }
}

/// Connects as a program on the parent would.
async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    // The enclave's segments are passed on as they come, and a peer that vanished is noticed.
    socket.set_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.connect(to).await?.into_std()
}

fn warn_of_limits(error: &io::Error) {
    use nix::errno::Errno;
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE) => {
            tracing::warn!("no more open files: raise LimitNOFILE (ulimit -n) of host-netd");
        }
        Some(Errno::EADDRNOTAVAIL) => {
            tracing::warn!("no free port for this destination: widen net.ipv4.ip_local_port_range");
        }
        _ => {}
    }
}
