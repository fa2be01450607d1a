//! The link as the data loop sees it: one nonblocking stream, read into the frame decoder and
//! written from the frame queue.

use netd_proto::frame::{Decoder, Queue};
use netd_proto::limits::VSOCK_WRITE;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// A connected stream to one enclave.
#[derive(Debug)]
pub struct LinkStream {
    // A vsock stream is read and written by the same system calls as a unix stream.
    stream: UnixStream,
    longest_write: usize,
}

impl LinkStream {
    /// A link over a unix stream socket.
    pub fn unix(stream: OwnedFd) -> LinkStream {
        LinkStream {
            stream: stream.into(),
            longest_write: usize::MAX,
        }
    }

    /// A link over AF_VSOCK: single writes are bounded (invariant 9).
    pub fn vsock(stream: OwnedFd) -> LinkStream {
        LinkStream {
            stream: stream.into(),
            longest_write: VSOCK_WRITE,
        }
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        self.stream.set_nonblocking(true)
    }

    /// One read. `Ok(None)` when nothing is there; end of stream is an error.
    pub(super) fn read(&mut self, decoder: &mut Decoder) -> io::Result<Option<ReadMore>> {
        let space = decoder.space();
        let wanted = space.len();
        match self.stream.read(space) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                decoder.advance(n);
                Ok(Some(ReadMore(n == wanted)))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Some(ReadMore(true))),
            Err(error) => Err(error),
        }
    }

    /// Writes until the queue is empty (true) or the link is full (false). `seen` is shown each
    /// byte that went out.
    pub(super) fn write(
        &mut self,
        queue: &mut Queue,
        mut seen: impl FnMut(&[u8]),
    ) -> io::Result<bool> {
        while !queue.is_empty() {
            let pending = queue.pending();
            let pending = &pending[..pending.len().min(self.longest_write)];
            match self.stream.write(pending) {
                Ok(n) => {
                    seen(&pending[..n]);
                    queue.consume(n);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Whether a read filled its buffer, so that more may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadMore(pub(super) bool);

impl AsRawFd for LinkStream {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
