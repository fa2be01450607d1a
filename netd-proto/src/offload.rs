//! The virtio-net header that Linux puts before a packet of a tun device with `IFF_VNET_HDR`
//! (`struct virtio_net_hdr`, 10 bytes). It says what the receiver has to do that the sender left
//! undone: complete a checksum, or treat one TCP super-segment as many segments, or one UDP
//! super-datagram as many datagrams.

use crate::handshake::Features;
use crate::limits::MAX_DATAGRAMS;
use crate::packet::{Packet, Transport};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field holds the pseudo-header's sum only.
pub const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum was verified.
pub const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Offset of the checksum within a TCP header.
pub const TCP_CHECKSUM_OFFSET: u16 = 16;
/// Offset of the checksum within a UDP header.
pub const UDP_CHECKSUM_OFFSET: u16 = 6;

/// What is left to the receiver of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// Kind of super-segment: `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of IP and transport headers in bytes; a hint, but kernels before August 2023 need it.
    pub hdr_len: u16,
    /// Payload of each segment in bytes.
    pub gso_size: u16,
    /// Where the checksum begins, from the start of the packet.
    pub csum_start: u16,
    /// Where it is stored, from `csum_start`.
    pub csum_offset: u16,
}

/// The offload fields do not fit the packet. The packet is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the offload header does not fit its packet: {0}")]
pub struct OffloadError(&'static str);

impl VnetHeader {
    /// Bytes on the link and at the tun.
    pub const LEN: usize = 10;

    /// Nothing is left to do.
    pub const NONE: VnetHeader = VnetHeader {
        flags: 0,
        gso_type: 0,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Little-endian, as virtio 1.0 and every enclave's CPU have it.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_le_bytes());
        bytes
    }

    /// The header before a packet, and the packet. `None` if there is not even a header.
    pub fn split(frame: &[u8]) -> Option<(VnetHeader, &[u8])> {
        let (bytes, packet) = frame.split_first_chunk::<{ Self::LEN }>()?;
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let header = VnetHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
        };
        Some((header, packet))
    }

    /// A TCP segment whose checksum is left to the receiver; `gso_size` cuts it into segments.
    pub fn tcp(ipv6: bool, ip_header: u16, tcp_header: u16, gso_size: Option<u16>) -> VnetHeader {
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: match (gso_size, ipv6) {
                (None, _) => GSO_NONE,
                (Some(_), false) => GSO_TCPV4,
                (Some(_), true) => GSO_TCPV6,
            },
            hdr_len: ip_header + tcp_header,
            gso_size: gso_size.unwrap_or(0),
            csum_start: ip_header,
            csum_offset: TCP_CHECKSUM_OFFSET,
        }
    }

    /// A UDP datagram whose checksum is left to the receiver; `gso_size` cuts it into datagrams.
    pub fn udp(ip_header: u16, gso_size: Option<u16>) -> VnetHeader {
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: gso_size.map_or(GSO_NONE, |_| GSO_UDP_L4),
            hdr_len: ip_header + UDP_HEADER,
            gso_size: gso_size.unwrap_or(0),
            csum_start: ip_header,
            csum_offset: UDP_CHECKSUM_OFFSET,
        }
    }

    /// Payload of each datagram but the last, if the packet is a UDP super-datagram.
    pub fn datagram_size(&self) -> Option<u16> {
        (self.gso_type == GSO_UDP_L4).then_some(self.gso_size)
    }

    /// Whether the packet is one, not many.
    pub fn is_single(&self) -> bool {
        self.gso_type == GSO_NONE
    }

    /// Whether the packet's checksum was left to the receiver.
    pub fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// Checks every field against the packet it came with and against what the link's `features`
    /// permit, and the packet's transport checksum where the header does not vouch for it.
    ///
    /// # Errors
    /// A field points outside the packet or contradicts it, was not agreed on, or the checksum is
    /// wrong.
    pub fn check(&self, packet: &Packet<'_>, features: Features) -> Result<(), OffloadError> {
        if !features.contains(self.needs()) {
            return Err(OffloadError("an offload that was not agreed on"));
        }
        if self.flags & !(NEEDS_CSUM | DATA_VALID) != 0 {
            return Err(OffloadError("unknown flag"));
        }
        let checksum_at = match packet.transport() {
            Transport::Tcp(_) => Some(TCP_CHECKSUM_OFFSET),
            Transport::Udp(_) => Some(UDP_CHECKSUM_OFFSET),
            _ => None,
        };
        if self.needs_checksum()
            && (usize::from(self.csum_start) != packet.transport_offset()
                || Some(self.csum_offset) != checksum_at)
        {
            return Err(OffloadError(
                "the checksum's place is not that of the transport header",
            ));
        }
        match self.gso_type & !GSO_ECN {
            GSO_NONE if self.gso_type == GSO_NONE => {}
            GSO_TCPV4 | GSO_TCPV6 => self.check_segmentation(packet)?,
            GSO_UDP_L4 if self.gso_type == GSO_UDP_L4 => self.check_datagrams(packet)?,
            _ => return Err(OffloadError("unknown kind of segmentation")),
        }
        if !self.needs_checksum() && !packet.transport_checksum_is_right() {
            return Err(OffloadError("the checksum is wrong"));
        }
        Ok(())
    }

    /// What the link must have agreed on.
    fn needs(&self) -> Features {
        let checksum = if self.needs_checksum() {
            Features::CHECKSUM
        } else {
            Features::default()
        };
        checksum.or(match self.gso_type & !GSO_ECN {
            GSO_TCPV4 => Features::TSO4,
            GSO_TCPV6 => Features::TSO6,
            GSO_UDP_L4 => Features::USO,
            _ => Features::default(),
        })
    }

    fn check_datagrams(&self, packet: &Packet<'_>) -> Result<(), OffloadError> {
        let Transport::Udp(udp) = packet.transport() else {
            return Err(OffloadError("datagrams of something other than UDP"));
        };
        if !self.needs_checksum() {
            return Err(OffloadError("segmentation without checksum offload"));
        }
        if usize::from(self.hdr_len) > packet.transport_offset() + usize::from(UDP_HEADER) {
            return Err(OffloadError("the headers end before hdr_len"));
        }
        let (size, all) = (usize::from(self.gso_size), udp.payload().len());
        if size == 0 || all <= size || all > size * MAX_DATAGRAMS {
            return Err(OffloadError("a number of datagrams that no kernel sends"));
        }
        Ok(())
    }

    fn check_segmentation(&self, packet: &Packet<'_>) -> Result<(), OffloadError> {
        let Transport::Tcp(tcp) = packet.transport() else {
            return Err(OffloadError("segmentation of something other than TCP"));
        };
        let family = if packet.is_ipv6() {
            GSO_TCPV6
        } else {
            GSO_TCPV4
        };
        if self.gso_type & !GSO_ECN != family {
            return Err(OffloadError("segmentation of the other IP version"));
        }
        if !self.needs_checksum() {
            return Err(OffloadError("segmentation without checksum offload"));
        }
        let headers = packet.transport_offset() + tcp.header_slice().len();
        if usize::from(self.hdr_len) > headers {
            return Err(OffloadError("the headers end before hdr_len"));
        }
        if self.gso_size < MIN_SEGMENT || tcp.syn() {
            return Err(OffloadError("a segment size that no TCP uses"));
        }
        Ok(())
    }
}

const UDP_HEADER: u16 = 8;

/// Smallest segment worth accepting: below `TCP_MIN_SND_MSS` (48) a super-segment is an attack on
/// whoever has to cut it.
const MIN_SEGMENT: u16 = 48;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build;
    use proptest::prelude::*;

    fn tcp_packet(payload: usize) -> Vec<u8> {
        build::tests::tcp("100.64.0.2:40000", "192.0.2.1:443", payload)
    }

    #[test]
    fn a_super_segment_as_the_kernel_makes_it_is_right() {
        let bytes = tcp_packet(9000);
        let packet = Packet::parse(&bytes).expect("valid");
        assert_eq!(
            VnetHeader::tcp(false, 20, 20, Some(1460)).check(&packet, Features::ALL),
            Ok(())
        );
    }

    #[test]
    fn every_field_that_lies_is_found() {
        let bytes = tcp_packet(9000);
        let packet = Packet::parse(&bytes).expect("valid");
        let right = VnetHeader::tcp(false, 20, 20, Some(1460));
        let lies = [
            VnetHeader {
                flags: NEEDS_CSUM | 0x80,
                ..right
            },
            VnetHeader { flags: 0, ..right },
            VnetHeader {
                gso_type: GSO_TCPV6,
                ..right
            },
            VnetHeader {
                gso_type: 3,
                ..right
            },
            VnetHeader {
                gso_type: GSO_ECN,
                gso_size: 0,
                ..right
            },
            VnetHeader {
                gso_size: 0,
                ..right
            },
            VnetHeader {
                gso_size: 8,
                ..right
            },
            VnetHeader {
                hdr_len: 41,
                ..right
            },
            VnetHeader {
                csum_start: 65_535,
                ..right
            },
            VnetHeader {
                csum_offset: 6,
                ..right
            },
        ];
        for lie in lies {
            assert!(lie.check(&packet, Features::ALL).is_err(), "{lie:?}");
        }
    }

    #[test]
    fn a_super_datagram_as_the_kernel_makes_it_is_right() {
        for (size, payload) in [(1400, 1401), (1400, 60_000), (1, 128), (30_000, 60_000)] {
            let bytes = build::tests::udp("100.64.0.2:40000", "192.0.2.1:443", payload);
            let packet = Packet::parse(&bytes).expect("valid");
            let header = VnetHeader::udp(20, Some(size));
            assert_eq!(header.check(&packet, Features::ALL), Ok(()), "{size}");
        }
    }

    #[test]
    fn super_datagrams_that_lie_are_found() {
        let bytes = build::tests::udp("100.64.0.2:40000", "192.0.2.1:443", 9000);
        let udp = Packet::parse(&bytes).expect("valid");
        let bytes = tcp_packet(9000);
        let tcp = Packet::parse(&bytes).expect("valid");
        let right = VnetHeader::udp(20, Some(1400));
        let size = |gso_size| VnetHeader { gso_size, ..right };
        let lies = [
            VnetHeader { flags: 0, ..right },
            VnetHeader {
                gso_type: GSO_UDP_L4 | GSO_ECN,
                ..right
            },
            VnetHeader {
                hdr_len: 29,
                ..right
            },
            VnetHeader {
                csum_start: 0,
                ..right
            },
            VnetHeader {
                csum_offset: 16,
                ..right
            },
            size(0),
            size(9000),
            size(u16::MAX),
            // More datagrams than MAX_DATAGRAMS.
            size(70),
        ];
        for lie in lies {
            assert!(lie.check(&udp, Features::ALL).is_err(), "{lie:?}");
        }
        let over_tcp = VnetHeader {
            csum_offset: TCP_CHECKSUM_OFFSET,
            ..right
        };
        assert!(over_tcp.check(&tcp, Features::ALL).is_err());
        let tcp_over_udp = VnetHeader {
            gso_type: GSO_TCPV4,
            ..right
        };
        assert!(tcp_over_udp.check(&udp, Features::ALL).is_err());
    }

    #[test]
    fn what_was_not_agreed_on_is_refused() {
        let bytes = tcp_packet(9000);
        let tcp = Packet::parse(&bytes).expect("valid");
        let bytes = build::tests::udp("100.64.0.2:40000", "192.0.2.1:443", 9000);
        let udp = Packet::parse(&bytes).expect("valid");
        for (packet, header, needs) in [
            (&tcp, VnetHeader::NONE, Features::default()),
            (
                &tcp,
                VnetHeader::tcp(false, 20, 20, None),
                Features::CHECKSUM,
            ),
            (
                &tcp,
                VnetHeader::tcp(false, 20, 20, Some(1460)),
                Features::CHECKSUM.or(Features::TSO4),
            ),
            (
                &udp,
                VnetHeader::udp(20, Some(1400)),
                Features::CHECKSUM.or(Features::USO),
            ),
        ] {
            assert_eq!(header.check(packet, needs), Ok(()), "{header:?}");
            for bit in (0..4).map(|bit| Features(1 << bit)) {
                let less = Features(needs.0 & !bit.0);
                let refused = header.check(packet, less).is_err();
                assert_eq!(refused, needs.contains(bit), "{header:?} with {less}");
            }
        }
    }

    #[test]
    fn a_wrong_checksum_is_found_unless_it_was_left_to_us() {
        let mut bytes = tcp_packet(10);
        let packet = Packet::parse(&bytes).expect("valid");
        assert_eq!(VnetHeader::NONE.check(&packet, Features::ALL), Ok(()));

        *bytes.last_mut().expect("not empty") ^= 1;
        let packet = Packet::parse(&bytes).expect("valid");
        assert!(VnetHeader::NONE.check(&packet, Features::ALL).is_err());
        assert_eq!(
            VnetHeader::tcp(false, 20, 20, None).check(&packet, Features::ALL),
            Ok(())
        );
    }

    proptest! {
        #[test]
        fn fields_survive_the_way(flags: u8, gso_type: u8, fields: [u16; 4]) {
            let [hdr_len, gso_size, csum_start, csum_offset] = fields;
            let header = VnetHeader { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset };
            let bytes = header.encode();
            prop_assert_eq!(VnetHeader::split(&bytes), Some((header, &[][..])));
        }

        #[test]
        fn any_header_on_a_packet_is_judged_without_panic(
            bytes: [u8; 10],
            payload in 0usize..2000,
            udp: bool,
        ) {
            let packet = if udp {
                build::tests::udp("100.64.0.2:40000", "192.0.2.1:443", payload)
            } else {
                tcp_packet(payload)
            };
            let packet = Packet::parse(&packet).expect("valid");
            let (header, _) = VnetHeader::split(&bytes).expect("10 bytes");
            let _ = header.check(&packet, Features::ALL);
        }
    }
}
