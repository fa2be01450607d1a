//! The link comes and goes: what programs in the enclave see of it.

mod common;

use common::host::{Host, Link};
use common::segments::{accept, build, ip, next, segment};
use common::{Daemon, Enclave, PATIENCE, in_enclave, run};
use netd_proto::control::{Control, Reason};
use netd_proto::frame::Kind;
use netd_proto::handshake::Features;
use netd_proto::packet::{Packet, Transport};
use nix::sys::signal::Signal;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const PEERS: [&str; 2] = ["192.0.2.7:443", "[2001:db8::7]:443"];

fn up(enclave: &Enclave, config: &str) -> (Host, Daemon, Link) {
    let host = Host::listen(enclave);
    let mut daemon = enclave.start_configured(config, &[]);
    let link = host.accept();
    daemon.wait_for("ready");
    (host, daemon, link)
}

fn connect(peer: SocketAddr) -> JoinHandle<std::io::Result<TcpStream>> {
    thread::spawn(move || TcpStream::connect_timeout(&peer, PATIENCE))
}

fn peer(text: &str) -> SocketAddr {
    text.parse().expect(text)
}

/// An established connection, and the number its far end sends next.
fn established(link: &mut Link, to: SocketAddr) -> TcpStream {
    let connecting = connect(to);
    accept(link, to);
    connecting.join().expect("no panic").expect("connected")
}

/// How long `recv` blocked, and what ended it.
fn blocked_reader(mut stream: TcpStream) -> JoinHandle<(Instant, Option<ErrorKind>)> {
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    thread::spawn(move || {
        let read = stream.read(&mut [0; 16]);
        (Instant::now(), read.err().map(|error| error.kind()))
    })
}

const TWO_SECONDS: Duration = Duration::from_secs(2);

#[test]
fn open_flows_are_reset_when_the_link_is_cut_and_new_ones_work() {
    in_enclave(|enclave| {
        let (host, mut daemon, mut link) = up(&enclave, "");
        let before = run("ip", &["addr", "show", "netd0"]);
        let readers: Vec<_> = PEERS
            .map(|to| blocked_reader(established(&mut link, peer(to))))
            .into();
        // More of them than one turn of the pump looks at.
        let many: Vec<_> = (1000..1100)
            .map(|port| {
                blocked_reader(established(
                    &mut link,
                    SocketAddr::new(peer(PEERS[0]).ip(), port),
                ))
            })
            .collect();
        let half_closed = established(&mut link, peer("192.0.2.8:443"));
        half_closed.shutdown(Shutdown::Write).expect("open");
        next(&mut link, |s| s.flags == "AF");
        let half_closed = blocked_reader(half_closed);
        let connecting = PEERS.map(|to| {
            let to = SocketAddr::new(peer(to).ip(), 444);
            let connecting = thread::spawn(move || {
                let error = TcpStream::connect_timeout(&to, PATIENCE).err();
                (Instant::now(), error.map(|error| error.kind()))
            });
            next(&mut link, |s| s.dst == to && s.flags == "S");
            connecting
        });

        drop(host);
        drop(link);
        let cut = Instant::now();

        for reader in readers.into_iter().chain(many).chain([half_closed]) {
            let (ended, error) = reader.join().expect("no panic");
            assert_eq!(error, Some(ErrorKind::ConnectionReset));
            assert!(ended - cut < TWO_SECONDS, "after {:?}", ended - cut);
        }
        for connecting in connecting {
            let (ended, error) = connecting.join().expect("no panic");
            assert!(
                matches!(
                    error,
                    Some(ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused)
                ),
                "{error:?}"
            );
            assert!(ended - cut < TWO_SECONDS, "after {:?}", ended - cut);
        }
        assert_eq!(run("ip", &["addr", "show", "netd0"]), before);

        let host = Host::listen(&enclave);
        let back = Instant::now();
        let mut link = host.accept();
        for to in PEERS {
            established(&mut link, peer(to));
        }
        assert!(back.elapsed() < TWO_SECONDS, "after {:?}", back.elapsed());
        daemon.wait_for("link to the parent lost");
        daemon.wait_for("established");
    });
}

#[test]
fn a_writer_and_a_server_are_reset_as_well() {
    in_enclave(|enclave| {
        let (host, _daemon, mut link) = up(&enclave, "publish = ['3000']");
        // A service in the enclave with a client from outside.
        let listener = TcpListener::bind("[::]:3000").expect("bound");
        let client = peer("203.0.113.9:5555");
        let us = peer("100.64.0.2:3000");
        link.send_packet(&build(client, us, 70, None, "S"));
        let syn_ack = next(&mut link, |s| s.dst == client && s.flags == "SA");
        link.send_packet(&build(
            client,
            us,
            71,
            Some(syn_ack.seq.wrapping_add(1)),
            "",
        ));
        let (served, from) = listener.accept().expect("a client");
        assert_eq!(
            SocketAddr::new(from.ip().to_canonical(), from.port()),
            client
        );
        let served = blocked_reader(served);
        // A program whose far end closed its half, and one that has unsent data.
        let to = peer(PEERS[0]);
        let connecting = connect(to);
        let syn = accept(&mut link, to);
        let mut writer = connecting.join().expect("no panic").expect("connected");
        let fin = build(to, syn.src, 5001, Some(syn.seq.wrapping_add(1)), "F");
        link.send_packet(&fin);
        assert_eq!(writer.read(&mut [0; 1]).expect("its end"), 0);
        let writing = thread::spawn(move || {
            let error = loop {
                if let Err(error) = writer.write_all(&[1; 65_536]) {
                    break error.kind();
                }
            };
            (Instant::now(), error)
        });
        next(&mut link, |s| s.src == syn.src && !s.payload.is_empty());

        drop(host);
        drop(link);
        let cut = Instant::now();

        let (ended, error) = served.join().expect("no panic");
        assert_eq!(error, Some(ErrorKind::ConnectionReset));
        assert!(ended - cut < TWO_SECONDS);
        let (ended, error) = writing.join().expect("no panic");
        assert!(
            matches!(error, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{error:?}"
        );
        assert!(ended - cut < TWO_SECONDS);
    });
}

#[test]
fn connected_datagram_sockets_are_told() {
    in_enclave(|enclave| {
        let (host, _daemon, mut link) = up(&enclave, "");
        let sockets = [("0.0.0.0:0", PEERS[0]), ("[::]:0", PEERS[1])].map(|(any, to)| {
            let socket = UdpSocket::bind(any).expect("bound");
            socket.connect(to).expect("connected");
            socket.send(b"hello").expect("sent");
            socket.set_read_timeout(Some(PATIENCE)).expect("set");
            link.packet(|_, p| p.ends_with(b"hello").then_some(()));
            socket
        });

        drop(host);
        drop(link);
        let cut = Instant::now();

        for socket in sockets {
            let error = socket.recv(&mut [0; 16]).expect_err("the link is gone");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            assert!(cut.elapsed() < TWO_SECONDS);
        }
    });
}

#[test]
fn without_a_link_nothing_hangs() {
    in_enclave(|enclave| {
        let mut daemon = enclave.start(&[]);
        daemon.wait_for("no link to the parent");
        for to in PEERS {
            let begun = Instant::now();
            // Many: a reset must cover for the error that came too early.
            for _ in 0..200 {
                let error = TcpStream::connect(to).expect_err("no link");
                let kinds = [ErrorKind::NetworkUnreachable, ErrorKind::ConnectionRefused];
                assert!(kinds.contains(&error.kind()), "{error}");
            }
            assert!(begun.elapsed() < TWO_SECONDS, "{:?}", begun.elapsed());
        }
        let output = std::process::Command::new("ping")
            .args(["-c1", "-W5", "192.0.2.1"])
            .output()
            .expect("ping");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("From 100.64.0.1") && text.contains("Net Unreachable"),
            "{text}"
        );
    });
}

#[test]
fn a_silent_host_is_asked_and_then_left() {
    in_enclave(|enclave| {
        let (host, mut daemon, mut link) = up(&enclave, "");
        link.answers_pings = false;
        let begun = Instant::now();

        let mut pings = 0;
        let goodbye = loop {
            match link.next() {
                (Kind::Ping, _) => pings += 1,
                (Kind::Packet, _) => {}
                (kind, payload) => break Control::decode(kind, &payload).expect("valid"),
            }
        };

        let Control::Goodbye(goodbye) = goodbye else {
            panic!("{goodbye:?}")
        };
        assert_eq!(goodbye.reason, Reason::Timeout);
        assert!(pings >= 2, "{pings} pings");
        let waited = begun.elapsed();
        assert!((14..=17).contains(&waited.as_secs()), "{waited:?}");
        daemon.wait_for("nothing came from the parent for 15 s");
        host.accept();
    });
}

#[test]
fn a_host_that_answers_keeps_its_link() {
    in_enclave(|enclave| {
        let (_host, mut daemon, mut link) = up(&enclave, "");
        // Long enough for one that does not answer to be left.
        assert_eq!(link.next_within(Duration::from_secs(16)).map(|f| f.0), None);
        link.send(Kind::Ping, &9u64.to_be_bytes());
        assert_eq!(link.next(), (Kind::Pong, 9u64.to_be_bytes().to_vec()));
        daemon.signal(Signal::SIGTERM);
        daemon.wait();
        assert!(!daemon.lines().concat().contains("lost"));
    });
}

#[test]
fn refusals_are_logged_with_their_words_and_tried_again() {
    in_enclave(|enclave| {
        let host = Host::listen(&enclave);
        let mut daemon = enclave.start(&[]);
        host.refuse(
            Reason::Version,
            "this side speaks version 1 and the peer version 9",
        );
        daemon.wait_for("the peer version 9");
        let begun = Instant::now();
        let _link = host.accept();
        assert!(
            begun.elapsed() > Duration::from_secs(1),
            "slowly: {:?}",
            begun.elapsed()
        );
        daemon.wait_for("ready");
    });
}

#[test]
fn bytes_that_are_no_frames_close_the_link_with_a_reason() {
    in_enclave(|enclave| {
        let (host, mut daemon, mut link) = up(&enclave, "");
        for garbage in [
            &b"HTTP/1.1 200 OK\r\n\r\n"[..],
            &[5, 0, 0, 1, 0],
            &[1, 255, 255, 255],
        ] {
            link.send_raw(garbage);
            let goodbye = loop {
                let (kind, payload) = link.next();
                if kind != Kind::Packet {
                    break Control::decode(kind, &payload).expect("valid");
                }
            };
            let Control::Goodbye(goodbye) = goodbye else {
                panic!("{goodbye:?}")
            };
            assert_eq!(goodbye.reason, Reason::Protocol);
            daemon.wait_for("lost");
            link = host.accept();
        }
    });
}

#[test]
fn closed_ports_answer_with_a_reset_and_published_ones_serve() {
    in_enclave(|enclave| {
        let (_host, mut daemon, mut link) = up(&enclave, "publish = ['3000/tcp', '5353/udp']");
        let _published = TcpListener::bind("0.0.0.0:3000").expect("bound");
        let _hidden = TcpListener::bind("0.0.0.0:4000").expect("bound");
        let client = peer("203.0.113.9:5555");

        for (port, flags) in [(3000, "SA"), (3001, "AR"), (4000, "AR")] {
            let us = SocketAddr::new(peer("100.64.0.2:0").ip(), port);
            link.send_packet(&build(client, us, 70, None, "S"));
            let answer = next(&mut link, |s| s.src == us);
            assert_eq!(
                (answer.flags.as_str(), answer.ack),
                (flags, 71),
                "port {port}"
            );
        }

        let published = UdpSocket::bind("0.0.0.0:5353").expect("bound");
        let hidden = UdpSocket::bind("0.0.0.0:6000").expect("bound");
        let us = peer("100.64.0.2:0").ip();
        for port in [6000, 5353] {
            let mut datagram = Vec::new();
            ip(client.ip(), us)
                .udp(5555, port)
                .write(&mut datagram, b"knock")
                .expect("built");
            link.send_packet(&datagram);
        }
        let mut buffer = [0; 16];
        published.set_read_timeout(Some(PATIENCE)).expect("set");
        assert_eq!(
            published.recv_from(&mut buffer).expect("a datagram"),
            (5, client)
        );
        hidden.set_nonblocking(true).expect("set");
        let nothing = hidden.recv(&mut buffer).expect_err("nobody asked");
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);

        daemon.signal(Signal::SIGUSR1);
        let line = daemon.wait_for("dropped since the start");
        assert!(
            line.contains("in_udp_closed=1") && line.contains("in_tcp_closed=2"),
            "{line}"
        );
    });
}

#[test]
fn a_rule_is_told_to_the_program_at_once() {
    in_enclave(|enclave| {
        let (_host, _daemon, _link) = up(&enclave, "rules = ['allow *:443', 'deny *']");
        for to in ["192.0.2.7:80", "[2001:db8::7]:80"] {
            let begun = Instant::now();
            let error = TcpStream::connect_timeout(&peer(to), PATIENCE).expect_err("denied");
            let kinds = [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied];
            assert!(kinds.contains(&error.kind()), "{error}");
            assert!(begun.elapsed() < TWO_SECONDS);
        }
    });
}

#[test]
fn bulk_data_leaves_in_super_segments_and_the_link_is_never_overrun() {
    in_enclave(|enclave| {
        let (_host, _daemon, mut link) = up(&enclave, "");
        let to = peer(PEERS[0]);
        let connecting = connect(to);
        let syn = accept(&mut link, to);
        let mut stream = connecting.join().expect("no panic").expect("connected");
        let writer = thread::spawn(move || {
            // More than the kernel's buffers, the link and its queue take without a reader.
            stream.write_all(&vec![7; 4 << 20]).expect("open");
            stream
        });

        let mut expected = syn.seq.wrapping_add(1);
        let end = expected.wrapping_add(4 << 20);
        let mut longest = 0;
        while expected != end {
            let length = link.packet(|vnet, packet| {
                let segment = segment(packet).filter(|s| s.src == syn.src)?;
                if !segment.payload.is_empty() {
                    assert_eq!(segment.seq, expected, "nothing is lost or reordered");
                    assert!(segment.payload.iter().all(|b| *b == 7));
                    let is_super = packet.len() > 1500;
                    assert_eq!(is_super, vnet.gso_size > 0, "{vnet:?}");
                    assert!(vnet.needs_checksum());
                }
                Some(segment.payload.len())
            });
            longest = longest.max(length);
            expected = expected.wrapping_add(u32::try_from(length).expect("a packet"));
            link.send_packet(&build(to, syn.src, 5001, Some(expected), ""));
        }
        writer.join().expect("no panic");
        assert!(longest > 10_000, "longest segment: {longest}");
    });
}

#[test]
fn a_host_without_offload_gets_complete_packets() {
    in_enclave(|enclave| {
        let host = Host::listen(&enclave);
        let mut daemon = enclave.start(&[]);
        let mut link = host.accept_with(Features::default());
        daemon.wait_for("ready");
        let to = peer(PEERS[0]);
        let connecting = connect(to);
        let syn = accept(&mut link, to);
        let mut stream = connecting.join().expect("no panic").expect("connected");
        stream.write_all(&[7; 5000]).expect("open");

        let mut left = 5000;
        while left > 0 {
            left -= link.packet(|vnet, bytes| {
                let segment = segment(bytes).filter(|s| s.src == syn.src)?;
                let packet = Packet::parse(bytes).expect("valid");
                assert!(bytes.len() <= 1500 && !vnet.needs_checksum() && vnet.gso_size == 0);
                assert!(packet.transport_checksum_is_right());
                Some(segment.payload.len())
            });
        }
    });
}

#[test]
fn hostile_packets_are_counted_and_the_link_stays() {
    in_enclave(|enclave| {
        let (_host, mut daemon, mut link) = up(&enclave, "");
        link.send(Kind::Packet, &[]);
        link.send(Kind::Packet, &[0; 10]);
        link.send(Kind::Packet, &[0x45; 200]);
        link.send_packet(&build(
            peer("192.0.2.1:1"),
            peer("100.64.0.3:2"),
            1,
            None,
            "S",
        ));
        link.send_packet(&build(
            peer("100.64.0.2:1"),
            peer("100.64.0.2:2"),
            1,
            None,
            "S",
        ));
        let mut ping = Vec::new();
        let builder = ip(peer("192.0.2.1:1").ip(), peer("100.64.0.2:1").ip());
        builder
            .icmpv4_echo_request(1, 2)
            .write(&mut ping, b"hello")
            .expect("built");
        link.send_packet(&ping);
        link.send(Kind::Ping, &1u64.to_be_bytes());
        let answer = link.next();
        assert_eq!(
            answer,
            (Kind::Pong, 1u64.to_be_bytes().to_vec()),
            "nothing else came back"
        );

        let lines = {
            daemon.signal(Signal::SIGTERM);
            daemon.wait();
            daemon.lines().concat()
        };
        for counter in [
            "in_malformed=3",
            "in_destination=1",
            "in_source=1",
            "in_protocol=1",
        ] {
            assert!(lines.contains(counter), "{counter}: {lines}");
        }
    });
}

#[test]
fn an_enclave_says_nothing_by_itself() {
    in_enclave(|enclave| {
        let (_host, _daemon, mut link) = up(&enclave, "");
        let came = link
            .next_within(Duration::from_millis(500))
            .map(|(_, payload)| payload);
        assert_eq!(came, None, "no router solicitation, no multicast");
        let mut ping = std::process::Command::new("ping");
        let mut child = ping
            .args(["-c1", "-W1", "192.0.2.1"])
            .spawn()
            .expect("ping");
        let is_echo = |bytes: &[u8]| {
            let packet = Packet::parse(bytes).expect("valid");
            matches!(packet.transport(), Transport::Echo(echo) if echo.request)
        };
        link.packet(|_, bytes| is_echo(bytes).then_some(()));
        child.wait().expect("a child");
    });
}
