//! The host kernel's errors, in what the enclave can be told.

use crate::engine::DialError;
use netd_proto::build::IcmpError;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// The ICMP error that stands for an errno of a send or connect, if one does.
pub(super) fn icmp_of(error: &io::Error) -> Option<IcmpError> {
    Some(match Errno::from_raw(error.raw_os_error()?) {
        Errno::EHOSTUNREACH | Errno::EHOSTDOWN => IcmpError::HostUnreachable,
        Errno::ENETUNREACH | Errno::ENETDOWN | Errno::EADDRNOTAVAIL => IcmpError::NetUnreachable,
        Errno::EACCES | Errno::EPERM | Errno::EMFILE | Errno::ENFILE => IcmpError::Prohibited,
        Errno::ECONNREFUSED => IcmpError::PortUnreachable,
        _ => return None,
    })
}

/// What the enclave sees of a connect that failed (design, section 5).
pub(super) fn dial_error(error: &io::Error) -> DialError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED) => DialError::Refused,
        Some(Errno::ETIMEDOUT) => DialError::Silent,
        _ => icmp_of(error).map_or(DialError::Refused, DialError::Icmp),
    }
}

/// One entry of a socket's error queue.
#[derive(Debug)]
pub(super) struct QueuedError {
    /// Who reported it; `None` for this host.
    pub(super) from: Option<IpAddr>,
    /// Where the datagram went. The port is 0 where the kernel does not know it: for an error of
    /// its own about an IPv4 datagram that it did not send, and for echo.
    pub(super) to: SocketAddr,
    pub(super) error: IcmpError,
    /// How many bytes of the datagram were put into the buffer.
    pub(super) length: usize,
}

/// Takes the next error of a UDP or ping socket, and the datagram it is about into `buffer`.
/// `Ok(None)` for an entry that tells nothing; an error of kind `WouldBlock` when there is none.
pub(super) fn take_error(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<QueuedError>> {
    // The hop limit comes before the error where the socket asked for it.
    let mut control = nix::cmsg_space!(libc::c_int, libc::sock_extended_err, libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let Some(to) = message.address.as_ref().and_then(to_std) else {
        return Ok(None);
    };
    let Ok(parts) = message.cmsgs() else {
        return Ok(None);
    };
    for part in parts {
        let (raw, from) = match part {
            ControlMessageOwned::Ipv4RecvErr(raw, from) => (
                raw,
                from.map(|from| {
                    IpAddr::from(Ipv4Addr::from_bits(u32::from_be(from.sin_addr.s_addr)))
                }),
            ),
            ControlMessageOwned::Ipv6RecvErr(raw, from) => (
                raw,
                from.map(|from| IpAddr::from(Ipv6Addr::from(from.sin6_addr.s6_addr))),
            ),
            _ => continue,
        };
        let from = from.filter(|from| !from.is_unspecified());
        let mtu = || u16::try_from(raw.ee_info).unwrap_or(u16::MAX);
        let too_big = raw.ee_errno == libc::EMSGSIZE.unsigned_abs();
        let error = match raw.ee_origin {
            _ if too_big => Some(IcmpError::PacketTooBig { mtu: mtu() }),
            libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => {
                Some(IcmpError::Other(raw.ee_type, raw.ee_code, 0))
            }
            _ => icmp_of(&io::Error::from_raw_os_error(raw.ee_errno.cast_signed())),
        };
        return Ok(error.map(|error| QueuedError {
            from,
            to,
            error,
            length: message.bytes,
        }));
    }
    Ok(None)
}

pub(super) fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| {
        address
            .as_sockaddr_in6()
            .map(|v6| SocketAddr::from((v6.ip(), v6.port())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_of_connect_has_its_answer() {
        let answer = |errno: Errno| dial_error(&errno.into());
        assert_eq!(answer(Errno::ECONNREFUSED), DialError::Refused);
        assert_eq!(answer(Errno::ETIMEDOUT), DialError::Silent);
        assert_eq!(
            answer(Errno::EHOSTUNREACH),
            DialError::Icmp(IcmpError::HostUnreachable)
        );
        assert_eq!(
            answer(Errno::ENETUNREACH),
            DialError::Icmp(IcmpError::NetUnreachable)
        );
        assert_eq!(
            answer(Errno::EACCES),
            DialError::Icmp(IcmpError::Prohibited)
        );
        assert_eq!(answer(Errno::ECONNRESET), DialError::Refused);
    }

    #[test]
    fn the_error_of_a_closed_port_comes_with_its_datagram() {
        let socket = super::super::udp_socket("127.0.0.1:0".parse().expect("valid")).expect("bind");
        let closed: SocketAddr = {
            let taken = UdpSocket::bind("127.0.0.1:0").expect("bind");
            taken.local_addr().expect("bound")
        };
        let mut buffer = [0; 100];
        let none = take_error(&socket, &mut buffer).expect_err("no error yet");
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);

        socket.send_to(b"hello", closed).expect("sent");

        let error = take_error(&socket, &mut buffer)
            .expect("queued")
            .expect("an ICMP error");
        assert_eq!(error.to, closed);
        assert_eq!(error.error, IcmpError::Other(3, 3, 0));
        assert_eq!(&buffer[..error.length], b"hello");
    }
}
