//! Ends every open flow when the link is lost, and at the start those of an enclave-netd that was
//! killed: its programs may live on.
//!
//! # Why it takes a trick
//! The host forgets all flows with the link, so each socket in the enclave has to be reset, also
//! one whose program only waits in `recv()`. A kernel believes a reset only at exactly the
//! sequence number it expects next (RFC 5961), which nobody here knows; closing other programs'
//! sockets by netlink needs a privilege this daemon gave up, and a kernel option.
//!
//! # What it does
//! The kernel itself lists its sockets in `/proc/net`. Each is sent a segment from its peer that
//! lies outside its window. The kernel's answer, an acknowledgement, carries the expected number,
//! and the pump answers every segment that leaves without a link with the reset for that number
//! (see [`crate::offline`]). One byte of payload keeps the segment out of the kernel's rate limit
//! for acknowledgements; its acknowledgement number is arbitrary, too, so that it is not taken
//! for data even where it falls inside the window by chance. Such a socket is met by the next
//! sweep, with other numbers.
//!
//! A socket still connecting (SYN_SENT) is sent a SYN: its answer is that of a simultaneous open
//! (RFC 9293, 3.5), and is reset the same way. A connected UDP socket is told that its peer's
//! port is unreachable: Linux does not wake a waiting program for the less final errors.
//!
//! # Limits
//! The work is bounded by [`SWEEP_SOCKETS`] and [`SWEEPS`]. Once there is a new link, a sweep
//! touches only sockets that an earlier one met, never a flow of the new link.

use crate::guard::Addresses;
use crate::limits::{SWEEP_INTERVAL, SWEEP_SOCKETS, SWEEPS};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use netd_proto::build::{IcmpError, MAX_ICMP_ERROR, icmp_error, quote_udp};
use netd_proto::offload::VnetHeader;
use procfs::ProcResult;
use procfs::net::{TcpNetEntry, TcpState, UdpNetEntry, UdpState};
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;
use tracing::{debug, warn};

/// One socket of a lost link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Socket {
    kind: SocketKind,
    local: SocketAddr,
    remote: SocketAddr,
    inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum SocketKind {
    Tcp { connecting: bool },
    Udp,
}

/// The sweeps that follow the loss of one link.
#[derive(Debug)]
pub(crate) struct Sweep {
    /// What was met so far.
    lost: HashSet<(SocketAddr, SocketAddr, u64)>,
    left: u32,
    next: Instant,
}

impl Sweep {
    /// Sweeps that begin at `now`.
    pub(crate) fn new(now: Instant) -> Sweep {
        Sweep {
            lost: HashSet::new(),
            left: SWEEPS,
            next: now,
        }
    }

    /// When [`provoke`](Self::provoke) is due.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Lists the open sockets, and hands a packet for the tun to `write` for each that the lost
    /// link left. `linked` tells whether there is a new one by now; until then whatever is open
    /// was left. False when this was the last time.
    pub(crate) fn provoke(
        &mut self,
        addresses: &Addresses,
        linked: bool,
        now: Instant,
        mut write: impl FnMut(&[u8]),
    ) -> bool {
        let mut provoked = 0u32;
        for socket in sockets(addresses) {
            let known = self.lost.contains(&socket.identity());
            let is_meant = match socket.kind {
                SocketKind::Tcp { .. } => known || !linked,
                // It stays open after it was told.
                SocketKind::Udp => !known && !linked,
            };
            if !is_meant {
                continue;
            }
            self.lost.insert(socket.identity());
            if let Some(packet) = socket.provocation(addresses) {
                provoked += 1;
                write(&packet);
            }
        }
        debug!(sockets = provoked, "resetting what the lost link carried");
        self.left -= 1;
        self.next = now + SWEEP_INTERVAL;
        provoked > 0 && self.left > 0
    }
}

impl Socket {
    fn identity(&self) -> (SocketAddr, SocketAddr, u64) {
        (self.local, self.remote, self.inode)
    }

    /// The packet, with its virtio-net header, that makes the kernel answer or wake the program.
    fn provocation(&self, addresses: &Addresses) -> Option<Vec<u8>> {
        let mut packet = VnetHeader::NONE.encode().to_vec();
        match self.kind {
            SocketKind::Udp => {
                let quote = quote_udp(self.local, self.remote, &[], 0);
                let gateway = addresses.gateway(self.local.ip());
                let start = packet.len();
                packet.resize(start + MAX_ICMP_ERROR, 0);
                let error = IcmpError::PortUnreachable;
                let out = &mut packet[start..];
                let length = icmp_error(out, gateway, self.local.ip(), error, &quote);
                packet.truncate(start + length);
            }
            SocketKind::Tcp { connecting } => {
                let random = RandomState::new().hash_one(0);
                let [seq, ack] = [random, random >> 32].map(|half| (half & 0xFFFF_FFFF) as u32);
                let segment =
                    self.peer_packet()?
                        .tcp(self.remote.port(), self.local.port(), seq, 1024);
                let written = if connecting {
                    segment.syn().write(&mut packet, &[])
                } else {
                    segment.ack(ack).write(&mut packet, &[0])
                };
                written.ok()?;
            }
        }
        Some(packet)
    }

    fn peer_packet(&self) -> Option<PacketBuilderStep<IpHeaders>> {
        const HOP_LIMIT: u8 = 64;
        match (self.remote.ip(), self.local.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                Some(PacketBuilder::ipv4(from.octets(), to.octets(), HOP_LIMIT))
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                Some(PacketBuilder::ipv6(from.octets(), to.octets(), HOP_LIMIT))
            }
            _ => None,
        }
    }
}

/// The sockets that have a flow over the tun.
fn sockets(addresses: &Addresses) -> Vec<Socket> {
    let tcp = list("tcp", procfs::net::tcp())
        .into_iter()
        .chain(list("tcp6", procfs::net::tcp6()));
    let udp = list("udp", procfs::net::udp())
        .into_iter()
        .chain(list("udp6", procfs::net::udp6()));
    let mut open: Vec<_> = tcp
        .filter_map(from_tcp)
        .chain(udp.filter_map(from_udp))
        .collect();
    open.retain(|s| addresses.is_ours(s.local.ip()) && !addresses.is_ours(s.remote.ip()));
    if open.len() > SWEEP_SOCKETS {
        warn!(
            sockets = open.len(),
            limit = SWEEP_SOCKETS,
            "more open sockets than are reset"
        );
        open.truncate(SWEEP_SOCKETS);
    }
    open
}

/// A table that is missing (no IPv6) or unreadable is empty.
fn list<T>(table: &str, entries: ProcResult<Vec<T>>) -> Vec<T> {
    entries
        .inspect_err(|error| debug!(table, %error, "cannot list the sockets"))
        .unwrap_or_default()
}

fn from_tcp(entry: TcpNetEntry) -> Option<Socket> {
    let connecting = match entry.state {
        TcpState::Established
        | TcpState::FinWait1
        | TcpState::FinWait2
        | TcpState::CloseWait
        | TcpState::LastAck
        | TcpState::Closing => false,
        TcpState::SynSent => true,
        // What is half open from outside answers by itself, and a reset ends it then.
        TcpState::SynRecv
        | TcpState::NewSynRecv
        | TcpState::TimeWait
        | TcpState::Close
        | TcpState::Listen => return None,
    };
    Some(Socket {
        kind: SocketKind::Tcp { connecting },
        local: unmapped(entry.local_address),
        remote: unmapped(entry.remote_address),
        inode: entry.inode,
    })
}

fn from_udp(entry: UdpNetEntry) -> Option<Socket> {
    (entry.state == UdpState::Established).then(|| Socket {
        kind: SocketKind::Udp,
        local: unmapped(entry.local_address),
        remote: unmapped(entry.remote_address),
        inode: entry.inode,
    })
}

/// Sockets of IPv6 may speak IPv4.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
