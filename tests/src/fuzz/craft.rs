//! Packets as a kernel would make them, and damaged ones.

use super::Input;
use netd_proto::build::EchoHeader;
use netd_proto::offload::VnetHeader;
use std::net::{IpAddr, SocketAddr};

/// FIN flag of TCP.
pub const FIN: u8 = 1;
/// SYN flag of TCP.
pub const SYN: u8 = 2;
/// RST flag of TCP.
pub const RST: u8 = 4;
/// ACK flag of TCP.
pub const ACK: u8 = 16;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// Two ends, the sender first.
pub type Ends = (SocketAddr, SocketAddr);

/// The header of a TCP segment, but for its ports.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// As on the wire.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// As on the wire.
    pub window: u16,
    /// At most 40 bytes; filled up to whole words.
    pub options: Vec<u8>,
}

/// The byte at position `index` of a stream whose content is known.
#[expect(clippy::cast_possible_truncation, reason = "any byte will do")]
pub fn stream_byte(index: u32) -> u8 {
    (index ^ (index >> 8) ^ (index >> 16)) as u8
}

/// An IP packet around `body`.
pub fn ip((src, dst): (IpAddr, IpAddr), protocol: u8, hop_limit: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let [a, b] = short(20 + body.len()).to_be_bytes();
            let mut header = vec![0x45, 0, a, b, 0, 1, 0x40, 0, hop_limit, protocol, 0, 0];
            header.extend(src.octets());
            header.extend(dst.octets());
            header
        }
        _ => {
            let v6 = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            let [a, b] = short(body.len()).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, a, b, protocol, hop_limit];
            header.extend(v6(src).octets());
            header.extend(v6(dst).octets());
            header
        }
    };
    packet.extend(body);
    seal(&mut packet, false);
    packet
}

/// A TCP segment.
pub fn tcp((src, dst): Ends, hop_limit: u8, segment: &Segment, payload: &[u8]) -> Vec<u8> {
    let mut options = segment.options.clone();
    options.truncate(40);
    options.resize(options.len().next_multiple_of(4), 0);
    let words = u8::try_from(5 + options.len() / 4).expect("at most 15");
    let mut body = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    body.extend(segment.seq.to_be_bytes());
    body.extend(segment.ack.to_be_bytes());
    body.extend([words << 4, segment.flags]);
    body.extend(segment.window.to_be_bytes());
    body.extend([0; 4]);
    body.extend(options);
    body.extend(payload);
    ip((src.ip(), dst.ip()), TCP, hop_limit, &body)
}

/// A UDP datagram.
pub fn udp((src, dst): Ends, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    body.extend(short(8 + payload.len()).to_be_bytes());
    body.extend([0; 2]);
    body.extend(payload);
    ip((src.ip(), dst.ip()), UDP, hop_limit, &body)
}

/// An ICMP or ICMPv6 message of this type and code.
pub fn icmp(ends: (IpAddr, IpAddr), hop_limit: u8, kind: (u8, u8), rest: &[u8]) -> Vec<u8> {
    let mut body = vec![kind.0, kind.1, 0, 0];
    body.extend(rest);
    let protocol = if ends.0.is_ipv6() { 58 } else { 1 };
    ip(ends, protocol, hop_limit, &body)
}

/// An echo request or reply.
pub fn echo(ends: (IpAddr, IpAddr), hop_limit: u8, echo: EchoHeader, payload: &[u8]) -> Vec<u8> {
    let kind = match (ends.0.is_ipv6(), echo.request) {
        (false, true) => 8,
        (false, false) => 0,
        (true, true) => 128,
        (true, false) => 129,
    };
    let mut rest = [echo.identifier.to_be_bytes(), echo.sequence.to_be_bytes()].concat();
    rest.extend(payload);
    icmp(ends, hop_limit, (kind, 0), &rest)
}

/// One part of the body of an IP packet: `from` in units of eight bytes.
pub fn fragment(packet: &[u8], identification: u16, from: u16, part: &[u8], more: bool) -> Vec<u8> {
    let [o0, o1] = (from << 3 | u16::from(more)).to_be_bytes();
    let [i0, i1] = identification.to_be_bytes();
    let mut cut;
    if packet[0] >> 4 == 4 {
        cut = packet[..20].to_vec();
        let [a, b] = short(20 + part.len()).to_be_bytes();
        cut[2..8].copy_from_slice(&[a, b, i0, i1, 0, 0]);
        let offset = (from & 0x1fff) | if more { 0x2000 } else { 0 };
        cut[6..8].copy_from_slice(&offset.to_be_bytes());
    } else {
        cut = packet[..40].to_vec();
        cut[4..6].copy_from_slice(&short(8 + part.len()).to_be_bytes());
        cut[6] = 44;
        cut.extend([packet[6], 0, o0, o1, 0, 0, i0, i1]);
    }
    cut.extend(part);
    seal(&mut cut, false);
    cut
}

/// What the virtio-net header before a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Nothing.
    None,
    /// The checksum is left to the receiver.
    Checksum,
    /// The payload is that of many packets.
    Segments(u16),
}

/// The payload of a packet frame.
pub fn frame(mut packet: Vec<u8>, offload: Offload) -> Vec<u8> {
    let ipv6 = packet[0] >> 4 == 6;
    let (ip, protocol) = if ipv6 {
        (40, packet[6])
    } else {
        (20, packet[9])
    };
    let size = match offload {
        Offload::Segments(size) => Some(size),
        _ => None,
    };
    let vnet = match (offload, protocol) {
        (Offload::None, _) => VnetHeader::NONE,
        (_, TCP) => {
            let header = packet
                .get(usize::from(ip) + 12)
                .map_or(20, |b| u16::from(b >> 4) * 4);
            VnetHeader::tcp(ipv6, ip, header, size)
        }
        (_, UDP) => VnetHeader::udp(ip, size),
        _ => VnetHeader::NONE,
    };
    seal(&mut packet, vnet != VnetHeader::NONE);
    [&vnet.encode()[..], &packet[..]].concat()
}

/// Changes some bytes of a frame's payload; the checksums may be put right again.
pub fn damage(frame: &mut Vec<u8>, input: &mut Input<'_>) {
    let how = input.byte();
    for _ in 0..=how & 3 {
        let at = usize::from(input.word()) % frame.len().max(1);
        let byte = input.byte();
        match how >> 2 & 3 {
            0 | 1 => frame[at] ^= byte,
            2 => frame.insert(at, byte),
            _ => frame.truncate(at.max(VnetHeader::LEN + 1)),
        }
    }
    if how & 0x10 != 0
        && let Some((vnet, packet)) = VnetHeader::split(frame)
    {
        let mut packet = packet.to_vec();
        seal(&mut packet, vnet.needs_checksum());
        frame.splice(VnetHeader::LEN.., packet);
    }
}

/// Puts the checksums of a packet right as far as it has any; `partial` leaves the transport's to
/// the receiver.
fn seal(packet: &mut [u8], partial: bool) {
    let Some(first) = packet.first() else { return };
    let (ip, protocol_at, addresses) = match first >> 4 {
        4 => (usize::from(first & 15) * 4, 9, 12..20),
        6 => (40, 6, 8..40),
        _ => return,
    };
    if ip < 20 || packet.len() < ip.max(20) {
        return;
    }
    let ipv4 = ip < 40 || first >> 4 == 4;
    if ipv4 {
        packet[10..12].fill(0);
        let checksum = !fold(sum(&packet[..ip]));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        if packet[6] & 0x3f != 0 || packet[7] != 0 {
            return;
        }
    }
    let protocol = packet[protocol_at];
    let field = ip
        + match protocol {
            TCP => 16,
            UDP => 6,
            1 | 58 => 2,
            _ => return,
        };
    if packet.len() < field + 2 {
        return;
    }
    let length = u32::try_from(packet.len() - ip).expect("short");
    let pseudo = match protocol {
        1 => 0,
        _ => sum(&packet[addresses]) + u32::from(protocol) + length,
    };
    packet[field..field + 2].fill(0);
    let checksum = if partial {
        fold(pseudo)
    } else {
        match !fold(pseudo + sum(&packet[ip..])) {
            0 if protocol == UDP => 0xffff,
            checksum => checksum,
        }
    };
    packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

fn short(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}
