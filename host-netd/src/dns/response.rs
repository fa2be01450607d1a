//! What an upstream server said, without what belongs to one hop only (identifier, OPT).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, RecordType};

use super::limits;
use super::name::Name;
use super::wire::{self, Malformed, Message, Question, Section};

/// The EDNS option of RFC 8914.
const EXTENDED_ERROR: u16 = 15;
const OPTION_HEADER: usize = 4;

/// Reasons of RFC 8914 that this service gives itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Other = 0,
    NotReady = 14,
    NoReachableAuthority = 22,
}

/// Addresses handed out for a name, with the least TTL on the way to them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ttl: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Response {
    pub(super) message: Message,
    pub(super) rcode: ResponseCode,
    /// Extended errors, as whole EDNS options.
    pub(super) extended_errors: Vec<u8>,
    /// The server understood EDNS.
    pub(super) with_opt: bool,
}

impl Response {
    /// Takes an upstream message apart. OPT is the last record of all servers known; one that puts
    /// it elsewhere loses the (optional) additional records behind it.
    pub(super) fn from_upstream(mut message: Message) -> Result<Response, Malformed> {
        let opt = message
            .records()
            .iter()
            .position(|record| record.is(RecordType::OPT));
        let mut high = 0;
        let mut extended_errors = Vec::new();
        if let Some(index) = opt {
            let record = message.records()[index];
            if record.section != Section::Additional {
                return Err(Malformed);
            }
            [high, ..] = message.ttl(&record).to_be_bytes();
            for (code, option) in options(message.rdata(&record)).ok_or(Malformed)? {
                if code == EXTENDED_ERROR {
                    extended_errors.extend_from_slice(option);
                }
            }
            message.cut(index);
        }
        let rcode = ResponseCode::from(high, message.rcode_low());
        Ok(Response {
            message,
            rcode,
            extended_errors,
            with_opt: opt.is_some(),
        })
    }

    /// An answer of our own without records.
    pub(super) fn bare(
        question: Option<&Question>,
        rcode: ResponseCode,
        reason: Option<Reason>,
    ) -> Response {
        let extended_errors = reason.map_or_else(Vec::new, |reason| {
            [
                EXTENDED_ERROR.to_be_bytes(),
                2u16.to_be_bytes(),
                (reason as u16).to_be_bytes(),
            ]
            .concat()
        });
        let message = Message::bare(question);
        Response {
            message,
            rcode,
            extended_errors,
            with_opt: true,
        }
    }

    /// True if the name was looked up, whether it exists or not; another server would say the same.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.rcode, ResponseCode::NoError | ResponseCode::NXDomain)
    }

    /// True if the name exists and has records of the asked type.
    pub(super) fn has_answer(&self, rtype: RecordType) -> bool {
        self.rcode == ResponseCode::NoError
            && self
                .message
                .section(Section::Answer)
                .any(|record| record.is(rtype) || rtype == RecordType::ANY)
    }

    /// The least TTL of the answer section, or of the negative answer (RFC 2308, section 5).
    pub(super) fn least_ttl(&self) -> u32 {
        let answer = self
            .message
            .section(Section::Answer)
            .map(|record| self.message.ttl(record));
        answer.chain(self.negative_ttl()).min().unwrap_or_default()
    }

    /// How long this may be kept; `None` for not at all. Kept are names that were looked up; an
    /// absence only with the SOA that says for how long (RFC 2308). Failures are never kept: the
    /// next query may already succeed, and the bound on queries in flight contains them.
    pub(super) fn lifetime(&self, rtype: RecordType) -> Option<Duration> {
        let usable = self.is_final() && self.message.flags() & wire::TC == 0;
        if !usable || rtype == RecordType::ANY {
            return None;
        }
        // RFC 2181, section 8: a TTL with its highest bit set counts as zero.
        let ttls = self
            .message
            .records()
            .iter()
            .map(|record| self.message.ttl(record));
        let ttls = ttls.map(|ttl| {
            if ttl > i32::MAX.unsigned_abs() {
                0
            } else {
                ttl
            }
        });
        let (least, most) = if self.has_answer(rtype) {
            (ttls.min()?, limits::CACHE_POSITIVE)
        } else {
            (
                ttls.min()?.min(self.negative_ttl()?),
                limits::CACHE_NEGATIVE,
            )
        };
        (least > 0).then(|| Duration::from_secs(least.into()).min(most))
    }

    /// The lesser of the SOA's TTL and its MINIMUM field, the last four bytes of its data.
    fn negative_ttl(&self) -> Option<u32> {
        let mut authority = self.message.section(Section::Authority);
        let soa = authority.find(|record| record.is(RecordType::SOA))?;
        let minimum = u32::from_be_bytes(*self.message.rdata(soa).last_chunk()?);
        Some(minimum.min(self.message.ttl(soa)))
    }

    /// The addresses the answer gives for `name`, through its CNAME records. An address record of
    /// another name or class is none of it.
    pub(super) fn addresses(&self, name: &Name) -> Option<Addresses> {
        let message = &self.message;
        let mut found = Addresses {
            addresses: Vec::new(),
            ttl: u32::MAX,
        };
        let mut current = name.clone();
        let records = || {
            let answer = message.section(Section::Answer);
            answer.filter(|record| message.class(record) == u16::from(DNSClass::IN))
        };
        let aliases = records().filter(|record| record.is(RecordType::CNAME));
        let mut aliases: HashMap<_, _> = aliases
            .filter_map(|record| Some((message.owner(record)?, record)))
            .collect();
        // Each step uses up one record, so a loop of aliases ends as well.
        while let Some(alias) = aliases.remove(&current) {
            found.ttl = found.ttl.min(message.ttl(alias));
            current = message.rdata_name(alias)?;
        }
        for record in records() {
            let address = match (record.is(RecordType::A), record.is(RecordType::AAAA)) {
                (true, _) => <[u8; 4]>::try_from(message.rdata(record))
                    .ok()
                    .map(IpAddr::from),
                (_, true) => <[u8; 16]>::try_from(message.rdata(record))
                    .ok()
                    .map(IpAddr::from),
                _ => None,
            };
            if let Some(address) = address
                && message.owner(record).as_ref() == Some(&current)
            {
                found.addresses.push(address);
                found.ttl = found.ttl.min(message.ttl(record));
            }
        }
        (!found.addresses.is_empty()).then_some(found)
    }
}

/// The options in the data of an OPT record, each with its code and as a whole; `None` if they do
/// not fill it exactly.
pub(super) fn options(mut rdata: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut options = Vec::new();
    while !rdata.is_empty() {
        let code = wire::u16_at(rdata, 0)?;
        let length = OPTION_HEADER + usize::from(wire::u16_at(rdata, 2)?);
        let (option, rest) = rdata.split_at_checked(length)?;
        options.push((code, option));
        rdata = rest;
    }
    Some(options)
}
