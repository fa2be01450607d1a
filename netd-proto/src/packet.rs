//! An IP packet, validated once.
//!
//! [`Packet::parse`] is the one place where lengths, versions and headers of a packet from the
//! other side are checked; everything behind it relies on the type. It borrows the packet and
//! allocates nothing.

use etherparse::checksum::Sum16BitWords;
use etherparse::{IpNumber, IpSlice, TcpSlice, UdpSlice};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Transport protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// ICMP or ICMPv6 echo; the identifier takes the place of the enclave's port.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
        })
    }
}

/// Names one flow: who speaks with whom, as the packet says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Transport.
    pub protocol: Protocol,
    /// Sender of the packet.
    pub src: SocketAddr,
    /// Its destination.
    pub dst: SocketAddr,
}

impl FlowKey {
    /// The key of packets of the same flow in the other direction.
    pub fn reversed(self) -> FlowKey {
        FlowKey {
            protocol: self.protocol,
            src: self.dst,
            dst: self.src,
        }
    }
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} > {}", self.protocol, self.src, self.dst)
    }
}

/// ICMP or ICMPv6 echo request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Request or reply.
    pub request: bool,
    /// Tells one pinging program from another.
    pub identifier: u16,
    /// Tells one request from another.
    pub sequence: u16,
    /// Comes back as it went.
    pub payload: &'a [u8],
}

/// A part of a packet that was cut by a router or the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// Same in all fragments of a packet.
    pub identification: u32,
    /// Where the payload belongs, in units of 8 bytes.
    pub offset: u16,
    /// Whether another follows.
    pub more: bool,
    /// IP protocol number of the whole.
    pub protocol: u8,
    /// This part.
    pub payload: &'a [u8],
}

/// What is above IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport<'a> {
    /// A TCP segment; may be a super-segment.
    Tcp(TcpSlice<'a>),
    /// A UDP datagram.
    Udp(UdpSlice<'a>),
    /// ICMP or ICMPv6 echo.
    Echo(Echo<'a>),
    /// Any other ICMP or ICMPv6 message.
    Icmp {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
    },
    /// A fragment of anything.
    Fragment(Fragment<'a>),
    /// Any other protocol, by its IP protocol number.
    Other(u8),
}

/// Why bytes are not a packet that this network carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Lengths of headers and bytes contradict each other.
    #[error("the lengths in its headers do not match")]
    Length,
    /// Neither version 4 nor 6, or a header that no sender makes.
    #[error("its IP header is malformed")]
    Header,
    /// IPv4 options or IPv6 extension headers other than that of a fragment: source routes and the
    /// like, which no host needs (RFC 7126).
    #[error("it carries IP options")]
    Options,
    /// The IPv4 header checksum is wrong.
    #[error("its IPv4 header checksum is wrong")]
    HeaderChecksum,
    /// The TCP, UDP or ICMP header is malformed.
    #[error("its transport header is malformed")]
    Transport,
}

/// A valid IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    src: IpAddr,
    dst: IpAddr,
    hop_limit: u8,
    dont_fragment: bool,
    transport_offset: usize,
    transport: Transport<'a>,
}

impl<'a> Packet<'a> {
    /// Validates `bytes` as exactly one packet.
    ///
    /// # Errors
    /// What is wrong with it, to be counted by the caller. The transport checksum is not looked
    /// at here, because the virtio-net header may leave it to the receiver: see
    /// [`VnetHeader::check`](crate::offload::VnetHeader::check).
    pub fn parse(bytes: &'a [u8]) -> Result<Packet<'a>, PacketError> {
        let ip = IpSlice::from_slice(bytes).map_err(|_| PacketError::Header)?;
        let (hop_limit, dont_fragment, fragment) = match &ip {
            IpSlice::Ipv4(v4) => {
                let header = v4.header();
                if usize::from(header.total_len()) != bytes.len() {
                    return Err(PacketError::Length);
                }
                if !header.options().is_empty() || v4.extensions().auth.is_some() {
                    return Err(PacketError::Options);
                }
                if Sum16BitWords::new()
                    .add_slice(header.slice())
                    .ones_complement()
                    != 0
                {
                    return Err(PacketError::HeaderChecksum);
                }
                let fragment = header.is_fragmenting_payload().then(|| {
                    let offset = header.fragments_offset().value();
                    (
                        u32::from(header.identification()),
                        offset,
                        header.more_fragments(),
                    )
                });
                (header.ttl(), header.dont_fragment(), fragment)
            }
            IpSlice::Ipv6(v6) => {
                let header = v6.header();
                if usize::from(header.payload_length()) + header.slice().len() != bytes.len() {
                    return Err(PacketError::Length);
                }
                let mut fragment = None;
                for extension in v6.extensions().clone() {
                    let etherparse::Ipv6ExtensionSlice::Fragment(f) = extension else {
                        return Err(PacketError::Options);
                    };
                    if f.is_fragmenting_payload() {
                        let offset = f.fragment_offset().value();
                        fragment = Some((f.identification(), offset, f.more_fragments()));
                    }
                }
                (header.hop_limit(), true, fragment)
            }
        };
        let whole = ip.payload();
        let payload = whole.payload;
        let transport = match fragment {
            Some((identification, offset, more)) => Transport::Fragment(Fragment {
                identification,
                offset,
                more,
                protocol: whole.ip_number.0,
                payload,
            }),
            None => Transport::parse(whole.ip_number.0, payload, bytes[0] >> 4 == 6)?,
        };
        Ok(Packet {
            bytes,
            src: ip.source_addr(),
            dst: ip.destination_addr(),
            hop_limit,
            dont_fragment,
            transport_offset: bytes.len() - payload.len(),
            transport,
        })
    }

    /// The whole packet.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Sender.
    pub fn src(&self) -> IpAddr {
        self.src
    }

    /// Destination.
    pub fn dst(&self) -> IpAddr {
        self.dst
    }

    /// Time to live (IPv4) or hop limit (IPv6).
    pub fn hop_limit(&self) -> u8 {
        self.hop_limit
    }

    /// Whether no router may cut it: always so in IPv6.
    pub fn dont_fragment(&self) -> bool {
        self.dont_fragment
    }

    /// Whether it is IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.src.is_ipv6()
    }

    /// Where the transport header begins, from the start of the packet.
    pub fn transport_offset(&self) -> usize {
        self.transport_offset
    }

    /// What is above IP.
    pub fn transport(&self) -> &Transport<'a> {
        &self.transport
    }

    /// The flow of a TCP segment, UDP datagram or echo; `None` for anything else.
    pub fn flow_key(&self) -> Option<FlowKey> {
        let (protocol, src, dst) = match &self.transport {
            Transport::Tcp(tcp) => (Protocol::Tcp, tcp.source_port(), tcp.destination_port()),
            Transport::Udp(udp) => (Protocol::Udp, udp.source_port(), udp.destination_port()),
            Transport::Echo(echo) if echo.request => (Protocol::Icmp, echo.identifier, 0),
            Transport::Echo(echo) => (Protocol::Icmp, 0, echo.identifier),
            Transport::Icmp { .. } | Transport::Fragment(_) | Transport::Other(_) => return None,
        };
        let (src, dst) = (
            SocketAddr::new(self.src, src),
            SocketAddr::new(self.dst, dst),
        );
        Some(FlowKey { protocol, src, dst })
    }

    /// Computes the transport checksum. True also for what has none.
    pub fn transport_checksum_is_right(&self) -> bool {
        let segment = &self.bytes[self.transport_offset..];
        (self.transport).checksum_is_right(self.src, self.dst, segment)
    }
}

impl<'a> Transport<'a> {
    /// Computes the checksum of `segment`, which this was parsed from, between `src` and `dst`.
    /// True also for what has none.
    pub fn checksum_is_right(&self, src: IpAddr, dst: IpAddr, segment: &[u8]) -> bool {
        let ipv6 = src.is_ipv6();
        let pseudo = |protocol| pseudo_header(src, dst, protocol, segment.len());
        let sum = match self {
            Transport::Tcp(_) => pseudo(IpNumber::TCP.0),
            Transport::Udp(udp) if udp.checksum() == 0 => return !ipv6,
            Transport::Udp(_) => pseudo(IpNumber::UDP.0),
            Transport::Echo(_) | Transport::Icmp { .. } if ipv6 => pseudo(IpNumber::IPV6_ICMP.0),
            Transport::Echo(_) | Transport::Icmp { .. } => Sum16BitWords::new(),
            Transport::Fragment(_) | Transport::Other(_) => return true,
        };
        sum.add_slice(segment).ones_complement() == 0
    }

    /// Parses what is above IP: `payload` of IP protocol `protocol`, whole, not a fragment.
    ///
    /// # Errors
    /// The transport's header is malformed.
    pub fn parse(protocol: u8, payload: &'a [u8], ipv6: bool) -> Result<Self, PacketError> {
        let error = |_| PacketError::Transport;
        Ok(match IpNumber(protocol) {
            IpNumber::TCP => {
                Transport::Tcp(TcpSlice::from_slice(payload).map_err(|_| PacketError::Transport)?)
            }
            IpNumber::UDP => {
                let udp = UdpSlice::from_slice(payload).map_err(error)?;
                if usize::from(udp.length()) != payload.len() {
                    return Err(PacketError::Transport);
                }
                Transport::Udp(udp)
            }
            IpNumber::ICMP if !ipv6 => Self::icmp(payload, 8, 0)?,
            IpNumber::IPV6_ICMP if ipv6 => Self::icmp(payload, 128, 129)?,
            IpNumber(other) => Transport::Other(other),
        })
    }

    fn icmp(message: &'a [u8], request: u8, reply: u8) -> Result<Self, PacketError> {
        let Some((&[kind, code, _, _, i0, i1, s0, s1], payload)) = message.split_first_chunk()
        else {
            return Err(PacketError::Transport);
        };
        if (kind != request && kind != reply) || code != 0 {
            return Ok(Transport::Icmp { kind, code });
        }
        Ok(Transport::Echo(Echo {
            request: kind == request,
            identifier: u16::from_be_bytes([i0, i1]),
            sequence: u16::from_be_bytes([s0, s1]),
            payload,
        }))
    }
}

/// The sum of the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 3.1, RFC 8200 8.1).
pub(crate) fn pseudo_header(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    length: usize,
) -> Sum16BitWords {
    let mut sum = Sum16BitWords::new();
    for address in [src, dst] {
        sum = match address {
            IpAddr::V4(v4) => sum.add_4bytes(v4.octets()),
            IpAddr::V6(v6) => sum.add_16bytes(v6.octets()),
        };
    }
    #[expect(clippy::cast_possible_truncation, reason = "no packet reaches 4 GiB")]
    sum.add_4bytes((length as u32).to_be_bytes())
        .add_2bytes([0, protocol])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn samples() -> Vec<Vec<u8>> {
        vec![
            build::tests::tcp("100.64.0.2:40000", "192.0.2.1:443", 100),
            build::tests::tcp("[fd00:6e65:7464::2]:40000", "[2001:db8::1]:443", 100),
            build::tests::udp("100.64.0.2:5353", "192.0.2.1:53", 33),
            build::tests::udp("[fd00:6e65:7464::2]:5353", "[2001:db8::1]:53", 33),
            build::tests::echo("100.64.0.2", "192.0.2.1", 56),
            build::tests::echo("fd00:6e65:7464::2", "2001:db8::1", 56),
        ]
    }

    #[test]
    fn flow_keys_name_both_ends() {
        let keys: Vec<_> = samples()
            .iter()
            .map(|bytes| {
                Packet::parse(bytes)
                    .expect("valid")
                    .flow_key()
                    .expect("has one")
                    .to_string()
            })
            .collect();
        assert_eq!(
            keys,
            [
                "tcp 100.64.0.2:40000 > 192.0.2.1:443",
                "tcp [fd00:6e65:7464::2]:40000 > [2001:db8::1]:443",
                "udp 100.64.0.2:5353 > 192.0.2.1:53",
                "udp [fd00:6e65:7464::2]:5353 > [2001:db8::1]:53",
                "icmp 100.64.0.2:7 > 192.0.2.1:0",
                "icmp [fd00:6e65:7464::2]:7 > [2001:db8::1]:0",
            ]
        );
    }

    #[test]
    fn options_of_both_families_are_refused_and_a_fragment_of_everything_is_whole() {
        let extended = |kind: u8, header: [u8; 8]| {
            let plain = build::tests::udp("[fd00:6e65:7464::2]:5353", "[2001:db8::1]:53", 32);
            let mut bytes = [&plain[..40], &header, &plain[40..]].concat();
            bytes[6] = kind;
            bytes[5] += 8;
            bytes
        };
        for kind in [0, 43, 60] {
            let bytes = extended(kind, [17, 0, 1, 4, 0, 0, 0, 0]);
            assert_eq!(
                Packet::parse(&bytes).err(),
                Some(PacketError::Options),
                "{kind}"
            );
        }
        let bytes = extended(44, [17, 0, 0, 0, 1, 2, 3, 4]);
        let packet = Packet::parse(&bytes).expect("valid");
        assert!(matches!(packet.transport(), Transport::Udp(_)));

        let mut bytes = build::tests::udp("100.64.0.2:5353", "192.0.2.1:53", 32);
        let authentication = [17, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
        bytes.splice(20..20, authentication.into_iter().chain([0; 12]));
        bytes[3] += 24;
        bytes[9] = 51;
        bytes[10..12].fill(0);
        let sum = Sum16BitWords::new()
            .add_slice(&bytes[..20])
            .ones_complement();
        bytes[10..12].copy_from_slice(&sum.to_ne_bytes());
        assert_eq!(Packet::parse(&bytes).err(), Some(PacketError::Options));
    }

    #[test]
    fn checksums_of_every_kind_are_found_right_and_wrong() {
        for mut bytes in samples() {
            assert!(
                Packet::parse(&bytes)
                    .expect("valid")
                    .transport_checksum_is_right()
            );
            *bytes.last_mut().expect("not empty") ^= 0x10;
            assert!(
                !Packet::parse(&bytes)
                    .expect("valid")
                    .transport_checksum_is_right()
            );
        }
    }

    #[test]
    fn a_udp_datagram_without_checksum_is_right_in_ipv4_only() {
        for (index, expected) in [(2, true), (3, false)] {
            let mut bytes = samples().swap_remove(index);
            let at = Packet::parse(&bytes).expect("valid").transport_offset() + 6;
            bytes[at..at + 2].fill(0);
            let packet = Packet::parse(&bytes).expect("valid");
            assert_eq!(packet.transport_checksum_is_right(), expected);
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        for bytes in samples() {
            for length in 0..bytes.len() {
                assert!(
                    Packet::parse(&bytes[..length]).is_err(),
                    "{length} of {}",
                    bytes.len()
                );
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert_eq!(Packet::parse(&longer), Err(PacketError::Length));
        }
    }

    #[test]
    fn ipv4_options_and_a_wrong_header_checksum_are_refused() {
        let mut bytes = samples().swap_remove(0);
        bytes[8] ^= 1;
        assert_eq!(Packet::parse(&bytes), Err(PacketError::HeaderChecksum));

        let mut bytes = samples().swap_remove(2);
        bytes.splice(20..20, [7, 4, 4, 0]);
        bytes[0] = 0x46;
        let length = u16::try_from(bytes.len()).expect("short");
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        assert_eq!(Packet::parse(&bytes), Err(PacketError::Options));
    }

    #[test]
    fn a_fragment_tells_where_it_belongs() {
        let mut bytes = samples().swap_remove(2);
        bytes[4..8].copy_from_slice(&[0x12, 0x34, 0x20, 0x05]);
        build::tests::fix_ipv4_checksum(&mut bytes);

        let packet = Packet::parse(&bytes).expect("valid");

        let Transport::Fragment(fragment) = packet.transport() else {
            panic!("{packet:?}")
        };
        assert_eq!(
            (fragment.identification, fragment.offset, fragment.more),
            (0x1234, 5, true)
        );
        assert_eq!(fragment.protocol, 17);
        assert_eq!(packet.flow_key(), None);
    }

    proptest! {
        #[test]
        fn garbage_is_judged_without_panic(bytes in vec(any::<u8>(), 0..200)) {
            if let Ok(packet) = Packet::parse(&bytes) {
                packet.flow_key();
                packet.transport_checksum_is_right();
            }
        }

        #[test]
        fn a_valid_packet_with_any_bytes_changed_is_judged_without_panic(
            which in 0usize..6,
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            fix: bool,
        ) {
            let mut bytes = samples().swap_remove(which);
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if fix && bytes[0] >> 4 == 4 {
                build::tests::fix_ipv4_checksum(&mut bytes);
            }
            if let Ok(packet) = Packet::parse(&bytes) {
                packet.flow_key();
                packet.transport_checksum_is_right();
                prop_assert!(packet.transport_offset() <= bytes.len());
            }
        }
    }
}
