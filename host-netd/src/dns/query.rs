//! Queries of the enclave, and the messages that answer them.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::response::{Reason, Response, options};
use super::upstream::Ask;
use super::wire::{self, Message, Question, Section};
use super::{Transport, limits};

/// A root name, type, class, TTL, length: an OPT record without options.
const OPT: usize = 11;
/// The DO bit in the TTL field of OPT (RFC 3225).
const DNSSEC_OK: u16 = 0x8000;

/// The EDNS side of a query (RFC 6891).
#[derive(Clone, Copy, Debug)]
struct Edns {
    udp_size: u16,
    dnssec_ok: bool,
}

/// A query that can be looked up.
#[derive(Debug)]
pub(super) struct Query {
    id: u16,
    flags: u16,
    pub(super) question: Question,
    edns: Option<Edns>,
}

/// What a message from the enclave turned out to be.
pub(super) enum Received {
    Query(Query),
    /// Answered without looking anything up.
    Refused(Vec<u8>, ResponseCode),
    /// Shorter than a header, or a response: an answer could start a loop.
    Nothing,
}

impl Query {
    pub(super) fn receive(bytes: &[u8]) -> Received {
        let [id0, id1, flags0, flags1, ..] = *bytes else {
            return Received::Nothing;
        };
        let (id, flags) = (
            u16::from_be_bytes([id0, id1]),
            u16::from_be_bytes([flags0, flags1]),
        );
        if bytes.len() < wire::HEADER || flags & wire::QR != 0 {
            return Received::Nothing;
        }
        let refuse = |question: Option<&Question>, rcode, edns| {
            let response = Response::bare(question, rcode, None);
            Received::Refused(
                answer(id, flags, question, edns, response, limits::PLAIN_UDP),
                rcode,
            )
        };
        if flags & wire::OPCODE != 0 {
            return refuse(None, ResponseCode::NotImp, None);
        }
        if bytes.len() > limits::QUERY_BYTES {
            return refuse(None, ResponseCode::FormErr, None);
        }
        let Ok(message) = Message::parse(bytes.to_vec()) else {
            return refuse(None, ResponseCode::FormErr, None);
        };
        let Some(question) = message.question() else {
            return refuse(None, ResponseCode::FormErr, None);
        };
        let (edns, version) = match edns(&message) {
            Ok(Some((edns, version))) => (Some(edns), version),
            Ok(None) => (None, 0),
            Err(wire::Malformed) => return refuse(Some(&question), ResponseCode::FormErr, None),
        };
        if version > 0 {
            return refuse(Some(&question), ResponseCode::BADVERS, edns);
        }
        match question.rtype {
            RecordType::OPT => refuse(Some(&question), ResponseCode::FormErr, edns),
            // Zone transfers, and the other types that mean an operation: not for a resolver.
            rtype if (249..=254).contains(&u16::from(rtype)) => {
                refuse(Some(&question), ResponseCode::Refused, edns)
            }
            _ => Received::Query(Query {
                id,
                flags,
                question,
                edns,
            }),
        }
    }

    /// What the name servers are asked for it.
    pub(super) fn ask(&self) -> Ask {
        Ask {
            question: self.question.clone(),
            recursion: self.flags & wire::RD != 0,
            checking_disabled: self.flags & wire::CD != 0,
            dnssec_ok: self.edns.is_some_and(|edns| edns.dnssec_ok),
        }
    }

    /// The message for this query, no longer than the transport and the query allow.
    pub(super) fn answer(&self, response: Response, transport: Transport) -> Vec<u8> {
        let limit = match (transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => limits::PLAIN_UDP,
            (Transport::Udp, Some(edns)) => {
                usize::from(edns.udp_size).clamp(limits::PLAIN_UDP, limits::LARGEST_UDP)
            }
        };
        answer(
            self.id,
            self.flags,
            Some(&self.question),
            self.edns,
            response,
            limit,
        )
    }

    pub(super) fn failure(&self, rcode: ResponseCode, reason: Reason) -> Response {
        Response::bare(Some(&self.question), rcode, Some(reason))
    }
}

/// Reads the OPT record of a query and its version.
fn edns(message: &Message) -> Result<Option<(Edns, u8)>, wire::Malformed> {
    let mut opts = message
        .records()
        .iter()
        .filter(|record| record.is(RecordType::OPT));
    let Some(opt) = opts.next() else {
        return Ok(None);
    };
    let at_root = message.owner(opt).is_some_and(|owner| owner.is_root());
    if opts.next().is_some() || opt.section != Section::Additional || !at_root {
        return Err(wire::Malformed);
    }
    options(message.rdata(opt)).ok_or(wire::Malformed)?;
    let [_, version, flags0, flags1] = message.ttl(opt).to_be_bytes();
    let dnssec_ok = u16::from_be_bytes([flags0, flags1]) & DNSSEC_OK != 0;
    Ok(Some((
        Edns {
            udp_size: message.class(opt),
            dnssec_ok,
        },
        version,
    )))
}

/// Turns `response` into the message for the query with this identifier, flags and question.
fn answer(
    id: u16,
    asked: u16,
    question: Option<&Question>,
    edns: Option<Edns>,
    response: Response,
    limit: usize,
) -> Vec<u8> {
    let Response {
        mut message,
        mut rcode,
        extended_errors,
        ..
    } = response;
    if rcode.high() != 0 && edns.is_none() {
        rcode = ResponseCode::ServFail;
    }
    if let Some(question) = question {
        message.set_question_case(&question.name);
    }
    let opt = edns.map_or_else(Vec::new, |edns| {
        let errors = &extended_errors[..];
        let room = limit.saturating_sub(message.as_bytes().len() + OPT);
        opt(
            limits::ADVERTISED_UDP,
            rcode,
            edns.dnssec_ok,
            if errors.len() <= room { errors } else { &[] },
        )
    });

    let mut truncated = message.flags() & wire::TC;
    if message.as_bytes().len() + opt.len() > limit {
        let fits = |end: u16| usize::from(end) + opt.len() <= limit;
        let kept = message
            .records()
            .iter()
            .take_while(|record| fits(record.end))
            .count();
        // What is left out of the additional section is not missed (RFC 2181, section 9).
        if message
            .records()
            .get(kept)
            .is_some_and(|cut| cut.section != Section::Additional)
        {
            truncated = wire::TC;
        }
        message.cut(kept);
    }

    // RFC 6840, 5.7: AD only for those who say that they know it.
    let knows_ad = asked & wire::AD != 0 || edns.is_some_and(|edns| edns.dnssec_ok);
    let kept = wire::AA | if knows_ad { wire::AD } else { 0 };
    let flags = wire::QR
        | asked & (wire::OPCODE | wire::RD | wire::CD)
        | message.flags() & kept
        | truncated
        | wire::RA
        | u16::from(rcode.low());
    message.set_header(id, flags);
    message.finish(&opt)
}

/// An OPT record.
pub(super) fn opt(udp_size: u16, rcode: ResponseCode, dnssec_ok: bool, options: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(OPT + options.len());
    record.push(0);
    record.extend_from_slice(&u16::from(RecordType::OPT).to_be_bytes());
    record.extend_from_slice(&udp_size.to_be_bytes());
    record.extend_from_slice(&[rcode.high(), 0]);
    record.extend_from_slice(&(if dnssec_ok { DNSSEC_OK } else { 0 }).to_be_bytes());
    record.extend_from_slice(
        &u16::try_from(options.len())
            .unwrap_or_default()
            .to_be_bytes(),
    );
    record.extend_from_slice(options);
    record
}
