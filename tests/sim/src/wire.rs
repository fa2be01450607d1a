//! The enclave's packets, as its kernel writes and reads them at the tun.

use netd_proto::build;
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{Packet, Transport};
use std::net::{IpAddr, SocketAddr};

/// Its protocol number.
pub(crate) const TCP: u8 = 6;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

const OPTION_MSS: u8 = 2;
const OPTION_SCALE: u8 = 3;

/// Headers of a TCP segment; the options are those of a SYN.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    pub(crate) mss: Option<u16>,
    pub(crate) scale: Option<u8>,
}

/// What the sender's kernel leaves to the receiver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offload {
    /// The checksum is not completed.
    pub(crate) checksum: bool,
    /// Cut it into segments with so much payload.
    pub(crate) segment: Option<u16>,
}

/// A frame's payload: virtio-net header, IP, TCP, and a payload that `fill` writes.
pub(crate) fn segment(
    head: &Head,
    payload: usize,
    offload: Offload,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut options = Vec::new();
    if let Some(mss) = head.mss {
        options.extend([OPTION_MSS, 4]);
        options.extend(mss.to_be_bytes());
    }
    if let Some(scale) = head.scale {
        options.extend([1, OPTION_SCALE, 3, scale]);
    }
    let tcp_header = 20 + options.len();
    let ip_header = if head.from.is_ipv6() { 40 } else { 20 };
    let mut frame = vec![0; VnetHeader::LEN + ip_header + tcp_header + payload];
    let (vnet, packet) = frame.split_at_mut(VnetHeader::LEN);
    ip(packet, head.from.ip(), head.to.ip());
    let tcp = &mut packet[ip_header..];
    tcp[..2].copy_from_slice(&head.from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&head.to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&head.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&head.ack.to_be_bytes());
    tcp[12] = (tcp_header as u8 / 4) << 4;
    tcp[13] = head.flags;
    tcp[14..16].copy_from_slice(&head.window.to_be_bytes());
    tcp[20..tcp_header].copy_from_slice(&options);
    fill(&mut tcp[tcp_header..]);
    build::partial_tcp_checksum(packet);
    let header = VnetHeader::tcp(
        head.from.is_ipv6(),
        ip_header as u16,
        tcp_header as u16,
        offload.segment,
    );
    if offload.checksum {
        vnet.copy_from_slice(&header.encode());
    } else {
        build::complete_checksum(packet, &header);
    }
    frame
}

fn ip(packet: &mut [u8], from: IpAddr, to: IpAddr) {
    let length = packet.len();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            packet[6] = 0x40;
            packet[8] = 64;
            packet[9] = TCP;
            packet[12..16].copy_from_slice(&from.octets());
            packet[16..20].copy_from_slice(&to.octets());
            let sum: u32 = (packet[..20].chunks_exact(2))
                .map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])))
                .sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            let folded = (folded & 0xffff) + (folded >> 16);
            packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            packet[6] = TCP;
            packet[7] = 64;
            packet[8..24].copy_from_slice(&from.octets());
            packet[24..40].copy_from_slice(&to.octets());
        }
        _ => panic!("two families"),
    }
}

/// A TCP segment from the engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    pub(crate) scale: Option<u8>,
    pub(crate) payload: &'a [u8],
    /// The payload of each segment, where there are many.
    pub(crate) size: usize,
}

impl<'a> Segment<'a> {
    /// `None` if the packet is not TCP.
    pub(crate) fn of(packet: &Packet<'a>, vnet: &VnetHeader) -> Option<Segment<'a>> {
        let Transport::Tcp(tcp) = packet.transport() else {
            return None;
        };
        let header = packet.bytes().get(packet.transport_offset()..)?;
        let options = &header[20..usize::from(header[12] >> 4) * 4];
        let payload: &[u8] = &header[20 + options.len()..];
        Some(Segment {
            from: SocketAddr::new(packet.src(), tcp.source_port()),
            to: SocketAddr::new(packet.dst(), tcp.destination_port()),
            flags: header[13],
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            window: tcp.window_size(),
            scale: scale(options),
            payload,
            size: match vnet.gso_size {
                0 => payload.len(),
                size => usize::from(size),
            },
        })
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

fn scale(mut options: &[u8]) -> Option<u8> {
    loop {
        match options {
            [OPTION_SCALE, 3, scale, ..] => return Some(*scale),
            [1, rest @ ..] => options = rest,
            [kind, length, ..] if *kind > 1 => {
                options = options.get(usize::from(*length).max(2)..)?
            }
            _ => return None,
        }
    }
}

/// The reset of a kernel that knows no socket for `packet`; none for a reset.
pub(crate) fn reset(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let mut frame = vec![0; VnetHeader::LEN + 60];
    let length = build::tcp_reset(&mut frame[VnetHeader::LEN..], packet)?;
    frame.truncate(VnetHeader::LEN + length);
    Some(frame)
}

/// What a kernel does with a packet before any socket sees it: the engine's packets pass.
pub(crate) fn received(frame: &[u8]) -> (VnetHeader, Packet<'_>) {
    let (vnet, bytes) = VnetHeader::split(frame).expect("a virtio-net header");
    let packet = Packet::parse(bytes).expect("the engine sends valid packets");
    (vnet, packet)
}
