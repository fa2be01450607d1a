//! Names of the loopback, which never leave the parent (RFC 6761, 6.3; RFC 6303, 4.2 and 4.3): they
//! mean the enclave's own loopback, whatever the parent's servers believe.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Message as HickoryMessage, OpCode, Query as HickoryQuery, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name as HickoryName, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::name::Name;
use super::response::Response;
use super::wire::{AA, Message, Question};

/// Three hours, as other resolvers serve these names.
const TTL: u32 = 10_800;

const LOCALHOST: &str = "localhost";
const REVERSE_V4: &str = "1.0.0.127.in-addr.arpa";
const ZONE_V4: &str = "127.in-addr.arpa";
const REVERSE_V6: &str = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa";

/// The answer if the name is one of the loopback's.
pub(super) fn answer(question: &Question) -> Option<Response> {
    if question.class != DNSClass::IN {
        return None;
    }
    let name = question.lower()?;
    let within = |zone: &str| Name::from_text(zone).is_some_and(|zone| name.is_within(&zone));
    let is = |other: &str| Name::from_text(other).as_ref() == Some(&name);
    let pointer = || (question.rtype == RecordType::PTR).then(|| RData::PTR(PTR(localhost())));

    if within(LOCALHOST) {
        let data = match question.rtype {
            RecordType::A => Some(RData::A(A(Ipv4Addr::LOCALHOST))),
            RecordType::AAAA => Some(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
            _ => None,
        };
        return build(question, LOCALHOST, ResponseCode::NoError, data);
    }
    if within(ZONE_V4) {
        // The names between the zone and its one record exist, but have none.
        let above = Name::from_text(REVERSE_V4).is_some_and(|reverse| reverse.is_within(&name));
        return match (is(REVERSE_V4), above) {
            (true, _) => build(question, ZONE_V4, ResponseCode::NoError, pointer()),
            (false, true) => build(question, ZONE_V4, ResponseCode::NoError, None),
            (false, false) => build(question, ZONE_V4, ResponseCode::NXDomain, None),
        };
    }
    if within(REVERSE_V6) {
        return match is(REVERSE_V6) {
            true => build(question, REVERSE_V6, ResponseCode::NoError, pointer()),
            false => build(question, REVERSE_V6, ResponseCode::NXDomain, None),
        };
    }
    None
}

fn localhost() -> HickoryName {
    HickoryName::from_ascii("localhost.").unwrap_or_default()
}

fn build(
    question: &Question,
    zone: &str,
    rcode: ResponseCode,
    data: Option<RData>,
) -> Option<Response> {
    let name = HickoryName::read(&mut BinDecoder::new(&question.name)).ok()?;
    let mut message = HickoryMessage::error_msg(0, OpCode::Query, rcode);
    message.add_query(HickoryQuery::query(name.clone(), question.rtype));
    match data {
        Some(data) => message.add_answer(Record::from_rdata(name, TTL, data)),
        None => {
            let mut zone = HickoryName::from_ascii(zone).ok()?;
            zone.set_fqdn(true);
            let contact = HickoryName::from_ascii("nobody.invalid.").ok()?;
            let soa = SOA::new(localhost(), contact, 1, 3_600, 1_200, 604_800, TTL);
            message.add_authority(Record::from_rdata(zone, TTL, RData::SOA(soa)))
        }
    };
    let mut message = Message::parse(message.to_vec().ok()?).ok()?;
    let flags = message.flags() | AA;
    message.set_header(0, flags);
    Some(Response {
        message,
        ..Response::bare(None, rcode, None)
    })
}
