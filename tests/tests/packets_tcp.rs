//! How connections begin and carry data, packet by packet: host-netd against a script in place of
//! the enclave's kernel, with real kernels outside.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_proto::handshake::Features;
use netd_proto::offload::{NEEDS_CSUM, VnetHeader};
use netd_tests::packets::{Script, Window, Wire, counted, dropped, stream_bytes};
use netd_tests::{Family, Lab, Machine, address, connect, until};
use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Long enough for an answer that must not come.
const MOMENT: Duration = Duration::from_millis(200);

fn listen(machine: &Machine, at: SocketAddr) -> TcpListener {
    machine.inside(|| TcpListener::bind(at)).unwrap()
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream
}

/// A lab with host-netd, a wire to it, and a listening server in each family.
fn bed(features: Features) -> (Lab, netd_tests::Process, Wire, [TcpListener; 2]) {
    let lab = Lab::new();
    let host = lab.start_host(&[]);
    let wire = Wire::open(&lab, features);
    let listeners =
        Family::BOTH.map(|family| listen(&lab.internet, family.at(address::SERVER, 7000)));
    (lab, host, wire, listeners)
}

fn server(family: Family) -> SocketAddr {
    family.at(address::SERVER, 7000)
}

/// Reads what the stream has from 1 on.
#[track_caller]
fn reads(stream: &mut TcpStream, from: u32, to: u32) {
    let mut bytes = vec![0; (to - from) as usize];
    stream.read_exact(&mut bytes).unwrap();
    assert!(bytes == stream_bytes(from, to), "{from}:{to} differ");
}

fn connects_of(lab: &Lab, to: SocketAddr) -> usize {
    let sockets = lab.parent.run("ss", &["-Htn", "state", "syn-sent"]).ok();
    sockets
        .lines()
        .filter(|line| line.contains(&to.to_string()))
        .count()
}

#[test]
fn a_connect_is_answered_with_what_became_of_it() {
    let (_lab, _host, wire, _listeners) = bed(Features::default());
    for family in Family::BOTH {
        let to = |pair, port| wire.tcp(family, 40_000, family.at(pair, port));
        let asked = |script: &Script<'_>| script.send("S 0 mss 1460");
        let fails = |pair, (kind4, code4), (kind6, code6)| {
            let script = to(pair, 81);
            asked(&script);
            match family {
                Family::V4 => script.expect_icmp(kind4, code4),
                Family::V6 => script.expect_icmp(kind6, code6),
            };
            script.silent_for(Duration::ZERO);
        };

        let refused = to(address::SERVER, 81);
        asked(&refused);
        refused.expect("RA 0 ack 1");
        fails(address::ABSENT, (3, 1), (1, 3));
        fails(address::UNROUTED, (3, 0), (1, 0));
        // Linux tells programs no more of an IPv4 prohibition than "no route to host".
        fails(address::PROHIBITED, (3, 1), (1, 1));
        // By host-netd's own policy.
        fails(address::PARENT, (3, 13), (1, 1));
        let silent = to(address::SILENT, 81);
        asked(&silent);
        silent.silent_for(MOMENT);
    }
}

#[test]
fn a_repeated_syn_is_the_same_connection() {
    let (_lab, host, wire, listeners) = bed(Features::default());
    for (family, listener) in Family::BOTH.into_iter().zip(&listeners) {
        let peer = wire.tcp(family, 40_000, server(family));
        for _ in 0..3 {
            peer.send("S 0 mss 1460 scale 7");
        }
        peer.expect("SA 0 ack 1");
        peer.send("S 0 mss 1460 scale 7");
        peer.send("A 1 ack 1");
        peer.send("S 0 mss 1460 scale 7");
        peer.send("A 1:11 ack 1");
        peer.expect_after_acks("A 1 ack 11");
        let mut stream = accept(listener);
        reads(&mut stream, 1, 11);

        listener.set_nonblocking(true).unwrap();
        peer.silent_for(MOMENT);
        let second = listener.accept().unwrap_err();
        assert_eq!(second.kind(), ErrorKind::WouldBlock, "{family:?}");
        let flows = counted(&host, "flows_opened");
        assert_eq!(flows, family as u64 + 1, "{family:?}");
    }
}

/// Data in a SYN may be ignored (RFC 9293, 3.10.7.2); it is not lost and does not come twice.
#[test]
fn data_in_a_syn_comes_once() {
    let (_lab, _host, wire, listeners) = bed(Features::default());
    for (family, listener) in Family::BOTH.into_iter().zip(&listeners) {
        let peer = wire.tcp(family, 40_000, server(family));
        peer.send("S 0:10 mss 1460");
        peer.expect("SA 0 ack 1");
        peer.send("A 1:11 ack 1");
        peer.expect("A 1 ack 11");
        peer.send("FA 11 ack 1");
        let mut got = Vec::new();
        accept(listener).read_to_end(&mut got).unwrap();
        assert_eq!(got, stream_bytes(1, 11), "{family:?}");
    }
}

/// A program gave up, and another one uses the port: it must not wait for the first one's answer,
/// nor get it.
#[test]
fn another_connect_from_the_same_port_is_another_connect_outside() {
    let (lab, _host, wire, _listeners) = bed(Features::default());
    for family in Family::BOTH {
        let silent = family.at(address::SILENT, 7000);
        let first = wire.tcp(family, 40_000, silent);
        first.send("S 0 mss 1460");
        until(5, "the first is on its way", || {
            (connects_of(&lab, silent) == 1).then_some(())
        });
        let prefix = ["198.51.100.0/25", "2001:db8:2::/64"][family as usize];
        let own = ["198.51.100.1/32", "2001:db8:2::1/128"][family as usize];
        let ip = |arguments: &[&str]| lab.internet.run("ip", arguments).ok();
        ip(&["route", "del", "blackhole", prefix]);
        // Usable at once.
        let nodad = &["nodad"][..family as usize];
        ip(&[&["addr", "add", own, "dev", "lo"], nodad].concat());
        let listener = listen(&lab.internet, silent);

        let second = first.another();
        second.send("S 0 mss 1460");
        second.expect("SA 0 ack 1");
        second.send("A 1:11 ack 1");
        second.expect("A 1 ack 11");
        reads(&mut accept(&listener), 1, 11);
        assert_eq!(
            connects_of(&lab, silent),
            0,
            "{family:?}: the first goes on"
        );
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "{family:?}: two connections");
    }
}

/// A kernel says nothing when a program closes a socket that is not connected yet.
#[test]
fn a_connect_that_is_given_up_ends_outside() {
    let (lab, _host, wire, _listeners) = bed(Features::default());
    let targets = Family::BOTH.map(|family| family.at(address::SILENT, 7000));
    for family in Family::BOTH {
        wire.tcp(family, 40_000, targets[family as usize])
            .send("S 0 mss 1460");
    }
    // One that a reset takes back ends at once.
    let reset = wire.tcp(Family::V6, 40_001, targets[1]);
    reset.send("S 0 mss 1460");
    until(5, "all are on their way", || {
        (connects_of(&lab, targets[0]) == 1 && connects_of(&lab, targets[1]) == 2).then_some(())
    });
    reset.send("R 1");
    until(1, "the one that was reset ends", || {
        (connects_of(&lab, targets[1]) == 1).then_some(())
    });
    for to in targets {
        until(8, &format!("the connect to {to} ends"), || {
            (connects_of(&lab, to) == 0).then_some(())
        });
    }
    // What comes after all is another connect.
    wire.tcp(Family::V4, 40_000, targets[0])
        .send("S 0 mss 1460");
    until(5, "it is on its way", || {
        (connects_of(&lab, targets[0]) == 1).then_some(())
    });
}

/// A client outside and a program inside connect to each other at the same time.
#[test]
fn a_simultaneous_open_is_one_connection() {
    let lab = Lab::new();
    let _host = lab.start_host(&["--publish", "7000"]);
    let wire = Wire::open(&lab, Features::default());
    for family in Family::BOTH {
        let to = family.at(address::PARENT, 7000);
        let mut client = connect(&lab.internet, to, 5).unwrap();
        let peer = wire.tcp(family, 7000, client.local_addr().unwrap());
        peer.expect("S 0");
        peer.send("S 0 mss 1460");
        peer.expect("SA 0 ack 1");
        peer.send("SA 0 ack 1 mss 1460");
        peer.send("A 1:11 ack 1");
        peer.expect_after_acks("A 1 ack 11");
        reads(&mut client, 1, 11);
        client.write_all(&stream_bytes(1, 21)).unwrap();
        peer.expect_bytes(1, 21);
    }
}

#[test]
fn a_window_that_shuts_and_opens_again_loses_nothing() {
    let (_lab, _host, wire, listeners) = bed(Features::default());
    for (family, listener) in Family::BOTH.into_iter().zip(&listeners) {
        let peer = wire.tcp(family, 40_000, server(family));
        peer.send("S 0 win 1000 mss 1460");
        peer.expect("SA 0 ack 1");
        peer.send("A 1 ack 1 win 1000");
        let mut stream = accept(listener);
        stream.write_all(&stream_bytes(1, 50_001)).unwrap();
        peer.expect_bytes(1, 1001);
        peer.silent_for(MOMENT);
        peer.send("A 1 ack 1001 win 0");
        peer.silent_for(MOMENT);
        // It asks whether the window is still shut.
        peer.expect("A 1001:1002 ack 1");
        peer.send("A 1 ack 1001 win 0");
        peer.silent_for(MOMENT);
        peer.send("A 1 ack 1001 win 60000");
        peer.expect_bytes(1001, 50_001);
        peer.send("A 1 ack 50001");
        // The other way it went on all the time.
        peer.send("A 1:11 ack 50001");
        peer.expect("A 50001 ack 11");
        reads(&mut stream, 1, 11);
    }
}

#[test]
fn a_reader_outside_that_stops_shuts_the_window_and_opens_it_again() {
    let (lab, _host, wire, listeners) = bed(Features::default());
    // Small buffers outside, so that it is soon full.
    lab.parent
        .shell("echo '4096 16384 65536' > /proc/sys/net/ipv4/tcp_wmem")
        .ok();
    for (family, listener) in Family::BOTH.into_iter().zip(&listeners) {
        SockRef::from(listener)
            .set_recv_buffer_size(16_384)
            .unwrap();
        let peer = wire.tcp(family, 40_000, server(family));
        peer.open();
        let mut stream = accept(listener);
        let (mut next, mut window) = (1, 1000);
        loop {
            let to = next + 1000.min(u32::from(window));
            peer.send(&format!("A {next}:{to} ack 1"));
            next = to;
            let mut acked = 0;
            while acked < next || window == 0 {
                // It trickles on for a while after the first time that all is full.
                let Some(line) = peer.next_within(2 * MOMENT) else {
                    break;
                };
                acked = line.ack.unwrap();
                let Some(Window::Is(field)) = line.window else {
                    panic!("{line}")
                };
                window = field;
            }
            assert_eq!(acked, next, "{family:?}: not acknowledged");
            if window == 0 {
                break;
            }
        }
        assert!(next > 60_000, "{family:?}: {next}");
        // A kernel asks with a byte more. One may be taken: host-netd promises less than it has.
        peer.send(&format!("A {next}:{} ack 1", next + 1));
        let answer = peer.expect("A 1 win 0").ack.unwrap();
        assert!((next..=next + 1).contains(&answer), "{answer}");
        next = answer;
        for _ in 0..2 {
            peer.send(&format!("A {next}:{} ack 1", next + 1));
            peer.expect(&format!("A 1 ack {next} win 0"));
        }
        peer.silent_for(MOMENT);

        reads(&mut stream, 1, next);
        // Nobody asked.
        peer.expect_after_acks(&format!("A 1 ack {next} win +"));
        peer.send(&format!("A {next}:{} ack 1", next + 500));
        reads(&mut stream, next, next + 500);
    }
}

#[test]
fn segments_out_of_order_twice_and_overlapping_are_one_stream() {
    let (_lab, _host, wire, listeners) = bed(Features::default());
    for (family, listener) in Family::BOTH.into_iter().zip(&listeners) {
        let peer = wire.tcp(family, 40_000, server(family));
        peer.open();
        peer.send("A 11:21 ack 1");
        peer.send("A 31:41 ack 1");
        peer.send("A 15:35 ack 1");
        peer.send("A 11:21 ack 1");
        peer.send("A 1:16 ack 1");
        peer.expect_after_acks("A 1 ack 41");
        peer.send("A 1:50 ack 1");
        peer.expect_after_acks("A 1 ack 50");
        // The end comes before the last bytes.
        peer.send("FA 60:61 ack 1");
        peer.send("A 50:60 ack 1");
        peer.expect_after_acks("A 1 ack 61");
        peer.send("FA 61 ack 1");
        peer.expect("A 1 ack 62");
        let mut got = Vec::new();
        accept(listener).read_to_end(&mut got).unwrap();
        assert!(got == stream_bytes(1, 61), "{family:?}");
    }
}

#[test]
fn segments_that_do_not_belong_change_nothing() {
    let (_lab, _host, wire, listeners) = bed(Features::default());
    for (family, listener) in Family::BOTH.into_iter().zip(&listeners) {
        let peer = wire.tcp(family, 40_000, server(family));
        peer.open();
        let mut stream = accept(listener);
        // An acknowledgement of what was never sent: told what is right (RFC 5961, 5.2).
        peer.send("A 1 ack 5000");
        peer.expect("A 1 ack 1");
        // Data far outside the window, before and behind it.
        peer.send("A 3000000:3000010 ack 1");
        peer.expect("A 1 ack 1");
        peer.send("A 1:11 ack 1");
        peer.expect("A 1 ack 11");
        peer.send("A 1:11 ack 1");
        peer.expect("A 1 ack 11");
        // Resets outside the window: nothing (RFC 9293, 3.10.7.4).
        peer.send("R 3000000");
        peer.send("R 5");
        peer.silent_for(MOMENT);
        // Without ACK nothing is looked at.
        peer.send("P 11:21");
        peer.silent_for(MOMENT);
        peer.send("A 11:21 ack 1");
        peer.expect("A 1 ack 21");
        reads(&mut stream, 1, 21);
        stream.write_all(&stream_bytes(1, 11)).unwrap();
        peer.expect("A 1:11 ack 21");
        // A second ACK of the same, and an old one.
        peer.send("A 21 ack 11");
        peer.send("A 21 ack 1");
        peer.silent_for(MOMENT);
    }
}

#[test]
fn keep_alive_probes_are_answered() {
    let (_lab, _host, wire, listeners) = bed(Features::default());
    for (family, listener) in Family::BOTH.into_iter().zip(&listeners) {
        let peer = wire.tcp(family, 40_000, server(family));
        peer.open();
        let mut stream = accept(listener);
        peer.send("A 1:11 ack 1");
        peer.expect("A 1 ack 11");
        // With a byte of garbage, and as Linux does it.
        peer.send("A 10:11 ack 1");
        peer.expect("A 1 ack 11");
        peer.send("A 10 ack 1");
        peer.expect("A 1 ack 11");
        reads(&mut stream, 1, 11);
        stream.set_nonblocking(true).unwrap();
        let nothing = stream.read(&mut [0]).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock, "{family:?}");
    }
}

#[test]
fn urgent_bytes_of_the_enclave_stay_at_their_place() {
    let (_lab, _host, wire, listeners) = bed(Features::default());
    for (family, listener) in Family::BOTH.into_iter().zip(&listeners) {
        let peer = wire.tcp(family, 40_000, server(family));
        peer.open();
        peer.send("A 1:11 ack 1");
        peer.send("AU 11:21 ack 1 urg 5");
        peer.send("AU 21:22 ack 1 urg 1");
        // A pointer to what is not there yet, or never.
        peer.send("AU 22:31 ack 1 urg 60000");
        peer.send("FA 31 ack 1");
        peer.expect_after_acks("A 1 ack 32");
        let mut got = Vec::new();
        accept(listener).read_to_end(&mut got).unwrap();
        assert!(got == stream_bytes(1, 31), "{family:?}");
    }
}

/// `write` of what the peer outside sends urgently.
fn send_urgent(stream: &TcpStream, bytes: &[u8]) {
    let sent = SockRef::from(stream).send_out_of_band(bytes).unwrap();
    assert_eq!(sent, bytes.len());
}

#[test]
fn urgent_bytes_from_outside_stay_at_their_place_and_hold_nothing_up() {
    let (_lab, _host, wire, listeners) = bed(Features::default());
    for (family, listener) in Family::BOTH.into_iter().zip(&listeners) {
        let peer = wire.tcp(family, 40_000, server(family));
        peer.open();
        let mut stream = accept(listener);
        let mut next = 1;
        // Whatever comes together: nothing comes behind it that would wake the reader again.
        for round in 0..50 {
            let before = round % 7;
            let middle = 1 + round % 3;
            let behind = round % 5;
            stream
                .write_all(&stream_bytes(next, next + before))
                .unwrap();
            next += before;
            send_urgent(&stream, &stream_bytes(next, next + middle));
            next += middle;
            stream
                .write_all(&stream_bytes(next, next + behind))
                .unwrap();
            next += behind;
            peer.expect_bytes(next - before - middle - behind, next);
            peer.send(&format!("A 1 ack {next}"));
        }
    }
}

#[test]
fn broken_checksums_and_false_offload_headers_are_dropped_and_counted() {
    let (_lab, host, wire, listeners) = bed(Features::ALL);
    for (family, listener) in Family::BOTH.into_iter().zip(&listeners) {
        let before = dropped(&host, "offload");
        let peer = wire.tcp(family, 40_000, server(family));
        peer.open();
        let packet = peer.packet("A 1:11 ack 1");
        let header = [20, 40][family as usize];
        let mut broken = packet.clone();
        broken[usize::from(header) + 25] ^= 1;
        wire.send(&broken);
        let vnet = VnetHeader::tcp(family == Family::V6, header, 20, None);
        let lies = [
            VnetHeader {
                csum_start: header + 2,
                ..vnet
            },
            VnetHeader {
                csum_offset: 6,
                ..vnet
            },
            VnetHeader {
                flags: NEEDS_CSUM | 0x80,
                ..vnet
            },
            VnetHeader {
                gso_type: 1 + 3 * (1 - family as u8),
                gso_size: 100,
                ..vnet
            },
        ];
        for lie in lies {
            wire.send_with(&lie, &packet);
        }
        peer.silent_for(MOMENT);
        assert_eq!(dropped(&host, "offload"), before + 5, "{family:?}");
        wire.send(&packet);
        peer.expect("A 1 ack 11");
        reads(&mut accept(listener), 1, 11);
    }
}
