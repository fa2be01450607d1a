//! UDP out of the enclave.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Family, Lab, Machine, Process, address, until};
use nix::libc::{EACCES, ECONNREFUSED, EHOSTUNREACH, EMSGSIZE, ENETUNREACH};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
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

/// Sizes of a burst in which there is much to gather and all that must not be.
fn burst() -> Vec<usize> {
    let mut sizes = vec![1400; 12];
    sizes.extend([700, 1400, 1401, 0, 0, 1472, 1472, 1473, 3000, 3000, 1]);
    sizes.extend([64; 70]);
    sizes.extend([63, 64, 1200, 1200, 1199]);
    sizes
}

/// Sends `sizes` with contents of their own, and compares what comes.
fn same_burst(from: &UdpSocket, to: &UdpSocket, at: SocketAddr, sizes: &[usize], what: &str) {
    for (index, length) in sizes.iter().enumerate() {
        from.send_to(&bytes(*length, index), at).unwrap();
    }
    expect_burst(to, sizes, what);
}

fn expect_burst(to: &UdpSocket, sizes: &[usize], what: &str) {
    let mut buffer = vec![0; LARGEST + 1];
    for (index, length) in sizes.iter().enumerate() {
        let n = to
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("{what}: {length} bytes, the {index}th: {error}"));
        assert!(
            buffer[..n] == bytes(*length, index),
            "{what}: {length} bytes, the {index}th, came as {n}"
        );
    }
}

/// While `daemon` stands still, packets wait for it and are then gathered.
fn meanwhile(daemon: &Process, work: impl FnOnce()) {
    daemon.signal(Signal::SIGSTOP);
    work();
    daemon.signal(Signal::SIGCONT);
}

/// Packets that host-netd counted on the link, by the word in its log: many datagrams in one
/// packet count once.
fn counted(host: &Process, word: &str, times: usize) -> usize {
    host.signal(Signal::SIGUSR1);
    until(5, "the counters", || {
        let log = host.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains(word)).collect();
        let line = (lines.len() >= times).then(|| lines[times - 1].to_owned())?;
        let (_, rest) = line.split_once(&format!("{word}="))?;
        rest.split(' ').next()?.parse().ok()
    })
}

#[test]
fn a_burst_of_mixed_sizes_keeps_its_boundaries_both_ways() {
    let lab = Lab::new();
    let daemons = lab.up();
    let sizes = burst();
    for (round, family) in Family::BOTH.into_iter().enumerate() {
        let server = bind(&lab.internet, family.at(address::SERVER, 9000));
        let client = bind(&lab.enclave, family.any(0));
        let at = server.local_addr().unwrap();
        client.send_to(b"first", at).unwrap();
        let (_, back) = server.recv_from(&mut [0; 10]).unwrap();
        server.send_to(b"first", back).unwrap();
        client.recv_from(&mut [0; 10]).unwrap();

        let before = counted(&daemons.host, "packets_from_enclave", 3 * round + 1);
        same_burst(&client, &server, at, &sizes, &format!("{family:?} out"));
        meanwhile(&daemons.enclave, || {
            for (index, length) in sizes.iter().enumerate() {
                client.send_to(&bytes(*length, index), at).unwrap();
            }
        });
        expect_burst(&server, &sizes, &format!("{family:?} out, gathered"));
        let between = counted(&daemons.host, "packets_from_enclave", 3 * round + 2);
        assert!(
            between - before < 2 * sizes.len() - 70,
            "{family:?}: {} packets for {} datagrams: nothing was gathered",
            between - before,
            2 * sizes.len(),
        );

        let before = counted(&daemons.host, "packets_to_enclave", 3 * round + 2);
        same_burst(&server, &client, back, &sizes, &format!("{family:?} in"));
        meanwhile(&daemons.host, || {
            for (index, length) in sizes.iter().enumerate() {
                server.send_to(&bytes(*length, index), back).unwrap();
            }
        });
        expect_burst(&client, &sizes, &format!("{family:?} in, gathered"));
        let after = counted(&daemons.host, "packets_to_enclave", 3 * round + 3);
        assert!(
            after - before < 2 * sizes.len() - 70,
            "{family:?}: {} packets for {} datagrams: nothing was gathered",
            after - before,
            2 * sizes.len(),
        );
    }
}

/// What programs send and take as many (`UDP_SEGMENT`, `UDP_GRO`) crosses as many.
#[test]
fn super_datagrams_of_programs_keep_their_boundaries_both_ways() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let many = |from: &UdpSocket, to: SocketAddr, length: usize, size: u16| {
        let whole = bytes(length, 3);
        let sent = sendmsg(
            from.as_raw_fd(),
            &[IoSlice::new(&whole)],
            &[ControlMessage::UdpGsoSegments(&size)],
            MsgFlags::empty(),
            Some(&SockaddrStorage::from(to)),
        );
        assert_eq!(sent, Ok(length));
        whole
    };
    let mut buffer = vec![0; LARGEST + 1];
    for family in Family::BOTH {
        let server = bind(&lab.internet, family.at(address::SERVER, 9000));
        let client = bind(&lab.enclave, family.any(0));
        let at = server.local_addr().unwrap();
        client.send_to(b"first", at).unwrap();
        let (_, back) = server.recv_from(&mut [0; 10]).unwrap();
        for (length, size) in [(25_001, 1200), (64, 1), (60_000, 1400), (1201, 1200)] {
            for (from, to, at) in [(&client, &server, at), (&server, &client, back)] {
                let whole = many(from, at, length, size);
                for part in whole.chunks(size.into()) {
                    let n = to.recv(&mut buffer).unwrap();
                    assert!(
                        buffer[..n] == *part,
                        "{family:?}: {length} by {size}: {n} bytes instead of {}",
                        part.len()
                    );
                }
            }
        }
    }
}

/// Errors that `socket` finds in its error queue, by the datagram that each is about.
fn errors_of(socket: &UdpSocket) -> Vec<(i32, Vec<u8>)> {
    let mut buffer = [0; 2000];
    let mut control = nix::cmsg_space!(nix::libc::sock_extended_err, nix::libc::sockaddr_in6);
    let mut errors = Vec::new();
    loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let Ok(message) =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)
        else {
            return errors;
        };
        let n = message.bytes;
        let errno = message.cmsgs().unwrap().find_map(|part| match part {
            ControlMessageOwned::Ipv4RecvErr(error, _)
            | ControlMessageOwned::Ipv6RecvErr(error, _) => Some(error.ee_errno),
            _ => None,
        });
        let errno = i32::try_from(errno.expect("an error")).unwrap();
        errors.push((errno, buffer[..n].to_vec()));
    }
}

#[test]
fn each_error_within_a_burst_tells_its_own_datagram() {
    let lab = Lab::new();
    let daemons = lab.up();
    lab.parent
        .run("ip", &["link", "set", "veth0", "mtu", "1300"])
        .ok();
    for family in Family::BOTH {
        let server = bind(&lab.internet, family.at(address::SERVER, 9000));
        let client = bind(&lab.enclave, family.any(0));
        match family {
            Family::V4 => setsockopt(&client, sockopt::Ipv4RecvErr, &true).unwrap(),
            Family::V6 => setsockopt(&client, sockopt::Ipv6RecvErr, &true).unwrap(),
        }
        let at = server.local_addr().unwrap();
        client.send_to(b"first", at).unwrap();
        server.recv_from(&mut [0; 10]).unwrap();

        // Runs that pass, and one that is longer than the path.
        let sizes: Vec<usize> = [[1000; 6], [1400; 6], [900; 6]].concat();
        meanwhile(&daemons.enclave, || {
            for (index, length) in sizes.iter().enumerate() {
                client.send_to(&bytes(*length, index), at).unwrap();
            }
        });
        let mut buffer = [0; 2000];
        for (index, length) in sizes.iter().enumerate().filter(|(_, n)| **n < 1400) {
            let n = server.recv(&mut buffer).unwrap();
            assert!(
                buffer[..n] == bytes(*length, index),
                "{family:?}: the {index}th"
            );
        }
        let mut told = Vec::new();
        until(5, &format!("{family:?}: six errors"), || {
            told.extend(errors_of(&client));
            (told.len() >= 6).then_some(())
        });
        for ((errno, quoted), index) in told.iter().zip(6..) {
            assert_eq!(*errno, EMSGSIZE, "{family:?}: the {index}th");
            assert!(
                quoted.len() > 500 && bytes(1400, index).starts_with(quoted),
                "{family:?}: the {index}th quotes another datagram"
            );
        }

        // A closed port: whatever its kernel says is about datagrams that were sent there.
        let closed = family.at(address::SERVER, 9999);
        meanwhile(&daemons.enclave, || {
            for index in 0..10 {
                // May be told of an earlier one's error instead.
                client.send_to(&bytes(50, index), closed).ok();
                if index == 4 {
                    client.send_to(&bytes(50, 100), at).ok();
                }
            }
        });
        let refused = until(5, &format!("{family:?}: a refusal"), || {
            let errors = errors_of(&client);
            (!errors.is_empty()).then_some(errors)
        });
        for (errno, quoted) in refused {
            assert_eq!(errno, ECONNREFUSED, "{family:?}");
            let sent = (0..10).any(|index| bytes(50, index) == quoted);
            assert!(sent, "{family:?}: {} bytes quoted", quoted.len());
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
