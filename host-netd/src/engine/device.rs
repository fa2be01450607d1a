//! Between smoltcp and the link: hands it one packet, and writes what it sends straight into the
//! link's queue, with the virtio-net header that leaves checksum and segmentation to the
//! enclave's kernel.

use super::drops::Traffic;
use netd_proto::build;
use netd_proto::frame::Queue;
use netd_proto::handshake::Features;
use netd_proto::limits::MAX_PACKET;
use netd_proto::offload::VnetHeader;
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken,
    TxToken,
};
use smoltcp::time::Instant;
use std::num::{NonZeroU16, NonZeroUsize};

/// Longest IPv4 super-segment, headers included, and what is allowed for IPv6 alike.
const MAX_SUPER_SEGMENT: NonZeroUsize = NonZeroUsize::new(65_535).expect("not zero");

const _: () = assert!(MAX_SUPER_SEGMENT.get() <= MAX_PACKET);

/// The MTU of a flow's interface.
///
/// smoltcp 0.14 drops IPv6 packets longer than this, super-segments too, so an IPv6 flow that may
/// send them needs one of their size. Its segments are as long as the enclave's own MSS says, and
/// the enclave's kernel keeps to its own MTU, whatever MSS it is told.
pub(super) fn interface_mtu(ipv6: bool, features: Features, mtu: u16) -> u16 {
    if ipv6 && features.contains(Features::CHECKSUM.or(Features::TSO6)) {
        u16::MAX
    } else {
        mtu
    }
}

/// smoltcp's view of the link for one call.
pub(super) struct LinkDevice<'a> {
    pub(super) received: Option<&'a [u8]>,
    pub(super) queue: &'a mut Queue,
    pub(super) features: Features,
    pub(super) mtu: u16,
    pub(super) traffic: &'a mut Traffic,
}

impl Device for LinkDevice<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Transmit<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let received = Received(self.received.take()?);
        let Self {
            queue,
            features,
            traffic,
            ..
        } = self;
        Some((
            received,
            Transmit {
                queue,
                features: *features,
                traffic,
                segment: None,
            },
        ))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        let Self {
            queue,
            features,
            traffic,
            ..
        } = self;
        queue.has_room().then_some(Transmit {
            queue,
            features: *features,
            traffic,
            segment: None,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        // Received checksums were checked with the packet; TCP's is completed in `consume`. The
        // IPv4 header's is needed by every receiver.
        checksum.ipv4 = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        capabilities.checksum = checksum;
        if self.features.contains(Features::CHECKSUM) {
            let offered = |feature| self.features.contains(feature).then_some(MAX_SUPER_SEGMENT);
            capabilities.segmentation.tcpv4 = offered(Features::TSO4);
            capabilities.segmentation.tcpv6 = offered(Features::TSO6);
        }
        capabilities
    }
}

pub(super) struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Transmit<'a> {
    queue: &'a mut Queue,
    features: Features,
    traffic: &'a mut Traffic,
    segment: Option<NonZeroU16>,
}

impl TxToken for Transmit<'_> {
    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }

    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Some(space) = self.queue.packet_space() else {
            // Only an immediate reply to a received segment comes here with a full link: a
            // duplicate ACK or a reset, which its sender asks for again.
            return f(&mut vec![0; len]);
        };
        let (header, packet) = space.split_at_mut(VnetHeader::LEN);
        let packet = &mut packet[..len];
        let result = f(packet);
        let vnet = finish_segment(packet, self.features, self.segment);
        header.copy_from_slice(&vnet.encode());
        self.queue.commit_packet(VnetHeader::LEN + len);
        self.traffic.count(len);
        result
    }
}

const TCP_FLAGS: usize = 13;
const TCP_WINDOW: usize = 14;
const SYN: u8 = 0x02;

/// Completes a segment as smoltcp left it: window, checksum and offload header.
fn finish_segment(
    packet: &mut [u8],
    features: Features,
    segment: Option<NonZeroU16>,
) -> VnetHeader {
    let ipv6 = packet[0] >> 4 == 6;
    let ip_header: u16 = if ipv6 { 40 } else { 20 };
    let tcp = &mut packet[usize::from(ip_header)..];
    let tcp_header = u16::from(tcp[12] >> 4) * 4;
    if tcp[TCP_FLAGS] & SYN == 0 {
        shrink_window(tcp);
    }
    let vnet = VnetHeader::tcp(ipv6, ip_header, tcp_header, segment.map(NonZeroU16::get));
    build::partial_tcp_checksum(packet);
    if features.contains(Features::CHECKSUM) {
        return vnet;
    }
    build::complete_checksum(packet, &vnet);
    VnetHeader::NONE
}

/// Lowers the advertised window by one unit.
///
/// smoltcp 0.14 computes the end of its acceptable window from the *scaled* window it last sent.
/// Scaling rounds down, so that end can move back by up to a unit when data is received, although
/// the peer was promised more: bytes sent up to the former end are cut off, for ever when the
/// reader waits for them. Promising one unit less keeps the peer inside what is accepted.
fn shrink_window(tcp: &mut [u8]) {
    let window = u16::from_be_bytes([tcp[TCP_WINDOW], tcp[TCP_WINDOW + 1]]).saturating_sub(1);
    tcp[TCP_WINDOW..TCP_WINDOW + 2].copy_from_slice(&window.to_be_bytes());
}
