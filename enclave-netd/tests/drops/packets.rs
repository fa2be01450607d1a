//! Packets, right and wrong.

use crate::common::segments::{build, ip};
use etherparse::{Icmpv4Type, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader};
use netd_proto::offload::VnetHeader;
use std::net::SocketAddr;

pub const US: [&str; 2] = ["100.64.0.2", "fd00:6e65:7464::2"];
pub const PEER: [&str; 2] = ["192.0.2.7", "2001:db8::7"];
pub const GATEWAY: [&str; 2] = ["100.64.0.1", "fd00:6e65:7464::1"];
/// Published, so that only what is wrong with a packet keeps it out.
pub const TCP: u16 = 3000;
pub const UDP: u16 = 5353;

pub fn framed(vnet: VnetHeader, packet: &[u8]) -> Vec<u8> {
    [vnet.encode().as_slice(), packet].concat()
}

pub fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().expect(text), port)
}

/// A segment that the guard lets in and the kernel answers with a reset.
pub fn tcp(from: &str, to: &str) -> Vec<u8> {
    build(address(from, 443), address(to, TCP), 1, Some(1), "")
}

pub fn udp(from: &str, to: &str, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(from.parse().expect(from), to.parse().expect(to))
        .udp(443, port)
        .write(&mut bytes, payload)
        .expect("built");
    bytes
}

/// An IP header before any bytes.
pub fn other(family: usize, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(
        PEER[family].parse().expect("valid"),
        US[family].parse().expect("valid"),
    )
    .write(&mut bytes, protocol, payload)
    .expect("built");
    bytes
}

pub fn icmp(family: usize, kind: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (code_u8, bytes5to8) = (0, [0; 4]);
    let ip = ip(
        PEER[family].parse().expect("valid"),
        US[family].parse().expect("valid"),
    );
    let written = if family == 0 {
        let unknown = Icmpv4Type::Unknown {
            type_u8: kind,
            code_u8,
            bytes5to8,
        };
        ip.icmpv4(unknown).write(&mut bytes, &[0; 24])
    } else {
        let unknown = Icmpv6Type::Unknown {
            type_u8: kind,
            code_u8,
            bytes5to8,
        };
        ip.icmpv6(unknown).write(&mut bytes, &[0; 24])
    };
    written.expect("built");
    bytes
}

pub fn changed(packet: &[u8], at: usize, byte: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[at] = byte;
    if packet[0] == 0x45 && at < 20 && at != 10 {
        // Only the change is to be found fault with.
        if let Ok((header, _)) = Ipv4Header::from_slice(&packet) {
            packet[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        }
    }
    packet
}

pub fn fragment(packet: &[u8], offset: u16, more: bool) -> Vec<u8> {
    let place = IpFragOffset::try_new(offset).expect("small");
    if packet[0] >> 4 == 4 {
        let mut header = Ipv4Header::from_slice(packet).expect("valid").0;
        (header.fragment_offset, header.more_fragments) = (place, more);
        header.dont_fragment = false;
        header.header_checksum = header.calc_header_checksum();
        return [&header.to_bytes()[..], &packet[20..]].concat();
    }
    let header = Ipv6FragmentHeader::new(IpNumber::UDP, place, more, 7);
    insert(packet, 44, &header.to_bytes())
}

/// An extension header of eight bytes, padded.
pub fn with_extension(packet: &[u8], kind: u8) -> Vec<u8> {
    insert(packet, kind, &[packet[6], 0, 1, 4, 0, 0, 0, 0])
}

pub fn insert(packet: &[u8], kind: u8, extension: &[u8]) -> Vec<u8> {
    let length = u16::try_from(packet.len() - 40 + extension.len()).expect("short");
    let mut all = [&packet[..40], extension, &packet[40..]].concat();
    all[4..6].copy_from_slice(&length.to_be_bytes());
    all[6] = kind;
    all
}
