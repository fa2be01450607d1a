//! How much of a flow may be on its way, in each direction.
//!
//! A flow begins with little. One that moves much, a bulk flow, gets a share of what all bulk flows
//! have together: their bytes wait in the enclave's queues and on the link, and a request of
//! another flow waits behind them. Towards the enclave that bounds what is read from the host's
//! socket; from the enclave it bounds the window.
//!
//! smoltcp knows nothing of this: it fills in the free space of its ring, and [`Window::limit`]
//! lowers that in the finished segment. It never takes a promise back (RFC 9293, section 3.8.6):
//! the right edge of the window moves only forward.

use crate::limits::{
    BULK_BYTES, BULK_INTERVAL, BULK_WINDOW, BULK_WINDOWS, FIRST_WINDOW, RECEIVE_RING,
};
use etherparse::{TcpOptionElement, TcpSlice};
use smoltcp::time::Instant;

/// By how many bits the windows of a ring are shifted; smoltcp's rule.
#[expect(clippy::cast_possible_truncation, reason = "at most 14")]
const SHIFT: u8 = (usize::BITS - RECEIVE_RING.leading_zeros() - u16::BITS) as u8;

const TCP_ACK: usize = 8;
pub(super) const TCP_FLAGS: usize = 13;
const TCP_WINDOW: usize = 14;
pub(super) const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What one flow was promised and has used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    shift: u8,
    /// The highest sequence number that was seen from the enclave, plus one.
    seen: u32,
    /// The last acknowledgement that was sent.
    acknowledged: u32,
    /// Right edge of the window; none before the first acknowledgement.
    edge: Option<u32>,
}

impl Window {
    /// Takes note of a segment from the enclave.
    pub(super) fn received(&mut self, tcp: &TcpSlice<'_>) {
        if tcp.syn() {
            let scaled = tcp
                .options_iterator()
                .any(|option| matches!(option, Ok(TcpOptionElement::WindowScale(_))));
            self.shift = if scaled { SHIFT } else { 0 };
        }
        let length = tcp.payload().len() + usize::from(tcp.syn()) + usize::from(tcp.fin());
        #[expect(clippy::cast_possible_truncation, reason = "a packet has 64 KiB")]
        let end = tcp.sequence_number().wrapping_add(length as u32);
        if self.edge.is_none() || is_after(end, self.seen) {
            self.seen = end;
        }
    }

    /// Whether everything that came was acknowledged: nothing lies in the ring beyond a gap.
    pub(super) fn has_no_gap(&self) -> bool {
        !is_after(self.seen, self.acknowledged)
    }

    /// What was last acknowledged to the enclave, and the window field that tells the edge again.
    pub(super) fn told(&self) -> (u32, u16) {
        let open = self
            .edge
            .map_or(0, |edge| edge.wrapping_sub(self.acknowledged));
        let field = u16::try_from(open >> self.shift).unwrap_or(u16::MAX);
        (self.acknowledged, field)
    }

    /// What was last acknowledged.
    pub(super) fn acknowledged(&self) -> u32 {
        self.acknowledged
    }

    /// Where the bytes of a segment end that are taken.
    pub(super) fn end_within(&self, tcp: &TcpSlice<'_>) -> u32 {
        let length = tcp.payload().len() + usize::from(tcp.syn());
        #[expect(clippy::cast_possible_truncation, reason = "a packet has 64 KiB")]
        let end = tcp.sequence_number().wrapping_add(length as u32);
        match self.edge {
            Some(edge) if is_after(end, edge) => edge,
            _ => end,
        }
    }

    /// Whether the enclave was not promised that bytes up to `end` are taken.
    pub(super) fn ends_before(&self, end: u32) -> bool {
        self.edge.is_some_and(|edge| is_after(end, edge))
    }

    /// Lowers the window of a segment to the enclave to `allowance` bytes, unless more was
    /// promised before.
    ///
    /// smoltcp 0.14 computes the end of its acceptable window from the *scaled* window it last
    /// sent. Scaling rounds down, so that end can move back by up to a unit when data is received,
    /// although the peer was promised more: bytes sent up to the former end are cut off, for ever
    /// when the reader waits for them. Promising one unit less keeps the peer inside what is
    /// accepted.
    pub(super) fn limit(&mut self, tcp: &mut [u8], allowance: usize) {
        let syn = tcp[TCP_FLAGS] & SYN != 0;
        let shift = if syn { 0 } else { self.shift };
        let field = u16::from_be_bytes([tcp[TCP_WINDOW], tcp[TCP_WINDOW + 1]]);
        let field = if syn { field } else { field.saturating_sub(1) };
        let acknowledgement = (tcp[TCP_FLAGS] & ACK != 0).then(|| number(tcp, TCP_ACK));
        let promised = match (acknowledgement, self.edge) {
            (Some(ack), Some(edge)) if is_after(edge, ack) => edge.wrapping_sub(ack),
            _ => 0,
        };
        let unit = 1u32 << shift;
        let wanted = u32::try_from(allowance).unwrap_or(u32::MAX) >> shift;
        let kept = promised.saturating_add(unit - 1) >> shift;
        let field = u16::try_from(wanted.max(kept)).map_or(field, |most| field.min(most));
        tcp[TCP_WINDOW..TCP_WINDOW + 2].copy_from_slice(&field.to_be_bytes());
        if let Some(ack) = acknowledgement {
            let edge = ack.wrapping_add(u32::from(field) << shift);
            self.acknowledged = ack;
            if self.edge.is_none_or(|former| is_after(edge, former)) {
                self.edge = Some(edge);
            }
        }
    }
}

pub(super) fn number(tcp: &[u8], at: usize) -> u32 {
    let number = tcp[at..].first_chunk().expect("a whole TCP header");
    u32::from_be_bytes(*number)
}

/// Sequence numbers wrap around.
pub(super) fn is_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// How much one flow moved lately in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recent {
    interval: u64,
    bytes: usize,
    /// The last interval in which it was a bulk flow.
    bulk: Option<u64>,
}

/// How many bulk flows there are in one direction.
#[derive(Debug, Default)]
pub(super) struct Share {
    interval: u64,
    bulk: usize,
    bulk_before: usize,
}

impl Share {
    /// Takes note that a flow moved `bytes`.
    pub(super) fn moved(&mut self, flow: &mut Recent, bytes: usize, now: Instant) {
        let interval = now.total_micros().unsigned_abs() / BULK_INTERVAL;
        if interval != self.interval {
            let successive = interval == self.interval + 1;
            self.bulk_before = if successive { self.bulk } else { 0 };
            self.bulk = 0;
            self.interval = interval;
        }
        if flow.interval != interval {
            flow.interval = interval;
            flow.bytes = 0;
        }
        let before = flow.bytes;
        flow.bytes += bytes;
        if before < BULK_BYTES && flow.bytes >= BULK_BYTES {
            flow.bulk = Some(interval);
            self.bulk += 1;
        }
    }

    /// Bytes of the flow that may be on their way.
    pub(super) fn of(&self, flow: &Recent) -> usize {
        if flow.bulk.is_some_and(|at| at + 1 >= self.interval) {
            let flows = self.bulk.max(self.bulk_before).max(1);
            (BULK_WINDOWS / flows).clamp(BULK_WINDOW, RECEIVE_RING)
        } else {
            FIRST_WINDOW
        }
    }
}

/// The shares of both directions.
#[derive(Debug, Default)]
pub(super) struct Windows {
    pub(super) from_enclave: Share,
    pub(super) to_enclave: Share,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The window field of an acknowledgement after `limit`.
    fn limited(window: &mut Window, ack: u32, field: u16, allowance: usize) -> u16 {
        let mut tcp = [0; 20];
        tcp[TCP_ACK..TCP_ACK + 4].copy_from_slice(&ack.to_be_bytes());
        tcp[TCP_FLAGS] = ACK;
        tcp[TCP_WINDOW..TCP_WINDOW + 2].copy_from_slice(&field.to_be_bytes());
        window.limit(&mut tcp, allowance);
        u16::from_be_bytes([tcp[TCP_WINDOW], tcp[TCP_WINDOW + 1]])
    }

    fn scaled() -> Window {
        Window {
            shift: SHIFT,
            ..Window::default()
        }
    }

    #[test]
    fn a_promise_is_kept_when_the_allowance_falls() {
        let mut window = scaled();
        let whole = limited(&mut window, 1000, u16::MAX, RECEIVE_RING);
        assert_eq!(whole, u16::MAX - 1);
        let promised = u32::from(whole) << SHIFT;

        let after = limited(&mut window, 1000 + 4096, u16::MAX, FIRST_WINDOW);
        assert!(u32::from(after) << SHIFT >= promised - 4096);

        let later = limited(&mut window, 1000 + promised, u16::MAX, FIRST_WINDOW);
        assert_eq!(usize::from(later) << SHIFT, FIRST_WINDOW);
    }

    #[test]
    fn a_gap_is_seen_until_it_is_acknowledged() {
        let mut window = scaled();
        limited(&mut window, 100, 100, FIRST_WINDOW);
        window.seen = 300;
        assert!(!window.has_no_gap());
        limited(&mut window, 300, 100, FIRST_WINDOW);
        assert!(window.has_no_gap());
    }

    #[test]
    fn bulk_flows_share_and_idle_ones_fall_back() {
        let (mut share, mut flows) = (Share::default(), [Recent::default(); 4]);
        let at = Instant::from_micros(1);
        assert_eq!(share.of(&flows[0]), FIRST_WINDOW);
        share.moved(&mut flows[0], BULK_BYTES, at);
        assert_eq!(share.of(&flows[0]), RECEIVE_RING);
        for flow in &mut flows[1..] {
            share.moved(flow, BULK_BYTES, at);
        }
        assert_eq!(share.of(&flows[0]), BULK_WINDOW.max(BULK_WINDOWS / 4));
        let later = Instant::from_micros(3 * BULK_INTERVAL.cast_signed());
        share.moved(&mut flows[1], BULK_BYTES, later);
        assert_eq!(share.of(&flows[0]), FIRST_WINDOW);
        assert_eq!(share.of(&flows[1]), RECEIVE_RING);
    }

    proptest! {
        /// Whatever smoltcp's ring and the allowance do, the right edge moves only forward, by
        /// not more than rounding, and never beyond the ring.
        #[test]
        fn the_right_edge_never_moves_back(
            steps in proptest::collection::vec((0u32..70_000, 0usize..RECEIVE_RING), 1..100),
        ) {
            let mut window = scaled();
            let (mut ack, mut edge, mut held) = (u32::MAX - 100_000, None::<u32>, 0u32);
            for (bytes, allowance) in steps {
                // The enclave sends within what it was promised; all else is read at once.
                let bytes = edge.map_or(0, |edge: u32| bytes.min(edge.wrapping_sub(ack)));
                held = if allowance % 2 == 0 { 0 } else { held + bytes };
                ack = ack.wrapping_add(bytes);
                let free = u32::try_from(RECEIVE_RING).expect("small").saturating_sub(held);
                let field = u16::try_from(free >> SHIFT).unwrap_or(u16::MAX);
                let now = u32::from(limited(&mut window, ack, field, allowance)) << SHIFT;
                let new = ack.wrapping_add(now);
                prop_assert!(now <= u32::from(field) << SHIFT);
                let unit = 2 << SHIFT;
                if let Some(edge) = edge {
                    prop_assert!(!is_after(edge, new.wrapping_add(unit)), "{edge} {new}");
                }
                edge = Some(edge.map_or(new, |edge| if is_after(new, edge) { new } else { edge }));
            }
        }
    }
}
