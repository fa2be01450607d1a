//! Domain names in wire form.

use std::fmt;

/// Longest name in wire form, the root's zero byte included (RFC 1035, 2.3.4).
const NAME_BYTES: usize = 255;
const LABEL_BYTES: usize = 63;
/// Pointers followed in one name: more than one before each label a name can have is an attack.
const POINTERS: usize = NAME_BYTES / 2;

/// The position after the name that starts at `pos`, compressed or not.
pub(super) fn skip(bytes: &[u8], mut pos: usize) -> Option<usize> {
    let start = pos;
    loop {
        let length = *bytes.get(pos)?;
        match length & 0xc0 {
            0x00 if length == 0 => return (pos + 1 - start <= NAME_BYTES).then_some(pos + 1),
            0x00 => pos += 1 + usize::from(length),
            0xc0 => return (pos + 1 < bytes.len()).then_some(pos + 2),
            _ => return None,
        }
        if pos - start > NAME_BYTES {
            return None;
        }
    }
}

/// A name in lower case, uncompressed wire form: equal names have equal bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Name(Box<[u8]>);

/// The position after the name that starts at `pos` and is not compressed.
pub(super) fn skip_plain(bytes: &[u8], pos: usize) -> Option<usize> {
    let mut end = pos;
    loop {
        let length = usize::from(*bytes.get(end)?);
        end += 1 + length;
        if length > LABEL_BYTES || end - pos > NAME_BYTES {
            return None;
        }
        if length == 0 {
            return Some(end);
        }
    }
}

impl Name {
    /// Reads the name at `pos`. A pointer must lead to before the piece it ends, so every chain of
    /// pointers comes to an end.
    pub(super) fn read(bytes: &[u8], mut pos: usize) -> Option<Name> {
        let mut name = Vec::with_capacity(64);
        let mut piece = pos;
        let mut pointers = 0;
        loop {
            let length = *bytes.get(pos)?;
            match length & 0xc0 {
                0x00 => {
                    let label = bytes.get(pos..pos + 1 + usize::from(length))?;
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    if name.len() > NAME_BYTES {
                        return None;
                    }
                    if length == 0 {
                        return Some(Name(name.into()));
                    }
                    pos += label.len();
                }
                0xc0 => {
                    let target = u16::from_be_bytes([length & 0x3f, *bytes.get(pos + 1)?]).into();
                    pointers += 1;
                    if target >= piece || pointers > POINTERS {
                        return None;
                    }
                    (piece, pos) = (target, target);
                }
                _ => return None,
            }
        }
    }

    /// Reads a name as it is written in resolv.conf; a trailing dot makes no difference.
    pub(super) fn from_text(text: &str) -> Option<Name> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut name = Vec::with_capacity(text.len() + 2);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            if label.is_empty() || label.len() > LABEL_BYTES || !label.is_ascii() {
                return None;
            }
            name.push(u8::try_from(label.len()).ok()?);
            name.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        name.push(0);
        (name.len() <= NAME_BYTES).then(|| Name(name.into()))
    }

    pub(super) fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (&length, tail) = rest.split_first().filter(|(length, _)| **length != 0)?;
            let (label, tail) = tail.split_at_checked(length.into())?;
            rest = tail;
            Some(label)
        })
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// True for `suffix` itself and every name below it.
    pub(super) fn is_within(&self, suffix: &Name) -> bool {
        let (own, other) = (self.labels().count(), suffix.labels().count());
        own >= other && self.labels().skip(own - other).eq(suffix.labels())
    }

    /// `wire`, a name in uncompressed wire form of any case, followed by `suffix`; `None` if that
    /// is too long for a name.
    pub(super) fn join(wire: &[u8], suffix: &Name) -> Option<Vec<u8>> {
        let (_, labels) = wire.split_last()?;
        let joined = [labels, &suffix.0].concat();
        (joined.len() <= NAME_BYTES).then_some(joined)
    }
}

/// Without the trailing dot; what is not a letter, digit, `-` or `_` is escaped as in a zone file.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for (index, label) in self.labels().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            for &byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                    0x21..=0x7e => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
