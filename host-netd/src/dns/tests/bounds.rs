//! Bounds, and input of any kind.

use proptest::prelude::*;

use super::super::response::Response;
use super::super::wire;
use super::super::{Transport, limits};
use super::*;

#[tokio::test]
async fn too_many_queries_are_servfail_at_once_and_counted() {
    let server = Server::start(|got| Reply::Send(message(got, 0x0183, [&[]; 3]))).await;
    let dns = dns(settings(&[&server]));
    let taken = dns.in_flight.take_many(limits::QUERIES_IN_FLIGHT).unwrap();

    assert_eq!(
        rcode(&ask(&dns, &q("a.test", 1u16)).await),
        ResponseCode::ServFail
    );
    assert_eq!((dns.in_flight.take_refusals(), server.seen().len()), (1, 0));

    drop(taken);
    assert_eq!(
        rcode(&ask(&dns, &q("a.test", 1u16)).await),
        ResponseCode::NXDomain
    );
    assert_eq!(dns.in_flight.take_refusals(), 0);
}

#[tokio::test]
async fn a_dropped_query_gives_its_place_back() {
    let server = Server::start(|_| Reply::Silent).await;
    let dns = dns(settings(&[&server]));
    let query = q("a.test", 1u16).bytes();

    tokio::select! {
        _ = dns.answer(&query, Transport::Udp) => panic!("there is no answer"),
        () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
    }
    assert_eq!(dns.in_flight.used(), 0);
}

#[test]
fn aliases_and_pointers_without_end_are_left_alone() {
    let got = server::Got {
        bytes: q("a.test", 1u16).bytes(),
        transport: Transport::Udp,
    };
    // Two aliases to each other, and an address at the end of a chain of pointers.
    let circle = [
        Rr::cname(NAME, 5, "b.test"),
        Rr::cname(name("b.test"), 5, "a.test"),
    ];
    walk(&message(&got, 0x0180, [&circle, &[], &[]]));

    // The last record's owner is a pointer to a pointer to a pointer, and so on.
    let mut data = NAME.to_vec();
    for at in (36..16_000u16).step_by(2) {
        data.extend((0xc000 | at).to_be_bytes());
    }
    let last = 0xc000 | (34 + u16::try_from(data.len()).unwrap());
    let chain = Rr(NAME.to_vec(), 65_400, 5, data);
    let address = Rr::a(last.to_be_bytes(), 5, [1; 4]);
    let bytes = message(&got, 0x0180, [&[chain, address], &[], &[]]);
    let parsed = wire::Message::parse(bytes).unwrap();
    assert_eq!(parsed.owner(&parsed.records()[1]), None);
}

/// Looks at all of a message, as the service does.
fn walk(bytes: &[u8]) {
    let Ok(message) = wire::Message::parse(bytes.to_vec()) else {
        return;
    };
    let question = message.question();
    let Ok(mut response) = Response::from_upstream(message) else {
        return;
    };
    if let Some(lower) = question.as_ref().and_then(wire::Question::lower) {
        let _ = (response.addresses(&lower), lower.to_string());
    }
    let _ = (response.lifetime(RecordType::A), response.least_ttl());
    response.message.count_down(17);
    let count = response.message.records().len();
    response.message.cut(count / 2);
    let again = wire::Message::parse(response.message.as_bytes().to_vec()).expect("still whole");
    assert_eq!(again.records().len(), count / 2);
}

fn upstream_message() -> Vec<u8> {
    let got = server::Got {
        bytes: q("a.test", 1u16).bytes(),
        transport: Transport::Udp,
    };
    let answer = [
        Rr::cname(NAME, 5, "b.test"),
        Rr::a(name("b.test"), 5, [1; 4]),
    ];
    message(
        &got,
        0x0180,
        [&answer, &[Rr::soa("test", 9, 9)], &[Rr::a(NAME, 9, [2; 4])]],
    )
}

fn mutated(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = valid.len();
    let edits = proptest::collection::vec((0..length, any::<u8>()), 0..6);
    (
        edits,
        0..=length,
        proptest::collection::vec(any::<u8>(), 0..20),
    )
        .prop_map(move |(edits, end, tail)| {
            let mut bytes = valid.clone();
            edits.into_iter().for_each(|(at, value)| bytes[at] = value);
            bytes.truncate(end);
            bytes.extend(tail);
            bytes
        })
}

/// An answer, if any, is one to the query: a response with its identifier that hickory can read.
fn answer_is_sound(query: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // Without servers every question ends in SERVFAIL.
    let dns = Dns::new(limits::UPSTREAM_SOCKETS);
    for transport in [Transport::Udp, Transport::Tcp] {
        let Some(answer) = runtime.block_on(dns.answer(query, transport)) else {
            continue;
        };
        assert_eq!(answer.message[..2], query[..2]);
        assert_ne!(answer.message[2] & 0x80, 0);
        Message::from_vec(&answer.message).unwrap();
        wire::Message::parse(answer.message).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        walk(&bytes);
        answer_is_sound(&bytes);
    }

    #[test]
    fn any_query_is_survived(bytes in mutated(q("www.a.test", 1u16).dnssec_ok().bytes())) {
        answer_is_sound(&bytes);
    }

    #[test]
    fn any_answer_is_survived(bytes in mutated(upstream_message())) {
        walk(&bytes);
    }

    #[test]
    fn any_resolv_conf_is_survived(text in "(nameserver|search|options|domain|[\\PC]{0,9}| |\n|:|%|1.2.3.4|fe80::1){0,30}") {
        let _ = Settings::parse(text.as_bytes());
    }
}
