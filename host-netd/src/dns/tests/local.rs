//! The loopback's names.

use super::super::Transport;
use super::*;

#[tokio::test]
async fn the_loopback_is_the_enclaves_own() {
    let server = Server::start(|_| Reply::Silent).await;
    let dns = dns(settings(&[&server]));
    let reverse6 = format!("{}ip6.arpa", "1.".to_owned() + &"0.".repeat(31));
    let (none, missing) = (ResponseCode::NoError, ResponseCode::NXDomain);
    let cases = [
        ("LocalHost", 1u16, none, Some("127.0.0.1")),
        ("db.localhost", 1, none, Some("127.0.0.1")),
        ("localhost", 28, none, Some("::1")),
        ("localhost", 15, none, None),
        ("1.0.0.127.in-addr.arpa", 12, none, Some("localhost.")),
        ("1.0.0.127.in-addr.arpa", 16, none, None),
        ("0.0.127.in-addr.arpa", 12, none, None),
        ("2.0.0.127.in-addr.arpa", 12, missing, None),
        (&reverse6, 12, none, Some("localhost.")),
    ];
    for (text, rtype, expected, data) in cases {
        let (answer, message) = ask_over(&dns, &q(text, rtype), Transport::Udp).await;

        assert_eq!(rcode(&message), expected, "{text} {rtype}");
        let got: Vec<_> = message
            .answers
            .iter()
            .map(|record| record.data.to_string())
            .collect();
        assert_eq!(got, data.into_iter().collect::<Vec<_>>(), "{text} {rtype}");
        assert_eq!(
            types(&message.authorities),
            vec![RecordType::SOA; data.is_none().into()]
        );
        assert_eq!(
            message.queries[0].name().to_ascii().trim_end_matches('.'),
            text
        );
        assert_eq!(answer.resolved, None);
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn names_that_only_look_like_it_are_asked() {
    let server = Server::start(|got| Reply::Send(message(got, 0x0183, [&[]; 3]))).await;
    let dns = dns(settings(&[&server]));
    for text in ["localhost.test", "notlocalhost", "1.128.in-addr.arpa"] {
        ask(&dns, &q(text, 1u16)).await;
    }
    assert_eq!(server.seen().len(), 3);
}
