//! The enclave as one who receives: how long a segment and how much of a flow it takes.

use super::window::{SYN, TCP_FLAGS, is_after, number};
use etherparse::{TcpOptionElement, TcpSlice};
use std::num::NonZeroU16;

const TCP_SEQUENCE: usize = 4;
const TCP_DATA_OFFSET: usize = 12;

/// A TCP header without options.
const HEADER: usize = 20;

/// What a peer takes that does not say more (RFC 9293, section 3.7.1).
const DEFAULT_MSS: u16 = 536;

/// Less is nonsense: smoltcp takes it for this much as well.
const LEAST_MSS: u16 = 48;

/// RFC 7323, section 2.3.
const MAX_SCALE: u8 = 14;

/// The enclave as the receiver of one flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receiver {
    /// Payload of the longest segment that it takes, without options.
    mss: u16,
    /// By how many bits its windows are shifted.
    scale: u8,
    /// Right edge of its window.
    edge: u32,
    /// Sequence number of the first byte to it; none before the SYN.
    first: Option<u32>,
    /// Bytes that were queued for it, and how far they were sent. Both wrap around.
    queued: u32,
    sent: u32,
}

impl Default for Receiver {
    fn default() -> Self {
        Receiver {
            mss: DEFAULT_MSS,
            scale: 0,
            edge: 0,
            first: None,
            queued: 0,
            sent: 0,
        }
    }
}

impl Receiver {
    /// Takes note of a segment from the enclave.
    pub(super) fn received(&mut self, tcp: &TcpSlice<'_>) {
        let mut shift = self.scale;
        if tcp.syn() {
            shift = 0;
            self.take_options(tcp);
        }
        let window = u32::from(tcp.window_size()) << shift;
        self.edge = tcp.acknowledgment_number().wrapping_add(window);
    }

    fn take_options(&mut self, syn: &TcpSlice<'_>) {
        for option in syn.options_iterator() {
            match option {
                Ok(TcpOptionElement::MaximumSegmentSize(size)) if size > 0 => {
                    self.mss = size.max(LEAST_MSS);
                }
                Ok(TcpOptionElement::WindowScale(scale)) => self.scale = scale.min(MAX_SCALE),
                _ => {}
            }
        }
    }

    /// Takes note of bytes that are to be sent.
    pub(super) fn queued(&mut self, bytes: usize) {
        #[expect(clippy::cast_possible_truncation, reason = "wraps around")]
        let bytes = bytes as u32;
        self.queued = self.queued.wrapping_add(bytes);
    }

    /// Takes note of a segment to the enclave.
    pub(super) fn sent(&mut self, tcp: &[u8]) {
        let payload = tcp.len() - header_length(tcp);
        #[expect(clippy::cast_possible_truncation, reason = "a packet has 64 KiB")]
        let end = number(tcp, TCP_SEQUENCE).wrapping_add(payload as u32);
        if tcp[TCP_FLAGS] & SYN != 0 {
            self.first = Some(end.wrapping_add(1));
        } else if let Some(first) = self.first {
            let sent = end.wrapping_sub(first);
            if is_after(sent, self.sent) {
                self.sent = sent;
            }
        }
    }

    /// Whether all that was queued was sent, and the SYN before it.
    pub(super) fn was_sent_all(&self) -> bool {
        self.first.is_some() && self.sent == self.queued
    }

    /// Bytes that it acknowledged, where `waiting` were not; wraps around.
    pub(super) fn acknowledged(&self, waiting: usize) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "less than the ring")]
        let waiting = waiting as u32;
        self.queued.wrapping_sub(waiting)
    }

    /// Whether its window has room for all that was queued.
    pub(super) fn has_room_for_all(&self) -> bool {
        let end = |first: u32| first.wrapping_add(self.queued);
        self.first
            .is_some_and(|first| !is_after(end(first), self.edge))
    }

    /// How a segment is to be cut, if it is longer than what the enclave takes.
    pub(super) fn cut(&self, tcp: &[u8]) -> Option<NonZeroU16> {
        let header = header_length(tcp);
        let segment = (usize::from(self.mss) + HEADER).saturating_sub(header);
        let segment = u16::try_from(segment).ok().and_then(NonZeroU16::new)?;
        (tcp.len() - header > usize::from(segment.get())).then_some(segment)
    }
}

fn header_length(tcp: &[u8]) -> usize {
    usize::from(tcp[TCP_DATA_OFFSET] >> 4) * 4
}
