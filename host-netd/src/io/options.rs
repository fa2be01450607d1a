//! Host sockets for UDP and echo, with the options that make their errors visible.

#![expect(
    unsafe_code,
    reason = "setsockopt for options that no crate of ours has"
)]

use crate::engine::DatagramKind;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{SetSockOpt, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Receive buffer of a UDP socket: a burst of datagrams while the loop serves others. The kernel
/// caps it at `net.core.rmem_max`.
const UDP_BUFFER: usize = 1024 * 1024;

fn domain(ipv6: bool) -> Domain {
    if ipv6 { Domain::IPV6 } else { Domain::IPV4 }
}

fn set<O: SetSockOpt<Val = T>, T>(socket: &Socket, option: O, value: T) -> io::Result<()> {
    Ok(setsockopt(socket, option, &value)?)
}

/// A UDP socket at `address` (port 0: any), nonblocking, of this address's family only.
///
/// # Errors
/// The address or port is taken or not ours, or files are used up.
pub fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain(address.is_ipv6()), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_recv_buffer_size(UDP_BUFFER)?;
    report_errors(&socket, address.is_ipv6())?;
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

/// An unprivileged ping socket (`net.ipv4.ping_group_range`), nonblocking.
fn ping_socket(ipv6: bool) -> io::Result<UdpSocket> {
    let protocol = if ipv6 {
        Protocol::ICMPV6
    } else {
        Protocol::ICMPV4
    };
    let socket = Socket::new(domain(ipv6), Type::DGRAM, Some(protocol))?;
    report_errors(&socket, ipv6)?;
    if ipv6 {
        set(&socket, sockopt::Ipv6RecvHopLimit, true)?;
    } else {
        set(&socket, sockopt::Ipv4RecvTtl, true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

/// Queues ICMP errors with the datagram they are about, instead of losing them.
fn report_errors(socket: &Socket, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        set(socket, sockopt::Ipv6RecvErr, true)
    } else {
        set(socket, sockopt::Ipv4RecvErr, true)
    }
}

/// The socket for a new datagram flow.
pub(super) fn datagram_socket(kind: DatagramKind, ipv6: bool) -> io::Result<UdpSocket> {
    let any = if ipv6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    match kind {
        DatagramKind::Udp => udp_socket(SocketAddr::new(any, 0)),
        DatagramKind::Echo => ping_socket(ipv6),
    }
}

/// Whether this process may ping.
///
/// # Errors
/// It may not; the kernel's reason.
pub fn ping_sockets_permitted() -> io::Result<()> {
    ping_socket(false).map(drop)
}

/// Sets an option that takes a plain value.
///
/// # Errors
/// As setsockopt(2).
pub fn set_raw<T: Copy>(socket: &impl AsFd, level: i32, option: i32, value: T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the kernel reads `length` bytes of `value`, which outlives the call.
    let result = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, value, length)
    };
    Errno::result(result)?;
    Ok(())
}

/// Sets whether packets may be cut: where not, a datagram longer than the path is refused with
/// `EMSGSIZE` and the path's MTU.
pub(super) fn set_dont_fragment(socket: &UdpSocket, ipv6: bool, on: bool) -> io::Result<()> {
    let (level, option, value) = match (ipv6, on) {
        (false, true) => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        ),
        (false, false) => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DONT,
        ),
        (true, true) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
        ),
        (true, false) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
        ),
    };
    set_raw(socket, level, option, value)
}

/// Whether the kernel cuts what is sent into datagrams where it is told to (`UDP_SEGMENT`, 4.18).
pub(super) fn can_segment(socket: &UdpSocket) -> bool {
    setsockopt(socket, sockopt::UdpGsoSegment, &0).is_ok()
}

/// Lets the kernel hand over many datagrams of one sender and size at once.
pub(super) fn gather_received(socket: &UdpSocket) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::UdpGroSegment, &true)?)
}

/// Sets the hop limit of what is sent next.
pub(super) fn set_hop_limit(socket: &UdpSocket, ipv6: bool, hop_limit: u8) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    if ipv6 {
        socket.set_unicast_hops_v6(hop_limit.into())
    } else {
        socket.set_ttl_v4(hop_limit.into())
    }
}
