//! What a DNS answer says about a name (RFC 1035, 4.1), for rules that name hosts.
//!
//! Only as much as that takes: the question, by which an answer is told from one that nobody asked
//! for, and the addresses of the answer section whoever owns them, since a chain of aliases leads
//! there. The answer comes from the host and is hostile; a lie in it lets a program connect to a
//! wrong address, where it meets the wrong certificate.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
/// Longest name in text form (RFC 1035, 2.3.4).
const MAX_NAME: usize = 253;
/// Addresses taken from one answer: resolvers hand programs fewer.
const MAX_ADDRESSES: usize = 64;

/// What is asked, and by which number the answer is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Question {
    id: u16,
    /// In lower case, without the last dot.
    pub(crate) name: String,
}

impl Question {
    /// Reads a message; `None` if it asks nothing, or about what no rule can name.
    pub(crate) fn parse(message: &[u8]) -> Option<Question> {
        let header = Header::parse(message)?;
        (!header.is_answer)
            .then(|| header.question(message))?
            .map(|(question, _)| question)
    }
}

/// The addresses of one name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) question: Question,
    pub(crate) addresses: Vec<IpAddr>,
    /// The longest time to live among them, in seconds.
    pub(crate) ttl: u32,
}

impl Answer {
    /// Reads a message; `None` if it is no successful answer with addresses.
    pub(crate) fn parse(message: &[u8]) -> Option<Answer> {
        let header = Header::parse(message)?;
        if !header.is_answer || header.is_error {
            return None;
        }
        let (question, mut reader) = header.question(message)?;
        let mut answer = Answer {
            question,
            addresses: Vec::new(),
            ttl: 0,
        };
        for _ in 0..header.answers {
            // Records behind the one that is cut off are lost; those before it count.
            let Some((address, ttl)) = reader.record() else {
                break;
            };
            let Some(address) = address else { continue };
            if answer.addresses.len() < MAX_ADDRESSES {
                answer.addresses.push(address);
                answer.ttl = answer.ttl.max(ttl);
            }
        }
        (!answer.addresses.is_empty()).then_some(answer)
    }
}

struct Header {
    id: u16,
    is_answer: bool,
    is_error: bool,
    questions: u16,
    answers: u16,
}

impl Header {
    fn parse(message: &[u8]) -> Option<Header> {
        let bytes = message.first_chunk::<HEADER>()?;
        let field = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        Some(Header {
            id: field(0),
            is_answer: field(2) & 0x8000 != 0,
            is_error: field(2) & 0x000F != 0,
            questions: field(4),
            answers: field(6),
        })
    }

    /// The message's only question, and what follows it.
    fn question<'a>(&self, message: &'a [u8]) -> Option<(Question, Reader<'a>)> {
        let mut reader = Reader {
            rest: message.get(HEADER..)?,
        };
        let name = (self.questions == 1).then(|| reader.name())??;
        // Type and class.
        reader.take(4)?;
        Some((Question { id: self.id, name }, reader))
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    /// A name without pointers, as the first of a message is.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        loop {
            let length = usize::from(self.take(1)?[0]);
            if length == 0 {
                return Some(name);
            }
            if length > 63 {
                return None;
            }
            let label = self.take(length)?;
            // What a rule can name; anything else matches none.
            if !label
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b))
            {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
            if name.len() > MAX_NAME {
                return None;
            }
        }
    }

    fn skip_name(&mut self) -> Option<()> {
        loop {
            match self.take(1)?[0] {
                0 => return Some(()),
                pointer if pointer & 0xC0 == 0xC0 => return self.take(1).map(drop),
                length if length < 64 => self.take(length.into()).map(drop)?,
                _ => return None,
            }
        }
    }

    /// A record's address, if it is one of an address, and its time to live.
    fn record(&mut self) -> Option<(Option<IpAddr>, u32)> {
        self.skip_name()?;
        let (kind, class) = (self.number()?, self.number()?);
        let ttl = self
            .take(4)
            .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))?;
        let length = self.number()?;
        let data = self.take(length.into())?;
        let address = match (kind, class) {
            (TYPE_A, CLASS_IN) => <[u8; 4]>::try_from(data)
                .ok()
                .map(|b| Ipv4Addr::from(b).into()),
            (TYPE_AAAA, CLASS_IN) => <[u8; 16]>::try_from(data)
                .ok()
                .map(|b| Ipv6Addr::from(b).into()),
            _ => None,
        };
        Some((address, ttl))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).expect("short"));
            bytes.extend(label.bytes());
        }
        bytes.push(0);
        bytes
    }

    /// An answer about `name` in which an alias comes first.
    pub(crate) fn message(name: &str, addresses: &[IpAddr], ttl: u32) -> Vec<u8> {
        let count = u8::try_from(addresses.len() + 1).expect("few");
        let mut bytes = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0];
        bytes.extend(encoded(name));
        bytes.extend([0, 1, 0, 1]);
        let alias = encoded("edge.example.net");
        bytes.extend([0xC0, 12, 0, 5, 0, 1, 0, 0, 0, 9]);
        bytes.extend([0, u8::try_from(alias.len()).expect("short")]);
        bytes.extend(&alias);
        for address in addresses {
            bytes.extend(&alias);
            let (kind, data) = match address {
                IpAddr::V4(v4) => (1, v4.octets().to_vec()),
                IpAddr::V6(v6) => (28, v6.octets().to_vec()),
            };
            bytes.extend([0, kind, 0, 1]);
            bytes.extend(ttl.to_be_bytes());
            bytes.extend([0, u8::try_from(data.len()).expect("short")]);
            bytes.extend(data);
        }
        bytes
    }

    /// The question that [`message`] answers.
    pub(crate) fn question(name: &str) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(encoded(name));
        bytes.extend([0, 1, 0, 1]);
        bytes
    }

    fn addresses() -> Vec<IpAddr> {
        ["192.0.2.1", "2001:db8::1"]
            .map(|a| a.parse().expect(a))
            .to_vec()
    }

    #[test]
    fn the_addresses_behind_an_alias_belong_to_the_name_that_was_asked() {
        let answer = Answer::parse(&message("KMS.example.COM", &addresses(), 60));
        let question = Question {
            id: 0x1234,
            name: "kms.example.com".to_owned(),
        };
        assert_eq!(
            answer,
            Some(Answer {
                question,
                addresses: addresses(),
                ttl: 60
            })
        );
    }

    #[test]
    fn a_question_is_what_its_answer_repeats() {
        let question = Question::parse(&question("KMS.example.com"));
        let answer = Answer::parse(&message("kms.EXAMPLE.com", &addresses(), 60));
        assert_eq!(question, answer.map(|answer| answer.question));
        assert!(question.is_some());
        let answer = message("a.example", &addresses(), 60);
        assert_eq!(Question::parse(&answer), None);
    }

    #[test]
    fn questions_errors_and_empty_answers_say_nothing() {
        let good = message("a.example", &addresses(), 60);
        for (at, byte) in [(2, 0x01), (3, 0x83), (5, 0), (5, 2)] {
            let mut changed = good.clone();
            changed[at] = byte;
            assert_eq!(Answer::parse(&changed), None, "byte {at} = {byte}");
        }
        assert_eq!(Answer::parse(&message("a.example", &[], 60)), None);
        assert_eq!(Answer::parse(&good[..HEADER - 1]), None);
    }

    #[test]
    fn what_was_cut_off_is_lost_and_no_more() {
        let whole = message("a.example", &addresses(), 60);
        let answer = Answer::parse(&whole[..whole.len() - 1]).expect("one is whole");
        assert_eq!(answer.addresses, addresses()[..1]);
    }

    #[test]
    fn names_that_no_rule_can_name_are_left_alone() {
        let dots = message("a\u{1}b.example", &addresses(), 60);
        assert_eq!(Answer::parse(&dots), None);
        let long = message(&["abcdefg"; 40].join("."), &addresses(), 60);
        assert_eq!(Answer::parse(&long), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(
            mut changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            garbage: Vec<u8>,
        ) {
            let _ = (Answer::parse(&garbage), Question::parse(&garbage));
            let mut bytes = message("a.example", &addresses(), 60);
            for (at, byte) in changes.drain(..) {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(answer) = Answer::parse(&bytes) {
                prop_assert!(answer.question.name.len() <= MAX_NAME);
                prop_assert!(answer.addresses.len() <= MAX_ADDRESSES);
            }
        }
    }
}
