//! OPT, and the length of answers.

use super::super::{Transport, limits};
use super::*;

/// Many addresses, to fill messages.
fn many(count: u8) -> Vec<Rr> {
    (0..count)
        .map(|last| Rr::a(NAME, 60, [192, 0, 2, last]))
        .collect()
}

#[tokio::test]
async fn opt_is_sent_to_those_who_sent_one() {
    let server = Server::start(|got| Reply::Send(message(got, 0x0180, [&many(1), &[], &[]]))).await;
    let dns = dns(settings(&[&server]));

    assert_eq!(ask(&dns, &q("a.test", 1u16)).await.edns, None);
    let with = ask(&dns, &q("a.test", 1u16).edns(4_096))
        .await
        .edns
        .expect("OPT");
    assert_eq!(
        (with.max_payload(), with.version(), with.flags().dnssec_ok),
        (1_232, 0, false)
    );
    let with = ask(&dns, &q("a.test", 1u16).dnssec_ok())
        .await
        .edns
        .expect("OPT");
    assert!(with.flags().dnssec_ok);

    let asked: Vec<_> = server.seen().iter().map(|got| got.opt().to_vec()).collect();
    let opt = |flags| vec![0, 0, 41, 0x04, 0xd0, 0, 0, flags, 0, 0, 0];
    assert_eq!(
        asked,
        [opt(0), opt(0x80)],
        "DO is passed on, and a cached answer is not mixed up"
    );
}

#[tokio::test]
async fn a_version_not_known_is_badvers() {
    let server = Server::start(|_| Reply::Silent).await;
    let dns = dns(settings(&[&server]));
    let query = Q {
        opt: Some((1_232, 1, true, Vec::new())),
        ..q("a.test", 1u16)
    };

    let message = ask(&dns, &query).await;

    assert_eq!(u16::from(rcode(&message)), 16);
    assert_eq!(message.edns.expect("OPT").version(), 0);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn broken_opt_is_formerr() {
    let server = Server::start(|_| Reply::Silent).await;
    let dns = dns(settings(&[&server]));
    let mut twice = q("a.test", 1u16).edns(1_232).bytes();
    twice.extend_from_within(twice.len() - 11..);
    twice[11] = 2;
    let mut elsewhere = q("a.test", 1u16).edns(1_232).bytes();
    (elsewhere[7], elsewhere[11]) = (1, 0);
    let option = Q {
        opt: Some((1_232, 0, false, vec![0, 10, 0, 9, 1])),
        ..q("a.test", 1u16)
    };
    for bytes in [twice, elsewhere, option.bytes()] {
        let answer = dns.answer(&bytes, Transport::Udp).await.unwrap();
        assert_eq!(answer.message[3] & 15, 1);
    }
}

#[tokio::test]
async fn udp_answers_are_cut_at_a_record_and_say_so() {
    // Twelve bytes of header, 12 of question, 16 for each address: 3,864 bytes over TCP.
    let server = Server::start(|got| match got.transport {
        Transport::Udp => Reply::Send(message(got, 0x0380, [&[], &[], &[]])),
        Transport::Tcp => Reply::Send(message(got, 0x0180, [&many(240), &[], &[]])),
    })
    .await;
    let dns = dns(settings(&[&server]));
    let whole = 12 + 12 + 240 * 16;
    let cases = [
        (q("a.test", 1u16), Transport::Udp, 512, 0),
        (q("a.test", 1u16).edns(100), Transport::Udp, 512, 11),
        (q("a.test", 1u16).edns(1_232), Transport::Udp, 1_232, 11),
        (q("a.test", 1u16).edns(3_874), Transport::Udp, 3_874, 11),
        (q("a.test", 1u16).edns(3_875), Transport::Udp, 3_875, 11),
        (q("a.test", 1u16).edns(65_535), Transport::Udp, 65_000, 11),
        (q("a.test", 1u16), Transport::Tcp, 65_535, 0),
    ];
    for (query, transport, limit, opt) in cases {
        let (answer, message) = ask_over(&dns, &query, transport).await;

        let fits = whole + opt <= limit;
        let expected = if fits { 240 } else { (limit - opt - 24) / 16 };
        assert_eq!(message.metadata.truncation, !fits, "{limit}");
        assert_eq!(message.answers.len(), expected, "{limit}");
        assert_eq!(answer.message.len(), 24 + expected * 16 + opt, "{limit}");
        assert_eq!(message.edns.is_some(), opt > 0, "{limit}");
        assert_eq!(answer.resolved.expect("addresses").addresses.len(), 240);
    }
}

#[tokio::test]
async fn large_answers_fit_into_large_datagrams_and_tcp() {
    let text: Vec<u8> = [&[255][..], &[b'x'; 255]].concat().repeat(200);
    let size = 24 + 12 + text.len();
    let server = Server::start(move |got| match got.transport {
        Transport::Udp => Reply::Send(message(got, 0x0380, [&[], &[], &[]])),
        Transport::Tcp => {
            let record = Rr(NAME.to_vec(), 16, 60, text.clone());
            Reply::Send(message(got, 0x0180, [&[record], &[], &[]]))
        }
    })
    .await;
    let dns = dns(settings(&[&server]));

    let (tcp, _) = ask_over(&dns, &q("a.test", 16u16), Transport::Tcp).await;
    let (large, _) = ask_over(&dns, &q("a.test", 16u16).edns(65_000), Transport::Udp).await;
    let (small, cut) = ask_over(&dns, &q("a.test", 16u16).edns(4_096), Transport::Udp).await;

    assert_eq!((tcp.message.len(), large.message.len()), (size, size + 11));
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(small.message.len(), 24 + 11);
    assert!(size > limits::CACHE_ENTRY_BYTES);
    assert_eq!(server.seen().len(), 6, "too large to be kept");
}

#[tokio::test]
async fn additional_records_are_left_out_without_a_word() {
    let server =
        Server::start(|got| Reply::Send(message(got, 0x0180, [&many(2), &[], &many(40)]))).await;
    let dns = dns(settings(&[&server]));

    let (answer, message) = ask_over(&dns, &q("a.test", 1u16), Transport::Udp).await;

    assert!(answer.message.len() <= 512 && !message.metadata.truncation);
    assert_eq!((message.answers.len(), message.additionals.len()), (2, 28));
}

#[tokio::test]
async fn extended_errors_and_codes_are_passed_back() {
    let error = [0, 15, 0, 4, 0, 6, b'h', b'i'];
    let server = Server::start(move |got| {
        let mut bytes = message(got, 0x0182, [&[], &[], &[]]);
        let at = bytes.len() - 2;
        bytes[at + 1] = 8;
        bytes.extend(error);
        if got.name().starts_with("bad") {
            // BADCOOKIE: 23 = 1 * 16 + 7.
            bytes[3] = 0x87;
            bytes[at - 4] = 1;
        }
        Reply::Send(bytes)
    })
    .await;
    let dns = dns(settings(&[&server]));

    let (answer, message) = ask_over(&dns, &q("a.test", 1u16).edns(1_232), Transport::Udp).await;
    assert_eq!(rcode(&message), ResponseCode::ServFail);
    assert!(answer.message.ends_with(&error));

    let extended = ask(&dns, &q("bad.test", 1u16).edns(1_232)).await;
    assert_eq!(u16::from(rcode(&extended)), 23);
    let plain = ask(&dns, &q("bad.test", 1u16)).await;
    assert_eq!(
        rcode(&plain),
        ResponseCode::ServFail,
        "four bits cannot say 23"
    );
}
