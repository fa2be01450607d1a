//! What an enclave tells about itself: lines of its log, and how its program ended.
//!
//! A line has a number, counted from 0 in one run of the enclave. The enclave keeps the last lines
//! and sends all of them on every new link, so a parent that was restarted gets them again, one
//! that was not ignores the numbers it had, and a gap in the numbers says how many were lost.

use crate::frame::Kind;
use crate::limits::MAX_LOG_LINE;
use std::fmt;

/// Who wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Source {
    /// enclave-netd.
    Netd = 0,
    /// The program, to its standard output.
    Stdout = 1,
    /// The program, to its standard error.
    Stderr = 2,
}

impl Source {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Source::Netd => "netd",
            Source::Stdout => "stdout",
            Source::Stderr => "stderr",
        }
    }

    fn from_byte(byte: u8) -> Option<Source> {
        Some(match byte {
            0 => Source::Netd,
            1 => Source::Stdout,
            2 => Source::Stderr,
            _ => return None,
        })
    }
}

/// One line of an enclave's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Who wrote it.
    pub source: Source,
    /// Lines of this run before it.
    pub number: u64,
    /// Without control characters but tabs: it goes to terminals and logs as it is.
    pub text: String,
}

/// How long a line's payload is without its text.
pub const LOG_HEADER: usize = 9;

impl LogLine {
    /// The payload of a [`Kind::Log`] frame; of `text` the first [`MAX_LOG_LINE`] bytes.
    pub fn encode(source: Source, number: u64, text: &[u8]) -> Vec<u8> {
        let text = &text[..text.len().min(MAX_LOG_LINE)];
        let mut bytes = Vec::with_capacity(LOG_HEADER + text.len());
        bytes.push(source as u8);
        bytes.extend(number.to_be_bytes());
        bytes.extend(text);
        bytes
    }

    /// Reads such a payload.
    ///
    /// # Errors
    /// It is too short or names an unknown source.
    pub fn decode(payload: &[u8]) -> Result<LogLine, ReportError> {
        let error = ReportError {
            kind: Kind::Log,
            length: payload.len(),
        };
        let (&source, rest) = payload.split_first().ok_or(error)?;
        let (number, text) = rest.split_first_chunk().ok_or(error)?;
        Ok(LogLine {
            source: Source::from_byte(source).ok_or(error)?,
            number: u64::from_be_bytes(*number),
            text: printable(&String::from_utf8_lossy(text)),
        })
    }
}

/// A control character could move a terminal's cursor or forge a line.
fn printable(text: &str) -> String {
    let shown = |c: char| {
        if c.is_control() && c != '\t' {
            '\u{FFFD}'
        } else {
            c
        }
    };
    text.chars().map(shown).collect()
}

/// How the enclave's program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Status(u8),
    /// By this signal.
    Signal(u8),
    /// It could not be started; the kernel's error number.
    NotStarted(u8),
}

impl Exit {
    /// The payload of a [`Kind::Exit`] frame.
    pub fn encode(self) -> [u8; 2] {
        match self {
            Exit::Status(status) => [0, status],
            Exit::Signal(signal) => [1, signal],
            Exit::NotStarted(error) => [2, error],
        }
    }

    /// Reads such a payload.
    ///
    /// # Errors
    /// It is not two bytes, or names an unknown way to end.
    pub fn decode(payload: &[u8]) -> Result<Exit, ReportError> {
        match *payload {
            [0, status] => Ok(Exit::Status(status)),
            [1, signal] => Ok(Exit::Signal(signal)),
            [2, error] => Ok(Exit::NotStarted(error)),
            _ => Err(ReportError {
                kind: Kind::Exit,
                length: payload.len(),
            }),
        }
    }

    /// What a shell would make of it: 128 and the signal, 127 for a program that is not there, 126
    /// for one that cannot be run.
    pub fn status(self) -> u8 {
        const ENOENT: u8 = 2;
        match self {
            Exit::Status(status) => status,
            Exit::Signal(signal) => signal.saturating_add(128),
            Exit::NotStarted(ENOENT) => 127,
            Exit::NotStarted(_) => 126,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Status(status) => write!(f, "exit status {status}"),
            Exit::Signal(signal) => write!(f, "ended by signal {signal}"),
            Exit::NotStarted(error) => write!(f, "could not be started (error {error})"),
        }
    }
}

/// A report whose payload is none; the link must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?} frame with a payload of {length} bytes that is none")]
pub struct ReportError {
    kind: Kind,
    length: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_survives_the_way_and_cannot_forge_another() {
        let bytes = LogLine::encode(Source::Stderr, 7, b"a\tb\nINFO forged \x1b[31m\xff");
        let line = LogLine::decode(&bytes).expect("valid");
        assert_eq!((line.source, line.number), (Source::Stderr, 7));
        assert_eq!(line.text, "a\tb\u{FFFD}INFO forged \u{FFFD}[31m\u{FFFD}");
    }

    #[test]
    fn a_long_line_is_cut_to_fit_its_frame() {
        let bytes = LogLine::encode(Source::Stdout, 0, &[b'x'; 2 * MAX_LOG_LINE]);
        assert_eq!(bytes.len(), Kind::Log.max_payload());
    }

    #[test]
    fn statuses_are_those_of_a_shell() {
        for (exit, status) in [
            (Exit::Status(7), 7),
            (Exit::Signal(15), 143),
            (Exit::NotStarted(2), 127),
            (Exit::NotStarted(13), 126),
        ] {
            assert_eq!(Exit::decode(&exit.encode()), Ok(exit));
            assert_eq!(exit.status(), status);
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(payload: Vec<u8>) {
            let _ = LogLine::decode(&payload);
            if let Ok(exit) = Exit::decode(&payload) {
                prop_assert_eq!(&exit.encode()[..], &payload[..]);
            }
        }
    }
}
