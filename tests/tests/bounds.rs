//! Caps with their answers, and two enclaves that must not meet.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_proto::packet::{Packet, Transport};
use netd_tests::{
    Answer, FakeDns, Family, Lab, Packets, Pattern, Process, Rogue, address, connect, dns_query,
    echo_compared, echo_server, flag, serve, until,
};
use nix::libc::{ECONNREFUSED, ECONNRESET, EINPROGRESS};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;

/// What the sessions say of themselves now.
fn report(host: &mut Process, sessions: usize) -> String {
    let before = host.log().matches(": counters").count();
    host.signal(Signal::SIGUSR1);
    host.wait_log_times(": counters", before + sessions, 10);
    let log = host.log();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(": counters"))
        .collect();
    lines[before..].join("\n")
}

/// Begins to connect and waits for nothing.
fn begin_connect(lab: &Lab, to: SocketAddr) -> Socket {
    let socket = lab.enclave.inside(|| {
        let domain = Domain::for_address(to);
        Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap()
    });
    socket.set_nonblocking(true).unwrap();
    let error = socket.connect(&to.into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EINPROGRESS), "{error}");
    socket
}

#[test]
fn blackholed_connects_delay_no_good_one_and_are_bounded() {
    let lab = Lab::new();
    let config = lab.config("max_dials_per_destination = 20");
    let mut daemons = lab.up_with(&["--config", &config], "");
    let mut pending = Vec::new();
    for (round, family) in Family::BOTH.into_iter().enumerate() {
        let echo = echo_server(&lab.internet, family.at(address::SERVER, 7));
        let took = || {
            let begin = Instant::now();
            let mut stream = connect(&lab.enclave, echo, 5).unwrap();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            begin.elapsed()
        };
        let alone: Duration = (0..10).map(|_| took()).max().unwrap();

        let silent = family.at(address::SILENT, 80);
        let waiting: Vec<Socket> = (0..20).map(|_| begin_connect(&lab, silent)).collect();
        until(5, "twenty connects are pending", || {
            let dials = format!(" dials={} ", 20 * (round + 1));
            report(&mut daemons.host, 1).contains(&dials).then_some(())
        });
        let beside: Duration = (0..10).map(|_| took()).max().unwrap();
        eprintln!(
            "{family:?}: slowest of 10 connects alone {alone:?}, beside 20 blackholed {beside:?}"
        );
        assert!(
            beside < Duration::from_millis(900),
            "no retransmission: {beside:?}"
        );

        // One more is refused at once, and said so.
        let begin = Instant::now();
        let refused = connect(&lab.enclave, silent, 5).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(ECONNREFUSED), "{refused}");
        assert!(begin.elapsed() < Duration::from_millis(900));
        let counted = report(&mut daemons.host, 1);
        let expected = format!("destination_limit={}", round + 1);
        assert!(counted.contains(&expected), "{counted}");
        let log = daemons.host.log();
        assert!(
            log.contains(r#"setting="max_dials_per_destination""#),
            "{log}"
        );
        pending.extend(waiting);
    }
}

/// A TCP connection of a rogue, up to the handshake.
fn open(rogue: &mut Rogue, port: u16, to: SocketAddr, seq: u32) -> u32 {
    rogue.send_packet(&Packets::tcp(port, to, flag::SYN, (seq, 0), &[]));
    let ack = rogue
        .packet(5, |packet| match packet.transport() {
            Transport::Tcp(tcp) if tcp.syn() && tcp.destination_port() == port => {
                assert_eq!(tcp.acknowledgment_number(), seq + 1);
                Some(tcp.sequence_number() + 1)
            }
            _ => None,
        })
        .expect("a SYN-ACK");
    rogue.send_packet(&Packets::tcp(port, to, flag::ACK, (seq + 1, ack), &[]));
    ack
}

/// Everything that comes until the gateway answers a ping that is sent now.
fn everything(rogue: &mut Rogue, mark: u16) -> Vec<Vec<u8>> {
    rogue.send_packet(&Packets::ping(mark, address::GATEWAY[0], b"mark"));
    let mut seen = Vec::new();
    rogue
        .packet(10, |packet| {
            seen.push(packet.bytes().to_vec());
            matches!(packet.transport(), Transport::Echo(echo) if echo.identifier == mark)
                .then_some(())
        })
        .expect("the gateway's answer");
    seen
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// The payload of a UDP packet to a port.
fn udp_payload(packet: &Packet<'_>, port: u16) -> Option<Vec<u8>> {
    match packet.transport() {
        Transport::Udp(udp) if udp.destination_port() == port => Some(udp.payload().to_vec()),
        _ => None,
    }
}

#[test]
fn equal_flows_of_two_enclaves_never_mix() {
    let lab = Lab::new();
    let host = lab.start_host(&[]);
    let _dns = FakeDns::new(
        &lab.internet,
        address::DNS[0],
        Answer::Addresses(vec![address::SERVER[0]], 60),
    );
    let mut rogues = [1, 2].map(|session| Rogue::connect(&lab.link(), session));
    let words = [b"from the first".as_slice(), b"from the second".as_slice()];
    let names = ["one.lab.example", "two.lab.example"];
    for family in Family::BOTH {
        let echo = echo_server(&lab.internet, family.at(address::SERVER, 7));
        let datagrams = lab
            .internet
            .inside(|| UdpSocket::bind(family.at(address::SERVER, 7)))
            .unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 100];
            while let Ok((n, from)) = datagrams.recv_from(&mut buffer) {
                let _ = datagrams.send_to(&buffer[..n], from);
            }
        });
        // The same ports, sequence numbers and identifiers, in turns.
        let acks = [0, 1].map(|i| open(&mut rogues[i], 40_000, echo, 7000));
        for i in [0, 1] {
            let numbers = (7001, acks[i]);
            rogues[i].send_packet(&Packets::tcp(40_000, echo, flag::ACK, numbers, words[i]));
            rogues[i].send_packet(&Packets::udp(5000, echo, words[i]));
            rogues[i].send_packet(&Packets::ping(77, echo.ip(), words[i]));
            rogues[i].send_packet(&Packets::dns(6000, 1, names[i]));
        }
        for i in [0, 1] {
            let (mut tcp, mut udp, mut ping, mut dns) = (false, false, false, false);
            rogues[i]
                .packet(10, |packet| {
                    let bytes = packet.bytes();
                    assert!(
                        !contains(bytes, words[1 - i]),
                        "{family:?}: the other's bytes"
                    );
                    match packet.transport() {
                        Transport::Tcp(segment) => tcp |= contains(segment.payload(), words[i]),
                        Transport::Udp(datagram) if datagram.destination_port() == 6000 => {
                            let asked = &dns_query(1, names[i])[12..];
                            assert!(contains(datagram.payload(), asked), "another's answer");
                            dns = true;
                        }
                        Transport::Udp(_) => udp |= contains(bytes, words[i]),
                        Transport::Echo(_) => ping |= contains(bytes, words[i]),
                        _ => {}
                    }
                    (tcp && udp && ping && dns).then_some(())
                })
                .unwrap_or_else(|| panic!("{family:?}: tcp {tcp} udp {udp} {ping} {dns}"));
        }
        // A reset of one is none of the other's.
        rogues[0].send_packet(&Packets::tcp(40_000, echo, flag::RST, (7001 + 14, 0), &[]));
        everything(&mut rogues[0], 1);
        let numbers = (7001 + 15, acks[1] + 15);
        rogues[1].send_packet(&Packets::tcp(
            40_000,
            echo,
            flag::ACK,
            numbers,
            b"still here",
        ));
        rogues[1]
            .packet(5, |packet| {
                contains(packet.bytes(), b"still here").then_some(())
            })
            .expect("the second's flow goes on");
        rogues[1].send_packet(&Packets::tcp(40_000, echo, flag::RST, (7001 + 25, 0), &[]));
    }
    // Nor does either hear anything late.
    for i in [0, 1] {
        for packet in everything(&mut rogues[i], 2) {
            assert!(!contains(&packet, words[1 - i]));
        }
    }
    drop(host);
}

#[test]
fn a_published_udp_port_leads_to_one_enclave_alone() {
    let lab = Lab::new();
    let mut host = lab.start_host(&["--publish", "5353/udp"]);
    let client = lab
        .internet
        .inside(|| UdpSocket::bind("192.0.2.2:4000"))
        .unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let peer = client.local_addr().unwrap();
    let ask = |text: &[u8]| client.send_to(text, "192.0.2.1:5353").unwrap();

    let mut first = Rogue::connect(&lab.link(), 1);
    host.wait_log_times("session started", 1, 5);
    ask(b"for the first");
    first
        .packet(5, |packet| udp_payload(packet, 5353))
        .expect("it was alone");
    let mut second = Rogue::connect(&lab.link(), 2);
    host.wait_log_times("session started", 2, 5);
    for n in 0..50 {
        ask(b"for the second");
        let got = second.packet(5, |packet| udp_payload(packet, 5353));
        assert_eq!(got.expect("each comes"), b"for the second", "{n}");
    }
    // The first neither hears of it nor speaks for the port, however often it tries.
    for n in 0..3 {
        first.send_packet(&Packets::udp(5353, peer, b"I am the service"));
        for packet in everything(&mut first, n) {
            assert!(!contains(&packet, b"for the second"));
        }
    }
    second.send_packet(&Packets::udp(5353, peer, b"the answer"));
    let mut buffer = [0; 100];
    loop {
        let (n, from) = client.recv_from(&mut buffer).unwrap();
        if &buffer[..n] == b"the answer" {
            assert_eq!(from.port(), 5353);
            break;
        }
        assert_ne!(
            from.port(),
            5353,
            "{:?}",
            String::from_utf8_lossy(&buffer[..n])
        );
    }
    drop(second);
    until(10, "the port leads to the first again", || {
        ask(b"again");
        first.packet(1, |packet| udp_payload(packet, 5353))
    });
    first.send_packet(&Packets::udp(5353, peer, b"back"));
    let (n, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..n], from.port()), (&b"back"[..], 5353));
}

#[test]
fn clients_that_the_enclave_does_not_answer_are_reset_beyond_the_limit() {
    let lab = Lab::new();
    let config = lab.config("max_half_open = 4");
    let mut host = lab.start_host(&["--config", &config, "--publish", "7000"]);
    let rogue = Rogue::connect(&lab.link(), 1);
    let _draining = rogue.drain();
    host.wait_log("session started", 5);
    let at = Family::V4.at(address::PARENT, 7000);
    let waiting: Vec<TcpStream> = (0..4)
        .map(|_| connect(&lab.internet, at, 5).unwrap())
        .collect();
    until(5, "four are half open", || {
        report(&mut host, 1).contains(" half_open=4 ").then_some(())
    });

    for n in 1..=3 {
        let begin = Instant::now();
        let error = connect(&lab.internet, at, 5)
            .and_then(|mut stream| stream.read(&mut [0]))
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(ECONNRESET), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(1));
        let counted = report(&mut host, 1);
        assert!(
            counted.contains(&format!("half_open_limit={n}")),
            "{counted}"
        );
    }
    assert!(
        host.log().contains(r#"why="half_open_limit""#),
        "{}",
        host.log()
    );
    for stream in &waiting {
        stream.set_nonblocking(true).unwrap();
        let error = (&mut &*stream).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "they wait on");
    }
}

#[test]
fn links_without_a_hello_are_bounded_and_do_not_touch_a_session() {
    let lab = Lab::new();
    let mut daemons = lab.up();
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let mut open = connect(&lab.enclave, echo, 5).unwrap();
    let mut idle: Vec<UnixStream> = (0..100)
        .map(|_| UnixStream::connect(lab.link()).unwrap())
        .collect();
    // Slow ones: a byte of a hello, and no more.
    for stream in &mut idle {
        let _ = stream.write_all(&[5]);
        stream.set_nonblocking(true).unwrap();
    }
    let closed = |idle: &mut Vec<UnixStream>| {
        let still = |stream: &mut UnixStream| matches!(stream.read(&mut [0; 100]), Err(error) if error.kind() == ErrorKind::WouldBlock);
        idle.iter_mut()
            .filter_map(|s| still(s).then_some(()))
            .count()
    };
    until(3, "all but some are closed at once", || {
        (closed(&mut idle) <= 8).then_some(())
    });
    daemons.host.wait_log("too many handshakes", 3);
    open.write_all(b"x").unwrap();
    open.read_exact(&mut [0]).unwrap();
    // Those that say nothing are closed in the end, and there is room for one who does.
    until(10, "all are closed", || {
        (closed(&mut idle) == 0).then_some(())
    });
    drop(Rogue::connect(&lab.link(), 9));
    let warnings = daemons.host.log().matches(" WARN ").count();
    assert!(warnings < 10, "{}", daemons.host.log());
}

#[test]
fn no_more_enclaves_than_there_are_seats_and_a_new_link_takes_its_own() {
    let lab = Lab::new();
    let config = lab.config("max_enclaves = 1");
    let mut host = lab.start_host(&["--config", &config]);
    let mut held = Vec::new();
    for round in 1..=5 {
        held.push(Rogue::connect(&lab.link(), 1));
        host.wait_log_times("session started", round, 5);
        let (_refused, answer) = Rogue::greet(&lab.link(), 2);
        assert_eq!(answer, Some(netd_proto::frame::Kind::Goodbye));
    }
    host.wait_log("max_enclaves", 2);
    drop(held);
    until(5, "the seat is free", || {
        let (_rogue, answer) = Rogue::greet(&lab.link(), 2);
        (answer == Some(netd_proto::frame::Kind::Welcome)).then_some(())
    });
}

/// Processor time of a process, in seconds.
fn cpu_seconds(process: &Process) -> f64 {
    let stat = procfs::process::Process::new(process.pid().as_raw())
        .and_then(|process| process.stat())
        .unwrap();
    (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
}

#[test]
fn without_files_nothing_ends_or_spins_and_all_is_well_afterwards() {
    let lab = Lab::new();
    let mut daemons = lab.up_with(&["--publish", "7000"], r#"publish = ["7000/tcp"]"#);
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let inside = echo_server(&lab.enclave, Family::V4.at(address::ENCLAVE, 7000));
    let published = Family::V4.at(address::PARENT, inside.port());
    let pattern = Pattern::new(1);
    let running = connect(&lab.enclave, echo, 5).unwrap();
    let pid = daemons.host.pid().to_string();
    let limit = |files: &str| {
        let limit = format!("--nofile={files}");
        lab.parent
            .run_as_nobody("prlimit", &["--pid", &pid, &limit])
            .ok();
    };
    limit("8:");

    let mut client = connect(&lab.internet, published, 5).unwrap();
    let waiting = UnixStream::connect(lab.link()).unwrap();
    daemons.host.wait_log("accept failed", 5);
    daemons.host.wait_log("accepting a link failed", 5);
    let begin = Instant::now();
    let error = connect(&lab.enclave, echo, 5).unwrap_err();
    assert!(
        error.raw_os_error().is_some(),
        "told by the network: {error}"
    );
    assert!(begin.elapsed() < Duration::from_secs(2));
    daemons.host.wait_log("no more open files", 5);
    let (before, begin) = (cpu_seconds(&daemons.host), Instant::now());
    // Time is what is measured.
    thread::sleep(Duration::from_secs(1));
    let busy = (cpu_seconds(&daemons.host) - before) / begin.elapsed().as_secs_f64();
    eprintln!(
        "without files host-netd uses {:.0} % of a processor",
        busy * 100.0
    );
    assert!(busy < 0.3, "{busy}: it spins");
    echo_compared(&running, &pattern, &pattern, 4 * MIB).unwrap();

    limit("1024:");
    // Who waited is served.
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    connect(&lab.enclave, echo, 5).unwrap();
    drop(waiting);
    drop(Rogue::connect(&lab.link(), 2));
}

/// A server that takes connections and does not read them until it is told to.
fn reluctant(
    lab: &Lab,
    at: SocketAddr,
    gate: &Arc<(Mutex<bool>, Condvar)>,
) -> Arc<Mutex<Vec<usize>>> {
    let listener = lab.internet.inside(|| {
        let domain = Domain::for_address(at);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
        // What the kernels hold is not what is tested.
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind(&at.into()).unwrap();
        socket.listen(1024).unwrap();
        std::net::TcpListener::from(socket)
    });
    let lengths = Arc::new(Mutex::new(Vec::new()));
    let (gate, read) = (Arc::clone(gate), Arc::clone(&lengths));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (gate, read, mut stream) = (Arc::clone(&gate), Arc::clone(&read), stream.unwrap());
            thread::spawn(move || {
                let mut is_open = gate.0.lock().unwrap();
                while !*is_open {
                    is_open = gate.1.wait(is_open).unwrap();
                }
                drop(is_open);
                if let Ok(length) = Pattern::new(1).compare(&mut stream) {
                    read.lock().unwrap().push(length);
                }
            });
        }
    });
    lengths
}

/// Memory of a process that is in use, in MiB.
fn resident(process: &Process) -> usize {
    let status = procfs::process::Process::new(process.pid().as_raw())
        .and_then(|process| process.status())
        .unwrap();
    usize::try_from(status.vmrss.unwrap()).unwrap() / 1024
}

/// The most memory that host-netd said it would ever use, in MiB.
fn promised(host: &Process) -> usize {
    let log = host.log();
    let (_, rest) = log.split_once("most_memory_mib=").expect("it is said");
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn short_ring_memory_refuses_new_flows_and_loses_nothing_of_the_others() {
    const LENGTH: usize = 2 * MIB;
    let lab = Lab::new();
    let config = lab.config("ring_memory_mib = 16\nmax_enclaves = 1\nmax_flows = 2048");
    let mut daemons = lab.up_with(&["--config", &config], "");
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let at = Family::V4.at(address::SERVER, 7000);
    let lengths = reluctant(&lab, at, &gate);
    let before = resident(&daemons.host);
    let mut writers = Vec::new();
    let refused = loop {
        assert!(writers.len() < 1500, "the memory is never used up");
        match connect(&lab.enclave, at, 5) {
            Ok(mut stream) => writers.push(thread::spawn(move || {
                Pattern::new(1).send(&mut stream, LENGTH)?;
                stream.shutdown(std::net::Shutdown::Write)?;
                // Held until the server has ended too.
                stream.read(&mut [0])
            })),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.raw_os_error(), Some(ECONNREFUSED), "{refused}");
    daemons.host.wait_log(r#"setting="ring_memory_mib""#, 2);
    let (after, most) = (resident(&daemons.host), promised(&daemons.host));
    eprintln!(
        "{} flows filled 16 MiB of rings; resident {before} MiB before, {after} after, {most} promised",
        writers.len()
    );
    assert!(after <= most, "{after} MiB of {most}");
    assert!(
        after - before <= 16 * 5 / 4 + writers.len() / 32,
        "{before} -> {after}"
    );

    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    let count = writers.len();
    for writer in writers {
        writer.join().unwrap().unwrap();
    }
    until(10, "all was read to the end", || {
        (lengths.lock().unwrap().len() == count).then_some(())
    });
    assert!(
        lengths
            .lock()
            .unwrap()
            .iter()
            .all(|length| *length == LENGTH)
    );
    until(15, "new flows are taken", || {
        connect(&lab.enclave, at, 1).ok()
    });
    let counted = report(&mut daemons.host, 1);
    eprintln!("{counted}");
}

#[test]
fn an_enclave_that_uses_up_dns_leaves_the_other_its_part() {
    let lab = Lab::new();
    let mut host = lab.start_host(&[]);
    let server = FakeDns::new(&lab.internet, address::DNS[0], Answer::Silence);
    let [mut greedy, mut other] = [1, 2].map(|session| Rogue::connect(&lab.link(), session));
    host.wait_log_times("session started", 2, 5);
    // Names of its own, so that nothing comes from the cache.
    let count = 1000;
    for n in 0..count {
        greedy.send_packet(&Packets::dns(1000 + n, n, &format!("n{n}.lab.example")));
    }
    let mut refused = 0;
    greedy.packet(5, |packet| {
        if let Transport::Udp(udp) = packet.transport() {
            assert_eq!(udp.payload()[3] & 15, 2, "SERVFAIL");
            refused += 1;
        }
        (refused == usize::from(count) - 256).then_some(())
    });
    assert_eq!(refused, usize::from(count) - 256, "refused at once");
    let counted = report(&mut host, 2);
    assert!(counted.contains("dns_limit=744"), "{counted}");
    assert!(
        host.log().contains(r#"setting="max_dns_queries""#),
        "{}",
        host.log()
    );

    server.say(Answer::Addresses(vec![address::SERVER[0]], 60));
    let begin = Instant::now();
    other.send_packet(&Packets::dns(6000, 7, "www.lab.example"));
    let answer = other
        .packet(5, |packet| udp_payload(packet, 6000))
        .expect("an answer");
    eprintln!("the other's answer took {:?}", begin.elapsed());
    assert_eq!((&answer[..2], answer[3] & 15), (&[0, 7][..], 0), "NOERROR");
    assert!(begin.elapsed() < Duration::from_secs(2));
}

/// The limit of files is one for the process: two enclaves together stay below it, and the second
/// has its part.
#[test]
fn flows_of_all_enclaves_together_stay_below_the_limit_of_files() {
    let lab = Lab::new();
    let link = lab.link_address();
    let limited = [
        "--nofile=400:400",
        &lab.binary("host-netd"),
        "--listen",
        &link,
    ];
    let mut host = lab.parent.spawn_as_nobody("prlimit", &limited);
    host.wait_log("listening", 10);
    let accepting = serve(
        &lab.internet,
        Family::V4.at(address::SERVER, 7),
        |mut stream| {
            let _ = stream.read(&mut [0]);
        },
    );
    let [mut greedy, mut other] = [1, 2].map(|session| Rogue::connect(&lab.link(), session));
    host.wait_log_times("session started", 2, 5);
    let sprayed = |rogue: &mut Rogue| {
        for port in 1000..1400 {
            rogue.send_packet(&Packets::tcp(port, accepting, flag::SYN, (1, 0), &[]));
            rogue.send_packet(&Packets::udp(port, accepting, b"x"));
        }
        let (mut open, mut answers) = (0, 0);
        rogue.packet(10, |packet| {
            if let Transport::Tcp(tcp) = packet.transport() {
                answers += 1;
                open += u32::from(tcp.syn());
            }
            (answers == 400).then_some(())
        });
        assert_eq!(answers, 400, "each is answered");
        open
    };
    let first = sprayed(&mut greedy);
    let second = sprayed(&mut other);
    let files = procfs::process::Process::new(host.pid().as_raw())
        .and_then(|process| process.fd_count())
        .unwrap();
    eprintln!("of 400 files: {first} and {second} connections, {files} in use");
    assert!(first > 0 && second > 5 && files < 400);
    assert!(!host.log().contains("no more open files"), "{}", host.log());
    assert!(report(&mut host, 2).contains("flow_limit="));
}

/// What a flow costs is computed at start; here it is measured.
#[test]
fn a_flow_costs_no_more_memory_than_was_reckoned() {
    const EACH: u16 = 3000;
    let lab = Lab::new();
    let mut host = lab.start_host(&[]);
    let at = Family::V4.at(address::SERVER, 7000);
    let listener = lab.internet.inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.bind(&at.into()).unwrap();
        // They wait in the kernel, which has room for that many.
        socket.listen(i32::from(EACH)).unwrap();
        socket
    });
    let mut rogue = Rogue::connect(&lab.link(), 1);
    host.wait_log("session started", 5);
    let before = resident(&host);
    // The enclave's half of each connection stays.
    let accepted = thread::spawn(move || (0..EACH).for_each(|_| drop(listener.accept().unwrap())));
    for port in 1000..1000 + EACH {
        rogue.send_packet(&Packets::udp(port, at, b"x"));
        rogue.send_packet(&Packets::tcp(port, at, flag::SYN, (1, 0), &[]));
        let ack = rogue.packet(5, |packet| match packet.transport() {
            Transport::Tcp(tcp) if tcp.syn() => Some(tcp.sequence_number() + 1),
            _ => None,
        });
        let numbers = (2, ack.expect("a SYN-ACK"));
        rogue.send_packet(&Packets::tcp(port, at, flag::ACK, numbers, &[]));
    }
    accepted.join().unwrap();
    let counted = report(&mut host, 1);
    let flows = usize::from(2 * EACH);
    assert!(counted.contains(&format!(" flows={flows} ")), "{counted}");
    let grown = resident(&host) - before;
    eprintln!(
        "{flows} flows cost {grown} MiB: {} bytes each",
        grown * MIB / flows
    );
    assert!(grown <= flows * 4096 / MIB + 2, "{grown} MiB");
}
