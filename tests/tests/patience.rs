//! What must last: half-closed, idle, blocked and unanswered connections. No network may end them
//! for being quiet. All waits run at once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Family, Lab, Pattern, address, connect, echo_server, serve};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, TcpKeepalive};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::channel;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// Longer than the time-outs of a minute or two that such networks are known for.
const QUIET: Duration = Duration::from_secs(125);
/// A UDP mapping with traffic both ways lasts two minutes (RFC 4787 REQ-5).
const QUIET_UDP: Duration = Duration::from_secs(110);
const MIB: usize = 1024 * 1024;

fn exchange(stream: &mut TcpStream, what: &str) {
    stream
        .write_all(b"still there?")
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut answer = [0; 12];
    stream
        .read_exact(&mut answer)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(&answer, b"still there?", "{what}");
}

fn idle(lab: &Lab, echo: SocketAddr) {
    let mut stream = connect(&lab.enclave, echo, 5).unwrap();
    exchange(&mut stream, "idle, before");
    sleep(QUIET);
    exchange(&mut stream, "idle");
}

/// A kernel that asks each second, and gives up after three questions without an answer.
fn keep_alive(lab: &Lab, echo: SocketAddr) {
    let mut stream = connect(&lab.enclave, echo, 5).unwrap();
    let keep_alive = TcpKeepalive::new()
        .with_time(Duration::from_secs(1))
        .with_interval(Duration::from_secs(1));
    SockRef::from(&stream)
        .set_tcp_keepalive(&keep_alive)
        .unwrap();
    setsockopt(&stream, sockopt::TcpKeepCount, &3).unwrap();
    exchange(&mut stream, "keep-alive, before");
    sleep(QUIET);
    exchange(&mut stream, "keep-alive");
}

fn half_closed_by_the_program(lab: &Lab, family: Family) {
    let pattern = Pattern::new(5);
    let answer = pattern.clone();
    let server = serve(
        &lab.internet,
        family.at(address::SERVER, 7001),
        move |mut stream| {
            let mut request = String::new();
            stream.read_to_string(&mut request).unwrap();
            sleep(QUIET);
            answer.send(&mut stream, 2 * MIB).unwrap();
        },
    );
    let mut stream = connect(&lab.enclave, server, 5).unwrap();
    stream
        .set_read_timeout(Some(QUIET + Duration::from_secs(20)))
        .unwrap();
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let got = pattern.compare(&mut stream);
    assert_eq!(
        got.unwrap(),
        2 * MIB,
        "{family:?}: half-closed by the program"
    );
}

fn half_closed_by_the_server(lab: &Lab, family: Family) {
    let pattern = Pattern::new(6);
    let (expected, (seen, outcome)) = (pattern.clone(), channel());
    let server = serve(
        &lab.internet,
        family.at(address::SERVER, 7002),
        move |mut stream| {
            stream.shutdown(Shutdown::Write).unwrap();
            seen.send(expected.compare(&mut stream)).unwrap();
        },
    );
    let mut stream = connect(&lab.enclave, server, 5).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    sleep(QUIET);
    pattern.send(&mut stream, 2 * MIB).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let got = outcome.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(
        got.unwrap(),
        2 * MIB,
        "{family:?}: half-closed by the server"
    );
}

/// Each window on the way is shut, then opened.
fn unread_by_the_program(lab: &Lab, family: Family) {
    let pattern = Pattern::new(7);
    let source = pattern.clone();
    let server = serve(
        &lab.internet,
        family.at(address::SERVER, 7003),
        move |mut stream| {
            stream.set_write_timeout(None).unwrap();
            source.send(&mut stream, 24 * MIB).unwrap();
        },
    );
    let mut stream = connect(&lab.enclave, server, 5).unwrap();
    sleep(QUIET);
    let got = pattern.compare(&mut stream);
    assert_eq!(got.unwrap(), 24 * MIB, "{family:?}: unread by the program");
}

fn unread_by_the_server(lab: &Lab, family: Family) {
    let pattern = Pattern::new(8);
    let (expected, (seen, outcome)) = (pattern.clone(), channel());
    let server = serve(
        &lab.internet,
        family.at(address::SERVER, 7004),
        move |mut stream| {
            sleep(QUIET);
            seen.send(expected.compare(&mut stream)).unwrap();
        },
    );
    let mut stream = connect(&lab.enclave, server, 5).unwrap();
    stream.set_write_timeout(None).unwrap();
    pattern.send(&mut stream, 24 * MIB).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let got = outcome.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(got.unwrap(), 24 * MIB, "{family:?}: unread by the server");
}

/// A program that waits for an answer: the parent waits as long.
fn unanswered(lab: &Lab, family: Family) {
    let to = family.at(address::SILENT, 7000);
    let waiting = || {
        let sockets = lab.parent.run("ss", &["-Htn", "state", "syn-sent"]).ok();
        sockets.contains(&to.to_string())
    };
    thread::scope(|scope| {
        scope.spawn(|| connect(&lab.enclave, to, QUIET.as_secs()).unwrap_err());
        let begin = Instant::now();
        // From the first second on, until shortly before the program gives up.
        sleep(Duration::from_secs(2));
        while begin.elapsed() < QUIET - Duration::from_secs(5) {
            assert!(
                waiting(),
                "{family:?}: given up after {:?}",
                begin.elapsed()
            );
            sleep(Duration::from_secs(2));
        }
    });
}

fn published(lab: &Lab, family: Family) {
    echo_server(&lab.enclave, family.at(address::ENCLAVE, 7005));
    let to = family.at(address::PARENT, 7005);
    let mut stream = connect(&lab.internet, to, 5).unwrap();
    exchange(&mut stream, "published, before");
    sleep(QUIET);
    exchange(&mut stream, "published");
}

fn mapping(lab: &Lab, family: Family) {
    let bind = |machine: &netd_tests::Machine, at| {
        let socket = machine.inside(|| UdpSocket::bind(at)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
    };
    let server = bind(&lab.internet, family.at(address::SERVER, 9000));
    let client = bind(&lab.enclave, family.any(0));
    client
        .send_to(b"hello", server.local_addr().unwrap())
        .unwrap();
    let (_, from) = server.recv_from(&mut [0; 10]).unwrap();
    server.send_to(b"hello", from).unwrap();
    client.recv(&mut [0; 10]).unwrap();
    sleep(QUIET_UDP);
    server.send_to(b"still there?", from).unwrap();
    let got = client.recv(&mut [0; 20]);
    assert_eq!(got.unwrap(), 12, "{family:?}: a UDP mapping");
}

#[test]
fn quiet_connections_last() {
    let lab = Lab::new();
    let _daemons = lab.up_with(&["--publish", "7005"], r#"publish = ["7005/tcp"]"#);
    let lab = &lab;
    thread::scope(|scope| {
        for family in Family::BOTH {
            let echo = echo_server(&lab.internet, family.at(address::SERVER, 7));
            scope.spawn(move || idle(lab, echo));
            scope.spawn(move || keep_alive(lab, echo));
            for wait in [
                half_closed_by_the_program,
                half_closed_by_the_server,
                unread_by_the_program,
                unread_by_the_server,
                unanswered,
                published,
                mapping,
            ] {
                scope.spawn(move || wait(lab, family));
            }
        }
    });
}
