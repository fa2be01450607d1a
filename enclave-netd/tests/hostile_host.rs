//! A host that does not keep to the protocol, or keeps to it too much.

mod common;

use common::counters::dropped;
use common::host::{Host, Link};
use common::segments::{accept, build, ip};
use common::{Daemon, PATIENCE, eventually, in_enclave};
use netd_proto::control::{Control, Goodbye, Reason};
use netd_proto::frame::{Decoder, Kind};
use netd_proto::handshake::{AwaitHello, Features};
use netd_proto::limits::MAX_PACKET_FRAME;
use netd_proto::offload::VnetHeader;
use nix::unistd::{SysconfVar, sysconf};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

const PEER: [&str; 2] = ["192.0.2.7", "2001:db8::7"];
const US: [&str; 2] = ["100.64.0.2", "fd00:6e65:7464::2"];

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect(address), port)
}

/// A frame of any kind and length.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&[kind], &length[1..], payload].concat()
}

/// Takes a hello; returns the welcome that an honest host would send.
fn take_hello(stream: &mut UnixStream) -> Vec<u8> {
    let mut decoder = Decoder::new();
    loop {
        if let Some(frame) = decoder.next().expect("frames") {
            let offer = AwaitHello.receive(frame).expect("a hello");
            return offer.accept(Features::ALL).0;
        }
        let n = stream.read(decoder.space()).expect("a hello");
        assert!(n > 0, "left before the hello");
        decoder.advance(n);
    }
}

/// The goodbye that comes, if one does before the end.
fn goodbye(stream: &mut UnixStream) -> Option<Goodbye> {
    let mut decoder = Decoder::new();
    loop {
        if let Some(frame) = decoder.next().expect("frames") {
            match Control::decode(frame.kind, frame.payload).expect("valid") {
                Control::Goodbye(goodbye) => return Some(goodbye),
                other => panic!("{other:?}"),
            }
        }
        match stream.read(decoder.space()) {
            Ok(0) | Err(_) => return None,
            Ok(n) => decoder.advance(n),
        }
    }
}

const WELCOME: u8 = Kind::Welcome as u8;

fn with(mut welcome: Vec<u8>, at: usize) -> Vec<u8> {
    welcome[at] ^= 8;
    frame(WELCOME, &welcome)
}

/// What comes in place of a welcome, made from one, and what the log says of it.
type Greeting = (&'static str, fn(Vec<u8>) -> Vec<u8>, &'static str);

const GREETINGS: &[Greeting] = &[
    (
        "nothing in it",
        |_| frame(WELCOME, &[]),
        "does not speak the netd protocol",
    ),
    (
        "another magic",
        |w| with(w, 0),
        "does not speak the netd protocol",
    ),
    ("another version", |w| with(w, 5), "the peer version 9"),
    (
        "cut in its features",
        |w| frame(WELCOME, &w[..9]),
        "malformed: features",
    ),
    (
        "cut in its session",
        |w| frame(WELCOME, &w[..20]),
        "malformed: session",
    ),
    (
        "cut before its lane",
        |w| frame(WELCOME, &w[..26]),
        "malformed: lane",
    ),
    (
        "another session",
        |w| with(w, 10),
        "another session or lane",
    ),
    ("another lane", |w| with(w, 26), "another session or lane"),
    (
        "too long",
        |_| frame(WELCOME, &[0; 513]),
        "longer than the 512 allowed",
    ),
    (
        "a hello",
        |_| frame(5, &[0; 130]),
        "Hello frame before the handshake",
    ),
    (
        "a ping",
        |_| frame(2, &[0; 8]),
        "Ping frame before the handshake",
    ),
    (
        "a packet",
        |_| frame(1, &[0; 60]),
        "Packet frame before the handshake",
    ),
    (
        "a goodbye of no reason",
        |_| frame(4, &[0xFF; 9]),
        "Goodbye frame before the handshake",
    ),
    (
        "an unknown frame",
        |_| frame(77, &[]),
        "frame kind 77 is unknown",
    ),
    (
        "a page of the web",
        |_| b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        "is unknown",
    ),
];

#[test]
fn no_greeting_but_a_welcome_makes_a_link() {
    for (what, greeting, log) in GREETINGS {
        in_enclave(move |enclave| {
            let host = Host::listen(&enclave);
            let mut daemon = enclave.start(&[]);
            let mut stream = host.accept_raw();
            let welcome = take_hello(&mut stream);

            stream.write_all(&greeting(welcome)).expect("sent");

            let reason = goodbye(&mut stream).map(|goodbye| goodbye.reason);
            let expected = match *log {
                log if log.contains("version") => Some(Reason::Version),
                // What is no frame is not answered either.
                log if log.contains("unknown") || log.contains("longer") => None,
                _ => Some(Reason::Protocol),
            };
            assert_eq!(reason, expected, "{what}");
            let line = daemon.wait_for(log);
            assert!(line.contains("refuses the link"), "{what}: {line}");
        });
    }
}

#[test]
fn a_welcome_that_comes_too_late_is_none() {
    let drips: [fn(UnixStream, Vec<u8>); 2] = [
        // Nothing.
        |mut stream, _| drop(stream.read(&mut [0])),
        // A byte at a time.
        |mut stream, welcome| {
            let bytes = frame(WELCOME, &welcome);
            for byte in bytes.chunks(1) {
                if stream.write_all(byte).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(400));
            }
        },
    ];
    let tries = drips.map(|drip| {
        thread::spawn(move || {
            in_enclave(move |enclave| {
                let host = Host::listen(&enclave);
                let mut daemon = enclave.start(&[]);
                let mut stream = host.accept_raw();
                let welcome = take_hello(&mut stream);
                thread::spawn(move || drip(stream, welcome));
                daemon.wait_for("no answer to the hello within 5 s");
                host.accept();
                daemon.wait_for("ready");
            });
        })
    });
    for tried in tries {
        tried.join().expect("no panic");
    }
}

#[test]
fn abilities_that_were_not_offered_are_not_used() {
    in_enclave(|enclave| {
        let host = Host::listen(&enclave);
        let mut daemon = enclave.start(&[]);
        let mut link = host.accept_with(Features(u32::MAX));
        let line = daemon.wait_for("link to the parent established");
        assert!(
            line.contains(&format!("features={} ", link.hello.features)),
            "{line}"
        );
        works(&mut link);
    });
}

#[test]
fn what_has_no_place_in_a_link_closes_it_with_a_reason() {
    let too_long = vec![0; MAX_PACKET_FRAME + 1];
    in_enclave(move |enclave| {
        let host = Host::listen(&enclave);
        let mut daemon = enclave.start(&[]);
        for (what, bytes) in [
            ("a second welcome", frame(WELCOME, &[0; 27])),
            ("a hello", frame(5, &[0; 130])),
            ("a short ping", frame(2, &[0; 7])),
            ("a long pong", frame(3, &[0; 9])),
            ("half a goodbye", frame(4, &[0])),
            ("a long goodbye", frame(4, &[b'x'; 513])),
            ("a long packet", frame(1, &too_long)),
            ("kind 0", frame(0, &[])),
            ("kind 255", frame(255, &[0; 4])),
        ] {
            let mut link = linked(&host, &mut daemon);
            works(&mut link);
            link.send_raw(&bytes);
            let goodbye = loop {
                let (kind, payload) = link.next();
                if kind != Kind::Packet {
                    break Control::decode(kind, &payload);
                }
            };
            let Ok(Control::Goodbye(goodbye)) = goodbye else {
                panic!("{what}: {goodbye:?}")
            };
            assert_eq!(goodbye.reason, Reason::Protocol, "{what}");
            daemon.wait_for("link to the parent lost");
        }
        works(&mut linked(&host, &mut daemon));
    });
}

/// The next link, once the daemon uses it.
fn linked(host: &Host, daemon: &mut Daemon) -> Link {
    let link = host.accept();
    daemon.wait_for("link to the parent established");
    link
}

/// A connection through the link.
fn works(link: &mut Link) {
    let to = at(PEER[0], 443);
    let connecting = thread::spawn(move || TcpStream::connect_timeout(&to, PATIENCE));
    accept(link, to);
    connecting.join().expect("no panic").expect("connected");
}

/// Memory in kiB, at most so far, and processor time used.
fn usage(daemon: &Daemon) -> (u64, Duration) {
    let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", daemon.pid()));
    let status = read("status").expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.expect("known").trim().trim_end_matches(" kB");
    let stat = read("stat").expect("it runs");
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .expect("fields")
        .split(' ')
        .collect();
    // utime and stime, fields 14 and 15; the first here is what follows the second.
    let ticks: u64 = [fields[12], fields[13]]
        .map(|f| f.parse::<u64>().expect("ticks"))
        .iter()
        .sum();
    let second = sysconf(SysconfVar::CLK_TCK).expect("known").expect("set");
    let millis = ticks * 1000 / u64::try_from(second).expect("positive");
    (peak.parse().expect("kiB"), Duration::from_millis(millis))
}

/// What waits for the daemon, which must take it all although nobody reads what it answers.
struct Flood {
    what: &'static str,
    count: u32,
    frame: fn(u32) -> Vec<u8>,
}

fn packet(packet: &[u8]) -> Vec<u8> {
    frame(1, &[VnetHeader::NONE.encode().as_slice(), packet].concat())
}

fn port(number: u32) -> u16 {
    u16::try_from(number % 60_000).expect("small") + 1
}

fn datagram(number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (from, to) = (at(PEER[0], 53), at(US[0], port(number)));
    ip(from.ip(), to.ip())
        .udp(from.port(), to.port())
        .write(&mut bytes, b"nobody asked")
        .expect("built");
    packet(&bytes)
}

fn echo_request(number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(at(PEER[1], 0).ip(), at(US[1], 0).ip())
        .icmpv6_echo_request(port(number), 1)
        .write(&mut bytes, &[0; 1000])
        .expect("built");
    packet(&bytes)
}

/// 64 KiB of segments that belong to no connection: the kernel has to look at each.
fn super_segment(number: u32) -> Vec<u8> {
    let mut bytes = build(
        at(PEER[0], port(number)),
        at(US[0], 3000),
        number,
        Some(1),
        "",
    );
    let headers = bytes.len();
    bytes.resize(65_000, 7);
    let length = u16::try_from(bytes.len()).expect("short");
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    let mut header = etherparse::Ipv4Header::from_slice(&bytes).expect("valid").0;
    header.header_checksum = header.calc_header_checksum();
    bytes[..20].copy_from_slice(&header.to_bytes());
    let vnet = VnetHeader::tcp(
        false,
        20,
        u16::try_from(headers - 20).expect("short"),
        Some(1400),
    );
    frame(1, &[vnet.encode().as_slice(), &bytes].concat())
}

const FLOODS: &[Flood] = &[
    Flood {
        what: "SYNs to closed ports",
        count: 60_000,
        frame: |n| packet(&build(at(PEER[0], port(n)), at(US[0], 22), n, None, "S")),
    },
    Flood {
        what: "SYNs to a published port",
        count: 60_000,
        frame: |n| packet(&build(at(PEER[1], port(n)), at(US[1], 3000), n, None, "S")),
    },
    Flood {
        what: "datagrams that nobody asked for",
        count: 60_000,
        frame: datagram,
    },
    Flood {
        what: "echo requests",
        count: 60_000,
        frame: echo_request,
    },
    Flood {
        what: "super-segments",
        count: 2_000,
        frame: super_segment,
    },
    Flood {
        what: "pings",
        count: 200_000,
        frame: |n| frame(2, &u64::from(n).to_be_bytes()),
    },
    Flood {
        what: "pongs",
        count: 200_000,
        frame: |n| frame(3, &u64::from(n).to_be_bytes()),
    },
    Flood {
        what: "empty packets",
        count: 200_000,
        frame: |_| frame(1, &[]),
    },
];

/// Reads what the daemon has to say until it answers a ping with this number.
fn drain(link: &mut Link, number: u64) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        // One that found no room for its answer is to be asked again.
        link.send(Kind::Ping, &number.to_be_bytes());
        while let Some((kind, payload)) = link.next_within(Duration::from_millis(200)) {
            if kind == Kind::Pong && payload == number.to_be_bytes() {
                return;
            }
        }
    }
    panic!("it does not answer any more");
}

#[test]
fn floods_cost_no_memory_and_the_link_works_behind_them() {
    /// More than the buffers of a link and of its replacement.
    const GROWTH_KIB: u64 = 8 * 1024;
    in_enclave(|enclave| {
        let host = Host::listen(&enclave);
        let mut daemon = enclave.start_configured("publish = ['3000/tcp']", &[]);
        let mut link = linked(&host, &mut daemon);
        let _server = TcpListener::bind("[::]:3000").expect("bound");
        works(&mut link);
        let (before, _) = usage(&daemon);

        for (number, Flood { what, count, frame }) in (1u64 << 60..).zip(FLOODS) {
            let mut batch = Vec::new();
            for n in 0..*count {
                batch.extend(frame(n));
                if batch.len() > 1 << 18 {
                    // A daemon that stops reading makes this fail.
                    link.send_raw(&batch);
                    batch.clear();
                }
            }
            link.send_raw(&batch);
            drain(&mut link, number);

            works(&mut link);
            let (peak, _) = usage(&daemon);
            assert!(
                peak < before + GROWTH_KIB,
                "{what}: {before} kiB, then {peak} kiB"
            );
            eventually("it is idle again", || {
                let (_, begin) = usage(&daemon);
                thread::sleep(Duration::from_millis(200));
                usage(&daemon).1 - begin < Duration::from_millis(50)
            });
        }

        let counters = dropped(&mut daemon);
        for reason in [
            "in_tcp_closed",
            "in_no_room",
            "in_udp_closed",
            "in_protocol",
            "in_malformed",
        ] {
            assert!(
                counters.get(reason).is_some_and(|n| *n > 1000),
                "{reason}: {counters:?}"
            );
        }
    });
}
