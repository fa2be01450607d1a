//! Published ports: from outside into the enclave.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Family, Lab, Pattern, address, connect, echo_compared, serve};
use nix::libc::{ECONNREFUSED, ECONNRESET};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// The errno that a client of a closed port gets, in whichever call it comes.
fn errno_of_closed(connected: io::Result<TcpStream>) -> Option<i32> {
    let outcome = connected.and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.read(&mut [0; 1])
    });
    match outcome {
        Ok(n) => panic!("{n} bytes from a closed port"),
        Err(error) => error.raw_os_error(),
    }
}

#[test]
fn a_service_sees_the_real_client() {
    let lab = Lab::new();
    let host = ["--publish", "7000", "--publish", "8000:7001/tcp"];
    let _daemons = lab.up_with(&host, r#"publish = ["7000/tcp", "7001/tcp"]"#);
    for family in Family::BOTH {
        for (inside, outside) in [(7000, 7000), (7001, 8000)] {
            let (seen, peer) = channel();
            serve(
                &lab.enclave,
                family.at(address::ENCLAVE, inside),
                move |mut stream| {
                    seen.send(stream.peer_addr().unwrap()).unwrap();
                    let mut text = String::new();
                    stream.read_to_string(&mut text).unwrap();
                    stream.write_all(text.to_uppercase().as_bytes()).unwrap();
                },
            );
            let to = family.at(address::PARENT, outside);
            let mut stream = connect(&lab.internet, to, 5).unwrap();
            stream.write_all(b"hello").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "HELLO");
            let peer = peer.recv_timeout(Duration::from_secs(5)).unwrap();
            assert_eq!(peer, stream.local_addr().unwrap(), "{family:?} {outside}");
        }
    }
}

#[test]
fn node_behind_a_published_port() {
    let lab = Lab::new();
    let _daemons = lab.up_with(&["--publish", "3000"], r#"publish = ["3000/tcp"]"#);
    let _node = lab.enclave.node(3000);
    let page = lab
        .internet
        .run("curl", &["-sS", "http://192.0.2.1:3000/"])
        .ok();
    assert!(
        page.starts_with("hello from node to ::ffff:192.0.2.2 port"),
        "{page}"
    );
    let page = lab
        .internet
        .run("curl", &["-sS", "http://[2001:db8:1::1]:3000/"])
        .ok();
    assert!(
        page.starts_with("hello from node to 2001:db8:1::2 port"),
        "{page}"
    );
}

#[test]
fn bulk_both_ways_at_once_through_a_published_port() {
    let lab = Lab::new();
    let _daemons = lab.up_with(&["--publish", "7000"], r#"publish = ["7000/tcp"]"#);
    let (inwards, outwards) = (Pattern::new(1), Pattern::new(2));
    let length = 16 * 1024 * 1024 + 5;
    for family in Family::BOTH {
        let (send, expect) = (outwards.clone(), inwards.clone());
        serve(
            &lab.enclave,
            family.at(address::ENCLAVE, 7000),
            move |stream| {
                echo_compared(&stream, &send, &expect, length).unwrap();
            },
        );
        let stream = connect(&lab.internet, family.at(address::PARENT, 7000), 5).unwrap();
        echo_compared(&stream, &inwards, &outwards, length).unwrap();
    }
}

#[test]
fn udp_keeps_the_real_client_and_finds_the_way_back() {
    let lab = Lab::new();
    let _daemons = lab.up_with(&["--publish", "5353/udp"], r#"publish = ["5353/udp"]"#);
    for family in Family::BOTH {
        let bind = |machine: &netd_tests::Machine, at| {
            let socket = machine.inside(|| UdpSocket::bind(at)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            socket
        };
        let service = bind(&lab.enclave, family.at(address::ENCLAVE, 5353));
        let clients = [address::SERVER, address::OTHER].map(|pair| {
            let client = bind(&lab.internet, family.at(pair, 0));
            client.connect(family.at(address::PARENT, 5353)).unwrap();
            client
        });
        let mut buffer = vec![0; 65_536];
        for length in [4, 1472, 1473, 30_000] {
            for client in &clients {
                client.send(&vec![b'q'; length]).unwrap();
                let (n, from) = service.recv_from(&mut buffer).unwrap();
                assert_eq!(
                    (n, from),
                    (length, client.local_addr().unwrap()),
                    "{family:?}"
                );
                service.send_to(&vec![b'a'; length], from).unwrap();
                let n = client.recv(&mut buffer).unwrap();
                assert_eq!((n, buffer[0]), (length, b'a'), "{family:?}");
            }
        }
    }
}

#[test]
fn a_port_that_is_closed_in_the_enclave_is_reset_and_does_not_hang() {
    let lab = Lab::new();
    let host = ["--publish", "7000", "--publish", "7001"];
    // 7000 has no listener, 7001 is not published by the enclave.
    let _daemons = lab.up_with(&host, r#"publish = ["7000/tcp"]"#);
    let _unpublished = lab.enclave.node(7001);
    for family in Family::BOTH {
        for port in [7000, 7001] {
            let begin = Instant::now();
            let connected = connect(&lab.internet, family.at(address::PARENT, port), 5);
            let errno = errno_of_closed(connected);
            let is_told = matches!(errno, Some(ECONNREFUSED | ECONNRESET));
            assert!(is_told, "{family:?} {port}: {errno:?}");
            assert!(
                begin.elapsed() < Duration::from_secs(2),
                "{family:?} {port}"
            );
        }
    }
}

#[test]
fn a_published_port_without_an_enclave_is_reset() {
    let lab = Lab::new();
    let _host = lab.start_host(&["--publish", "7000"]);
    let begin = Instant::now();
    let connected = connect(&lab.internet, Family::V4.at(address::PARENT, 7000), 5);
    let errno = errno_of_closed(connected);
    assert!(
        matches!(errno, Some(ECONNREFUSED | ECONNRESET)),
        "{errno:?}"
    );
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[test]
fn an_address_in_front_of_the_port_is_the_only_one_that_listens() {
    let lab = Lab::new();
    let host = ["--publish", "[2001:db8:1::1]:7000:7001"];
    let _daemons = lab.up_with(&host, r#"publish = ["7001/tcp"]"#);
    let _node = lab.enclave.node(7001);
    let page = lab
        .internet
        .run("curl", &["-sS", "http://[2001:db8:1::1]:7000/"])
        .ok();
    assert!(
        page.starts_with("hello from node to 2001:db8:1::2"),
        "{page}"
    );
    let refused = connect(&lab.internet, Family::V4.at(address::PARENT, 7000), 5).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(ECONNREFUSED));
}

#[test]
fn the_enclave_decides_what_comes_in() {
    let lab = Lab::new();
    // Published by the host only; a service listens all the same.
    let daemons = lab.up_with(&["--publish", "5353/udp"], "");
    let service = lab.enclave.inside(|| UdpSocket::bind("[::]:5353")).unwrap();
    service
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let client = lab
        .internet
        .inside(|| UdpSocket::bind("0.0.0.0:0"))
        .unwrap();
    client.send_to(b"let me in", "192.0.2.1:5353").unwrap();
    let error = service.recv_from(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "it came in");
    drop(daemons);
}
