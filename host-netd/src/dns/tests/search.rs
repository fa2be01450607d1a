//! Plain names.

use super::super::{Answer, Transport};
use super::*;

/// `db.two.test` has an address and `db.one.test` none; `fail.*` fails; all else does not exist.
async fn zone() -> Server {
    Server::start(|got| {
        let soa = [Rr::soa("test", 900, 60)];
        let bytes = match (got.name().as_str(), got.rtype()) {
            ("DB.two.test.", 1) => {
                message(got, 0x0180, [&[Rr::a(NAME, 77, [192, 0, 2, 2])], &[], &[]])
            }
            ("DB.one.test." | "DB.two.test.", _) => message(got, 0x0180, [&[], &soa, &[]]),
            ("fail.one.test.", _) => message(got, 0x0182, [&[]; 3]),
            _ => message(got, 0x0183, [&[], &soa, &[]]),
        };
        Reply::Send(bytes)
    })
    .await
}

#[tokio::test]
async fn a_plain_name_is_found_below_a_search_domain() {
    let server = zone().await;
    let dns = dns(searching(&server, &["zero.test", "two.test"]));

    let (
        Answer {
            message: bytes,
            resolved,
        },
        message,
    ) = ask_over(&dns, &q("DB", 1u16).edns(1_232), Transport::Udp).await;

    assert_eq!(rcode(&message), ResponseCode::NoError);
    assert_eq!(bytes[12..16], *b"\x02DB\0", "the question as asked");
    let [alias, address] = &message.answers[..] else {
        panic!("{message:?}")
    };
    assert_eq!(
        (alias.name.to_string(), alias.data.to_string()),
        ("DB.".into(), "DB.two.test.".into())
    );
    assert_eq!((alias.ttl, address.ttl), (77, 77));
    assert_eq!(address.name.to_string(), "DB.two.test.");
    let resolved = resolved.expect("addresses");
    assert_eq!(
        (resolved.name.as_str(), resolved.addresses.len()),
        ("db", 1)
    );
    assert!(message.edns.is_some() && !message.metadata.authoritative);
    assert_eq!(server.names(), ["DB.zero.test.", "DB.two.test."]);
}

#[tokio::test]
async fn ndots_decides_what_is_plain() {
    let server = zone().await;
    let plain = searching(&server, &["two.test"]);
    for (ndots, text, expected) in [
        (1, "x.y", vec!["x.y."]),
        (2, "x.y", vec!["x.y.two.test.", "x.y."]),
        (0, "x", vec!["x."]),
        (15, ".", vec![""]),
    ] {
        let before = server.seen().len();
        let dns = dns(Settings {
            ndots,
            ..plain.clone()
        });
        ask(&dns, &q(text, 1u16)).await;
        assert_eq!(
            server.names()[before..],
            expected,
            "{text} with ndots {ndots}"
        );
    }
}

#[tokio::test]
async fn nothing_found_is_the_plain_names_own_answer() {
    let server = zone().await;
    let dns = dns(searching(&server, &["one.test", "two.test"]));

    let message = ask(&dns, &q("nope", 28u16)).await;

    assert_eq!(rcode(&message), ResponseCode::NXDomain);
    assert!(message.answers.is_empty());
    assert_eq!(types(&message.authorities), [RecordType::SOA]);
    assert_eq!(
        server.names(),
        ["nope.one.test.", "nope.two.test.", "nope."]
    );
}

#[tokio::test]
async fn a_name_without_this_type_is_nodata_not_nxdomain() {
    let server = zone().await;
    let dns = dns(searching(&server, &["one.test", "two.test"]));

    let address = ask(&dns, &q("DB", 1u16)).await;
    let none = ask(&dns, &q("DB", 28u16)).await;

    assert_eq!(address.answers.len(), 2);
    assert_eq!(rcode(&none), ResponseCode::NoError);
    assert_eq!(types(&none.answers), [RecordType::CNAME]);
    assert_eq!(types(&none.authorities), [RecordType::SOA]);
    assert_eq!(none.answers[0].ttl, 60);
}

#[tokio::test]
async fn a_failure_below_a_domain_is_not_absence() {
    let server = zone().await;
    let dns = dns(searching(&server, &["one.test", "two.test"]));
    assert_eq!(
        rcode(&ask(&dns, &q("fail", 1u16)).await),
        ResponseCode::ServFail
    );
}

#[tokio::test]
async fn a_name_that_gets_too_long_is_only_asked_as_it_is() {
    let server = zone().await;
    let long = [
        "a".repeat(60),
        "b".repeat(60),
        "c".repeat(60),
        "d".repeat(60),
    ]
    .join(".");
    let dns = dns(Settings {
        ndots: 9,
        ..searching(&server, &[&"e".repeat(40)])
    });
    ask(&dns, &q(&long, 1u16)).await;
    assert_eq!(server.names(), [format!("{long}.")]);
}
