//! A DNS message kept as the bytes that came, with a table of where its records lie.
//!
//! Answers are edited in place (identifier, flags, case of the question, TTLs) and cut only at
//! their end. Nothing is decoded and encoded again, so every record, of a known type or not,
//! compressed or not, goes through byte for byte.

use hickory_proto::rr::{DNSClass, RecordType};

use super::name::{self, Name};

pub(super) const HEADER: usize = 12;
pub(super) const QR: u16 = 0x8000;
pub(super) const OPCODE: u16 = 0x7800;
pub(super) const AA: u16 = 0x0400;
pub(super) const TC: u16 = 0x0200;
pub(super) const RD: u16 = 0x0100;
pub(super) const RA: u16 = 0x0080;
pub(super) const AD: u16 = 0x0020;
pub(super) const CD: u16 = 0x0010;
const RCODE: u8 = 0x0f;

/// Type, class, TTL and length of a record, after its owner's name.
const FIXED: usize = 10;

/// Bytes that are not one DNS message.
#[derive(Debug, thiserror::Error)]
#[error("malformed DNS message")]
pub(super) struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// Where a record lies. A message has at most 65,535 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordAt {
    pub(super) section: Section,
    pub(super) start: u16,
    fixed: u16,
    pub(super) end: u16,
    pub(super) rtype: u16,
}

/// What a query asks for. The name is in uncompressed wire form, in the case in which it came.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) name: Vec<u8>,
    pub(super) rtype: RecordType,
    pub(super) class: DNSClass,
}

impl Question {
    pub(super) fn lower(&self) -> Option<Name> {
        Name::read(&self.name, 0)
    }

    /// True if `message` has this one question, whatever the case of its name.
    pub(super) fn is_of(&self, message: &[u8]) -> bool {
        let mut question = Vec::with_capacity(self.name.len() + 4);
        self.emit(&mut question);
        let (name, kind) = question.split_at(self.name.len());
        let echoed = message.get(HEADER..HEADER + question.len());
        u16_at(message, 4) == Some(1)
            && echoed
                .map(|echoed| echoed.split_at(name.len()))
                .is_some_and(|(echoed_name, echoed_kind)| {
                    echoed_name.eq_ignore_ascii_case(name) && echoed_kind == kind
                })
    }

    pub(super) fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.name);
        out.extend_from_slice(&u16::from(self.rtype).to_be_bytes());
        out.extend_from_slice(&u16::from(self.class).to_be_bytes());
    }
}

#[derive(Clone, Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
    question_end: usize,
    records: Vec<RecordAt>,
}

impl Message {
    /// Walks the whole message. It has at most one question, whose name is not compressed (there is
    /// nothing before it to point to). Bytes after the last record are dropped.
    pub(super) fn parse(mut bytes: Vec<u8>) -> Result<Message, Malformed> {
        if bytes.len() < HEADER || bytes.len() > usize::from(u16::MAX) {
            return Err(Malformed);
        }
        let mut pos = HEADER;
        match u16_at(&bytes, 4) {
            Some(0) => {}
            Some(1) => {
                let end = name::skip_plain(&bytes, pos).ok_or(Malformed)?;
                if end + 4 > bytes.len() {
                    return Err(Malformed);
                }
                pos = end + 4;
            }
            _ => return Err(Malformed),
        }
        let question_end = pos;
        let mut records = Vec::new();
        for (section, count_at) in [
            (Section::Answer, 6),
            (Section::Authority, 8),
            (Section::Additional, 10),
        ] {
            for _ in 0..u16_at(&bytes, count_at).ok_or(Malformed)? {
                let record = RecordAt::parse(&bytes, pos, section).ok_or(Malformed)?;
                pos = record.end.into();
                records.push(record);
            }
        }
        bytes.truncate(pos);
        Ok(Message {
            bytes,
            question_end,
            records,
        })
    }

    /// A message without records.
    pub(super) fn bare(question: Option<&Question>) -> Message {
        let mut bytes = vec![0; HEADER];
        if let Some(question) = question {
            bytes[5] = 1;
            question.emit(&mut bytes);
        }
        Message {
            question_end: bytes.len(),
            bytes,
            records: Vec::new(),
        }
    }

    /// A message without records, with the flags of one that came without its question.
    pub(super) fn unasked(question: &Question, received: &Message) -> Message {
        let mut message = Message::bare(Some(question));
        message.set_header(received.id(), received.flags());
        message
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn id(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    pub(super) fn flags(&self) -> u16 {
        u16::from_be_bytes([self.bytes[2], self.bytes[3]])
    }

    /// The four bits of the response code that the header holds.
    pub(super) fn rcode_low(&self) -> u8 {
        self.bytes[3] & RCODE
    }

    pub(super) fn set_header(&mut self, id: u16, flags: u16) {
        self.bytes[..2].copy_from_slice(&id.to_be_bytes());
        self.bytes[2..4].copy_from_slice(&flags.to_be_bytes());
    }

    pub(super) fn question(&self) -> Option<Question> {
        let name = self.bytes.get(HEADER..self.question_end.checked_sub(4)?)?;
        Some(Question {
            name: name.to_vec(),
            rtype: RecordType::from(u16_at(&self.bytes, self.question_end - 4)?),
            class: DNSClass::from(u16_at(&self.bytes, self.question_end - 2)?),
        })
    }

    /// Writes the question's name in another case; a name of another length is left as it is.
    pub(super) fn set_question_case(&mut self, name: &[u8]) {
        if let Some(place) = self.bytes.get_mut(HEADER..HEADER + name.len())
            && place.eq_ignore_ascii_case(name)
        {
            place.copy_from_slice(name);
        }
    }

    pub(super) fn records(&self) -> &[RecordAt] {
        &self.records
    }

    pub(super) fn section(&self, section: Section) -> impl Iterator<Item = &RecordAt> {
        self.records
            .iter()
            .filter(move |record| record.section == section)
    }

    pub(super) fn owner(&self, record: &RecordAt) -> Option<Name> {
        Name::read(&self.bytes, record.start.into())
    }

    pub(super) fn class(&self, record: &RecordAt) -> u16 {
        u16_at(&self.bytes, usize::from(record.fixed) + 2).unwrap_or_default()
    }

    pub(super) fn ttl(&self, record: &RecordAt) -> u32 {
        let at = usize::from(record.fixed) + 4;
        self.bytes[at..]
            .first_chunk()
            .map_or(0, |ttl| u32::from_be_bytes(*ttl))
    }

    pub(super) fn rdata(&self, record: &RecordAt) -> &[u8] {
        &self.bytes[usize::from(record.fixed) + FIXED..record.end.into()]
    }

    /// The name with which a record's data begins (CNAME, NS, PTR).
    pub(super) fn rdata_name(&self, record: &RecordAt) -> Option<Name> {
        Name::read(&self.bytes, usize::from(record.fixed) + FIXED)
    }

    /// Takes `seconds` off every TTL.
    pub(super) fn count_down(&mut self, seconds: u32) {
        for index in 0..self.records.len() {
            let record = self.records[index];
            let ttl = self.ttl(&record).saturating_sub(seconds);
            let at = usize::from(record.fixed) + 4;
            self.bytes[at..at + 4].copy_from_slice(&ttl.to_be_bytes());
        }
    }

    /// Cuts the message before the record with this index. Names are only ever compressed to what
    /// stands before them, so what is left stays whole.
    pub(super) fn cut(&mut self, index: usize) {
        let end = match index.checked_sub(1).and_then(|last| self.records.get(last)) {
            Some(last) => last.end.into(),
            None => self.question_end,
        };
        self.records.truncate(index);
        self.bytes.truncate(end);
        for (section, count_at) in [
            (Section::Answer, 6),
            (Section::Authority, 8),
            (Section::Additional, 10),
        ] {
            let count = u16::try_from(self.section(section).count()).unwrap_or(u16::MAX);
            self.bytes[count_at..count_at + 2].copy_from_slice(&count.to_be_bytes());
        }
    }

    /// The finished bytes, with one more whole record at the end of the additional section.
    pub(super) fn finish(mut self, additional: &[u8]) -> Vec<u8> {
        if !additional.is_empty() {
            let count = u16_at(&self.bytes, 10)
                .unwrap_or_default()
                .saturating_add(1);
            self.bytes[10..12].copy_from_slice(&count.to_be_bytes());
            self.bytes.extend_from_slice(additional);
        }
        self.bytes
    }
}

// The table of a message's records is not longer than the message.
const _: () = assert!(size_of::<RecordAt>() <= 1 + FIXED);

impl RecordAt {
    fn parse(bytes: &[u8], start: usize, section: Section) -> Option<RecordAt> {
        let fixed = name::skip(bytes, start)?;
        let end = fixed + FIXED + usize::from(u16_at(bytes, fixed + 8)?);
        if end > bytes.len() {
            return None;
        }
        Some(RecordAt {
            section,
            start: u16::try_from(start).ok()?,
            fixed: u16::try_from(fixed).ok()?,
            end: u16::try_from(end).ok()?,
            rtype: u16_at(bytes, fixed)?,
        })
    }

    /// True if the record's type is `rtype`.
    pub(super) fn is(&self, rtype: RecordType) -> bool {
        self.rtype == u16::from(rtype)
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|pair| u16::from_be_bytes(*pair))
}
