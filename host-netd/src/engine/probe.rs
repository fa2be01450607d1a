//! Asks the enclave again what it has received.
//!
//! The link loses nothing, but the queue of the enclave's own interface does: a program there that
//! sends faster than packets are taken from it makes its kernel drop some, also acknowledgements.
//! Those are not sent again, and smoltcp asks for them after a second only. So a flow that waits for
//! an acknowledgement sends a byte that the enclave has long received, as a keep-alive does (RFC
//! 9293, 3.8.4), which it answers at once: after [`PROBE_AFTER`], then after twice as long each
//! time up to [`PROBE_AGAIN`], until an answer comes. If that acknowledges no more, nothing was lost,
//! and the rest is smoltcp's.

use super::device::{LinkSide, finish_segment};
use crate::limits::{PROBE_AFTER, PROBE_AGAIN, PROBES};
use netd_proto::offload::VnetHeader;
use netd_proto::packet::FlowKey;
use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::time::Instant;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

/// What a flow knows of the enclave's acknowledgements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// The last one.
    acknowledged: u32,
    /// When something was last sent or came.
    since: Instant,
    sent: u32,
}

impl Probe {
    pub(super) fn new(now: Instant) -> Probe {
        Probe {
            acknowledged: 0,
            since: now,
            sent: 0,
        }
    }

    /// A segment came that acknowledges everything before `acknowledged`.
    pub(super) fn heard(&mut self, acknowledged: u32, now: Instant) {
        // A program that does not read acknowledges the same again, and is not asked for ever.
        let answered = self.sent > 0 && acknowledged == self.acknowledged;
        *self = Probe {
            acknowledged,
            since: now,
            sent: if answered { PROBES } else { 0 },
        };
    }

    /// Something was sent.
    pub(super) fn said(&mut self, now: Instant) {
        self.since = now;
    }

    /// When the enclave is to be asked, if it has something to acknowledge.
    pub(super) fn at(&self) -> Option<Instant> {
        let wait = PROBE_AFTER
            .saturating_mul(1 << self.sent.min(16))
            .min(PROBE_AGAIN);
        (self.sent < PROBES).then(|| self.since + wait.into())
    }

    /// Asks. `received` is what was acknowledged to the enclave, and `window` the field.
    pub(super) fn send(
        &mut self,
        key: &FlowKey,
        link: &mut LinkSide,
        (received, window): (u32, u16),
        now: Instant,
    ) {
        self.sent += 1;
        self.since = now;
        let (from, to): (IpAddress, IpAddress) = (key.dst.ip().into(), key.src.ip().into());
        let number = |number: u32| TcpSeqNumber(number.cast_signed());
        let segment = TcpRepr {
            src_port: key.dst.port(),
            dst_port: key.src.port(),
            control: TcpControl::None,
            seq_number: number(self.acknowledged.wrapping_sub(1)),
            ack_number: Some(number(received)),
            window_len: window,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[0],
        };
        let ip = IpRepr::new(from, to, IpProtocol::Tcp, segment.buffer_len(), 64);
        let Some(space) = link.queue.packet_space() else {
            return;
        };
        let (header, packet) = space.split_at_mut(VnetHeader::LEN);
        let packet = &mut packet[..ip.buffer_len()];
        let mut checksums = ChecksumCapabilities::ignored();
        checksums.ipv4 = Checksum::Tx;
        ip.emit(&mut *packet, &checksums);
        let mut tcp = TcpPacket::new_unchecked(&mut packet[ip.header_len()..]);
        segment.emit(&mut tcp, &from, &to, &checksums);
        let ip_header = if key.src.is_ipv6() { 40 } else { 20 };
        let vnet = finish_segment(packet, ip_header, link.features, None);
        header.copy_from_slice(&vnet.encode());
        let length = packet.len();
        link.queue.commit_packet(VnetHeader::LEN + length);
        link.traffic.count(length);
    }
}
