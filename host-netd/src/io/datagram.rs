//! UDP and ping sockets of the datagram flows.
//!
//! Datagrams of one size that follow each other move together where they can: out by one system
//! call with `UDP_SEGMENT`, in as the kernel gathered them with `UDP_GRO`. Errors are those of
//! single datagrams: what the kernel refuses to send as many is sent one by one.

use super::errors::{QueuedError, icmp_of, take_error, to_std};
use super::options::{
    can_segment, datagram_socket, gather_received, set_dont_fragment, set_hop_limit,
};
use crate::engine::drops::DropReason;
use crate::engine::{DatagramKind, DatagramSpace, Engine, FlowId, Outgoing, Received};
use crate::limits::{DATAGRAM_QUANTUM, ERROR_QUANTUM};
use crate::publish::{Lease, Lent};
use netd_proto::build::MAX_ICMP_ERROR;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
};
use std::borrow::Cow;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::UdpSocket;
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
    /// Whether the kernel cuts super-datagrams, once that is known.
    segments: Option<bool>,
    /// The size of the datagrams that were last sent as many.
    last_segment: usize,
    /// Of a published port: which session it leads to.
    lease: Option<Lease>,
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
    /// A socket for a new flow. `gather` where many datagrams may be received at once.
    pub(super) fn open(kind: DatagramKind, ipv6: bool, gather: bool) -> io::Result<DatagramSocket> {
        let socket = datagram_socket(kind, ipv6)?;
        Ok(DatagramSocket::over(socket, kind, ipv6, gather))
    }

    /// Over the socket of a published port.
    pub(super) fn published(lent: Lent, ipv6: bool, gather: bool) -> DatagramSocket {
        // What is queued is about datagrams of another enclave, and quotes them.
        while take_error(&lent.socket, &mut []).is_ok() {}
        let mut socket = DatagramSocket::over(lent.socket, DatagramKind::Udp, ipv6, gather);
        socket.lease = Some(lent.lease);
        socket
    }

    /// Whether this session may use it. A published port may lead to another one by now.
    pub(super) fn is_ours(&self) -> bool {
        self.lease.as_ref().is_none_or(Lease::holds)
    }

    fn over(socket: UdpSocket, kind: DatagramKind, ipv6: bool, gather: bool) -> DatagramSocket {
        if gather && kind == DatagramKind::Udp {
            // Kernels before 5.0 hand them over one by one.
            let _ = gather_received(&socket);
        }
        let (hop_limit, dont_fragment) = (None, None);
        DatagramSocket {
            socket,
            kind,
            ipv6,
            hop_limit,
            dont_fragment,
            segments: None,
            last_segment: usize::MAX,
            lease: None,
            readable: true,
            errors: true,
        }
    }

    pub(super) fn ready(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable();
        self.errors |= event.is_error();
        self.readable |= event.is_error();
    }

    /// Sends one datagram or many, or tells the enclave why not. `scratch` is for echo requests.
    pub(super) fn send(&mut self, engine: &mut Engine, out: &Outgoing<'_>, scratch: &mut Vec<u8>) {
        self.set_header_options(out);
        let Some(segment) = out.segment else {
            return self.send_one(engine, out, scratch);
        };
        if self.send_many(engine, out, segment) {
            return;
        }
        for payload in out.payload.chunks(usize::from(segment).max(1)) {
            let payload = Cow::Borrowed(payload);
            let one = Outgoing {
                payload,
                segment: None,
                ..*out
            };
            self.send_one(engine, &one, scratch);
        }
    }

    fn set_header_options(&mut self, out: &Outgoing<'_>) {
        if self.hop_limit != Some(out.hop_limit) {
            self.hop_limit = set_hop_limit(&self.socket, self.ipv6, out.hop_limit)
                .ok()
                .map(|()| out.hop_limit);
        }
        if self.dont_fragment != Some(out.dont_fragment) {
            let set = set_dont_fragment(&self.socket, self.ipv6, out.dont_fragment);
            self.dont_fragment = set.ok().map(|()| out.dont_fragment);
        }
    }

    /// Sends many datagrams at once. False if none was sent, because each has to be looked at.
    fn send_many(&mut self, engine: &mut Engine, out: &Outgoing<'_>, segment: u16) -> bool {
        // A kernel before 4.18 would take the control message for nothing, and the datagrams for one.
        if !*self
            .segments
            .get_or_insert_with(|| can_segment(&self.socket))
        {
            return false;
        }
        let sent = sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&out.payload)],
            &[ControlMessage::UdpGsoSegments(&segment)],
            MsgFlags::empty(),
            Some(&SockaddrStorage::from(out.to)),
        );
        self.last_segment = usize::from(segment);
        match sent {
            Ok(_) => true,
            Err(Errno::EAGAIN) => {
                for _ in out.payload.chunks(usize::from(segment).max(1)) {
                    engine.counters().drop(DropReason::HostSocketFull);
                }
                true
            }
            Err(error) => {
                // The interface does not complete checksums.
                if error == Errno::EIO {
                    self.segments = Some(false);
                }
                false
            }
        }
    }

    fn send_one(&mut self, engine: &mut Engine, out: &Outgoing<'_>, scratch: &mut Vec<u8>) {
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
        let more = self.receive_some(engine, id, now);
        engine.seal_run();
        more
    }

    fn receive_some(&mut self, engine: &mut Engine, id: FlowId, now: Instant) -> bool {
        if self.errors {
            self.errors = false;
            self.take_errors(engine, id, None);
        }
        for _ in 0..DATAGRAM_QUANTUM {
            let Some(space) = engine.datagram_space(id) else {
                return true;
            };
            match receive_one(&self.socket, self.kind, space) {
                Ok(received) => engine.commit_datagram(id, received, now),
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
                // The kernel's own errors about IPv6 come without the datagram.
                (DatagramKind::Udp, [], Some(out)) if out.to == to => {
                    engine.datagram_error(id, from, to, error, 0, &out.payload);
                }
                (DatagramKind::Udp, payload, _) if to.port() != 0 => {
                    // On paths without a wire (veth) many datagrams may arrive as one, and the
                    // error quotes them as one: it is told of the first.
                    let payload = &payload[..payload.len().min(self.last_segment)];
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

/// Room for one control message of each kind that is asked for.
#[repr(align(8))]
struct Control([u8; 64]);

fn receive_one(
    socket: &UdpSocket,
    kind: DatagramKind,
    space: DatagramSpace<'_>,
) -> io::Result<Received> {
    let mut control = Control([0; 64]);
    let mut parts = [IoSliceMut::new(space.place), IoSliceMut::new(space.spill)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control.0),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let mut received = Received {
        from: message
            .address
            .as_ref()
            .and_then(to_std)
            .ok_or(ErrorKind::InvalidData)?,
        length: message.bytes,
        segment: None,
        hop_limit: None,
    };
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::Ipv4Ttl(hops) | ControlMessageOwned::Ipv6HopLimit(hops)
                if kind == DatagramKind::Echo =>
            {
                received.hop_limit = u8::try_from(hops).ok();
            }
            ControlMessageOwned::UdpGroSegments(size) => {
                let size = u16::try_from(size).ok().filter(|size| *size > 0);
                received.segment = size.filter(|size| usize::from(*size) < message.bytes);
            }
            _ => {}
        }
    }
    Ok(received)
}
