//! How connections end and make way for the next, packet by packet: host-netd against a script in
//! place of the enclave's kernel, with real kernels outside.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_proto::handshake::Features;
use netd_tests::packets::{Script, Wire, stream_bytes};
use netd_tests::{Family, Lab, Process, address, until};
use nix::libc::{ECONNRESET, EPIPE};
use nix::sys::signal::Signal;
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

/// Long enough for an answer that must not come.
const MOMENT: Duration = Duration::from_millis(200);

struct Bed {
    lab: Lab,
    host: Process,
    wire: Wire,
    listeners: [TcpListener; 2],
}

impl Bed {
    fn new() -> Bed {
        let lab = Lab::new();
        let host = lab.start_host(&[]);
        let wire = Wire::open(&lab, Features::default());
        let listeners = Family::BOTH.map(|family| {
            let at = family.at(address::SERVER, 7000);
            lab.internet.inside(|| TcpListener::bind(at)).unwrap()
        });
        Bed {
            lab,
            host,
            wire,
            listeners,
        }
    }

    fn script(&self, family: Family, port: u16) -> Script<'_> {
        self.wire
            .tcp(family, port, family.at(address::SERVER, 7000))
    }

    fn accept(&self, family: Family) -> TcpStream {
        let (stream, _) = self.listeners[family as usize].accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream
    }

    /// A connection and its end outside.
    fn open(&self, family: Family, port: u16) -> (Script<'_>, TcpStream) {
        let script = self.script(family, port);
        script.open();
        (script, self.accept(family))
    }

    /// Sockets of host-netd towards the server.
    fn sockets(&self) -> usize {
        let sockets = self.lab.parent.run("ss", &["-Htnp", "dport", "=", ":7000"]);
        sockets
            .ok()
            .lines()
            .filter(|line| line.contains("host-netd"))
            .count()
    }

    /// host-netd holds no socket for a flow.
    fn forgets_all(&self) {
        until(
            5,
            &format!("no socket is left:\n{}", self.host.log()),
            || (self.sockets() == 0).then_some(()),
        );
    }
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

fn errno_of_read(stream: &mut TcpStream) -> Option<i32> {
    let outcome = stream.read(&mut [0; 100]);
    outcome.expect_err("a reset").raw_os_error()
}

#[test]
fn a_reset_by_the_server_comes_at_every_stage() {
    let bed = Bed::new();
    for family in Family::BOTH {
        let (peer, stream) = bed.open(family, 40_000);
        reset(stream);
        peer.expect("RA 1 ack 1");

        // Amid data, and behind what came before it.
        let (peer, mut stream) = bed.open(family, 40_001);
        peer.send("A 1:11 ack 1");
        peer.expect("A 1 ack 11");
        stream.read_exact(&mut [0; 10]).unwrap();
        stream.write_all(&stream_bytes(1, 5001)).unwrap();
        reset(stream);
        peer.expect_bytes(1, 5001);
        peer.expect("RA 5001 ack 11");

        // Of what was not read: the close of a program that does not care.
        let (peer, mut stream) = bed.open(family, 40_002);
        peer.send("A 1:11 ack 1");
        peer.expect("A 1 ack 11");
        stream.write_all(&stream_bytes(1, 11)).unwrap();
        drop(stream);
        peer.expect_bytes(1, 11);
        peer.expect("RA 11 ack 11");

        // After the server's own end of stream.
        let (peer, mut stream) = bed.open(family, 40_003);
        stream.write_all(&stream_bytes(1, 11)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        peer.expect_bytes_and_end(1, 11);
        peer.send("A 1 ack 12");
        peer.silent_for(MOMENT);
        reset(stream);
        peer.expect("RA 12 ack 1");

        // After the program's.
        let (peer, mut stream) = bed.open(family, 40_004);
        peer.send("FA 1 ack 1");
        peer.expect("A 1 ack 2");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        reset(stream);
        peer.expect("RA 1 ack 2");
    }
    bed.forgets_all();
}

/// host-netd finds all of it at the same time.
#[test]
fn a_connection_that_ends_as_soon_as_it_stands_is_told_whole() {
    let bed = Bed::new();
    let ip = |arguments: &[&str]| bed.lab.internet.run("ip", arguments).ok();
    for family in Family::BOTH {
        let own = family.of(address::SILENT).to_string();
        let prefix = ["198.51.100.0/25", "2001:db8:2::/64"][family as usize];
        for (port, with_a_reset) in [(7000, false), (7001, true)] {
            let to = family.at(address::SILENT, port);
            let peer = bed.wire.tcp(family, 40_000, to).another();
            peer.send("S 0 mss 1460");
            until(5, "the connect is on its way", || {
                let sockets = bed.lab.parent.run("ss", &["-Htn", "state", "syn-sent"]);
                sockets.ok().contains(&own).then_some(())
            });
            bed.host.signal(Signal::SIGSTOP);
            ip(&["route", "del", "blackhole", prefix]);
            // Usable at once.
            let nodad = &["nodad"][..family as usize];
            ip(&[&["addr", "add", &own, "dev", "lo"], nodad].concat());
            let listener = bed.lab.internet.inside(|| TcpListener::bind(to)).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&stream_bytes(1, 101)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let kept = if with_a_reset {
                reset(stream);
                None
            } else {
                Some(stream)
            };
            bed.host.signal(Signal::SIGCONT);

            peer.expect("SA 0 ack 1");
            peer.send("A 1 ack 1");
            peer.expect_bytes_and_end(1, 101);
            if with_a_reset {
                peer.expect("RA 102 ack 1");
            } else {
                peer.send("FA 1 ack 102");
                peer.expect("A 102 ack 2");
            }
            drop((kept, listener));
            ip(&["addr", "del", &own, "dev", "lo"]);
            ip(&["route", "add", "blackhole", prefix]);
        }
    }
}

#[test]
fn a_reset_by_the_server_waits_for_a_reader_but_not_for_ever() {
    let bed = Bed::new();
    for family in Family::BOTH {
        // One that reads at last gets all that came before.
        let peer = bed.script(family, 40_000);
        peer.send("S 0 mss 1460");
        peer.expect("SA 0 ack 1");
        peer.send("A 1 ack 1 win 1000");
        let mut stream = bed.accept(family);
        stream.write_all(&stream_bytes(1, 100_001)).unwrap();
        peer.expect_bytes(1, 1001);
        // Before that, what was written cannot all have left the server: a reset would drop it.
        until(5, "all is at the parent", || {
            let queued = bed.lab.internet.run("ss", &["-Htn", "sport", "=", ":7000"]);
            let queued = queued.ok();
            let mut words = queued.lines().filter(|line| line.contains("ESTAB"));
            let waiting = words.next()?.split_whitespace().nth(2)?.to_owned();
            (waiting == "0").then_some(())
        });
        reset(stream);
        peer.silent_for(MOMENT);
        peer.send("A 1 ack 1001 win 64000");
        peer.expect_bytes(1001, 65_001);
        peer.send("A 1 ack 65001 win 64000");
        peer.expect_bytes(65_001, 100_001);
        peer.expect("RA 100001 ack 1");

        // One that does not read, and does not write either, is told.
        let peer = bed.script(family, 40_001);
        peer.send("S 0 mss 1460");
        peer.expect("SA 0 ack 1");
        peer.send("A 1 ack 1 win 1000");
        let mut stream = bed.accept(family);
        stream.write_all(&stream_bytes(1, 100_001)).unwrap();
        peer.expect_bytes(1, 1001);
        peer.send("A 1 ack 1001 win 0");
        reset(stream);
        // It may ask once whether the window is still shut.
        let mut told = peer.next();
        if (told.from, told.to) == (1001, 1002) {
            told = peer.next();
        }
        assert_eq!((&told.flags[..], told.from), ("RA", 1001), "{told}");
    }
    bed.forgets_all();
}

#[test]
fn a_reset_by_the_program_reaches_the_server_at_every_stage() {
    let bed = Bed::new();
    for family in Family::BOTH {
        let (peer, mut stream) = bed.open(family, 40_000);
        peer.send("R 1");
        assert_eq!(errno_of_read(&mut stream), Some(ECONNRESET));

        // Before the handshake ends.
        let peer = bed.script(family, 40_001);
        peer.send("S 0 mss 1460");
        peer.expect("SA 0 ack 1");
        peer.send("R 1");
        assert_eq!(errno_of_read(&mut bed.accept(family)), Some(ECONNRESET));

        // Amid data.
        let (peer, mut stream) = bed.open(family, 40_002);
        peer.send("A 1:11 ack 1");
        peer.expect("A 1 ack 11");
        peer.send("RA 11 ack 1");
        let mut got = Vec::new();
        let error = stream.read_to_end(&mut got).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(ECONNRESET), "{family:?}");

        // After its own end of stream.
        let (peer, mut stream) = bed.open(family, 40_003);
        peer.send("FA 1 ack 1");
        peer.expect("A 1 ack 2");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        peer.send("R 2");
        until(5, "the server's writes fail", || {
            let error = stream.write_all(&[1]).err()?;
            assert!(matches!(error.raw_os_error(), Some(ECONNRESET | EPIPE)));
            Some(())
        });

        // After the server's.
        let (peer, mut stream) = bed.open(family, 40_004);
        stream.shutdown(Shutdown::Write).unwrap();
        peer.expect("FA 1 ack 1");
        peer.send("A 1 ack 2");
        peer.send("R 1");
        assert_eq!(errno_of_read(&mut stream), Some(ECONNRESET), "{family:?}");
        // Nothing answers a reset, whatever comes after it.
        peer.silent_for(MOMENT);
    }
    bed.forgets_all();
}

#[test]
fn both_ends_may_close_at_the_same_time() {
    let bed = Bed::new();
    for family in Family::BOTH {
        let (peer, mut stream) = bed.open(family, 40_000);
        stream.write_all(&stream_bytes(1, 11)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        peer.expect_bytes_and_end(1, 11);
        // Sent before any of that was seen.
        peer.send("FA 1:6 ack 1");
        peer.expect("A 12 ack 7");
        peer.send("A 7 ack 12");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, stream_bytes(1, 6), "{family:?}");
        peer.silent_for(MOMENT);
    }
    bed.forgets_all();
}

#[test]
fn an_end_of_stream_that_is_repeated_is_acknowledged_again() {
    let bed = Bed::new();
    for family in Family::BOTH {
        let (peer, mut stream) = bed.open(family, 40_000);
        peer.send("FA 1:11 ack 1");
        peer.expect("A 1 ack 12");
        peer.send("FA 1:11 ack 1");
        peer.expect("A 1 ack 12");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, stream_bytes(1, 11), "{family:?}");
        // The other half goes on.
        stream.write_all(&stream_bytes(1, 1001)).unwrap();
        peer.expect_bytes(1, 1001);
        peer.send("A 12 ack 1001");
        drop(stream);
        peer.expect("FA 1001 ack 12");
        peer.send("A 12 ack 1002");
        // It is over; what is heard of it now is of no connection.
        bed.forgets_all();
        peer.send("FA 1:11 ack 1002");
        peer.expect("R 1002");
    }
}

/// What comes behind its own end of stream is no part of the stream.
#[test]
fn nothing_comes_behind_an_end_of_stream() {
    let bed = Bed::new();
    for family in Family::BOTH {
        let (peer, mut stream) = bed.open(family, 40_000);
        peer.send("FA 1:11 ack 1");
        peer.send("A 12:20 ack 1");
        let mut got = Vec::new();
        // It may take the sender for mad, and reset.
        let _ = stream.read_to_end(&mut got);
        assert_eq!(got, stream_bytes(1, 11), "{family:?}");
        drop(stream);
        peer.send("R 20");
    }
    bed.forgets_all();
}

/// The same ports again, as soon as a kernel may use them.
#[test]
fn the_same_ports_again_are_another_connection() {
    let bed = Bed::new();
    for family in Family::BOTH {
        let mut peer = bed.script(family, 40_000);
        for round in 0..9 {
            peer.send("S 0 mss 1460");
            peer.expect("SA 0 ack 1");
            peer.send("A 1:11 ack 1");
            peer.expect_after_acks("A 1 ack 11");
            let mut stream = bed.accept(family);
            let mut got = [0; 10];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(got[..], stream_bytes(1, 11), "{family:?} {round}");
            match round % 3 {
                // The program closes first: Linux could use the port again after a minute, others
                // sooner.
                0 => {
                    peer.send("FA 11 ack 1");
                    peer.expect("A 1 ack 12");
                    drop(stream);
                    peer.expect("FA 1 ack 12");
                    peer.send("A 12 ack 2");
                }
                // The server closes first.
                1 => {
                    drop(stream);
                    peer.expect("FA 1 ack 11");
                    peer.send("FA 11 ack 2");
                    peer.expect("A 2 ack 12");
                }
                _ => peer.send("R 11"),
            }
            peer = peer.another();
        }
    }
    bed.forgets_all();
}

/// The enclave's kernel forgot a connection that still stands outside.
#[test]
fn the_same_ports_again_end_a_connection_that_was_forgotten() {
    let bed = Bed::new();
    for family in Family::BOTH {
        let (first, mut old) = bed.open(family, 40_000);
        first.send("A 1:11 ack 1");
        first.expect("A 1 ack 11");
        old.read_exact(&mut [0; 10]).unwrap();

        let second = first.another();
        second.send("S 0 mss 1460");
        second.expect("SA 0 ack 1");
        second.send("A 1:21 ack 1");
        second.expect("A 1 ack 21");

        assert_eq!(errno_of_read(&mut old), Some(ECONNRESET), "{family:?}");
        let mut got = [0; 20];
        bed.accept(family).read_exact(&mut got).unwrap();
        assert_eq!(got[..], stream_bytes(1, 21), "{family:?}");
    }
}

/// A connection is over for the enclave, and its last bytes still wait for a slow server.
#[test]
fn the_same_ports_again_leave_the_last_bytes_on_their_way() {
    let bed = Bed::new();
    bed.lab
        .parent
        .shell("echo '4096 16384 65536' > /proc/sys/net/ipv4/tcp_wmem")
        .ok();
    for family in Family::BOTH {
        let listener = &bed.listeners[family as usize];
        SockRef::from(listener)
            .set_recv_buffer_size(16_384)
            .unwrap();
        let (first, mut old) = bed.open(family, 40_000);
        old.shutdown(Shutdown::Write).unwrap();
        first.expect("FA 1 ack 1");
        let mut next = 1;
        while next < 200_001 {
            first.send(&format!("A {next}:{} ack 2", next + 1000));
            next += 1000;
            first.expect_after_acks(&format!("A 2 ack {next}"));
        }
        first.send(&format!("FA {next} ack 2"));
        first.expect_after_acks(&format!("A 2 ack {}", next + 1));

        let second = first.another();
        second.send("S 0 mss 1460");
        second.expect("SA 0 ack 1");
        second.send("A 1:11 ack 1");
        second.expect("A 1 ack 11");

        let mut got = Vec::new();
        old.read_to_end(&mut got).unwrap();
        assert!(got == stream_bytes(1, next), "{family:?}: {}", got.len());
        let mut stream = bed.accept(family);
        let mut got = [0; 10];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got[..], stream_bytes(1, 11), "{family:?}");
        // The new one is not disturbed by the end of the old one.
        stream.write_all(&stream_bytes(1, 31)).unwrap();
        second.expect_bytes(1, 31);
    }
}
