//! Packets that the daemons make themselves: UDP datagrams and echo replies from outside, ICMP
//! errors, TCP resets.
//!
//! Everything is written into a slice that the caller owns, usually the tail of a frame
//! [`Queue`](crate::frame::Queue). A payload that is already in place is not copied: reserve
//! [`udp_headroom`] or [`echo_headroom`] bytes before it.

use crate::offload::{TCP_CHECKSUM_OFFSET, VnetHeader};
use crate::packet::{Packet, Transport, pseudo_header};
use etherparse::IpNumber;
use etherparse::checksum::Sum16BitWords;
use std::net::{IpAddr, SocketAddr};

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;

/// Hop limit of what the gateway itself sends (RFC 1700).
pub const HOP_LIMIT: u8 = 64;

/// Longest UDP payload: what is left of an IPv4 packet of 65,535 bytes.
pub const MAX_UDP_PAYLOAD: usize = 65_535 - IPV4_HEADER - UDP_HEADER;

/// Longest ICMP error of ours: it fits every IPv6 link (RFC 4443, 2.4 c) and carries more of the
/// packet it is about than the 576 bytes that IPv4 asks for (RFC 1812, 4.3.2.3).
pub const MAX_ICMP_ERROR: usize = 1280;

const fn ip_header_len(ipv6: bool) -> usize {
    if ipv6 { IPV6_HEADER } else { IPV4_HEADER }
}

/// Longest UDP payload in IPv6, whose payload length does not count the IP header.
pub const MAX_UDP_PAYLOAD6: usize = 65_535 - UDP_HEADER;

/// Bytes before the payload of a UDP datagram.
pub const fn udp_headroom(ipv6: bool) -> usize {
    ip_header_len(ipv6) + UDP_HEADER
}

/// Bytes before the payload of an echo request or reply.
pub const fn echo_headroom(ipv6: bool) -> usize {
    ip_header_len(ipv6) + ICMP_HEADER
}

/// Writes an IP header before `length` bytes of payload and returns the packet's length.
///
/// IPv4 packets say "don't fragment" and have no identification (RFC 6864, 4.1).
#[expect(
    clippy::cast_possible_truncation,
    reason = "callers keep to 65,535 bytes of payload"
)]
fn ip_header(
    out: &mut [u8],
    (src, dst): (IpAddr, IpAddr),
    protocol: IpNumber,
    hop_limit: u8,
    length: usize,
) -> usize {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = IPV4_HEADER + length;
            let header = &mut out[..IPV4_HEADER];
            header[..2].copy_from_slice(&[0x45, 0]);
            header[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            header[4..12].copy_from_slice(&[0, 0, 0x40, 0, hop_limit, protocol.0, 0, 0]);
            header[12..16].copy_from_slice(&src.octets());
            header[16..].copy_from_slice(&dst.octets());
            let sum = Sum16BitWords::new().add_slice(header).ones_complement();
            header[10..12].copy_from_slice(&sum.to_ne_bytes());
            total
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header = &mut out[..IPV6_HEADER];
            header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
            header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            header[6..8].copy_from_slice(&[protocol.0, hop_limit]);
            header[8..24].copy_from_slice(&src.octets());
            header[24..].copy_from_slice(&dst.octets());
            IPV6_HEADER + length
        }
        _ => unreachable!("both addresses of a flow are of one family"),
    }
}

/// Writes the headers of a UDP datagram before the `length` bytes of payload that are already at
/// [`udp_headroom`]. Returns the packet's length and the offload header that asks the receiver
/// to complete the checksum.
///
/// # Panics
/// When `length` exceeds [`MAX_UDP_PAYLOAD`] or [`MAX_UDP_PAYLOAD6`], or the addresses are of two
/// families.
#[expect(
    clippy::cast_possible_truncation,
    reason = "length is at most MAX_UDP_PAYLOAD"
)]
pub fn udp(
    out: &mut [u8],
    src: SocketAddr,
    dst: SocketAddr,
    hop_limit: u8,
    length: usize,
) -> (usize, VnetHeader) {
    let longest = if src.is_ipv6() {
        MAX_UDP_PAYLOAD6
    } else {
        MAX_UDP_PAYLOAD
    };
    assert!(length <= longest, "datagram of {length} bytes");
    let udp_len = UDP_HEADER + length;
    let total = ip_header(out, (src.ip(), dst.ip()), IpNumber::UDP, hop_limit, udp_len);
    let start = total - udp_len;
    let header = &mut out[start..start + UDP_HEADER];
    header[..2].copy_from_slice(&src.port().to_be_bytes());
    header[2..4].copy_from_slice(&dst.port().to_be_bytes());
    header[4..6].copy_from_slice(&(udp_len as u16).to_be_bytes());
    let partial = !pseudo_header(src.ip(), dst.ip(), IpNumber::UDP.0, udp_len).ones_complement();
    header[6..].copy_from_slice(&partial.to_ne_bytes());
    (total, VnetHeader::udp(start as u16, None))
}

/// Completes in software the checksum that [`udp`] or [`partial_tcp_checksum`] left to the
/// receiver, for a receiver that does not take such packets.
pub fn complete_checksum(packet: &mut [u8], vnet: &VnetHeader) {
    if vnet.needs_checksum() {
        let start = usize::from(vnet.csum_start);
        let sum = Sum16BitWords::new()
            .add_slice(&packet[start..])
            .to_ones_complement_with_no_zero();
        let at = start + usize::from(vnet.csum_offset);
        packet[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
    }
}

/// Writes the pseudo-header's sum into the checksum field of a TCP segment, as `NEEDS_CSUM` wants
/// it. The packet is one this side made: IPv4 without options or IPv6 without extensions.
pub fn partial_tcp_checksum(packet: &mut [u8]) {
    let (start, src, dst): (usize, IpAddr, IpAddr) = if packet[0] >> 4 == 4 {
        let octets = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).expect("four bytes");
        (IPV4_HEADER, octets(12).into(), octets(16).into())
    } else {
        let octets = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("16 bytes");
        (IPV6_HEADER, octets(8).into(), octets(24).into())
    };
    let length = packet.len() - start;
    let partial = !pseudo_header(src, dst, IpNumber::TCP.0, length).ones_complement();
    let at = start + usize::from(TCP_CHECKSUM_OFFSET);
    packet[at..at + 2].copy_from_slice(&partial.to_ne_bytes());
}

/// An echo message to build.
#[derive(Clone, Copy, Debug)]
pub struct EchoHeader {
    /// Request or reply.
    pub request: bool,
    /// Tells one pinging program from another.
    pub identifier: u16,
    /// Tells one request from another.
    pub sequence: u16,
}

/// Writes the headers of an echo message before the `length` bytes of payload that are already
/// at [`echo_headroom`], and returns the packet's length.
pub fn echo(
    out: &mut [u8],
    src: IpAddr,
    dst: IpAddr,
    hop_limit: u8,
    header: EchoHeader,
    length: usize,
) -> usize {
    let kind = match (src, header.request) {
        (IpAddr::V4(_), true) => 8,
        (IpAddr::V4(_), false) => 0,
        (IpAddr::V6(_), true) => 128,
        (IpAddr::V6(_), false) => 129,
    };
    let [i0, i1] = header.identifier.to_be_bytes();
    let [s0, s1] = header.sequence.to_be_bytes();
    icmp(
        out,
        src,
        dst,
        hop_limit,
        [kind, 0, 0, 0, i0, i1, s0, s1],
        length,
    )
}

fn icmp(
    out: &mut [u8],
    src: IpAddr,
    dst: IpAddr,
    hop_limit: u8,
    header: [u8; ICMP_HEADER],
    length: usize,
) -> usize {
    let message_len = ICMP_HEADER + length;
    let protocol = if src.is_ipv4() {
        IpNumber::ICMP
    } else {
        IpNumber::IPV6_ICMP
    };
    let total = ip_header(out, (src, dst), protocol, hop_limit, message_len);
    let message = &mut out[total - message_len..total];
    message[..ICMP_HEADER].copy_from_slice(&header);
    let sum = match protocol {
        IpNumber::ICMP => Sum16BitWords::new(),
        _ => pseudo_header(src, dst, protocol.0, message_len),
    };
    let sum = sum.add_slice(message).ones_complement();
    message[2..4].copy_from_slice(&sum.to_ne_bytes());
    total
}

/// What went wrong with a packet, in the words of ICMP (RFC 792, 1191, 1812) and ICMPv6
/// (RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// No route: 3/0, 1/0.
    NetUnreachable,
    /// The host does not answer: 3/1, 1/3.
    HostUnreachable,
    /// Nobody listens on the port: 3/3, 1/4.
    PortUnreachable,
    /// Forbidden by policy: 3/13, 1/1.
    Prohibited,
    /// Longer than the path carries: 3/4, 2/0.
    PacketTooBig {
        /// What it does carry, in bytes.
        mtu: u16,
    },
    /// Hop limit used up: 11/0, 3/0.
    TimeExceeded,
    /// As a router sent it: type, code and the four bytes behind the checksum.
    Other(u8, u8, u32),
}

impl IcmpError {
    fn header(self, ipv6: bool) -> [u8; ICMP_HEADER] {
        let (kind, code, rest) = match (self, ipv6) {
            (IcmpError::NetUnreachable, false) => (3, 0, 0),
            (IcmpError::NetUnreachable, true) => (1, 0, 0),
            (IcmpError::HostUnreachable, false) => (3, 1, 0),
            (IcmpError::HostUnreachable, true) => (1, 3, 0),
            (IcmpError::PortUnreachable, false) => (3, 3, 0),
            (IcmpError::PortUnreachable, true) => (1, 4, 0),
            (IcmpError::Prohibited, false) => (3, 13, 0),
            (IcmpError::Prohibited, true) => (1, 1, 0),
            (IcmpError::PacketTooBig { mtu }, false) => (3, 4, u32::from(mtu)),
            (IcmpError::PacketTooBig { mtu }, true) => (2, 0, u32::from(mtu)),
            (IcmpError::TimeExceeded, false) => (11, 0, 0),
            (IcmpError::TimeExceeded, true) => (3, 0, 0),
            (IcmpError::Other(kind, code, rest), _) => (kind, code, rest),
        };
        let [a, b, c, d] = rest.to_be_bytes();
        [kind, code, 0, 0, a, b, c, d]
    }
}

/// Writes an ICMP error about the packet whose first bytes are `quoted`, and returns the error's
/// length: at most [`MAX_ICMP_ERROR`] bytes.
///
/// `from` is who found the error; the packet's own source is told.
pub fn icmp_error(
    out: &mut [u8],
    from: IpAddr,
    to: IpAddr,
    error: IcmpError,
    quoted: &[u8],
) -> usize {
    let headroom = echo_headroom(from.is_ipv6());
    let quoted = &quoted[..quoted.len().min(MAX_ICMP_ERROR - headroom)];
    out[headroom..headroom + quoted.len()].copy_from_slice(quoted);
    icmp(
        out,
        from,
        to,
        HOP_LIMIT,
        error.header(from.is_ipv6()),
        quoted.len(),
    )
}

/// The first bytes of the UDP datagram that an error is about, to be quoted: headers as its
/// sender wrote them, and as much of the payload as is at hand.
pub fn quote_udp(src: SocketAddr, dst: SocketAddr, payload: &[u8], length: usize) -> Vec<u8> {
    let headroom = udp_headroom(src.is_ipv6());
    let mut quote = vec![0; headroom];
    udp(&mut quote, src, dst, HOP_LIMIT, length.min(MAX_UDP_PAYLOAD));
    quote.extend(&payload[..payload.len().min(MAX_ICMP_ERROR)]);
    quote
}

/// The echo request that an error is about, to be quoted.
pub fn quote_echo(src: IpAddr, dst: IpAddr, header: EchoHeader, payload: &[u8]) -> Vec<u8> {
    let headroom = echo_headroom(src.is_ipv6());
    let mut quote = vec![0; headroom];
    quote.extend(&payload[..payload.len().min(MAX_ICMP_ERROR)]);
    let length = quote.len() - headroom;
    echo(&mut quote, src, dst, HOP_LIMIT, header, length);
    quote
}

/// Writes the reset that answers `packet` (RFC 9293, 3.10.7.1) and returns its length. `None` if
/// the packet is not TCP or is a reset itself.
pub fn tcp_reset(out: &mut [u8], packet: &Packet<'_>) -> Option<usize> {
    let Transport::Tcp(tcp) = packet.transport() else {
        return None;
    };
    if tcp.rst() {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a segment is at most 64 KiB"
    )]
    let segment_len = tcp.payload().len() as u32 + u32::from(tcp.syn()) + u32::from(tcp.fin());
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;
    let (seq, ack, flags) = if tcp.ack() {
        (tcp.acknowledgment_number(), 0, RST)
    } else {
        (
            0,
            tcp.sequence_number().wrapping_add(segment_len),
            RST | ACK,
        )
    };
    let (src, dst) = (packet.dst(), packet.src());
    let total = ip_header(out, (src, dst), IpNumber::TCP, HOP_LIMIT, TCP_HEADER);
    let header = &mut out[total - TCP_HEADER..total];
    header[..2].copy_from_slice(&tcp.destination_port().to_be_bytes());
    header[2..4].copy_from_slice(&tcp.source_port().to_be_bytes());
    header[4..8].copy_from_slice(&seq.to_be_bytes());
    header[8..12].copy_from_slice(&ack.to_be_bytes());
    header[12..20].copy_from_slice(&[0x50, flags, 0, 0, 0, 0, 0, 0]);
    let sum = pseudo_header(src, dst, IpNumber::TCP.0, TCP_HEADER).add_slice(header);
    header[16..18].copy_from_slice(&sum.ones_complement().to_ne_bytes());
    Some(total)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn filled(headroom: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; headroom];
        bytes.extend((0..length).map(|i| u8::try_from(i % 251).expect("small")));
        bytes
    }

    pub(crate) fn fix_ipv4_checksum(packet: &mut [u8]) {
        if packet.len() >= 20 {
            packet[10..12].fill(0);
            let sum = Sum16BitWords::new()
                .add_slice(&packet[..20])
                .ones_complement();
            packet[10..12].copy_from_slice(&sum.to_ne_bytes());
        }
    }

    pub(crate) fn udp(src: &str, dst: &str, length: usize) -> Vec<u8> {
        let (src, dst): (SocketAddr, SocketAddr) =
            (src.parse().expect("valid"), dst.parse().expect("valid"));
        let mut bytes = filled(udp_headroom(src.is_ipv6()), length);
        let (total, vnet) = super::udp(&mut bytes, src, dst, 64, length);
        assert_eq!(total, bytes.len());
        complete_checksum(&mut bytes, &vnet);
        bytes
    }

    pub(crate) fn echo(src: &str, dst: &str, length: usize) -> Vec<u8> {
        let (src, dst): (IpAddr, IpAddr) =
            (src.parse().expect("valid"), dst.parse().expect("valid"));
        let mut bytes = filled(echo_headroom(src.is_ipv6()), length);
        let header = EchoHeader {
            request: true,
            identifier: 7,
            sequence: 1,
        };
        let total = super::echo(&mut bytes, src, dst, 64, header, length);
        assert_eq!(total, bytes.len());
        bytes
    }

    pub(crate) fn tcp(src: &str, dst: &str, length: usize) -> Vec<u8> {
        tcp_flags(src, dst, 0x18, length)
    }

    fn tcp_flags(src: &str, dst: &str, flags: u8, length: usize) -> Vec<u8> {
        let (src, dst): (SocketAddr, SocketAddr) =
            (src.parse().expect("valid"), dst.parse().expect("valid"));
        let headroom = ip_header_len(src.is_ipv6()) + TCP_HEADER;
        let mut bytes = filled(headroom, length);
        let ips = (src.ip(), dst.ip());
        let segment = TCP_HEADER + length;
        let total = ip_header(&mut bytes, ips, IpNumber::TCP, 64, segment);
        let header = &mut bytes[total - segment..];
        header[..2].copy_from_slice(&src.port().to_be_bytes());
        header[2..4].copy_from_slice(&dst.port().to_be_bytes());
        header[4..12].copy_from_slice(&[0, 0, 3, 232, 0, 0, 7, 208]);
        header[12..20].copy_from_slice(&[0x50, flags, 1, 0, 0, 0, 0, 0]);
        let sum = pseudo_header(ips.0, ips.1, 6, segment)
            .add_slice(header)
            .ones_complement();
        header[16..18].copy_from_slice(&sum.to_ne_bytes());
        bytes
    }

    #[test]
    fn datagrams_have_right_checksums_once_completed() {
        for (src, dst) in [
            ("192.0.2.1:53", "100.64.0.2:9"),
            ("[2001:db8::1]:53", "[2001:db8::2]:9"),
        ] {
            let longest = if src.starts_with('[') {
                MAX_UDP_PAYLOAD6
            } else {
                MAX_UDP_PAYLOAD
            };
            for length in [0, 1, 2, 1472, longest] {
                let bytes = udp(src, dst, length);
                let packet = Packet::parse(&bytes).expect("valid");
                assert!(packet.transport_checksum_is_right(), "{dst} {length}");
                let Transport::Udp(udp) = packet.transport() else {
                    panic!("{packet:?}")
                };
                assert_eq!(udp.payload(), &filled(0, length));
            }
        }
    }

    #[test]
    fn an_icmp_error_quotes_the_packet_and_fits_every_link() {
        for (kind, offender) in [
            ("100.64.0.2:9", "192.0.2.1"),
            ("[2001:db8::2]:9", "2001:db8::1"),
        ] {
            let dst = if kind.starts_with('[') {
                "[2001:db8::9]:53"
            } else {
                "192.0.2.9:53"
            };
            let about = udp(kind, dst, 4000);
            let about_packet = Packet::parse(&about).expect("valid");
            let mut out = vec![0; MAX_ICMP_ERROR];

            let offender = offender.parse().expect("valid");
            let error = IcmpError::PacketTooBig { mtu: 1280 };
            let length = icmp_error(&mut out, offender, about_packet.src(), error, &about);

            assert_eq!(length, MAX_ICMP_ERROR);
            let packet = Packet::parse(&out[..length]).expect("valid");
            assert!(packet.transport_checksum_is_right());
            let v6 = offender.is_ipv6();
            let (kind, code) = if v6 { (2, 0) } else { (3, 4) };
            assert_eq!(packet.transport(), &Transport::Icmp { kind, code });
            let quoted = &out[echo_headroom(v6)..];
            assert_eq!(quoted, &about[..quoted.len()]);
        }
    }

    #[test]
    fn a_reset_answers_as_rfc_9293_says() {
        let mut out = vec![0; 60];
        let cases = [
            (0x02, 0, 1001, 0x14),
            (0x12, 2000, 0, 0x04),
            (0x11, 2000, 0, 0x04),
        ];
        for (flags, seq, ack, reset_flags) in cases {
            for (src, dst) in [
                ("100.64.0.2:9", "192.0.2.1:80"),
                ("[fd00::2]:9", "[2001:db8::1]:80"),
            ] {
                let bytes = tcp_flags(src, dst, flags, 0);
                let packet = Packet::parse(&bytes).expect("valid");
                let length = tcp_reset(&mut out, &packet).expect("answered");
                let reset = Packet::parse(&out[..length]).expect("valid");
                assert!(reset.transport_checksum_is_right());
                assert_eq!(
                    reset.flow_key(),
                    packet.flow_key().map(|key| key.reversed())
                );
                let Transport::Tcp(tcp) = reset.transport() else {
                    panic!("{reset:?}")
                };
                assert_eq!(
                    (tcp.sequence_number(), tcp.acknowledgment_number()),
                    (seq, ack)
                );
                assert_eq!(tcp.header_slice()[13], reset_flags);
            }
        }
        let bytes = tcp_flags("100.64.0.2:9", "192.0.2.1:80", 0x04, 0);
        assert_eq!(
            tcp_reset(&mut out, &Packet::parse(&bytes).expect("valid")),
            None
        );
    }

    #[test]
    fn a_partial_tcp_checksum_completes_to_the_right_one() {
        for (src, dst) in [
            ("192.0.2.1:80", "100.64.0.2:9"),
            ("[2001:db8::1]:80", "[2001:db8::2]:9"),
        ] {
            let mut bytes = tcp(src, dst, 1001);
            let ip_header: u16 = if src.starts_with('[') { 40 } else { 20 };
            let checksum = usize::from(ip_header) + 16;
            bytes[checksum..checksum + 2].fill(0);

            partial_tcp_checksum(&mut bytes);
            let vnet = VnetHeader::tcp(ip_header == 40, ip_header, 20, None);
            complete_checksum(&mut bytes, &vnet);

            assert!(
                Packet::parse(&bytes)
                    .expect("valid")
                    .transport_checksum_is_right()
            );
        }
    }

    #[test]
    fn quotes_parse_as_the_packet_they_stand_for() {
        let (src, dst) = (
            "100.64.0.2:9".parse().expect("v"),
            "192.0.2.1:80".parse().expect("v"),
        );
        let quote = quote_udp(src, dst, b"abc", 3);
        let packet = Packet::parse(&quote).expect("valid");
        assert_eq!(
            packet.flow_key().map(|key| (key.src, key.dst)),
            Some((src, dst))
        );

        let header = EchoHeader {
            request: true,
            identifier: 5,
            sequence: 6,
        };
        let quote = quote_echo(src.ip(), dst.ip(), header, b"abc");
        let packet = Packet::parse(&quote).expect("valid");
        assert!(matches!(packet.transport(), Transport::Echo(echo) if echo.identifier == 5));
    }
}
