//! Connects to the outside.
//!
//! `connect()` searches a free port, which takes long when many are in TIME-WAIT: it is called on
//! tokio's thread ([`begin`]). The data loop waits for its end itself, like for any other event
//! ([`Connecting`]), so that an established connection needs no hand-over.

use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

/// Begins to connect as a program on the parent would.
pub(super) fn begin(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(to),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    // The enclave's segments are passed on as they come, and a peer that vanished is noticed.
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.set_out_of_band_inline(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// What became of a connect that did not fail.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is not answered yet.
    Waits,
    /// The connection stands.
    Stands,
    /// It stood, and the host's peer reset it at once.
    Reset(io::Error),
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

/// A connect that is not answered yet.
#[derive(Debug)]
pub(super) struct Connecting {
    stream: TcpStream,
    failed: bool,
}

impl Connecting {
    pub(super) fn new(stream: TcpStream) -> Connecting {
        Connecting {
            stream,
            failed: false,
        }
    }

    pub(super) fn ready(&mut self, event: &mio::event::Event) {
        self.failed |= event.is_error();
    }

    /// What became of it, once an event told of a change.
    pub(super) fn outcome(&self) -> io::Result<Outcome> {
        match SockRef::from(&self.stream).take_error()? {
            // Only a connection that stood is reset: a connect is refused.
            Some(error) if is_reset(&error) => return Ok(Outcome::Reset(error)),
            Some(error) => return Err(error),
            None => {}
        }
        match self.stream.peer_addr() {
            Ok(_) => Ok(Outcome::Stands),
            // Seldom, Linux tells of an ICMP error and keeps none.
            Err(_) if self.failed => Err(Errno::EHOSTUNREACH.into()),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(Outcome::Waits),
            Err(error) => Err(error),
        }
    }

    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

impl AsRawFd for Connecting {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
