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

/// A connect that is not answered yet.
#[derive(Debug)]
pub(super) struct Connecting {
    stream: TcpStream,
    failed: bool,
    /// The peer's end came with the news that it stands.
    read_closed: bool,
}

impl Connecting {
    pub(super) fn new(stream: TcpStream) -> Connecting {
        Connecting {
            stream,
            failed: false,
            read_closed: false,
        }
    }

    pub(super) fn ready(&mut self, event: &mio::event::Event) {
        self.failed |= event.is_error();
        self.read_closed |= event.is_read_closed();
    }

    /// Whether it stands, once an event told of a change.
    pub(super) fn stands(&self) -> io::Result<bool> {
        if let Some(error) = SockRef::from(&self.stream).take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => Ok(true),
            // Seldom, Linux tells of an ICMP error and keeps none.
            Err(_) if self.failed => Err(Errno::EHOSTUNREACH.into()),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The stream, and whether epoll told of its end already: it does so once.
    pub(super) fn into_stream(self) -> (TcpStream, bool) {
        (self.stream, self.read_closed)
    }
}

impl AsRawFd for Connecting {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
