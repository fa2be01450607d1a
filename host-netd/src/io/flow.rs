//! One TCP flow's turn: bytes between its host socket and the engine's rings.
//!
//! # When the host's peer resets the connection
//! epoll tells of it, and so do reading and writing, whichever comes first; the kernel tells an error
//! only once. What it received before can still be read, and goes to the enclave before the reset:
//! from then on the flow is `broken`, nothing is written any more, and reading goes on to the end.
//! Where the end of the stream was read before, no read tells of a later reset: the socket is asked.
//!
//! # Urgent data
//! Host sockets have it in line (`SO_OOBINLINE`), as RFC 6093 advises, and smoltcp does not look at
//! the urgent pointer: so either side finds the urgent byte at its place in the stream, without a
//! mark. A read stops at the mark, though more may lie behind it.

use crate::engine::{Egress, Engine, FlowId, Standing, TcpFlow};
use crate::limits::QUANTUM;
use socket2::SockRef;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The host's end of a TCP flow.
#[derive(Debug)]
pub(super) enum HostStream {
    /// A connection to or from the outside.
    Tcp(TcpStream),
    /// To the gateway's own DNS.
    Local(UnixStream),
}

impl HostStream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            HostStream::Tcp(stream) => (&mut &*stream).read(buffer),
            HostStream::Local(stream) => (&mut &*stream).read(buffer),
        }
    }

    fn write(&self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            HostStream::Tcp(stream) => (&mut &*stream).write(buffer),
            HostStream::Local(stream) => (&mut &*stream).write(buffer),
        }
    }

    fn shutdown_write(&self) {
        // The peer may be gone already; the next read tells.
        let _ = match self {
            HostStream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            HostStream::Local(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Makes an accepted one as if it were dialed: closing it sends what was written and a FIN.
    pub(super) fn take_over(&self) -> io::Result<()> {
        match self {
            HostStream::Tcp(stream) => {
                let socket = SockRef::from(stream);
                socket.set_out_of_band_inline(true)?;
                socket.set_linger(None)
            }
            HostStream::Local(_) => Ok(()),
        }
    }

    /// The error that no read or write told yet.
    fn take_error(&self) -> Option<io::Error> {
        match self {
            HostStream::Tcp(stream) => stream.take_error(),
            HostStream::Local(stream) => stream.take_error(),
        }
        .unwrap_or_else(Some)
    }

    /// Makes closing it send a RST.
    pub(super) fn reset_on_close(&self) {
        if let HostStream::Tcp(stream) = self {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsRawFd for HostStream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            HostStream::Tcp(stream) => stream.as_raw_fd(),
            HostStream::Local(stream) => stream.as_raw_fd(),
        }
    }
}

/// A host stream and what epoll said of it since it last had enough.
#[derive(Debug)]
pub(super) struct FlowStream {
    pub(super) stream: HostStream,
    readable: bool,
    writable: bool,
    /// The peer will send nothing more: read on until the end is seen.
    read_closed: bool,
    /// A short read does not mean that nothing is left: urgent data came, or what epoll told of
    /// before is not known.
    unsure: bool,
    /// epoll told of an error.
    failed: bool,
    /// The host's peer reset it.
    broken: Option<Broken>,
    finished: bool,
    shut: bool,
}

/// How a reset was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// By something else than a read: what came before it may wait to be read.
    Unread {
        /// The end of the stream came before the reset.
        ended: bool,
    },
    /// All that came before was read.
    Read,
}

/// What to do with a flow after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing until something happens.
    Idle,
    /// Another turn, behind the others.
    Again,
    /// Another turn once the link has room.
    LinkFull,
    /// It ended: forget it.
    Ended,
}

impl FlowStream {
    pub(super) fn new(stream: HostStream) -> FlowStream {
        FlowStream {
            stream,
            // The first read and write tell.
            readable: true,
            writable: true,
            read_closed: false,
            // While it was not connected, epoll may have told of more than that.
            unsure: true,
            failed: false,
            broken: None,
            finished: false,
            shut: false,
        }
    }

    pub(super) fn ready(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable() || event.is_error();
        self.writable |= event.is_writable() || event.is_error();
        self.read_closed |= event.is_read_closed() || event.is_error();
        self.unsure |= event.is_priority();
        self.failed |= event.is_error();
    }

    /// Moves what can be moved, up to the quantum.
    pub(super) fn turn(&mut self, engine: &mut Engine, id: FlowId, now: Instant) -> Turn {
        let again = self.transfer(engine, id);
        let egress = engine.egress(id, QUANTUM, now);
        let Some(flow) = engine.tcp(id) else {
            return Turn::Ended;
        };
        match (egress, flow.standing()) {
            // Also a flow that ended has its last ACK or RST to send.
            (Egress::LinkFull, _) => Turn::LinkFull,
            (_, Standing::Reset) => {
                self.stream.reset_on_close();
                Turn::Ended
            }
            (_, Standing::Finished) => Turn::Ended,
            (Egress::More, _) => Turn::Again,
            (Egress::Done, _) if again => Turn::Again,
            (Egress::Done, _) => Turn::Idle,
        }
    }

    /// Moves bytes both ways. True if there is more to read than the quantum allowed.
    fn transfer(&mut self, engine: &mut Engine, id: FlowId) -> bool {
        let link_has_room = engine.queue().has_room();
        let Some(mut flow) = engine.tcp(id) else {
            return false;
        };
        self.write(&mut flow, id);
        if !self.shut && flow.enclave_finished() {
            self.shut = true;
            self.stream.shutdown_write();
        }
        if !link_has_room {
            return false;
        }
        self.read(&mut flow, id);
        if self.finished
            && std::mem::take(&mut self.failed)
            && let Some(error) = self.stream.take_error()
        {
            self.reset(id, Broken::Read, &error);
        }
        // Where the enclave's window is shut, it may last until a read tells.
        if (self.failed && !self.finished) || self.broken.is_some() {
            flow.abort_behind(self.broken == Some(Broken::Read));
        }
        self.readable && !self.finished && flow.can_send()
    }

    fn write(&mut self, flow: &mut TcpFlow<'_>, id: FlowId) {
        while self.writable && self.broken.is_none() {
            let written = flow.receive(|bytes| match self.stream.write(bytes) {
                Ok(n) => {
                    // A short write: the socket's buffer is full, and an event will tell.
                    self.writable = n == bytes.len();
                    (n, Ok(()))
                }
                Err(error) => (0, Err(error)),
            });
            match written {
                None => break,
                Some(Ok(())) => {}
                Some(Err(error)) => match error.kind() {
                    ErrorKind::WouldBlock => self.writable = false,
                    ErrorKind::Interrupted => {}
                    _ => self.was_reset(id, &error),
                },
            }
        }
    }

    fn read(&mut self, flow: &mut TcpFlow<'_>, id: FlowId) {
        let mut budget = QUANTUM;
        while self.readable && !self.finished && budget > 0 {
            let read = flow.send(|space| {
                let wanted = space.len().min(budget);
                match self.stream.read(&mut space[..wanted]) {
                    Ok(n) => (n, Ok((n, n == wanted))),
                    Err(error) => (0, Err(error)),
                }
            });
            match read {
                None => break,
                Some(Ok((0, _))) => match self.broken {
                    Some(Broken::Unread { ended: false } | Broken::Read) => self.all_read(),
                    _ => {
                        self.finished = true;
                        flow.finish();
                        if self.broken.is_some() {
                            self.all_read();
                        }
                    }
                },
                Some(Ok((n, filled))) => {
                    budget -= n;
                    // A short read: nothing is left, and an event will tell of more. The end of
                    // the stream may have been told already.
                    self.readable = filled || self.read_closed || self.unsure;
                }
                Some(Err(error)) => match error.kind() {
                    ErrorKind::WouldBlock if self.broken.is_some() => self.all_read(),
                    ErrorKind::WouldBlock => {
                        self.readable = false;
                        self.unsure = false;
                    }
                    ErrorKind::Interrupted => {}
                    _ => self.reset(id, Broken::Read, &error),
                },
            }
        }
    }

    /// Something else than a read met the reset.
    pub(super) fn was_reset(&mut self, id: FlowId, error: &io::Error) {
        let ended = error.kind() == ErrorKind::BrokenPipe;
        self.reset(id, Broken::Unread { ended }, error);
    }

    fn reset(&mut self, id: FlowId, how: Broken, error: &io::Error) {
        tracing::debug!(?id, %error, "reset by the host's peer");
        self.writable = false;
        // Nothing will tell of what can still be read.
        self.readable = true;
        self.unsure = true;
        self.broken = Some(how);
        if self.finished || how == Broken::Read {
            self.all_read();
        }
    }

    fn all_read(&mut self) {
        self.readable = false;
        self.broken = Some(Broken::Read);
    }
}
