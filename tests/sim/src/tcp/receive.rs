//! What the enclave's kernel does with a segment, and what it thinks of its sender.

use super::{DELAYED_ACK, Phase, Seen, Tcp};
use crate::wire::{self, ACK, FIN, Head, RST, SYN, Segment};
use std::collections::VecDeque;
use std::time::Instant;

impl Tcp {
    pub(super) fn take_syn(&mut self, syn: &Segment<'_>) {
        self.irs = syn.seq;
        self.got = 1;
        match (self.habits.scale, syn.scale) {
            (Some(ours), Some(theirs)) => {
                self.our_scale = ours;
                self.their_scale = theirs;
            }
            _ => {
                self.our_scale = 0;
                self.their_scale = 0;
            }
        }
        self.edge = 1 + u64::from(syn.window);
        self.promised = 1 + self.habits.receive_buffer.min(65_535);
    }

    /// Takes a segment from the engine; tells `saw` what the program sees of it.
    pub(crate) fn receive(
        &mut self,
        segment: &Segment<'_>,
        up: &mut VecDeque<Vec<u8>>,
        now: Instant,
        saw: &mut dyn FnMut(Seen<'_>),
    ) {
        self.heard = now;
        match self.phase {
            Phase::Gone => self.refuse(segment, up),
            Phase::TimeWait => {
                if segment.has(RST) {
                    self.phase = Phase::Gone;
                } else {
                    self.ack_now = true;
                }
            }
            Phase::SynSent => self.receive_answer(segment, up, saw),
            Phase::SynReceived | Phase::Open => self.receive_open(segment, up, now, saw),
        }
    }

    /// There is no socket for it.
    pub(super) fn refuse(&self, segment: &Segment<'_>, up: &mut VecDeque<Vec<u8>>) {
        if segment.has(RST) {
            return;
        }
        let length = segment.payload.len() as u32
            + u32::from(segment.has(SYN))
            + u32::from(segment.has(FIN));
        let (flags, seq, ack) = if segment.has(ACK) {
            (RST, segment.ack, 0)
        } else {
            (RST | ACK, 0, segment.seq.wrapping_add(length))
        };
        let head = Head {
            seq,
            ack,
            ..self.head(flags, 0, 0)
        };
        up.push_back(wire::segment(&head, 0, self.offload(None), |_| {}));
    }

    pub(super) fn receive_answer(
        &mut self,
        segment: &Segment<'_>,
        up: &mut VecDeque<Vec<u8>>,
        saw: &mut dyn FnMut(Seen<'_>),
    ) {
        if segment.has(ACK) && segment.ack != self.seq(1) {
            // It answers an earlier connection of this address and port.
            return self.refuse(segment, up);
        }
        if segment.has(RST) {
            if segment.has(ACK) {
                self.phase = Phase::Gone;
                saw(Seen::Refused);
            }
            return;
        }
        assert!(
            segment.has(SYN) && segment.has(ACK),
            "a SYN is answered with {segment:?}"
        );
        self.take_syn(segment);
        self.acked = 1;
        self.retry = None;
        self.backoff = 0;
        self.phase = Phase::Open;
        self.ack_now = true;
        saw(Seen::Connected);
    }

    pub(super) fn receive_open(
        &mut self,
        segment: &Segment<'_>,
        up: &mut VecDeque<Vec<u8>>,
        now: Instant,
        saw: &mut dyn FnMut(Seen<'_>),
    ) {
        assert!(
            segment.size <= usize::from(self.habits.mss),
            "a segment of {} bytes for one who takes {}",
            segment.size,
            self.habits.mss
        );
        let expected = self.irs.wrapping_add(self.got as u32);
        let ahead = i64::from(segment.seq.wrapping_sub(expected).cast_signed());
        if segment.has(RST) {
            // RFC 5961: exactly in place, or it is asked for again.
            if ahead == 0 {
                self.phase = Phase::Gone;
                if !self.closed {
                    saw(Seen::Reset);
                }
            } else {
                self.ack_now = true;
            }
            return;
        }
        if segment.has(SYN) || !segment.has(ACK) {
            self.ack_now = true;
            return;
        }
        if !self.take_ack(segment, now) {
            return;
        }
        if self.phase == Phase::SynReceived {
            if self.acked == 0 {
                return;
            }
            self.phase = Phase::Open;
            saw(Seen::Connected);
        }
        assert!(
            ahead <= 0,
            "a gap of {ahead} bytes in front of {:?}",
            segment.seq
        );
        let length = segment.payload.len();
        let end = self.got.cast_signed() + ahead + length as i64;
        let probe = i64::from(self.promised <= self.got);
        assert!(
            end <= self.promised.max(self.got).cast_signed() + probe,
            "{} bytes behind the window's edge",
            end - self.promised.cast_signed()
        );
        let skip = ahead.unsigned_abs() as usize;
        let beyond = end > self.promised.max(self.got).cast_signed();
        if skip < length && !beyond {
            self.take_bytes(&segment.payload[skip..], up, now, saw);
        } else if length > 0 || ahead < 0 {
            // A keep-alive, a probe of a shut window, or a repeated segment.
            self.ack_now = true;
        }
        if segment.has(FIN) && !beyond && self.phase == Phase::Open {
            self.ack_now = true;
            if !self.they_finished {
                self.they_finished = true;
                self.got += 1;
                self.promised = self.promised.max(self.got);
                if !self.closed {
                    saw(Seen::End);
                }
            }
        }
        self.end_if_over();
    }

    /// Takes the acknowledgement and the window. False if it is not one of this connection.
    pub(super) fn take_ack(&mut self, segment: &Segment<'_>, now: Instant) -> bool {
        let new = segment.ack.wrapping_sub(self.seq(self.acked)).cast_signed();
        let place = self.acked.cast_signed() + i64::from(new);
        assert!(
            place <= self.sent.cast_signed(),
            "{} bytes acknowledged that were not sent",
            place - self.sent.cast_signed()
        );
        if new < 0 {
            return true;
        }
        if new > 0 {
            self.acked = place.unsigned_abs();
            self.backoff = 0;
            self.retry = (self.acked < self.sent).then(|| now + self.timeout());
        }
        let edge = self.acked + (u64::from(segment.window) << self.their_scale);
        // Linux tells windows in units as well, and forgives a unit's worth of rounding.
        let unit = 2 << self.their_scale;
        assert!(
            edge + unit > self.edge || segment.has(RST),
            "the window's edge went back by {}",
            self.edge - edge
        );
        self.edge = edge;
        true
    }

    pub(super) fn take_bytes(
        &mut self,
        bytes: &[u8],
        up: &mut VecDeque<Vec<u8>>,
        now: Instant,
        saw: &mut dyn FnMut(Seen<'_>),
    ) {
        assert!(!self.they_finished, "bytes behind a FIN");
        if self.closed {
            saw(Seen::Unwanted);
            self.abort(up);
            return;
        }
        saw(Seen::Bytes(bytes));
        self.got += bytes.len() as u64;
        self.unread += bytes.len() as u64;
        if self.habits.delays_acks && bytes.len() <= usize::from(self.habits.mss) {
            if self.ack_later.is_some() {
                self.ack_now = true;
            } else {
                self.ack_later = Some(now + DELAYED_ACK);
            }
        } else {
            self.ack_now = true;
        }
    }

    pub(super) fn end_if_over(&mut self) {
        let fin_acked = self.finishing && self.acked == self.written + 2;
        if self.phase == Phase::Open && fin_acked && self.they_finished {
            self.retry = None;
            self.phase = if self.we_finished_first {
                Phase::TimeWait
            } else {
                Phase::Gone
            };
        }
    }
}
