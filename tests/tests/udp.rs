//! UDP out of the enclave.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Family, Lab, Machine, address, until};
use nix::libc::{EACCES, ECONNREFUSED, EHOSTUNREACH, ENETUNREACH};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

const LARGEST: usize = 65_507;

fn bind(machine: &Machine, at: SocketAddr) -> UdpSocket {
    let socket = machine.inside(|| UdpSocket::bind(at)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

fn bytes(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|i| u8::try_from((i * 7 + i / 251 + seed) % 256).unwrap())
        .collect()
}

#[test]
fn datagrams_of_every_size_come_whole_both_ways() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let mut buffer = vec![0; LARGEST + 1];
    for family in Family::BOTH {
        let server = bind(&lab.internet, family.at(address::SERVER, 9000));
        let client = bind(&lab.enclave, family.any(0));
        for length in [0, 1, 1000, 1452, 1472, 1473, 9000, 40_000, LARGEST] {
            let there = bytes(length, 1);
            client
                .send_to(&there, server.local_addr().unwrap())
                .unwrap();
            let (n, from) = server.recv_from(&mut buffer).unwrap_or_else(|error| {
                panic!("{family:?}: {length} bytes did not get out: {error}")
            });
            assert!(
                buffer[..n] == there,
                "{family:?}: {length} bytes came as {n}"
            );
            assert_eq!(from.ip(), family.of(address::PARENT));

            let back = bytes(length, 2);
            server.send_to(&back, from).unwrap();
            let (n, from) = client.recv_from(&mut buffer).unwrap_or_else(|error| {
                panic!("{family:?}: {length} bytes did not get back: {error}")
            });
            assert!(
                buffer[..n] == back,
                "{family:?}: {length} bytes came back as {n}"
            );
            assert_eq!(from, server.local_addr().unwrap());
        }
    }
}

#[test]
fn errors_reach_the_connected_socket() {
    let lab = Lab::new();
    let _daemons = lab.up();
    for family in Family::BOTH {
        let fails_with = |pair, what| {
            let socket = bind(&lab.enclave, family.any(0));
            // Without it Linux keeps from UDP what may pass (ip(7), IP_RECVERR).
            match family {
                Family::V4 => setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap(),
                Family::V6 => setsockopt(&socket, sockopt::Ipv6RecvErr, &true).unwrap(),
            }
            socket.connect(family.at(pair, 9999)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(300)))
                .unwrap();
            // Routers send few errors a second: ask again, as programs do.
            let error = until(5, &format!("{family:?} {pair:?}: an error"), || {
                socket.send(b"anyone?").ok();
                let error = socket.recv(&mut [0; 10]).unwrap_err();
                (error.kind() != ErrorKind::WouldBlock).then_some(error)
            });
            assert_eq!(
                error.raw_os_error(),
                Some(what),
                "{family:?} {pair:?}: {error}"
            );
        };
        fails_with(address::SERVER, ECONNREFUSED);
        fails_with(address::ABSENT, EHOSTUNREACH);
        fails_with(address::UNROUTED, ENETUNREACH);
        let prohibited = if family == Family::V4 {
            EHOSTUNREACH
        } else {
            EACCES
        };
        fails_with(address::PROHIBITED, prohibited);
    }
}

#[test]
fn a_closed_port_is_told_to_a_plain_connected_socket() {
    let lab = Lab::new();
    let _daemons = lab.up();
    for family in Family::BOTH {
        let socket = bind(&lab.enclave, family.any(0));
        socket.connect(family.at(address::SERVER, 9999)).unwrap();
        socket.send(b"anyone?").unwrap();
        let error = socket.recv(&mut [0; 10]).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(ECONNREFUSED),
            "{family:?}: {error}"
        );
    }
}

/// RFC 4787, REQ-1.
#[test]
fn every_destination_sees_one_port_of_a_socket() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let mut buffer = [0; 100];
    for family in Family::BOTH {
        let pairs = [address::SERVER, address::OTHER];
        let servers = pairs.map(|pair| bind(&lab.internet, family.at(pair, 9000)));
        let mut seen_of = |client: &UdpSocket| {
            servers.each_ref().map(|server| {
                client
                    .send_to(b"who am I?", server.local_addr().unwrap())
                    .unwrap();
                server.recv_from(&mut buffer).unwrap().1
            })
        };
        let (one, other) = (
            bind(&lab.enclave, family.any(0)),
            bind(&lab.enclave, family.any(0)),
        );
        let [first, second] = seen_of(&one);
        assert_eq!(first, second, "{family:?}");
        assert_ne!(
            first,
            seen_of(&other)[0],
            "{family:?}: two sockets share a port"
        );
        assert_eq!(first, seen_of(&one)[0], "{family:?}: it changed");

        // Each of them answers, and the program sees which.
        for server in &servers {
            server.send_to(b"you", first).unwrap();
            let (_, from) = one.recv_from(&mut [0; 10]).unwrap();
            assert_eq!(from, server.local_addr().unwrap(), "{family:?}");
        }
    }
}

/// A program that forbids fragments learns the path's MTU.
#[test]
fn a_datagram_larger_than_the_path_is_told() {
    let lab = Lab::new();
    let _daemons = lab.up();
    lab.parent
        .run("ip", &["link", "set", "veth0", "mtu", "1300"])
        .ok();
    // IP_MTU_DISCOVER 10, IPV6_MTU_DISCOVER 23, both DO = 2; IP_MTU 14, IPV6_MTU 24.
    let script = r#"
import errno, socket, sys, time
v6 = ":" in sys.argv[1]
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
s.setsockopt(level, 23 if v6 else 10, 2)
s.connect((sys.argv[1], 9000))
for _ in range(100):
    try:
        s.send(b"x" * 1400)
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        print("told", s.getsockopt(level, 24 if v6 else 14))
        break
    time.sleep(0.05)
"#;
    for family in Family::BOTH {
        let _server = bind(&lab.internet, family.at(address::SERVER, 9000));
        let to = family.of(address::SERVER).to_string();
        let told = lab.enclave.run("python3", &["-c", script, &to]).ok();
        assert_eq!(told.trim(), "told 1300", "{family:?}");
    }
}

#[test]
fn iperf3_over_udp_loses_little() {
    let lab = Lab::new();
    let _iperf3 = lab.iperf3();
    let _daemons = lab.up();
    for options in [&[][..], &["-R"][..]] {
        let base = ["-c", "192.0.2.2", "-u", "-b", "50M", "-t", "2", "--json"];
        let report = lab
            .enclave
            .run("iperf3", &[&base[..], options].concat())
            .ok();
        // Of the summaries the last.
        let (_, lost) = report
            .rsplit_once("\"lost_percent\":")
            .expect("a report of losses");
        let lost: f64 = lost
            .split([',', '}', '\n'])
            .next()
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert!(lost < 2.0, "{options:?}: {lost} % lost");
    }
}
