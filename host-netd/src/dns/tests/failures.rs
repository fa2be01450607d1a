//! Servers that fail, are silent, or lie.

use std::time::{Duration, Instant};

use super::super::{Answer, Transport};
use super::*;

fn address(got: &server::Got) -> Reply {
    Reply::Send(message(
        got,
        0x0180,
        [&[Rr::a(NAME, 60, [192, 0, 2, 1])], &[], &[]],
    ))
}

fn quick(servers: &[&Server]) -> Settings {
    Settings {
        timeout: Duration::from_millis(300),
        ..settings(servers)
    }
}

#[tokio::test]
async fn error_codes_stay_what_they_are_and_are_not_kept() {
    for code in [1u16, 2, 4, 5, 9] {
        let server =
            Server::start(move |got| Reply::Send(message(got, 0x0180 | code, [&[]; 3]))).await;
        let dns = dns(settings(&[&server]));
        for _ in 0..2 {
            assert_eq!(u16::from(rcode(&ask(&dns, &q("a.test", 1u16)).await)), code);
        }
        assert_eq!(
            server.seen().len(),
            2,
            "code {code} is not kept, and its server not asked twice"
        );
    }
}

#[tokio::test]
async fn a_server_that_fails_is_not_the_last_word() {
    let failing = Server::start(|got| Reply::Send(message(got, 0x0182, [&[]; 3]))).await;
    let good = Server::start(address).await;
    let dns = dns(settings(&[&failing, &good]));

    assert_eq!(ask(&dns, &q("a.test", 1u16)).await.answers.len(), 1);
    assert_eq!((failing.seen().len(), good.seen().len()), (1, 1));
}

#[tokio::test]
async fn silence_is_servfail_after_all_attempts() {
    let server = Server::start(|_| Reply::Silent).await;
    let dns = dns(quick(&[&server]));
    let started = Instant::now();

    let (answer, message) = ask_over(&dns, &q("a.test", 1u16).edns(1_232), Transport::Udp).await;

    let took = started.elapsed();
    assert_eq!(rcode(&message), ResponseCode::ServFail);
    assert_eq!(extended_error(&answer), Some(22));
    assert_eq!(server.seen().len(), 2, "attempts");
    assert!(
        took >= Duration::from_millis(590) && took < Duration::from_secs(3),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_closed_port_is_servfail_at_once() {
    let server = Server::start(|_| Reply::Silent).await;
    let closed = server.address;
    drop(server);
    // The sockets close with the aborted tasks.
    while tokio::net::UdpSocket::bind(closed).await.is_err() {
        tokio::task::yield_now().await;
    }
    let dns = dns(Settings {
        timeout: Duration::from_secs(20),
        ..settings_at(&[closed])
    });
    let started = Instant::now();

    assert_eq!(
        rcode(&ask(&dns, &q("a.test", 1u16)).await),
        ResponseCode::ServFail
    );
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_silent_server_does_not_hold_up_the_next_and_is_then_left_alone() {
    let silent = Server::start(|_| Reply::Silent).await;
    let good = Server::start(address).await;
    let dns = dns(settings(&[&silent, &good]));

    for text in ["a.test", "b.test", "c.test"] {
        assert_eq!(ask(&dns, &q(text, 1u16)).await.answers.len(), 1);
    }
    assert_eq!((silent.seen().len(), good.seen().len()), (1, 3));
}

#[tokio::test]
async fn rotate_begins_with_each_server_in_turn() {
    let (one, two) = (Server::start(address).await, Server::start(address).await);
    let dns = dns(Settings {
        rotate: true,
        ..settings(&[&one, &two])
    });
    for text in ["a.test", "b.test", "c.test", "d.test"] {
        ask(&dns, &q(text, 1u16)).await;
    }
    assert_eq!((one.seen().len(), two.seen().len()), (2, 2));
}

#[tokio::test]
async fn what_did_not_fit_is_asked_again_over_tcp() {
    let cut: fn(&server::Got) -> Vec<u8> = |got| reply(got, 0x0380, [&[]; 3]);
    // Cut within a record, which is not a whole message.
    let within: fn(&server::Got) -> Vec<u8> = |got| {
        let bytes = message(got, 0x0180, [&[Rr::a(NAME, 60, [1; 4])], &[], &[]]);
        bytes[..bytes.len() - 20].to_vec()
    };
    for small in [cut, within] {
        let server = Server::start(move |got| match got.transport {
            Transport::Udp => Reply::Send(small(got)),
            Transport::Tcp => address(got),
        })
        .await;
        let dns = dns(settings(&[&server]));

        let message = ask(&dns, &q("a.test", 1u16)).await;

        assert_eq!(
            (message.answers.len(), message.metadata.truncation),
            (1, false)
        );
        let over: Vec<_> = server.seen().iter().map(|got| got.transport).collect();
        assert_eq!(over, [Transport::Udp, Transport::Tcp]);
    }
}

#[tokio::test]
async fn only_the_answer_to_the_query_is_taken() {
    let server = Server::start(|got| {
        let forged = [Rr::a(NAME, 60, [6, 6, 6, 6])];
        let mut other_id = message(got, 0x0180, [&forged, &[], &[]]);
        other_id[0] ^= 1;
        let other_name = q("b.test", 1u16).bytes();
        let other_name = server::Got {
            bytes: other_name,
            transport: Transport::Udp,
        };
        let mut other_name = message(&other_name, 0x0180, [&forged, &[], &[]]);
        other_name[..2].copy_from_slice(&got.bytes[..2]);
        let mut other_type = message(got, 0x0180, [&forged, &[], &[]]);
        other_type[21] = 28;
        let mut a_query = message(got, 0x0180, [&forged, &[], &[]]);
        a_query[2] &= 0x7f;
        let real = message(got, 0x0180, [&[Rr::a(NAME, 60, [192, 0, 2, 1])], &[], &[]]);
        let short = real[..7].to_vec();
        Reply::Several(vec![
            other_id,
            other_name,
            other_type,
            a_query,
            short,
            Vec::new(),
            real,
        ])
    })
    .await;
    let dns = dns(settings(&[&server]));

    let (Answer { resolved, .. }, _) = ask_over(&dns, &q("a.test", 1u16), Transport::Udp).await;

    assert_eq!(
        resolved.expect("addresses").addresses,
        ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_server_from_before_edns_is_asked_without() {
    let server = Server::start(|got| match got.opt() {
        [] => Reply::Send(reply(got, 0x0180, [&[Rr::a(NAME, 60, [1; 4])], &[], &[]])),
        // FORMERR, and not even the question.
        _ => Reply::Send([&got.bytes[..2], &[0x81, 0x81], &[0; 8]].concat()),
    })
    .await;
    let dns = dns(settings(&[&server]));

    let message = ask(&dns, &q("a.test", 1u16).edns(1_232)).await;

    assert_eq!((message.answers.len(), message.edns.is_some()), (1, true));
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_late_answer_within_the_time_is_taken() {
    let server = Server::start(|got| match address(got) {
        Reply::Send(bytes) => Reply::Late(Duration::from_millis(450), bytes),
        other => other,
    })
    .await;
    let dns = dns(quick(&[&server]));
    assert_eq!(ask(&dns, &q("a.test", 1u16)).await.answers.len(), 1);
}

#[tokio::test]
async fn servers_on_ipv6_are_asked_over_both_transports() {
    let server = Server::start_at("[::1]:0", |got| match got.transport {
        Transport::Udp => Reply::Send(reply(got, 0x0380, [&[]; 3])),
        Transport::Tcp => address(got),
    })
    .await;
    let dns = dns(settings(&[&server]));
    assert_eq!(ask(&dns, &q("a.test", 1u16)).await.answers.len(), 1);
}
