//! What programs see, with real kernels on both ends: each test runs once beside the tunnel, on the
//! parent, and once through it, and expects the same.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Daemons, Family, Lab, Machine, Pattern, address, connect, serve, until};
use nix::libc::{EADDRNOTAVAIL, ECONNRESET, EPIPE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Barrier};
use std::thread::{self, sleep};
use std::time::Duration;

const MIB: usize = 1024 * 1024;

/// Runs a test from both places and in both families.
fn from_both(test: impl Fn(&Machine, &Lab, Family, &str)) {
    let lab = Lab::new();
    let _daemons: Daemons = lab.up();
    for family in Family::BOTH {
        for (machine, place) in [(&lab.parent, "beside"), (&lab.enclave, "through")] {
            test(
                machine,
                &lab,
                family,
                &format!("{family:?} {place} the tunnel"),
            );
        }
    }
}

fn listen(lab: &Lab, family: Family) -> TcpListener {
    let at = family.at(address::SERVER, 0);
    lab.internet.inside(|| TcpListener::bind(at)).unwrap()
}

/// A connection from a machine, and its end at the server.
fn pair(machine: &Machine, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let stream = connect(machine, listener.local_addr().unwrap(), 5).unwrap();
    let (server, _) = listener.accept().unwrap();
    server
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    (stream, server)
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Waits for an error, as one does that neither reads nor writes.
#[track_caller]
fn await_error(stream: &TcpStream, what: &str) {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let ready = poll(&mut polled, PollTimeout::from(4000u16)).unwrap();
    assert_eq!(ready, 1, "{what}: nothing is told");
    let told = polled[0].revents().unwrap();
    assert!(told.contains(PollFlags::POLLERR), "{what}: {told:?}");
}

#[track_caller]
fn awaited_error(stream: &TcpStream, what: &str) -> Option<i32> {
    await_error(stream, what);
    let error = stream.take_error().unwrap();
    error.and_then(|error| error.raw_os_error())
}

#[test]
fn a_reset_reaches_a_program_that_only_waits() {
    from_both(|machine, lab, family, what| {
        let listener = listen(lab, family);

        let (stream, server) = pair(machine, &listener);
        reset(server);
        assert_eq!(awaited_error(&stream, what), Some(ECONNRESET), "{what}");

        // After the server's end of stream.
        let (mut stream, server) = pair(machine, &listener);
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{what}");
        reset(server);
        assert_eq!(awaited_error(&stream, what), Some(EPIPE), "{what}");

        // While it does not read, and nothing more fits on the way.
        let (stream, server) = pair(machine, &listener);
        server.set_nonblocking(true).unwrap();
        let full = |mut server: &TcpStream| while let Ok(1..) = server.write(&[7; 65_536]) {};
        full(&server);
        sleep(Duration::from_millis(300));
        full(&server);
        reset(server);
        assert_eq!(awaited_error(&stream, what), Some(ECONNRESET), "{what}");
    });
}

#[test]
fn what_came_before_a_reset_can_be_read() {
    from_both(|machine, lab, family, what| {
        let listener = listen(lab, family);
        for length in [1, 1000, 60_000] {
            let (mut stream, mut server) = pair(machine, &listener);
            let pattern = Pattern::new(3);
            pattern.send(&mut server, length).unwrap();
            // All is received, so that the reset drops nothing.
            until(5, "all is received", || {
                let n = stream.peek(&mut vec![0; length + 1]).unwrap();
                (n == length).then_some(())
            });
            reset(server);
            await_error(&stream, what);
            let mut got = vec![0; length];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(pattern.compare(&mut &got[..]).unwrap(), length, "{what}");
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(ECONNRESET), "{what}");
        }
    });
}

#[test]
fn ends_of_stream_that_cross_lose_nothing() {
    from_both(|machine, lab, family, what| {
        let listener = listen(lab, family);
        for round in 0..50 {
            let (stream, server) = pair(machine, &listener);
            let barrier = Arc::new(Barrier::new(2));
            let close = |mut stream: TcpStream, barrier: Arc<Barrier>| {
                barrier.wait();
                stream.write_all(&[7; 3000]).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut got = Vec::new();
                stream.read_to_end(&mut got).map(|_| got.len())
            };
            let other = Arc::clone(&barrier);
            let served = thread::spawn(move || close(server, other));
            assert_eq!(close(stream, barrier).unwrap(), 3000, "{what}, {round}");
            assert_eq!(served.join().unwrap().unwrap(), 3000, "{what}, {round}");
        }
    });
}

/// A connection from a port of the program's choice, as soon as its own kernel lets it have that.
fn connect_from(machine: &Machine, port: u16, to: SocketAddr) -> TcpStream {
    until(5, "the port is free", || {
        let connected = machine.inside(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            let any = if to.is_ipv4() { Family::V4 } else { Family::V6 };
            socket.bind(&any.any(port).into()).unwrap();
            let connected = socket.connect_timeout(&to.into(), Duration::from_secs(5));
            connected.map(|()| TcpStream::from(socket))
        });
        match connected {
            Err(error) if error.raw_os_error() == Some(EADDRNOTAVAIL) => None,
            connected => Some(connected.unwrap_or_else(|error| panic!("to {to}: {error}"))),
        }
    })
}

#[test]
fn a_port_can_be_used_again_at_once() {
    from_both(|machine, lab, family, what| {
        let listener = listen(lab, family);
        let to = listener.local_addr().unwrap();
        for round in 0..30_u8 {
            let mut stream = connect_from(machine, 30_000, to);
            let (mut server, _) = listener.accept().unwrap();
            stream.write_all(&[round; 100]).unwrap();
            let mut got = [0; 100];
            server.read_exact(&mut got).unwrap();
            assert_eq!(got, [round; 100], "{what}");
            server.write_all(&[round; 200]).unwrap();
            if round % 2 == 0 {
                // The server closes first, or the kernel would keep the port for a minute.
                drop(server);
                let mut got = Vec::new();
                stream.read_to_end(&mut got).unwrap();
                assert_eq!(got, [round; 200], "{what}");
                drop(stream);
            } else {
                reset(stream);
            }
        }
    });
}

/// Data in the SYN (RFC 7413), from a kernel that asks for no cookie.
#[test]
fn a_program_that_sends_with_its_syn_is_heard_once() {
    from_both(|machine, lab, family, what| {
        machine
            .shell("echo 5 > /proc/sys/net/ipv4/tcp_fastopen")
            .ok();
        let listener = listen(lab, family);
        let to = listener.local_addr().unwrap().to_string();
        let script = r#"
import socket, sys
host, port = sys.argv[1].rsplit(":", 1)
s = socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET, socket.SOCK_STREAM)
s.sendto(b"with the SYN", socket.MSG_FASTOPEN, (host.strip("[]"), int(port)))
s.sendall(b", and after it")
s.shutdown(socket.SHUT_WR)
print(s.recv(100).decode())
"#;
        let answer = thread::scope(|scope| {
            let client = scope.spawn(|| machine.run("python3", &["-c", script, &to]).ok());
            let (mut server, _) = listener.accept().unwrap();
            let mut text = String::new();
            server.read_to_string(&mut text).unwrap();
            assert_eq!(text, "with the SYN, and after it", "{what}");
            server.write_all(b"heard").unwrap();
            drop(server);
            client.join().unwrap()
        });
        assert_eq!(answer.trim(), "heard", "{what}");
    });
}

/// The answer of a host that is asked in vain does not come either way; what the parent still asks
/// ends with the program.
#[test]
fn a_connect_that_a_program_gives_up_ends_outside() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let lab = &lab;
    let asked = |to: SocketAddr| {
        let sockets = lab.parent.run("ss", &["-Htn", "state", "syn-sent"]).ok();
        sockets.contains(&to.to_string())
    };
    thread::scope(|scope| {
        for family in Family::BOTH {
            scope.spawn(move || {
                let to = family.at(address::SILENT, 7000);
                connect(&lab.enclave, to, 2).unwrap_err();
                assert!(asked(to), "{family:?}: it ended before");
                until(15, &format!("{family:?}: it ends"), || {
                    (!asked(to)).then_some(())
                });
            });
        }
    });
}

/// Unlike beside the tunnel, where the urgent byte is no part of the stream unless the receiver
/// wants it so (`SO_OOBINLINE`), it is always at its place in the stream.
#[test]
fn urgent_bytes_stay_in_the_stream_both_ways() {
    let lab = Lab::new();
    let _daemons = lab.up();
    for family in Family::BOTH {
        let listener = listen(&lab, family);
        let (stream, server) = pair(&lab.enclave, &listener);
        for (from, mut to) in [(&stream, &server), (&server, &stream)] {
            for round in 0..100_u8 {
                let urgent = SockRef::from(from);
                (&*from).write_all(&[round; 10]).unwrap();
                urgent.send_out_of_band(&[b'!', round]).unwrap();
                (&*from).write_all(&[round; 5]).unwrap();
                let mut got = [0; 17];
                to.read_exact(&mut got)
                    .unwrap_or_else(|error| panic!("{family:?}, {round}: {error}"));
                let mut sent = [round; 17];
                sent[10] = b'!';
                assert_eq!(got, sent, "{family:?}");
            }
        }
    }
}

/// Reads as one that has other things to do.
struct Slow(TcpStream);

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        sleep(Duration::from_millis(1));
        let most = buffer.len().min(32 * 1024);
        self.0.read(&mut buffer[..most])
    }
}

#[test]
fn the_last_bytes_of_a_published_service_are_not_lost() {
    let lab = Lab::new();
    let _daemons = lab.up_with(&["--publish", "7000"], r#"publish = ["7000/tcp"]"#);
    for family in Family::BOTH {
        let pattern = Pattern::new(4);
        let source = pattern.clone();
        let at = family.at(address::ENCLAVE, 7000);
        serve(&lab.enclave, at, move |mut stream| {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            source.send(&mut stream, 24 * MIB).unwrap();
        });
        let client = connect(&lab.internet, family.at(address::PARENT, 7000), 5).unwrap();
        // So that all is over for the tunnel while much is still on its way.
        client.shutdown(Shutdown::Write).unwrap();
        SockRef::from(&client).set_recv_buffer_size(65_536).unwrap();
        let got = pattern.compare(&mut Slow(client));
        assert_eq!(got.unwrap(), 24 * MIB, "{family:?}");
    }
}
