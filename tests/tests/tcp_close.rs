//! How TCP connections end, and half-end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Family, Lab, Pattern, address, connect, serve};
use nix::libc::{ECONNRESET, EPIPE};
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

const MIB: usize = 1024 * 1024;

#[test]
fn a_reset_by_the_server_reaches_the_program() {
    let lab = Lab::new();
    let _daemons = lab.up();
    for family in Family::BOTH {
        let server = serve(
            &lab.internet,
            family.at(address::SERVER, 7000),
            |mut stream| {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                SockRef::from(&stream)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
            },
        );
        let mut stream = connect(&lab.enclave, server, 5).unwrap();
        stream.write_all(b"x").unwrap();
        let error = stream.read(&mut [0; 8]).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(ECONNRESET),
            "{family:?}: {error}"
        );
    }
}

#[test]
fn a_reset_by_the_program_reaches_the_server() {
    let lab = Lab::new();
    let _daemons = lab.up();
    for family in Family::BOTH {
        let (seen, outcome) = channel();
        let server = serve(
            &lab.internet,
            family.at(address::SERVER, 7000),
            move |mut stream| {
                stream.write_all(b"x").unwrap();
                let result = stream.read(&mut [0; 8]);
                seen.send(result.map_err(|error| error.raw_os_error()))
                    .unwrap();
            },
        );
        let mut stream = connect(&lab.enclave, server, 5).unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(stream);
        let result = outcome
            .recv_timeout(Duration::from_secs(5))
            .expect("the server sees it");
        assert_eq!(result, Err(Some(ECONNRESET)), "{family:?}");
    }
}

#[test]
fn a_server_learns_that_the_reader_is_gone() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let (seen, outcome) = channel();
    let server = serve(
        &lab.internet,
        Family::V4.at(address::SERVER, 7000),
        move |mut stream| {
            let error = Pattern::new(0).send(&mut stream, 1024 * MIB).unwrap_err();
            seen.send(error.raw_os_error()).unwrap();
        },
    );
    let mut stream = connect(&lab.enclave, server, 5).unwrap();
    stream.read_exact(&mut [0; 100_000]).unwrap();
    drop(stream);
    let errno = outcome
        .recv_timeout(Duration::from_secs(5))
        .expect("the server is told");
    assert!(matches!(errno, Some(ECONNRESET | EPIPE)), "{errno:?}");
}

/// The other half stays open as long as both want it: longer than the time-outs of half-closed
/// flows that such networks are known for.
#[test]
fn half_closed_by_the_program_the_other_half_goes_on() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let pattern = Pattern::new(5);
    for family in Family::BOTH {
        let answer = pattern.clone();
        let server = serve(
            &lab.internet,
            family.at(address::SERVER, 7000),
            move |mut stream| {
                let mut request = String::new();
                stream.read_to_string(&mut request).unwrap();
                assert_eq!(request, "question");
                thread::sleep(Duration::from_secs(7));
                answer.send(&mut stream, 4 * MIB).unwrap();
            },
        );
        let mut stream = connect(&lab.enclave, server, 5).unwrap();
        stream.write_all(b"question").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(pattern.compare(&mut stream).unwrap(), 4 * MIB, "{family:?}");
    }
}

#[test]
fn an_end_that_comes_with_the_connection_is_seen() {
    let lab = Lab::new();
    let _daemons = lab.up();
    // It is a matter of which comes first.
    for port in 7000..7040 {
        let server = serve(
            &lab.internet,
            Family::V4.at(address::SERVER, port),
            |mut stream| {
                stream.write_all(b"bye").unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                // Open until the client has seen the end.
                stream.read_to_end(&mut Vec::new()).unwrap();
            },
        );
        let mut stream = connect(&lab.enclave, server, 5).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "bye");
    }
}

#[test]
fn half_closed_by_the_server_the_other_half_goes_on() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let pattern = Pattern::new(6);
    for family in Family::BOTH {
        let (expected, (seen, outcome)) = (pattern.clone(), channel());
        let server = serve(
            &lab.internet,
            family.at(address::SERVER, 7000),
            move |mut stream| {
                stream.write_all(b"bye").unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                seen.send(expected.compare(&mut stream)).unwrap();
            },
        );
        let mut stream = connect(&lab.enclave, server, 5).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "bye");
        thread::sleep(Duration::from_secs(7));
        pattern.send(&mut stream, 4 * MIB).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let got = outcome
            .recv_timeout(Duration::from_secs(20))
            .expect("the server reads on");
        assert_eq!(got.unwrap(), 4 * MIB, "{family:?}");
    }
}

/// Reads as a program that has other things to do, so that all buffers before it are full.
struct Slow(TcpStream);

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        thread::sleep(Duration::from_millis(1));
        let most = buffer.len().min(32 * 1024);
        self.0.read(&mut buffer[..most])
    }
}

/// What is on its way when both ends have closed still arrives.
#[test]
fn the_last_bytes_to_a_slow_server_are_not_lost() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let pattern = Pattern::new(7);
    for (family, server_closes_first) in
        [(Family::V4, true), (Family::V4, false), (Family::V6, true)]
    {
        let (expected, (seen, outcome)) = (pattern.clone(), channel());
        let at = family.at(address::SERVER, 7000 + u16::from(server_closes_first));
        let server = serve(&lab.internet, at, move |stream| {
            if server_closes_first {
                stream.shutdown(Shutdown::Write).unwrap();
            }
            seen.send(expected.compare(&mut Slow(stream))).unwrap();
        });
        let mut stream = connect(&lab.enclave, server, 5).unwrap();
        if server_closes_first {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
        pattern.send(&mut stream, 24 * MIB).unwrap();
        drop(stream);
        let got = outcome
            .recv_timeout(Duration::from_secs(30))
            .expect("it ends");
        assert_eq!(got.unwrap(), 24 * MIB, "{family:?} {server_closes_first}");
    }
}

#[test]
fn the_last_bytes_to_a_slow_program_are_not_lost() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let pattern = Pattern::new(7);
    for (family, program_closes_first) in
        [(Family::V4, true), (Family::V4, false), (Family::V6, true)]
    {
        let source = pattern.clone();
        let at = family.at(address::SERVER, 7000 + u16::from(program_closes_first));
        let server = serve(&lab.internet, at, move |mut stream| {
            if program_closes_first {
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            }
            source.send(&mut stream, 24 * MIB).unwrap();
        });
        let stream = connect(&lab.enclave, server, 5).unwrap();
        if program_closes_first {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let got = pattern.compare(&mut Slow(stream)).unwrap();
        assert_eq!(got, 24 * MIB, "{family:?} {program_closes_first}");
    }
}
