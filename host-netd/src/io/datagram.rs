//! UDP and ping sockets of the datagram flows.

use super::errors::{QueuedError, icmp_of, take_error, to_std};
use super::options::{datagram_socket, set_dont_fragment, set_hop_limit};
use crate::engine::drops::DropReason;
use crate::engine::{DatagramKind, Engine, FlowId, Outgoing};
use crate::limits::{DATAGRAM_QUANTUM, ERROR_QUANTUM};
use netd_proto::build::MAX_ICMP_ERROR;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

/// The host socket of one datagram flow.
#[derive(Debug)]
pub(super) struct DatagramSocket {
    socket: UdpSocket,
    kind: DatagramKind,
    ipv6: bool,
    hop_limit: Option<u8>,
    dont_fragment: Option<bool>,
    /// Something may wait: datagrams, or errors in the error queue.
    pub(super) readable: bool,
    errors: bool,
}

impl AsRawFd for DatagramSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl DatagramSocket {
    pub(super) fn open(kind: DatagramKind, ipv6: bool) -> io::Result<DatagramSocket> {
        Ok(DatagramSocket::over(
            datagram_socket(kind, ipv6)?,
            kind,
            ipv6,
        ))
    }

    pub(super) fn over(socket: UdpSocket, kind: DatagramKind, ipv6: bool) -> DatagramSocket {
        let (hop_limit, dont_fragment) = (None, None);
        DatagramSocket {
            socket,
            kind,
            ipv6,
            hop_limit,
            dont_fragment,
            readable: true,
            errors: true,
        }
    }

    pub(super) fn ready(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable();
        self.errors |= event.is_error();
        self.readable |= event.is_error();
    }

    /// Sends one datagram, or tells the enclave why not. `scratch` is for echo requests.
    pub(super) fn send(&mut self, engine: &mut Engine, out: &Outgoing<'_>, scratch: &mut Vec<u8>) {
        if self.hop_limit != Some(out.hop_limit) {
            self.hop_limit = set_hop_limit(&self.socket, self.ipv6, out.hop_limit)
                .ok()
                .map(|()| out.hop_limit);
        }
        if self.dont_fragment != Some(out.dont_fragment) {
            let set = set_dont_fragment(&self.socket, self.ipv6, out.dont_fragment);
            self.dont_fragment = set.ok().map(|()| out.dont_fragment);
        }
        let bytes = match self.kind {
            DatagramKind::Udp => &out.payload[..],
            DatagramKind::Echo => {
                // The kernel fills in checksum and identifier.
                let [high, low] = out.sequence.to_be_bytes();
                let request = if self.ipv6 { 128 } else { 8 };
                scratch.clear();
                scratch.extend([request, 0, 0, 0, 0, 0, high, low]);
                scratch.extend(&out.payload[..]);
                &scratch[..]
            }
        };
        let Err(mut error) = self.socket.send_to(bytes, out.to) else {
            return;
        };
        if error.kind() != ErrorKind::WouldBlock && !is_too_big(&error) {
            // Most likely the error of an earlier datagram: the queue has it, and this datagram
            // is to be sent now.
            self.take_errors(engine, out.flow, None);
            match self.socket.send_to(bytes, out.to) {
                Ok(_) => return,
                Err(own) => error = own,
            }
        }
        if error.kind() == ErrorKind::WouldBlock {
            engine.counters().drop(DropReason::HostSocketFull);
            return;
        }
        engine.counters().drop(DropReason::HostRefused);
        if self.take_errors(engine, out.flow, Some(out)) {
            return;
        }
        match icmp_of(&error) {
            Some(icmp) => {
                engine.datagram_error(out.flow, None, out.to, icmp, out.sequence, &out.payload);
            }
            None => tracing::debug!(%error, to = %out.to, "datagram not sent"),
        }
    }

    /// Passes on what arrived. True if there may be more.
    pub(super) fn receive(&mut self, engine: &mut Engine, id: FlowId, now: Instant) -> bool {
        if self.errors {
            self.errors = false;
            self.take_errors(engine, id, None);
        }
        for _ in 0..DATAGRAM_QUANTUM {
            let Some(space) = engine.datagram_space(id) else {
                return true;
            };
            match receive_one(&self.socket, self.kind, space) {
                Ok((length, from, hop_limit)) => {
                    engine.commit_datagram(id, from, length, hop_limit, now);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return false;
                }
                // The error of an earlier send: reading takes it off the socket, and the queue
                // has the whole story.
                Err(_) => {
                    self.take_errors(engine, id, None);
                }
            }
        }
        true
    }

    /// Tells the enclave of queued errors. True if there was one. `refused` is a datagram that the
    /// kernel did not send: its error may be among them, without its port.
    fn take_errors(&self, engine: &mut Engine, id: FlowId, refused: Option<&Outgoing<'_>>) -> bool {
        let mut buffer = [0; MAX_ICMP_ERROR];
        let mut told = false;
        for _ in 0..ERROR_QUANTUM {
            let queued = match take_error(&self.socket, &mut buffer) {
                Ok(Some(queued)) => queued,
                Ok(None) => continue,
                Err(_) => break,
            };
            let bytes = &buffer[..queued.length.min(buffer.len())];
            let QueuedError {
                from, to, error, ..
            } = queued;
            match (self.kind, bytes, refused) {
                (DatagramKind::Echo, [_, _, _, _, _, _, high, low, payload @ ..], _) => {
                    let sequence = u16::from_be_bytes([*high, *low]);
                    engine.datagram_error(id, from, to, error, sequence, payload);
                }
                (DatagramKind::Udp, payload, _) if to.port() != 0 => {
                    engine.datagram_error(id, from, to, error, 0, payload);
                }
                (_, _, Some(out)) => {
                    engine.datagram_error(id, from, out.to, error, out.sequence, &out.payload);
                }
                _ => continue,
            }
            told = true;
        }
        told
    }
}

fn is_too_big(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EMSGSIZE)
}

fn receive_one(
    socket: &UdpSocket,
    kind: DatagramKind,
    space: &mut [u8],
) -> io::Result<(usize, SocketAddr, Option<u8>)> {
    if kind == DatagramKind::Udp {
        let (length, from) = socket.recv_from(space)?;
        return Ok((length, from, None));
    }
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(space)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let from = message.address.as_ref().and_then(to_std);
    let hop_limit = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::Ipv4Ttl(hops) | ControlMessageOwned::Ipv6HopLimit(hops) => {
            u8::try_from(hops).ok()
        }
        _ => None,
    });
    let from = from.ok_or(ErrorKind::InvalidData)?;
    Ok((message.bytes, from, hop_limit))
}
