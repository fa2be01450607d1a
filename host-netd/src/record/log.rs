//! The last lines of an enclave's log.

use crate::limits::{LOG_BYTES, LOG_LINE_COST, LOG_LINES};
use netd_proto::report::{LogLine, Source};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

/// A line, and when it came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) source: Source,
    pub(crate) number: u64,
    pub(crate) text: Box<str>,
    pub(crate) received: SystemTime,
}

/// Lines in the order of their numbers, the oldest of which make room.
#[derive(Debug, Default)]
pub(super) struct Ring {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    /// The number that is due.
    next: u64,
    /// Numbers that never came.
    lost: u64,
}

impl Ring {
    /// Takes a line. False if it was there before.
    pub(super) fn push(&mut self, line: LogLine, received: SystemTime) -> bool {
        // None could follow the largest number, so there is no line with it.
        if line.number < self.next || line.number == u64::MAX {
            return false;
        }
        self.lost = self.lost.saturating_add(line.number - self.next);
        self.next = line.number + 1;
        let text = line.text.into_boxed_str();
        self.bytes += cost(&text);
        self.lines.push_back(Arc::new(Line {
            source: line.source,
            number: line.number,
            text,
            received,
        }));
        while self.bytes > LOG_BYTES || self.lines.len() > LOG_LINES {
            if let Some(oldest) = self.lines.pop_front() {
                self.bytes -= cost(&oldest.text);
            }
        }
        true
    }

    /// The first lines from this number on, so many bytes of text or a line more.
    pub(super) fn from(&self, number: u64, bytes: usize) -> Vec<Arc<Line>> {
        let first = self.lines.partition_point(|line| line.number < number);
        let mut left = bytes;
        (self.lines.range(first..))
            .take_while(|line| {
                let room = left > 0;
                left = left.saturating_sub(cost(&line.text));
                room
            })
            .map(Arc::clone)
            .collect()
    }

    pub(super) fn last(&self) -> Option<Arc<Line>> {
        self.lines.back().map(Arc::clone)
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}

/// What a line costs in memory.
fn cost(text: &str) -> usize {
    text.len() + LOG_LINE_COST
}

#[cfg(test)]
mod tests {
    use super::*;
    use netd_proto::limits::MAX_LOG_LINE;
    use proptest::prelude::*;

    fn line(number: u64, text: &str) -> LogLine {
        LogLine {
            source: Source::Stdout,
            number,
            text: text.to_owned(),
        }
    }

    fn push(ring: &mut Ring, number: u64) -> bool {
        ring.push(line(number, "x"), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn what_was_there_is_ignored_and_a_gap_is_counted() {
        let mut ring = Ring::default();
        // The first three were before host-netd's time.
        for number in [3, 4, 5, 3, 4, 5, 6, 10, 9] {
            push(&mut ring, number);
        }
        let numbers: Vec<_> = ring.from(0, 1 << 20).iter().map(|l| l.number).collect();
        assert_eq!(numbers, [3, 4, 5, 6, 10]);
        assert_eq!((ring.lost(), ring.next()), (3 + 3, 11));
        assert_eq!(ring.from(5, 1).len(), 1);
        assert_eq!(ring.from(11, 1 << 20), []);
    }

    #[test]
    fn the_largest_numbers_end_the_log_and_nothing_else() {
        let mut ring = Ring::default();
        assert!(!push(&mut ring, u64::MAX));
        assert!(push(&mut ring, u64::MAX - 1));
        assert!(
            !push(&mut ring, u64::MAX - 1) && !push(&mut ring, u64::MAX) && !push(&mut ring, 0)
        );
        assert_eq!((ring.next(), ring.lost()), (u64::MAX, u64::MAX - 1));
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds(lengths in prop::collection::vec(0..=3 * MAX_LOG_LINE, 0..200)) {
            let mut ring = Ring::default();
            for (number, length) in (0..).zip(lengths) {
                ring.push(line(number, &"x".repeat(length)), SystemTime::UNIX_EPOCH);
                let real: usize = ring.lines.iter().map(|line| cost(&line.text)).sum();
                prop_assert_eq!(real, ring.bytes);
                prop_assert!(real <= LOG_BYTES && ring.lines.len() <= LOG_LINES);
                prop_assert_eq!(ring.last().map(|line| line.number), Some(number));
            }
        }
    }

    #[test]
    fn of_short_lines_as_many_are_kept_as_may_be() {
        let mut ring = Ring::default();
        for number in 0..3 * LOG_LINES as u64 {
            push(&mut ring, number);
        }
        assert_eq!(ring.lines.len(), LOG_LINES);
    }
}
