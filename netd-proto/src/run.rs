//! Runs: consecutive UDP datagrams of one flow, gathered into one super-datagram.
//!
//! A program that streams over UDP makes many datagrams of one size, and each costs a look-up, a
//! check and a system call at every step. A run makes one packet of them: one set of headers, the
//! payloads behind each other, and `VIRTIO_NET_HDR_GSO_UDP_L4` in the virtio-net header with the
//! size that cuts it into the same datagrams again. That is the form in which Linux itself hands
//! over what a program sent with `UDP_SEGMENT`, takes it at a tun device, and sends it.
//!
//! All datagrams of a run but the last have the size of the first; a shorter one ends it. So every
//! boundary is kept. Nothing waits for a run to become longer: it is sealed as soon as there is
//! nothing more to take.
//!
//! A run is gathered in place, in the space of one packet of a [`Queue`](crate::frame::Queue):
//! the next payload is received right behind the last. What does not fit the run has to be moved
//! away before the run is sealed.

use crate::build::{self, udp_headroom};
use crate::limits::RUN_DATAGRAMS;
use crate::offload::VnetHeader;
use crate::packet::{Packet, Transport, pseudo_header};
use etherparse::IpNumber;
use etherparse::checksum::Sum16BitWords;
use std::net::{IpAddr, SocketAddr};

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// Longest UDP payload of a run, in IPv6 as in IPv4.
const MAX_PAYLOAD: usize = crate::build::MAX_UDP_PAYLOAD;

/// Most bytes before the payload: virtio-net, IPv6 and UDP headers.
const MAX_HEADERS: usize = VnetHeader::LEN + udp_headroom(true);

/// A run that is being gathered at the start of a packet's space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    ipv6: bool,
    segment: u16,
    end: usize,
    count: usize,
    ended: bool,
}

impl Run {
    /// A run of one datagram with `length` bytes of payload, whose headers and payload are in
    /// their place. `None` if the datagram is empty or too long to be in a run.
    pub fn new(ipv6: bool, length: usize) -> Option<Run> {
        let segment = u16::try_from(length).ok()?;
        (1..=MAX_PAYLOAD).contains(&length).then_some(Run {
            ipv6,
            segment,
            end: VnetHeader::LEN + udp_headroom(ipv6) + length,
            count: 1,
            ended: false,
        })
    }

    /// A run of one that begins with this packet. `None` where gathering would lose something:
    /// extension headers, a checksum of the sender's own, or none.
    pub fn begin(vnet: &VnetHeader, packet: &Packet<'_>) -> Option<Run> {
        let Transport::Udp(udp) = packet.transport() else {
            return None;
        };
        let plain = packet.transport_offset() + 8 == udp_headroom(packet.is_ipv6());
        if !plain || !vnet.is_single() || !vnet.needs_checksum() {
            return None;
        }
        Run::new(packet.is_ipv6(), udp.payload().len())
    }

    /// Bytes before the payload.
    pub fn headers(&self) -> usize {
        VnetHeader::LEN + udp_headroom(self.ipv6)
    }

    /// Longest payload that may join, in bytes.
    pub fn segment(&self) -> usize {
        usize::from(self.segment)
    }

    /// Length of the frame's payload so far; the next datagram's payload goes there.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Whether another datagram may join.
    pub fn may_grow(&self) -> bool {
        !self.ended
            && self.count < RUN_DATAGRAMS
            && self.end + self.segment() <= self.headers() + MAX_PAYLOAD
    }

    /// Lets a datagram join whose `length` bytes of payload are at [`end`](Self::end). False if it
    /// does not fit.
    pub fn join(&mut self, length: usize) -> bool {
        if !self.may_grow() || length == 0 || length > self.segment() {
            return false;
        }
        self.end += length;
        self.count += 1;
        self.ended = length < self.segment();
        true
    }

    /// Whether `headers` (virtio-net, IP, UDP), those of a packet with `length` bytes of UDP
    /// payload, are what those of `first` would be with this payload: same flow, same options,
    /// checksum left to the receiver. Identification and checksums are not looked at.
    pub fn is_alike(&self, first: &[u8], headers: &[u8], length: usize) -> bool {
        let (n, ip) = (self.headers(), VnetHeader::LEN);
        let udp = n - 8;
        let field = |at: usize| usize::from(u16::from_be_bytes([headers[at], headers[at + 1]]));
        let same = |from: usize, to: usize| first[from..to] == headers[from..to];
        let lengths = if self.ipv6 {
            field(ip + 4) == 8 + length && same(0, ip + 4) && same(ip + 6, udp)
        } else {
            field(ip + 2) == IPV4_HEADER + 8 + length
                && same(0, ip + 2)
                && same(ip + 6, ip + 10)
                && same(ip + 12, udp)
        };
        lengths && same(udp, udp + 4) && field(udp + 4) == 8 + length
    }

    /// Completes the headers at the start of `space`. Returns the length of the frame's payload.
    pub fn seal(self, space: &mut [u8]) -> usize {
        if self.count > 1 {
            mark_super_datagram(self.ipv6, self.segment, &mut space[..self.end]);
        }
        self.end
    }
}

/// Rewrites the headers of one UDP datagram at the start of `frame` into those of a super-datagram:
/// all that is behind them is payload, to be cut every `segment` bytes.
///
/// # Panics
/// When `frame` is shorter than the headers of IPv4 or IPv6 without options.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a frame's UDP length has 16 bits"
)]
pub fn mark_super_datagram(ipv6: bool, segment: u16, frame: &mut [u8]) {
    let ip_header = if ipv6 { IPV6_HEADER } else { IPV4_HEADER };
    let (vnet, packet) = frame.split_at_mut(VnetHeader::LEN);
    vnet.copy_from_slice(&VnetHeader::udp(ip_header as u16, Some(segment)).encode());
    let udp_len = packet.len() - ip_header;
    let (src, dst): (IpAddr, IpAddr) = if ipv6 {
        packet[4..6].copy_from_slice(&(udp_len as u16).to_be_bytes());
        let octets = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("16 bytes");
        (octets(8).into(), octets(24).into())
    } else {
        let total = packet.len() as u16;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[10..12].fill(0);
        let sum = Sum16BitWords::new().add_slice(&packet[..IPV4_HEADER]);
        packet[10..12].copy_from_slice(&sum.ones_complement().to_ne_bytes());
        let octets = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).expect("four bytes");
        (octets(12).into(), octets(16).into())
    };
    let partial = !pseudo_header(src, dst, IpNumber::UDP.0, udp_len).ones_complement();
    let udp = &mut packet[ip_header..];
    udp[4..6].copy_from_slice(&(udp_len as u16).to_be_bytes());
    udp[6..8].copy_from_slice(&partial.to_ne_bytes());
}

/// Shows the datagrams of a super-datagram that is cut every `size` bytes: for each the headers
/// (virtio-net, IP, UDP; the checksum is left to the receiver) and the payload. Nothing if the
/// packet is not UDP.
pub fn cut(size: u16, packet: &Packet<'_>, mut show: impl FnMut(&[u8], &[u8])) {
    let Transport::Udp(udp) = packet.transport() else {
        return;
    };
    let src = SocketAddr::new(packet.src(), udp.source_port());
    let dst = SocketAddr::new(packet.dst(), udp.destination_port());
    let mut space = [0; MAX_HEADERS];
    let headers = &mut space[..VnetHeader::LEN + udp_headroom(packet.is_ipv6())];
    for payload in udp.payload().chunks(usize::from(size).max(1)) {
        let (vnet, ip) = headers.split_at_mut(VnetHeader::LEN);
        let (_, left) = build::udp(ip, src, dst, packet.hop_limit(), payload.len());
        vnet.copy_from_slice(&left.encode());
        show(headers, payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::Features;
    use crate::limits::MAX_PACKET_FRAME;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const FLOWS: [(&str, &str); 2] = [
        ("100.64.0.2:40000", "192.0.2.1:443"),
        ("[fd00:6e65:7464::2]:40000", "[2001:db8::1]:443"),
    ];

    /// A frame's payload as a kernel makes it.
    fn datagram(flow: usize, payload: &[u8]) -> Vec<u8> {
        let (src, dst) = FLOWS[flow];
        let (src, dst): (SocketAddr, SocketAddr) =
            (src.parse().expect("valid"), dst.parse().expect("valid"));
        let headroom = build::udp_headroom(src.is_ipv6());
        let mut packet = vec![0; headroom];
        packet.extend(payload);
        let (_, vnet) = build::udp(&mut packet, src, dst, 64, payload.len());
        [vnet.encode().as_slice(), &packet].concat()
    }

    /// The payloads of the datagrams that a receiver cuts `frame` into.
    fn payloads(frame: &[u8]) -> Vec<Vec<u8>> {
        let (vnet, bytes) = VnetHeader::split(frame).expect("a header");
        let packet = Packet::parse(bytes).expect("valid");
        assert_eq!(vnet.check(&packet, Features::ALL), Ok(()));
        let Transport::Udp(udp) = packet.transport() else {
            panic!("{packet:?}")
        };
        let mut whole = bytes.to_vec();
        build::complete_checksum(&mut whole, &vnet);
        assert!(
            Packet::parse(&whole)
                .expect("valid")
                .transport_checksum_is_right()
        );
        let Some(size) = vnet.datagram_size() else {
            return vec![udp.payload().to_vec()];
        };
        let mut payloads = Vec::new();
        cut(size, &packet, |headers, payload| {
            let one = [headers, payload].concat();
            let (vnet, bytes) = VnetHeader::split(&one).expect("a header");
            let one = Packet::parse(bytes).expect("valid");
            assert_eq!(vnet.check(&one, Features::CHECKSUM), Ok(()));
            assert_eq!(one.flow_key(), packet.flow_key());
            payloads.push(payload.to_vec());
        });
        payloads
    }

    /// Gathers frames as a daemon does; returns those that go on the link.
    fn gather(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut sealed = Vec::new();
        let mut space = vec![0; MAX_PACKET_FRAME];
        let mut open: Option<Run> = None;
        for frame in frames {
            if let Some(run) = &mut open {
                let (headers, payload) = frame.split_at(run.headers().min(frame.len()));
                let n = payload.len();
                if run.may_grow()
                    && n <= run.segment()
                    && run.is_alike(&space[..run.headers()], headers, n)
                {
                    space[run.end()..run.end() + n].copy_from_slice(payload);
                    if run.join(n) {
                        continue;
                    }
                }
                let n = run.seal(&mut space);
                sealed.push(space[..n].to_vec());
            }
            space[..frame.len()].copy_from_slice(frame);
            let (vnet, packet) = VnetHeader::split(frame).expect("a header");
            let packet = Packet::parse(packet).expect("valid");
            open = Run::begin(&vnet, &packet);
            if open.is_none() {
                sealed.push(frame.clone());
            }
        }
        if let Some(run) = open {
            let n = run.seal(&mut space);
            sealed.push(space[..n].to_vec());
        }
        sealed
    }

    #[test]
    fn datagrams_of_one_size_and_a_shorter_last_are_one_packet() {
        for flow in [0, 1] {
            let sent = [vec![1; 1400], vec![2; 1400], vec![3; 1400], vec![4; 9]];
            let frames: Vec<_> = sent.iter().map(|p| datagram(flow, p)).collect();
            let sealed = gather(&frames);
            assert_eq!(sealed.len(), 1);
            assert_eq!(payloads(&sealed[0]), sent);
        }
    }

    #[test]
    fn one_datagram_stays_as_it_came() {
        for flow in [0, 1] {
            let frame = datagram(flow, b"alone");
            assert_eq!(gather(std::slice::from_ref(&frame)), [frame]);
        }
    }

    #[test]
    fn a_run_ends_at_its_limits() {
        for (length, expected) in [(1, RUN_DATAGRAMS), (1400, 46), (40_000, 1)] {
            let frames = vec![datagram(0, &vec![7; length]); 200];
            let counts: Vec<_> = gather(&frames).iter().map(|s| payloads(s).len()).collect();
            assert_eq!(counts[0], expected, "{length}");
            assert_eq!(counts.iter().sum::<usize>(), 200);
        }
    }

    #[test]
    fn any_difference_in_the_headers_ends_a_run() {
        for flow in [0, 1] {
            let first = datagram(flow, &[1; 100]);
            let run = Run::begin(
                &VnetHeader::split(&first).expect("a header").0,
                &Packet::parse(&first[VnetHeader::LEN..]).expect("valid"),
            )
            .expect("may be gathered");
            let n = run.headers();
            assert!(run.is_alike(&first[..n], &first[..n], 100));
            let (ip, udp) = (VnetHeader::LEN, n - 8);
            // IPv4: identification and header checksum; both: UDP checksum.
            let free = |at: usize| {
                (flow == 0 && ((4..6).contains(&(at - ip)) || (10..12).contains(&(at - ip))))
                    || at >= udp + 6
            };
            for at in (0..n).filter(|at| *at < ip || !free(*at)) {
                let mut other = first[..n].to_vec();
                other[at] ^= 1;
                assert!(!run.is_alike(&first[..n], &other, 100), "byte {at}");
            }
        }
    }

    #[test]
    fn what_would_change_is_not_gathered() {
        let frame = datagram(0, b"some");
        let packet = Packet::parse(&frame[VnetHeader::LEN..]).expect("valid");
        assert_eq!(Run::begin(&VnetHeader::NONE, &packet), None, "own checksum");
        let cut_already = VnetHeader::udp(20, Some(2));
        assert_eq!(Run::begin(&cut_already, &packet), None);
        let empty = datagram(0, b"");
        let packet = Packet::parse(&empty[VnetHeader::LEN..]).expect("valid");
        assert_eq!(Run::begin(&VnetHeader::udp(20, None), &packet), None);
    }

    proptest! {
        #[test]
        fn every_boundary_is_kept(
            burst in vec((0usize..2, prop_oneof![
                Just(1400usize), Just(1399), Just(64), 0usize..3000, 60_000usize..65_000,
            ]), 0..150),
            repeat in 1usize..20,
        ) {
            let mut sent = Vec::new();
            for (flow, length) in burst {
                for _ in 0..repeat.min(1 + 100_000 / (length + 1)) {
                    let mark = u8::try_from(sent.len() % 251).expect("small");
                    sent.push((flow, vec![mark; length]));
                }
            }
            sent.truncate(600);
            let frames: Vec<_> = sent.iter().map(|(flow, p)| datagram(*flow, p)).collect();
            let seen: Vec<_> = gather(&frames).iter().flat_map(|frame| payloads(frame)).collect();
            let expected: Vec<_> = sent.into_iter().map(|(_, payload)| payload).collect();
            prop_assert!(seen == expected);
        }
    }
}
