//! A TCP segment in one line.

use std::fmt;
use std::str::FromStr;

/// `FLAGS SEQ[:END] [ack N] [win N] [mss N] [scale N] [urg N]`
///
/// Flags are letters out of `SFRAPU`; `END` is behind the last byte of payload; `urg` is the urgent
/// pointer. Of what is expected, a field that is not named may be anything, `win +` is any window
/// but a shut one, and `P` is not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// In the order of `SFRAPU`.
    pub flags: String,
    /// Relative sequence number.
    pub from: u32,
    /// Behind the payload.
    pub to: u32,
    /// Relative acknowledgement.
    pub ack: Option<u32>,
    /// As in the header: not scaled.
    pub window: Option<Window>,
    /// Option of a SYN.
    pub mss: Option<u16>,
    /// Option of a SYN.
    pub scale: Option<u8>,
    /// Urgent pointer.
    pub urgent: Option<u16>,
}

/// A window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// That.
    Is(u16),
    /// Any but none.
    Open,
}

const FLAGS: &str = "SFRAPU";

impl Line {
    /// Whether a segment is as this line wants it.
    pub fn fits(&self, seen: &Line) -> bool {
        let plain = |line: &Line| line.flags.replace('P', "");
        let is = |wanted: Option<u32>, has: Option<u32>| wanted.is_none() || wanted == has;
        let window = match (self.window, seen.window) {
            (None, _) => true,
            (Some(Window::Open), has) => has != Some(Window::Is(0)),
            (wanted, has) => wanted == has,
        };
        plain(self) == plain(seen)
            && (self.from, self.to) == (seen.from, seen.to)
            && is(self.ack, seen.ack)
            && window
            && (self.mss.is_none() || self.mss == seen.mss)
            && (self.scale.is_none() || self.scale == seen.scale)
            && (self.urgent.is_none() || self.urgent == seen.urgent)
    }
}

impl FromStr for Line {
    type Err = String;

    fn from_str(text: &str) -> Result<Line, String> {
        let wrong = |what: &str| format!("{what:?} in the line {text:?}");
        let mut words = text.split_whitespace();
        let flags = words.next().unwrap_or_default();
        if flags.is_empty() || !flags.chars().all(|flag| FLAGS.contains(flag)) {
            return Err(wrong(flags));
        }
        let place = words.next().ok_or_else(|| wrong(""))?;
        let (from, to) = place.split_once(':').unwrap_or((place, place));
        let number = |word: &str| word.parse::<u32>().map_err(|_| wrong(word));
        let mut line = Line {
            flags: FLAGS.chars().filter(|flag| flags.contains(*flag)).collect(),
            from: number(from)?,
            to: number(to)?,
            ..Line::default()
        };
        while let Some(word) = words.next() {
            let value = words.next().ok_or_else(|| wrong(word))?;
            let short = || value.parse::<u16>().map_err(|_| wrong(value));
            match word {
                "ack" => line.ack = Some(number(value)?),
                "win" if value == "+" => line.window = Some(Window::Open),
                "win" => line.window = Some(Window::Is(short()?)),
                "mss" => line.mss = Some(short()?),
                "scale" => line.scale = Some(value.parse().map_err(|_| wrong(value))?),
                "urg" => line.urgent = Some(short()?),
                _ => return Err(wrong(word)),
            }
        }
        Ok(line)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.flags, self.from)?;
        if self.to != self.from {
            write!(f, ":{}", self.to)?;
        }
        if let Some(ack) = self.ack {
            write!(f, " ack {ack}")?;
        }
        match self.window {
            Some(Window::Is(window)) => write!(f, " win {window}")?,
            Some(Window::Open) => f.write_str(" win +")?,
            None => {}
        }
        if let Some(mss) = self.mss {
            write!(f, " mss {mss}")?;
        }
        if let Some(scale) = self.scale {
            write!(f, " scale {scale}")?;
        }
        if let Some(urgent) = self.urgent {
            write!(f, " urg {urgent}")?;
        }
        Ok(())
    }
}

/// The bytes of every stream, by relative sequence number: the first is at 1.
pub fn stream_bytes(from: u32, to: u32) -> Vec<u8> {
    (from..to)
        .map(|place| {
            let mixed = place.wrapping_mul(0x9e37_79b1);
            mixed.to_be_bytes()[0]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        text.parse().expect(text)
    }

    #[test]
    fn a_line_says_what_it_was_made_of() {
        for text in [
            "S 0 win 64000 mss 1460 scale 7",
            "SA 0 ack 1",
            "AP 1:11 ack 1 win 0",
            "AU 1:11 ack 1 urg 3",
            "R 5",
        ] {
            assert_eq!(line(text).to_string(), text);
        }
        for wrong in [
            "",
            "X 0",
            "S",
            "S x",
            "A 1 ack",
            "A 1 win -",
            "A 1 colour 3",
        ] {
            assert!(wrong.parse::<Line>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_fits_what_it_names() {
        let seen = line("AP 1:11 ack 7 win 500");
        for fits in [
            "A 1:11",
            "PA 1:11 ack 7",
            "A 1:11 ack 7 win 500",
            "A 1:11 win +",
        ] {
            assert!(line(fits).fits(&seen), "{fits}");
        }
        for other in [
            "A 1",
            "A 2:11",
            "A 1:12",
            "FA 1:11",
            "A 1:11 ack 8",
            "A 1:11 win 0",
        ] {
            assert!(!line(other).fits(&seen), "{other}");
        }
        assert!(!line("A 1 win +").fits(&line("A 1 win 0")));
    }

    #[test]
    fn streams_differ_at_every_place() {
        let bytes = stream_bytes(1, 1000);
        assert_eq!(bytes[10..20], stream_bytes(11, 21));
        for shift in 1..20 {
            assert_ne!(bytes[..100], bytes[shift..100 + shift]);
        }
    }
}
