//! Control messages: ping, pong and goodbye.

use crate::frame::Kind;
use crate::limits::MAX_GOODBYE_TEXT;
use std::fmt;

/// Why a side closes the link. Numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Reason {
    /// The daemon ends in good order.
    Shutdown = 1,
    /// The peer speaks a version that this side does not.
    Version = 2,
    /// The peer sent bytes that are not of this protocol.
    Protocol = 3,
    /// The peer may not connect here.
    Refused = 4,
    /// A newer link of the same session took over.
    Replaced = 5,
    /// The peer was silent too long.
    Timeout = 6,
    /// This side has no room for another session.
    Full = 7,
}

impl Reason {
    fn from_number(number: u16) -> Option<Reason> {
        Some(match number {
            1 => Reason::Shutdown,
            2 => Reason::Version,
            3 => Reason::Protocol,
            4 => Reason::Refused,
            5 => Reason::Replaced,
            6 => Reason::Timeout,
            7 => Reason::Full,
            _ => return None,
        })
    }
}

/// The last message of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goodbye {
    /// For the machine.
    pub reason: Reason,
    /// For the log: one line, control characters removed.
    pub text: String,
}

impl Goodbye {
    /// A goodbye; `text` is cut at [`MAX_GOODBYE_TEXT`] bytes.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        let mut text: String = text.into().chars().filter(|c| !c.is_control()).collect();
        text.truncate(text.floor_char_boundary(MAX_GOODBYE_TEXT));
        Goodbye { reason, text }
    }

    /// The payload of a [`Kind::Goodbye`] frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.reason as u16).to_be_bytes().to_vec();
        bytes.extend(self.text.as_bytes());
        bytes
    }
}

impl fmt::Display for Goodbye {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.text, self.reason)
    }
}

/// A control message of an established link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// To be answered by a pong of the same number.
    Ping(u64),
    /// The number of a ping.
    Pong(u64),
    /// The peer closes the link.
    Goodbye(Goodbye),
}

/// A control frame whose payload is none; the link must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?} frame with a payload of {length} bytes that is none")]
pub struct ControlError {
    kind: Kind,
    length: usize,
}

impl Control {
    /// Reads the payload of a control frame of an established link.
    ///
    /// # Errors
    /// The payload is malformed, or a frame of this kind has no place after the handshake.
    pub fn decode(kind: Kind, payload: &[u8]) -> Result<Control, ControlError> {
        let error = ControlError {
            kind,
            length: payload.len(),
        };
        let number = || {
            payload
                .try_into()
                .map(u64::from_be_bytes)
                .map_err(|_| error)
        };
        match kind {
            Kind::Ping => number().map(Control::Ping),
            Kind::Pong => number().map(Control::Pong),
            Kind::Goodbye => {
                let (reason, text) = payload.split_first_chunk::<2>().ok_or(error)?;
                let reason = Reason::from_number(u16::from_be_bytes(*reason)).ok_or(error)?;
                Ok(Control::Goodbye(Goodbye::new(
                    reason,
                    String::from_utf8_lossy(text),
                )))
            }
            Kind::Packet | Kind::Hello | Kind::Welcome | Kind::Log | Kind::Exit => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn goodbye_survives_the_way_and_cannot_forge_log_lines() {
        let goodbye = Goodbye::new(Reason::Version, "line\nINFO forged \u{1b}[31m");
        assert_eq!(goodbye.text, "lineINFO forged [31m");

        let decoded = Control::decode(Kind::Goodbye, &goodbye.encode());
        assert_eq!(decoded, Ok(Control::Goodbye(goodbye)));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let goodbye = Goodbye::new(Reason::Shutdown, "é".repeat(1000));
        assert_eq!(goodbye.text.len(), MAX_GOODBYE_TEXT);
    }

    #[test]
    fn a_hello_has_no_place_in_an_established_link() {
        assert!(Control::decode(Kind::Hello, &[0; 40]).is_err());
    }

    proptest! {
        #[test]
        fn pings_survive_the_way(number: u64) {
            let decoded = Control::decode(Kind::Ping, &number.to_be_bytes());
            prop_assert_eq!(decoded, Ok(Control::Ping(number)));
        }

        #[test]
        fn garbage_never_panics(kind in 1u8..=6, payload: Vec<u8>) {
            let kind = [Kind::Ping, Kind::Pong, Kind::Goodbye][usize::from(kind) % 3];
            let _ = Control::decode(kind, &payload);
        }
    }
}
