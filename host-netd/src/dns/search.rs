//! Plain names: the search list of the parent's resolv.conf, by the rules of glibc's `res_search`.
//!
//! The enclave asks `db`, because its own resolver has no search list. As a name with fewer dots
//! than `ndots` it is tried below each search domain in turn. The first with records of the asked
//! type is the answer: a CNAME from `db` to the name found, made here, and the records as they
//! came. If there is none, the plain name itself is asked, and its answer stands, with two
//! exceptions as in glibc: when the plain name does not exist, a name found without records of this
//! type makes the answer NODATA (not NXDOMAIN, or asking A and AAAA would contradict each other),
//! and else a server's failure under one of the domains makes it that failure, for nothing is then
//! known.

use hickory_proto::op::{Message as HickoryMessage, Query as HickoryQuery, ResponseCode};
use hickory_proto::rr::{DNSClass, Name as HickoryName, RData, Record, rdata::CNAME};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use hickory_proto::{ProtoError, rr::RecordType};
use tracing::debug;

use super::name::Name;
use super::response::Response;
use super::upstream::{Ask, NoAnswer, Upstream};
use super::wire::{Message, Question};

/// Answers a query whose name may be a plain one.
pub(super) async fn resolve(upstream: &Upstream, ask: &Ask) -> Result<Response, NoAnswer> {
    let mut absent = None;
    let mut failed = None;
    for question in candidates(upstream, ask) {
        let found = upstream
            .resolve(&Ask {
                question,
                ..ask.clone()
            })
            .await?;
        match found.rcode {
            ResponseCode::NoError => match alias(&ask.question, &found) {
                Ok(response) if found.has_answer(ask.question.rtype) => return Ok(response),
                Ok(response) => _ = absent.get_or_insert(response),
                Err(error) => debug!(%error, "an answer under a search domain cannot be used"),
            },
            ResponseCode::NXDomain => {}
            _ => {
                failed.get_or_insert_with(|| Response {
                    extended_errors: found.extended_errors,
                    ..Response::bare(Some(&ask.question), found.rcode, None)
                });
            }
        }
    }
    let plain = upstream.resolve(ask).await?;
    if plain.rcode == ResponseCode::NXDomain {
        return Ok(absent.or(failed).unwrap_or(plain));
    }
    Ok(plain)
}

fn candidates(upstream: &Upstream, ask: &Ask) -> Vec<Question> {
    let settings = upstream.settings();
    let labels = ask.question.lower().map_or(0, |name| name.labels().count());
    let plain = (1..=settings.ndots).contains(&labels);
    if !plain
        || !ask.recursion
        || ask.question.class != DNSClass::IN
        || ask.question.rtype == RecordType::ANY
    {
        return Vec::new();
    }
    let below = |domain: &Name| {
        Some(Question {
            name: Name::join(&ask.question.name, domain)?,
            ..ask.question.clone()
        })
    };
    settings.search.iter().filter_map(below).collect()
}

/// `found`, as the answer to `asked`. The records move within the message, so names in them have to
/// be written anew: this one answer goes through hickory's decoder and encoder.
pub(super) fn alias(asked: &Question, found: &Response) -> Result<Response, ProtoError> {
    let mut message = HickoryMessage::from_vec(found.message.as_bytes())?;
    let target = message.queries.pop().unwrap_or_default().name().clone();
    let name = HickoryName::read(&mut BinDecoder::new(&asked.name))?;
    let mut query = HickoryQuery::query(name.clone(), asked.rtype);
    query.set_query_class(asked.class);
    message.queries = vec![query];
    // No record the answer rests on may outlive another.
    let ttl = found.least_ttl();
    message.answers.insert(
        0,
        Record::from_rdata(name, ttl, RData::CNAME(CNAME(target))),
    );
    message.metadata.authoritative = false;
    message.metadata.authentic_data = false;
    let bytes = message.to_vec()?;
    let message = Message::parse(bytes).map_err(|_| ProtoError::from("too long with the alias"))?;
    Ok(Response {
        message,
        ..found.clone()
    })
}
