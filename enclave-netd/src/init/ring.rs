//! The last lines of the log, each with its number.

use crate::limits::{RING_BYTES, RING_LINE, RING_LINES};
use netd_proto::limits::MAX_LOG_LINE;
use netd_proto::report::Source;
use std::collections::VecDeque;

/// A line of this run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) source: Source,
    pub(crate) text: Box<[u8]>,
}

impl Line {
    fn cost(&self) -> usize {
        self.text.len() + RING_LINE
    }
}

/// Lines, oldest first. When there is no room the oldest go.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    lines: VecDeque<Line>,
    bytes: usize,
    next: u64,
}

impl Ring {
    /// Adds a line, cut at [`MAX_LOG_LINE`].
    pub(crate) fn push(&mut self, source: Source, text: &[u8]) {
        let line = Line {
            number: self.next,
            source,
            text: text[..text.len().min(MAX_LOG_LINE)].into(),
        };
        self.next += 1;
        self.bytes += line.cost();
        self.lines.push_back(line);
        while self.bytes > RING_BYTES || self.lines.len() > RING_LINES {
            let Some(oldest) = self.lines.pop_front() else {
                return;
            };
            self.bytes -= oldest.cost();
        }
    }

    /// Counts lines that were written but are not here.
    pub(crate) fn skip(&mut self, lines: u64) {
        self.next += lines;
    }

    /// The number of the next line.
    pub(crate) fn next_number(&self) -> u64 {
        self.next
    }

    /// The oldest line whose number is not below `number`.
    pub(crate) fn from(&self, number: u64) -> Option<&Line> {
        let at = self.lines.partition_point(|line| line.number < number);
        self.lines.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_found() {
        let mut ring = Ring::default();
        ring.push(Source::Netd, b"a");
        ring.skip(2);
        ring.push(Source::Stdout, b"b");
        let number = |from| ring.from(from).map(|line| line.number);
        assert_eq!(
            [number(0), number(1), number(3), number(4)],
            [Some(0), Some(3), Some(3), None]
        );
        assert_eq!(ring.next_number(), 4);
    }

    #[test]
    fn when_it_is_full_the_oldest_go() {
        let mut ring = Ring::default();
        for _ in 0..10_000 {
            ring.push(Source::Stdout, &[b'x'; 2 * MAX_LOG_LINE]);
        }
        assert!(ring.bytes <= RING_BYTES);
        let held = ring.lines.len();
        assert_eq!(held, RING_BYTES / (MAX_LOG_LINE + RING_LINE));
        let oldest = 10_000 - u64::try_from(held).expect("few");
        assert_eq!(ring.from(0).map(|line| line.number), Some(oldest));

        for _ in 0..2 * RING_LINES {
            ring.push(Source::Stdout, b"");
        }
        assert!(ring.lines.len() <= RING_LINES && ring.bytes <= RING_BYTES);
    }
}
