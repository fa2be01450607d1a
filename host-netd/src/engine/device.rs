//! Between smoltcp and the link: hands it one packet, and writes what it sends straight into the
//! link's queue, with the virtio-net header that leaves checksum and segmentation to the
//! enclave's kernel.

use super::drops::Traffic;
use super::receiver::Receiver;
use super::window::Window;
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
fn interface_mtu(ipv6: bool, features: Features, mtu: u16) -> u16 {
    if ipv6 && features.contains(Features::CHECKSUM.or(Features::TSO6)) {
        u16::MAX
    } else {
        mtu
    }
}

/// The link as all flows share it.
#[derive(Debug)]
pub(super) struct LinkSide {
    pub(super) queue: Queue,
    pub(super) features: Features,
    pub(super) mtu: u16,
    pub(super) traffic: Traffic,
}

/// smoltcp's view of the link for one call.
pub(super) struct LinkDevice<'a> {
    pub(super) received: Option<&'a [u8]>,
    pub(super) link: &'a mut LinkSide,
    pub(super) window: &'a mut Window,
    /// The window the flow may have, in bytes.
    pub(super) allowance: usize,
    pub(super) receiver: &'a mut Receiver,
    pub(super) ipv6: bool,
}

impl LinkDevice<'_> {
    fn token(&mut self) -> Transmit<'_> {
        Transmit {
            link: self.link,
            window: self.window,
            allowance: self.allowance,
            receiver: self.receiver,
            segment: None,
        }
    }
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
        Some((received, self.token()))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        self.link.queue.has_room().then(|| self.token())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        // Received checksums were checked with the packet; TCP's is completed in `consume`. The
        // IPv4 header's is needed by every receiver.
        checksum.ipv4 = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        let features = self.link.features;
        let mtu = interface_mtu(self.ipv6, features, self.link.mtu);
        capabilities.max_transmission_unit = usize::from(mtu);
        capabilities.checksum = checksum;
        if features.contains(Features::CHECKSUM) {
            let offered = |feature| features.contains(feature).then_some(MAX_SUPER_SEGMENT);
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
    link: &'a mut LinkSide,
    window: &'a mut Window,
    allowance: usize,
    receiver: &'a mut Receiver,
    segment: Option<NonZeroU16>,
}

impl TxToken for Transmit<'_> {
    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }

    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let space = if self.link.queue.has_room() {
            self.link.queue.packet_space()
        } else {
            // Only an immediate reply to a received segment comes here with a full link: an ACK
            // or a reset. smoltcp counts it as sent, and does not tell the same window again.
            self.link.queue.answer_space()
        };
        let Some(space) = space else {
            return f(&mut vec![0; len]);
        };
        let (header, packet) = space.split_at_mut(VnetHeader::LEN);
        let packet = &mut packet[..len];
        let result = f(packet);
        let ipv6 = packet[0] >> 4 == 6;
        let ip_header = if ipv6 { 40 } else { 20 };
        let tcp = &mut packet[usize::from(ip_header)..];
        self.window.limit(tcp, self.allowance);
        self.receiver.sent(tcp);
        // smoltcp 0.14 does not tell it of IPv6.
        let segment = self.segment.or_else(|| self.receiver.cut(tcp));
        let vnet = finish_segment(packet, ip_header, self.link.features, segment);
        header.copy_from_slice(&vnet.encode());
        self.link.queue.commit_packet(VnetHeader::LEN + len);
        self.link.traffic.count(len);
        result
    }
}

/// Completes a segment as smoltcp left it: checksum and offload header.
pub(super) fn finish_segment(
    packet: &mut [u8],
    ip_header: u16,
    features: Features,
    segment: Option<NonZeroU16>,
) -> VnetHeader {
    let tcp_header = u16::from(packet[usize::from(ip_header) + 12] >> 4) * 4;
    let ipv6 = packet[0] >> 4 == 6;
    let vnet = VnetHeader::tcp(ipv6, ip_header, tcp_header, segment.map(NonZeroU16::get));
    build::partial_tcp_checksum(packet);
    if features.contains(Features::CHECKSUM) {
        return vnet;
    }
    build::complete_checksum(packet, &vnet);
    VnetHeader::NONE
}
