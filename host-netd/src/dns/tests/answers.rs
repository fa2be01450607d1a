//! What comes back is what the server said.

use std::time::Duration;

use super::super::response::Response;
use super::super::wire;
use super::super::{Resolved, Transport};
use super::*;

/// All records of a message, without OPT, byte for byte.
fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
    let message = wire::Message::parse(bytes.to_vec()).unwrap();
    let response = Response::from_upstream(message).unwrap();
    let bytes = response.message.as_bytes();
    let records = response.message.records();
    records
        .iter()
        .map(|at| bytes[at.start.into()..at.end.into()].to_vec())
        .collect()
}

#[tokio::test]
async fn every_type_is_carried_byte_for_byte() {
    let mx = [&[0, 10][..], &NAME].concat();
    let srv = [&[0, 1, 0, 2, 0, 53][..], &name("Target.Test")].concat();
    let caa = b"\x00\x05issueca.test".to_vec();
    let https = [&[0, 1, 0, 0, 1, 0, 3][..], b"\x02h2"].concat();
    let naptr = [&b"\0\x01\0\x02\x01U\x07E2U+sip\0"[..], &[0]].concat();
    let opaque = vec![0xde, 0xad, 0xc0, 0x0c, 0xff];
    let cases: Vec<(u16, Vec<u8>)> = vec![
        (1, vec![192, 0, 2, 1]),
        (28, vec![1; 16]),
        (15, mx),
        (16, b"\x05hello\x00\x03\xff\xfe\x00".to_vec()),
        (33, srv),
        (257, caa),
        (64, https.clone()),
        (65, https),
        (43, vec![0x12, 0x34, 8, 2, 0xab]),
        (48, vec![1, 1, 3, 8, 1, 2, 3]),
        (35, naptr),
        (17, [NAME, NAME].concat()),
        (65_305, opaque.clone()),
        (65_400, opaque),
        (65_401, Vec::new()),
    ];
    for (rtype, data) in cases {
        let record = Rr(NAME.to_vec(), rtype, 300, data);
        let scripted = [record.clone(), record.clone()];
        let server =
            Server::start(move |got| Reply::Send(message(got, 0x0180, [&scripted, &[], &[]])))
                .await;
        let dns = dns(settings(&[&server]));

        for (transport, source) in [(Transport::Udp, "server"), (Transport::Tcp, "cache")] {
            let answer = dns
                .answer(&q("a.test", rtype).bytes(), transport)
                .await
                .unwrap();

            let expected = record.bytes([0, 1]);
            let got = records(&answer.message);
            assert_eq!(
                got,
                [expected.clone(), expected],
                "type {rtype} from the {source}"
            );
        }
        assert_eq!(server.seen().len(), 1);
        assert_eq!(server.seen()[0].rtype(), rtype);
    }
}

#[tokio::test]
async fn an_alias_chain_comes_as_it_was_and_reports_its_addresses() {
    let server = Server::start(|got| {
        let chain = [
            Rr::cname(NAME, 300, "B.test"),
            Rr::cname(name("b.test"), 60, "c.test"),
            Rr::a(name("C.test"), 200, [192, 0, 2, 7]),
            Rr::a(name("c.test"), 100, [192, 0, 2, 8]),
            Rr::a(name("unrelated.test"), 1, [192, 0, 2, 9]),
        ];
        Reply::Send(message(got, 0x0180, [&chain, &[], &[]]))
    })
    .await;
    let dns = dns(settings(&[&server]));

    let (answer, message) = ask_over(&dns, &q("Www.Example", 1u16), Transport::Udp).await;

    let a = RecordType::A;
    assert_eq!(
        types(&message.answers),
        [RecordType::CNAME, RecordType::CNAME, a, a, a]
    );
    assert_eq!(message.answers[0].name.to_string(), "Www.Example.");
    assert_eq!(message.answers[0].data.to_string(), "B.test.");
    let addresses = ["192.0.2.7", "192.0.2.8"]
        .map(|text| text.parse().unwrap())
        .to_vec();
    let ttl = Duration::from_secs(60);
    assert_eq!(
        answer.resolved,
        Some(Resolved {
            name: "www.example".into(),
            addresses,
            ttl
        })
    );
}

#[tokio::test]
async fn header_and_case_are_the_querys_own() {
    let server = Server::start(|got| {
        // Authoritative, authentic, no recursion; the name in lower case.
        let mut bytes = message(got, 0x0420, [&[Rr::a(NAME, 60, [1; 4])], &[], &[]]);
        bytes[12..22].make_ascii_lowercase();
        Reply::Send(bytes)
    })
    .await;
    let dns = dns(settings(&[&server]));
    for (id, flags, text) in [
        (1, 0x0100, "MiXeD.TeSt"),
        (0xffff, 0x0110, "mIxEd.tEsT"),
        (7, 0, "m.t"),
    ] {
        let query = Q {
            id,
            flags,
            ..q(text, 1u16)
        };

        let (answer, message) = ask_over(&dns, &query, Transport::Udp).await;

        let head = message.metadata;
        assert_eq!(head.id, id);
        assert_eq!(head.recursion_desired, flags & 0x0100 != 0);
        assert_eq!(head.checking_disabled, flags & 0x0010 != 0);
        assert!(head.recursion_available && head.authoritative);
        assert!(!head.authentic_data, "AD only for those who ask");
        assert_eq!(
            answer.message[12..12 + query.name.len()],
            query.name,
            "the case of the question"
        );
        assert_eq!(
            message.answers[0].name.to_ascii().trim_end_matches('.'),
            text
        );
    }
    assert_eq!(server.names(), ["MiXeD.TeSt.", "mIxEd.tEsT.", "m.t."]);
    let bits: Vec<_> = server
        .seen()
        .iter()
        .map(|got| got.bytes[2..4].to_vec())
        .collect();
    assert_eq!(
        bits,
        [[1, 0x20], [1, 0x30], [0, 0x20]],
        "RD and CD are passed on"
    );
    let with_ad = Q {
        flags: 0x0120,
        ..q("mixed.test", 1u16)
    };
    assert!(ask(&dns, &with_ad).await.metadata.authentic_data);
}

#[tokio::test]
async fn nxdomain_and_nodata_keep_their_soa() {
    let server = Server::start(|got| {
        let rcode = if got.name().starts_with("missing") {
            3
        } else {
            0
        };
        Reply::Send(message(
            got,
            0x0180 | rcode,
            [&[], &[Rr::soa("test", 900, 60)], &[]],
        ))
    })
    .await;
    let dns = dns(settings(&[&server]));
    for (text, expected) in [
        ("missing.test", ResponseCode::NXDomain),
        ("empty.test", ResponseCode::NoError),
    ] {
        for _ in ["server", "cache"] {
            let (answer, message) = ask_over(&dns, &q(text, 28u16), Transport::Udp).await;

            assert_eq!(rcode(&message), expected);
            assert_eq!(answer.resolved, None);
            assert!(message.answers.is_empty());
            assert_eq!(types(&message.authorities), [RecordType::SOA]);
            assert!((899..=900).contains(&message.authorities[0].ttl));
        }
    }
    assert_eq!(server.seen().len(), 2, "each was kept");
}

#[tokio::test]
async fn other_classes_and_any_are_forwarded() {
    let server = Server::start(|got| {
        let record = Rr(NAME.to_vec(), 16, 60, b"\x031.2".to_vec());
        Reply::Send(message(got, 0x0180, [&[record], &[], &[]]))
    })
    .await;
    let dns = dns(settings(&[&server]));

    let chaos = ask(
        &dns,
        &Q {
            class: 3,
            ..q("version.bind", 16u16)
        },
    )
    .await;
    assert_eq!(rcode(&chaos), ResponseCode::NoError);
    assert_eq!(u16::from(chaos.answers[0].dns_class), 3);

    for _ in 0..2 {
        assert_eq!(ask(&dns, &q("a.test", 255u16)).await.answers.len(), 1);
    }
    assert_eq!(
        server
            .seen()
            .iter()
            .map(|got| got.rtype())
            .collect::<Vec<_>>(),
        [16, 255, 255]
    );
}

#[tokio::test]
async fn what_is_no_lookup_is_refused_without_asking() {
    let server = Server::start(|_| Reply::Silent).await;
    let dns = dns(settings(&[&server]));
    let valid = q("a.test", 1u16).bytes();
    let edit = |at: usize, value: u8| {
        let mut bytes = valid.clone();
        bytes[at] = value;
        bytes
    };
    let cases = [
        (edit(2, 0x28), ResponseCode::NotImp, "UPDATE"),
        (edit(2, 0x21), ResponseCode::NotImp, "NOTIFY"),
        (edit(5, 0), ResponseCode::FormErr, "no question"),
        (
            edit(5, 2),
            ResponseCode::FormErr,
            "two questions, one there",
        ),
        (
            edit(7, 1),
            ResponseCode::FormErr,
            "an answer that is not there",
        ),
        (
            edit(12, 0xc0),
            ResponseCode::FormErr,
            "a compressed question",
        ),
        (
            [&valid[..12], &[1, b'a', 0xc1, 0, 0, 1, 0, 1]].concat(),
            ResponseCode::FormErr,
            "a question that ends in a pointer whose last byte is zero",
        ),
        (
            edit(12, 0x40),
            ResponseCode::FormErr,
            "a label of an unknown kind",
        ),
        (valid[..20].to_vec(), ResponseCode::FormErr, "cut"),
        (q("a.test", 252u16).bytes(), ResponseCode::Refused, "AXFR"),
        (q("a.test", 251u16).bytes(), ResponseCode::Refused, "IXFR"),
        (q("a.test", 41u16).bytes(), ResponseCode::FormErr, "OPT"),
        (
            q(&"a.".repeat(128), 1u16).bytes(),
            ResponseCode::FormErr,
            "a name of 257 bytes",
        ),
        (
            [&valid[..], &[0; 4_096]].concat(),
            ResponseCode::FormErr,
            "too long",
        ),
    ];
    for (bytes, expected, what) in cases {
        let answer = dns.answer(&bytes, Transport::Udp).await.unwrap();
        let message = Message::from_vec(&answer.message).unwrap();
        assert_eq!(rcode(&message), expected, "{what}");
        assert_eq!(message.metadata.id, 0x1234, "{what}");
        assert_eq!(
            answer.message[2] & 0x78,
            bytes[2] & 0x78,
            "the opcode, {what}"
        );
    }
    assert_eq!(dns.answer(&valid[..11], Transport::Udp).await, None);
    assert_eq!(
        dns.answer(&edit(2, 0x81), Transport::Udp).await,
        None,
        "a response"
    );
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn addresses_of_another_class_are_not_reported() {
    let server = Server::start(|got| {
        let address = Rr::a(NAME, 60, [192, 0, 2, 1]);
        Reply::Send(message(got, 0x0180, [&[address], &[], &[]]))
    })
    .await;
    let dns = dns(settings(&[&server]));
    for (class, reported) in [(1, true), (3, false)] {
        let asked = Q {
            class,
            ..q("a.test", 1u16)
        };
        let (answer, message) = ask_over(&dns, &asked, Transport::Udp).await;
        assert_eq!(message.answers.len(), 1, "class {class}");
        assert_eq!(answer.resolved.is_some(), reported, "class {class}");
    }
}
