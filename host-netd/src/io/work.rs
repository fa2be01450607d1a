//! The flows of a data loop: their sockets, what tokio reports about them, and whose turn it is.

use super::datagram::DatagramSocket;
use super::dial::{self, Connecting, Outcome};
use super::errors::{dial_error, icmp_of};
use super::flow::{FlowStream, HostStream, Turn};
use super::handle::{Command, Handle, Services};
use super::report::{Warnings, is_out_of_files};
use crate::budget::Permit;
use crate::dns::{self, Resolved, Transport};
use crate::engine::drops::DropReason;
use crate::engine::{DatagramKind, DialError, DialTarget, Effect, Engine, FlowId, Outgoing};
use crate::limits::{LEARNT_GRACE, MAX_DNS_STREAMS};
use crate::publish::Lent;
use crate::record::Writer;
use mio::unix::SourceFd;
use mio::{Interest, Token};
use netd_proto::build::IcmpError;
use netd_proto::control::Goodbye;
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// Both directions, and urgent data.
const BOTH: Interest = Interest::READABLE
    .add(Interest::WRITABLE)
    .add(Interest::PRIORITY);

enum Socket {
    /// Waits for tokio to begin the connect.
    Dialing(AbortHandle),
    Connecting(Connecting),
    Stream(FlowStream),
    Datagram(DatagramSocket),
}

struct Slot {
    id: FlowId,
    socket: Socket,
    /// Waits for its turn in one of the queues.
    queued: bool,
}

/// Everything but the link: apart from it, so that frames can stay in the decoder's buffer while
/// they are worked on.
pub(super) struct Work {
    pub(super) engine: Engine,
    slots: Vec<Option<Slot>>,
    /// Flows that something happened to.
    pub(super) fresh: VecDeque<FlowId>,
    /// Flows that had more to do than their quantum.
    pub(super) again: VecDeque<FlowId>,
    /// Flows that wait for room on the link.
    pub(super) stalled: Vec<FlowId>,
    registry: mio::Registry,
    pub(super) services: Services,
    pub(super) handle: Handle,
    pub(super) record: Writer,
    pub(super) dns_queries: usize,
    pub(super) dns_asked: u64,
    dns_streams: Arc<Semaphore>,
    pub(super) warnings: Warnings,
    scratch: Vec<u8>,
}

impl Work {
    pub(super) fn new(
        engine: Engine,
        services: Services,
        registry: mio::Registry,
        handle: Handle,
        record: Writer,
    ) -> Work {
        Work {
            engine,
            slots: Vec::new(),
            fresh: VecDeque::new(),
            again: VecDeque::new(),
            stalled: Vec::new(),
            registry,
            services,
            handle,
            record,
            dns_queries: 0,
            dns_asked: 0,
            dns_streams: Arc::new(Semaphore::new(MAX_DNS_STREAMS)),
            warnings: Warnings::default(),
            scratch: Vec::new(),
        }
    }

    /// Why the loop is to end, if it is.
    pub(super) fn closing(&self) -> Option<Goodbye> {
        self.handle.closing().cloned()
    }

    /// Ends every flow at once: connects are given up, connections are reset.
    pub(super) fn close(&mut self) {
        for slot in self.slots.drain(..).flatten() {
            end(slot.socket);
        }
    }

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

    pub(super) fn ready(&mut self, id: FlowId, event: &mio::event::Event) {
        let Some(slot) = self.slot(id) else { return };
        match &mut slot.socket {
            Socket::Dialing(_) => {}
            Socket::Connecting(connecting) => connecting.ready(event),
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

    pub(super) fn turn(&mut self, id: FlowId, now: Instant) {
        let Some(slot) = self.slots.get_mut(id.index()).and_then(Option::as_mut) else {
            return;
        };
        if slot.id != id {
            return;
        }
        slot.queued = false;
        let turn = match &mut slot.socket {
            Socket::Dialing(_) => Turn::Idle,
            // Its error is told once, and must not be lost.
            Socket::Connecting(_) if !self.engine.queue().has_room() => Turn::LinkFull,
            Socket::Connecting(connecting) => {
                let outcome = connecting.outcome();
                return self.connecting(id, outcome, now);
            }
            Socket::Stream(flow) => flow.turn(&mut self.engine, id, now),
            Socket::Datagram(socket) if !socket.is_ours() => return self.unpublish(id),
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

    pub(super) fn act(&mut self, effect: Effect<'_>, now: Instant) {
        match effect {
            Effect::None => {}
            Effect::Turn(id) => self.enqueue(id),
            Effect::Dial(id, DialTarget::Host(to)) => self.dial(id, to),
            Effect::Dial(id, DialTarget::Dns) => self.dns_stream(id, now),
            Effect::Redial { gone, id, target } => {
                self.act(Effect::Gone(gone), now);
                self.act(Effect::Dial(id, target), now);
            }
            Effect::Gone(id) => {
                if let Some(slot) = self.slots.get_mut(id.index()).and_then(Option::take) {
                    end(slot.socket);
                }
            }
            Effect::Datagram(out) => self.send_datagram(&out, now),
            Effect::Dns {
                client,
                gateway,
                query,
                segment,
            } => {
                for query in query.chunks(segment.map_or(usize::MAX, usize::from).max(1)) {
                    self.dns_query(client, gateway, query, now);
                }
            }
        }
    }

    fn dial(&mut self, id: FlowId, to: SocketAddr) {
        let handle = self.handle.clone();
        let Some(permit) = self.engine.permit(id) else {
            return;
        };
        let task = self.services.runtime.spawn(async move {
            let stream = dial::begin(to);
            handle.send(Command::Dialed(id, stream, permit)).await;
        });
        self.place(id, Socket::Dialing(task.abort_handle()));
    }

    fn dns_stream(&mut self, id: FlowId, now: Instant) {
        let Ok(permit) = Arc::clone(&self.dns_streams).try_acquire_owned() else {
            self.engine.limit_reached(DropReason::DnsStreamLimit, now);
            return self.engine.dial_failed(id, DialError::Refused);
        };
        // The other end of the pair is a file too.
        let Some(file) = self.engine.shares().flows.take() else {
            self.engine.limit_reached(DropReason::FlowLimit, now);
            return self.engine.dial_failed(id, DialError::Refused);
        };
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
            let (_permit, _file) = (permit, file);
            let stream = theirs
                .set_nonblocking(true)
                .and_then(|()| tokio::net::UnixStream::from_std(theirs));
            match stream {
                Ok(stream) => {
                    let learn = |resolved| {
                        // Without room the rule with this name waits for the next look-up.
                        let _ = handle.try_send(Command::Learnt(resolved));
                    };
                    dns::serve_stream(dns, stream, learn).await;
                }
                Err(error) => tracing::warn!(%error, "no DNS over TCP"),
            }
        });
        let registered = ours
            .set_nonblocking(true)
            .and_then(|()| self.register(id, &ours, BOTH));
        let stream = HostStream::Local(ours);
        match registered {
            Ok(()) => self.opened(id, FlowStream::new(stream), now),
            Err(error) => self.dial_failed(id, &error),
        }
    }

    /// A connect of a flow began, or could not.
    fn dialed(&mut self, id: FlowId, stream: io::Result<TcpStream>, permit: Arc<Permit>) {
        // The enclave may have given it up.
        if self.slot(id).is_none() {
            return;
        }
        // From here on the flow's own stands for the file.
        drop(permit);
        let connecting = stream.and_then(|stream| {
            let connecting = Connecting::new(stream);
            self.register(id, &connecting, BOTH)?;
            Ok(connecting)
        });
        match connecting {
            Ok(connecting) => self.place(id, Socket::Connecting(connecting)),
            Err(error) => self.dial_failed(id, &error),
        }
    }

    fn connecting(&mut self, id: FlowId, outcome: io::Result<Outcome>, now: Instant) {
        let reset = match outcome {
            Ok(Outcome::Waits) => return,
            Ok(Outcome::Stands) => None,
            Ok(Outcome::Reset(error)) => Some(error),
            Err(error) => return self.dial_failed(id, &error),
        };
        if let Some(slot) = self.slots[id.index()].take()
            && let Socket::Connecting(connecting) = slot.socket
        {
            let mut flow = FlowStream::new(HostStream::Tcp(connecting.into_stream()));
            if let Some(error) = reset {
                flow.was_reset(id, &error);
            }
            self.opened(id, flow, now);
        }
    }

    fn dial_failed(&mut self, id: FlowId, error: &io::Error) {
        tracing::debug!(?id, %error, "connect failed");
        self.warnings.of(error);
        self.engine.dial_failed(id, dial_error(error));
        if self.slot(id).is_some() {
            self.slots[id.index()] = None;
        }
    }

    /// The host's end of a dialed flow stands, and is registered.
    fn opened(&mut self, id: FlowId, flow: FlowStream, now: Instant) {
        if self.engine.connected(id, now) {
            self.place(id, Socket::Stream(flow));
            self.enqueue(id);
        } else {
            flow.stream.reset_on_close();
        }
    }

    fn accepted(&mut self, stream: TcpStream, client: SocketAddr, port: u16, now: Instant) {
        let stream = HostStream::Tcp(stream);
        match self.engine.accept(client, port, now) {
            Ok(id) => {
                let registered = self
                    .register(id, &stream, BOTH)
                    .and_then(|()| stream.take_over());
                if let Err(error) = registered {
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

    pub(super) fn publish_udp(&mut self, lent: Lent) -> io::Result<()> {
        let address = lent.socket.local_addr()?;
        // A program may have used the port for itself meanwhile.
        if let Some(id) = self.engine.mapping(lent.port, address.ip()) {
            self.unpublish(id);
        }
        let Some(id) = self.engine.publish_udp(lent.port, address.ip()) else {
            return Ok(());
        };
        let gather = self.engine.takes_super_datagrams();
        let socket = DatagramSocket::published(lent, address.is_ipv6(), gather);
        self.register(id, &socket, Interest::READABLE)?;
        self.place(id, Socket::Datagram(socket));
        self.enqueue(id);
        Ok(())
    }

    /// Forgets a datagram flow whose socket other sessions may go on using.
    fn unpublish(&mut self, id: FlowId) {
        self.engine.remove(id);
        let slot = self.slots.get_mut(id.index()).and_then(Option::take);
        if let Some(Socket::Datagram(socket)) = slot.map(|slot| slot.socket) {
            // Closing it would not do: epoll watches what the descriptors have in common.
            let _ = self.registry.deregister(&mut SourceFd(&socket.as_raw_fd()));
        }
    }

    fn send_datagram(&mut self, out: &Outgoing<'_>, now: Instant) {
        let id = out.flow;
        if out.is_new
            && let Err(error) = self.open_datagram(id, out)
        {
            return self.refuse_datagram(out, &error, now);
        }
        let Some(slot) = self.slots.get_mut(id.index()).and_then(Option::as_mut) else {
            return;
        };
        match &mut slot.socket {
            Socket::Datagram(socket) if socket.is_ours() => {
                socket.send(&mut self.engine, out, &mut self.scratch);
            }
            Socket::Datagram(_) => {
                self.engine.counters().drop(DropReason::PublishedElsewhere);
                self.unpublish(id);
            }
            _ => {}
        }
    }

    /// The host's kernel gives a new datagram flow no socket.
    fn refuse_datagram(&mut self, out: &Outgoing<'_>, error: &io::Error, now: Instant) {
        let id = out.flow;
        self.warnings.of(error);
        let forbidden =
            out.kind == DatagramKind::Echo && error.kind() == io::ErrorKind::PermissionDenied;
        if is_out_of_files(error) {
            self.engine.limit_reached(DropReason::FlowLimit, now);
        } else if forbidden {
            self.engine.counters().drop(DropReason::PingForbidden);
        } else {
            self.engine.counters().drop(DropReason::HostRefused);
        }
        let icmp = icmp_of(error).unwrap_or(IcmpError::Prohibited);
        let first = out.segment.map_or(usize::MAX, usize::from);
        let payload = &out.payload[..out.payload.len().min(first)];
        self.engine
            .datagram_error(id, None, out.to, icmp, out.sequence, payload);
        self.engine.remove(id);
    }

    fn open_datagram(&mut self, id: FlowId, out: &Outgoing<'_>) -> io::Result<()> {
        let socket = DatagramSocket::open(
            out.kind,
            out.to.is_ipv6(),
            self.engine.takes_super_datagrams(),
        )?;
        self.register(id, &socket, Interest::READABLE)?;
        self.place(id, Socket::Datagram(socket));
        Ok(())
    }

    fn dns_query(&mut self, client: SocketAddr, gateway: SocketAddr, query: &[u8], now: Instant) {
        self.dns_asked += 1;
        if self.dns_queries >= self.engine.shares().dns_queries.most() {
            self.engine.limit_reached(DropReason::DnsLimit, now);
            if let Some(answer) = dns::overloaded(query) {
                self.engine.dns_answer(gateway, client, &answer);
            }
            return;
        }
        let query = query.to_vec();
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

    pub(super) fn command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Dialed(id, stream, permit) => self.dialed(id, stream, permit),
            Command::Accepted(stream, client, port, waiting) => {
                // The engine takes both for the flow.
                drop(waiting);
                self.accepted(stream, client, port, now);
            }
            Command::Published(ports) => {
                for lent in ports {
                    if let Err(error) = self.publish_udp(lent) {
                        tracing::warn!(%error, "a published UDP port is not served");
                    }
                }
            }
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
        }
    }
}

/// Ends it at once: a connect is given up, a connection is reset.
fn end(socket: Socket) {
    match socket {
        Socket::Dialing(task) => task.abort(),
        Socket::Stream(flow) => flow.stream.reset_on_close(),
        Socket::Connecting(_) | Socket::Datagram(_) => {}
    }
}
