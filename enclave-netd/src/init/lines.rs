//! Cuts what a pipe brings into lines.
//!
//! A line that is longer than [`MAX_LOG_LINE`] comes in pieces, and one whose end is not there after
//! [`PARTIAL_LINE`] comes as far as it is; what continues a line begins with [`CONTINUED`].

use crate::limits::PARTIAL_LINE;
use netd_proto::limits::MAX_LOG_LINE;
use std::time::Instant;

/// Begins the rest of a line.
pub(crate) const CONTINUED: &[u8] = "… ".as_bytes();

/// The line that is not there in full yet.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    /// How much of `partial` is the mark of a continued line.
    mark: usize,
    /// When the oldest byte of it came.
    since: Option<Instant>,
}

impl Lines {
    /// Takes bytes, and hands out each line that ends in them.
    pub(crate) fn take(&mut self, mut bytes: &[u8], now: Instant, mut each: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = MAX_LOG_LINE - self.partial.len();
            let piece = &bytes[..bytes.len().min(room)];
            if let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
                self.partial.extend(&piece[..end]);
                bytes = &bytes[end + 1..];
                self.end(&mut each);
            } else if piece.len() < room {
                self.partial.extend(piece);
                self.since.get_or_insert(now);
                return;
            } else {
                self.partial.extend(piece);
                bytes = &bytes[piece.len()..];
                let rest = self.partial.split_off(whole_characters(&self.partial));
                self.pause(&mut each);
                self.partial.extend(rest);
            }
        }
    }

    /// When what is there is to be handed out, though its line has not ended.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + PARTIAL_LINE)
    }

    /// Hands out what is there; what follows continues it.
    pub(crate) fn pause(&mut self, mut each: impl FnMut(&[u8])) {
        self.since = None;
        if self.partial.len() > self.mark {
            each(&self.partial);
            self.partial.clear();
            self.partial.extend(CONTINUED);
            self.mark = CONTINUED.len();
        }
    }

    fn end(&mut self, each: &mut impl FnMut(&[u8])) {
        let line = self.partial.strip_suffix(b"\r").unwrap_or(&self.partial);
        // What ended where it was cut needs no further line.
        if self.mark == 0 || line.len() > self.mark {
            each(line);
        }
        self.partial.clear();
        self.mark = 0;
        self.since = None;
    }
}

/// How many bytes to cut off so that no character of UTF-8 is cut in two.
fn whole_characters(bytes: &[u8]) -> usize {
    const LONGEST: usize = 4;
    let tail = bytes.len().saturating_sub(LONGEST);
    let begun = (tail..bytes.len())
        .rev()
        .find(|&at| bytes[at] & 0xC0 != 0x80);
    match begun.map(|at| (at, str::from_utf8(&bytes[at..]))) {
        // Incomplete, not wrong.
        Some((at, Err(error))) if error.error_len().is_none() => at,
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn lines(parts: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for part in parts {
            lines.take(part, Instant::now(), |line| {
                seen.push(String::from_utf8_lossy(line).into_owned());
            });
        }
        lines.pause(|line| seen.push(String::from_utf8_lossy(line).into_owned()));
        seen
    }

    #[test]
    fn lines_are_found_however_they_come() {
        assert_eq!(
            lines(&[b"one\ntw", b"o", b"\r\n\n", b"end"]),
            ["one", "two", "", "end"]
        );
    }

    #[test]
    fn a_long_line_comes_in_marked_pieces_and_whole_characters() {
        let long = "é".repeat(MAX_LOG_LINE);
        let seen = lines(&[b"x", long.as_bytes(), b"\nnext\n"]);
        assert_eq!(seen.len(), 4, "{seen:?}");
        assert!(seen.iter().all(|line| line.len() <= MAX_LOG_LINE));
        assert!(seen[1].starts_with("… é") && seen[2].starts_with("… é"));
        let joined = seen[..3].join("").replace("… ", "");
        assert_eq!(joined, format!("x{long}"));
        assert_eq!(seen[3], "next");
        let exact = [&vec![b'x'; MAX_LOG_LINE][..], b"\n"].concat();
        assert_eq!(lines(&[&exact]).len(), 1, "nothing continues it");
    }

    #[test]
    fn what_waits_for_its_end_is_handed_out_after_a_moment() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        lines.take(b"done\n", now, |_| {});
        assert_eq!(lines.due(), None);
        lines.take(b"name: ", now, |_| panic!("not yet"));
        lines.take(b"?", now + Duration::from_millis(1), |_| panic!("not yet"));
        assert_eq!(lines.due(), Some(now + PARTIAL_LINE));
        let mut seen = Vec::new();
        lines.pause(|line| seen.push(line.to_vec()));
        assert_eq!(lines.due(), None);
        lines.pause(|_| panic!("nothing is left"));
        lines.take(b" bob\n", now, |line| seen.push(line.to_vec()));
        lines.take(b"x\n", now, |line| seen.push(line.to_vec()));
        assert_eq!(seen, [b"name: ?".to_vec(), "…  bob".into(), b"x".to_vec()]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_too_long(bytes: Vec<u8>, cut in 1usize..50, times in 1usize..200) {
            let bytes = bytes.repeat(times);
            let (mut lines, mut seen) = (Lines::default(), Vec::new());
            for part in bytes.chunks(cut) {
                lines.take(part, Instant::now(), |line| seen.push(line.to_vec()));
            }
            lines.pause(|line| seen.push(line.to_vec()));
            prop_assert!(seen.iter().all(|line| line.len() <= MAX_LOG_LINE));
            let marked = bytes.windows(CONTINUED.len()).any(|w| w == CONTINUED);
            if !marked && !bytes.contains(&b'\r') {
                let mut back = Vec::new();
                for line in &seen {
                    match line.strip_prefix(CONTINUED) {
                        Some(rest) => { back.pop(); back.extend(rest) }
                        None => back.extend(line),
                    }
                    back.push(b'\n');
                }
                back.pop();
                let whole = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
                prop_assert_eq!(back, whole);
            }
        }
    }
}
