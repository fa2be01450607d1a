//! One TCP flow's turn: bytes between its host socket and the engine's rings.

use crate::engine::{Egress, Engine, FlowId, Standing};
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

    /// Makes closing it send what was written and a FIN.
    pub(super) fn keep_on_close(&self) -> io::Result<()> {
        match self {
            HostStream::Tcp(stream) => SockRef::from(stream).set_linger(None),
            HostStream::Local(_) => Ok(()),
        }
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
    finished: bool,
    shut: bool,
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
            finished: false,
            shut: false,
        }
    }

    pub(super) fn ready(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable() || event.is_error();
        self.writable |= event.is_writable() || event.is_error();
        self.read_closed |= event.is_read_closed() || event.is_error();
    }

    /// Moves what can be moved, up to the quantum.
    pub(super) fn turn(&mut self, engine: &mut Engine, id: FlowId, now: Instant) -> Turn {
        match self.transfer(engine, id) {
            Ok(again) => {
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
            Err(error) => {
                tracing::debug!(?id, %error, "reset by the host's peer");
                self.abort(engine, id, now)
            }
        }
    }

    fn abort(&mut self, engine: &mut Engine, id: FlowId, now: Instant) -> Turn {
        // What came before the reset goes first.
        engine.egress(id, QUANTUM, now);
        if let Some(mut flow) = engine.tcp(id) {
            flow.abort();
        }
        self.readable = false;
        self.writable = false;
        match engine.egress(id, QUANTUM, now) {
            Egress::LinkFull => Turn::LinkFull,
            Egress::Done | Egress::More => Turn::Ended,
        }
    }

    /// Moves bytes both ways. True if there is more to read than the quantum allowed.
    fn transfer(&mut self, engine: &mut Engine, id: FlowId) -> io::Result<bool> {
        let link_has_room = engine.queue().has_room();
        let Some(mut flow) = engine.tcp(id) else {
            return Ok(false);
        };
        let mut reset = None;
        while self.writable {
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
                Some(Err(error)) => {
                    // What the peer sent before its reset can still be read.
                    reset = self.blocked_or(error, false).err();
                    self.writable &= reset.is_none();
                }
            }
        }
        if !self.shut && flow.enclave_finished() {
            self.shut = true;
            self.stream.shutdown_write();
        }
        if !link_has_room {
            return reset.map_or(Ok(false), Err);
        }
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
                Some(Ok((0, _))) => {
                    self.finished = true;
                    flow.finish();
                }
                Some(Ok((n, filled))) => {
                    budget -= n;
                    // A short read: nothing is left, and an event will tell of more. The end of
                    // the stream may have been told already.
                    self.readable = filled || self.read_closed;
                }
                Some(Err(error)) => self.blocked_or(error, true)?,
            }
        }
        let again = self.readable && !self.finished && flow.can_send();
        reset.map_or(Ok(again), Err)
    }

    fn blocked_or(&mut self, error: io::Error, reading: bool) -> io::Result<()> {
        match error.kind() {
            ErrorKind::WouldBlock if reading => self.readable = false,
            ErrorKind::WouldBlock => self.writable = false,
            ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
        Ok(())
    }
}
