//! Floods: what others keep of their speed, and what host-netd keeps of its memory. The figures are
//! printed; what is asserted leaves room for a busy machine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_proto::packet::Transport;
use netd_tests::{
    Answer, FakeDns, Family, Lab, Machine, Packets, Pattern, Process, Rogue, address, connect,
    echo_compared, echo_server, flag, frame, serve, until,
};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;
/// How long a speed is measured when nothing else goes on, and at least when something does.
const ALONE: Duration = Duration::from_millis(500);
const BESIDE: Duration = Duration::from_secs(2);
/// How often a comparison is made before its best result is judged.
const TRIES: usize = 3;

/// Counts the bytes of a stream that a thread reads.
struct Meter {
    bytes: Arc<AtomicU64>,
    _stream: TcpStream,
}

impl Meter {
    fn new(stream: TcpStream) -> Meter {
        let bytes = Arc::new(AtomicU64::new(0));
        let (count, mut from) = (Arc::clone(&bytes), stream.try_clone().unwrap());
        thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                count.fetch_add(n as u64, Ordering::Relaxed);
            }
        });
        Meter {
            bytes,
            _stream: stream,
        }
    }

    /// Bytes a second while `work` runs, and at least for `time`.
    fn during(&self, time: Duration, work: impl FnOnce()) -> f64 {
        let (begin, before) = (Instant::now(), self.bytes.load(Ordering::Relaxed));
        work();
        // Time is what is measured.
        thread::sleep(time.saturating_sub(begin.elapsed()));
        let bytes = self.bytes.load(Ordering::Relaxed) - before;
        bytes as f64 / begin.elapsed().as_secs_f64() / MIB as f64
    }
}

/// A server that sends for as long as it is read.
fn source(machine: &Machine, at: SocketAddr) -> SocketAddr {
    let pattern = Pattern::new(1);
    serve(machine, at, move |mut stream| {
        while pattern.send(&mut stream, 64 * MIB).is_ok() {}
    })
}

/// Lowers the priority of the calling thread: what an enclave and its peers do costs processors of
/// their own, not those of host-netd.
fn as_if_elsewhere() {
    let own = nix::unistd::gettid();
    // Without it the figures are lower, no more.
    let _ = std::process::Command::new("renice")
        .args(["-n", "19", "-p", &own.to_string()])
        .output();
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

/// Every flood, as packets of the enclave.
fn floods() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let at = |pair: [IpAddr; 2], port| Family::V4.at(pair, port);
    let port = |n: u32| u16::try_from(1024 + n % 60_000).unwrap();
    let syn = |n: u32, to| Packets::tcp(port(n), to, flag::SYN, (n, 0), &[]);
    let IpAddr::V4(server) = address::SERVER[0] else {
        unreachable!("IPv4 comes first")
    };
    let spread = |n: u32| SocketAddr::new(Ipv4Addr::from_bits(0xc633_6401 + n % 64).into(), 80);
    vec![
        (
            "100,000 SYNs to a blackholed host",
            (0..100_000)
                .map(|n| syn(n, at(address::SILENT, 80)))
                .collect(),
        ),
        (
            "100,000 SYNs to many blackholed hosts",
            (0..100_000).map(|n| syn(n, spread(n))).collect(),
        ),
        (
            "100,000 SYNs to a closed port",
            (0..100_000)
                .map(|n| syn(n, at(address::SERVER, 9)))
                .collect(),
        ),
        (
            "100,000 SYNs to the gateway's DNS",
            (0..100_000)
                .map(|n| syn(n, at(address::GATEWAY, 53)))
                .collect(),
        ),
        (
            "100,000 RSTs",
            (0..100_000)
                .map(|n| Packets::tcp(port(n), at(address::SERVER, 7), flag::RST, (n, 0), &[]))
                .collect(),
        ),
        (
            "UDP to 60,000 ports",
            (0..60_000)
                .map(|n| Packets::udp(5000, at(address::SERVER, port(n)), b"spray"))
                .collect(),
        ),
        (
            "UDP from 60,000 ports",
            (0..60_000)
                .map(|n| Packets::udp(port(n), at(address::SERVER, 9), b"spray"))
                .collect(),
        ),
        (
            "60,000 pings of as many programs",
            (0..60_000)
                .map(|n| Packets::ping(port(n), address::SERVER[0], b"spray"))
                .collect(),
        ),
        (
            "60,000 first fragments",
            (0..60_000)
                .map(|n| Packets::fragment(port(n), server))
                .collect(),
        ),
        (
            "50,000 DNS queries for as many names",
            (0..50_000)
                .map(|n| Packets::dns(port(n), port(n), &format!("n{n}.lab.example")))
                .collect(),
        ),
    ]
}

/// Sends packets into an enclave's own network, as a program of root's can, spread over `time`.
fn send_raw(lab: &Lab, packets: &[Vec<u8>], time: Duration) {
    let raw = lab.enclave.inside(|| {
        let raw = Some(Protocol::from(nix::libc::IPPROTO_RAW));
        Socket::new(Domain::IPV4, Type::from(nix::libc::SOCK_RAW), raw).unwrap()
    });
    let to = SockAddr::from(SocketAddr::from(([192, 0, 2, 2], 0)));
    let begin = Instant::now();
    for (n, packet) in packets.iter().enumerate() {
        if n % 64 == 0 {
            let due = time.mul_f64(n as f64 / packets.len() as f64);
            thread::sleep(due.saturating_sub(begin.elapsed()));
        }
        // What the enclave's interface has no room for, its kernel drops.
        let _ = raw.send_to(packet, &to);
    }
}

/// Beside a flood of the same enclave, which has to share its own tun and link with it.
#[test]
fn alone_other_flows_keep_their_speed_beside_a_flood() {
    let lab = Lab::new();
    let mut daemons = lab.up();
    let _dns = FakeDns::new(&lab.internet, address::DNS[0], Answer::Silence);
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let source = source(&lab.internet, Family::V4.at(address::SERVER, 7000));
    let meter = Meter::new(connect(&lab.enclave, source, 5).unwrap());
    let mut before = meter.during(ALONE, || {});
    for (what, packets) in floods() {
        let mut best: f64 = 0.0;
        for _ in 0..TRIES {
            let beside = meter.during(BESIDE, || send_raw(&lab, &packets, BESIDE));
            let after = meter.during(ALONE, || {});
            let part = 2.0 * beside / (before + after);
            eprintln!(
                "{what} in {BESIDE:?}: {:.0} % left ({beside:.0} MiB/s beside it, {before:.0} before, {after:.0} after)",
                part * 100.0,
            );
            best = best.max(part);
            before = after;
            if best > 0.7 {
                break;
            }
        }
        // The target is 80 %.
        assert!(best > 0.4, "{what}: {best}");
        let (now, most) = (resident(&daemons.host), promised(&daemons.host));
        eprintln!("    host-netd: {now} MiB of {most}");
        assert!(now < most, "{what}: {now} MiB of {most}");
        assert!(daemons.host.ended().is_none(), "{what}");

        // As fast as can be: the enclave's kernel drops of everything, also acknowledgements.
        send_raw(&lab, &packets, Duration::ZERO);
        let begin = Instant::now();
        until(5, "the flow goes on after a burst", || {
            (meter.during(Duration::from_millis(100), || {}) > before / 4.0).then_some(())
        });
        eprintln!(
            "    {:.1?} after a burst of the same it goes on",
            begin.elapsed()
        );
    }
    let pattern = Pattern::new(2);
    let stream = until(60, "a new flow is taken", || {
        connect(&lab.enclave, echo, 2).ok()
    });
    echo_compared(&stream, &pattern, &pattern, 4 * MIB).unwrap();
    daemons.host.signal(Signal::SIGUSR1);
    daemons.host.wait_log(": counters", 5);
    let log = daemons.host.log();
    for limit in [
        "dial_limit=",
        "destination_limit=",
        "mapping_limit=",
        "dns_stream_limit=",
        "dns_limit=",
    ] {
        assert!(log.contains(limit), "{limit} {log}");
    }
}

/// An enclave of which nothing is known but that it is there: all floods at once and without end,
/// by many bulk flows besides.
struct Misbehaving {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Misbehaving {
    fn new(lab: &Lab, bulk: SocketAddr) -> Misbehaving {
        let mut rogue = Rogue::connect(&lab.link(), 66);
        let mut frames: Vec<Vec<u8>> = Vec::new();
        let floods = floods();
        for n in 0..50_000 {
            for (_, packets) in &floods {
                frames.push(frame(&packets[n]));
            }
        }
        let chunks: Vec<Vec<u8>> = frames.chunks(500).map(<[_]>::concat).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            as_if_elsewhere();
            // Flows that bring as much as they can.
            for port in 1000..1032 {
                rogue.send_packet(&Packets::tcp(port, bulk, flag::SYN, (0, 0), &[]));
                let ack = rogue.packet(5, |packet| match packet.transport() {
                    Transport::Tcp(tcp) if tcp.syn() => Some(tcp.sequence_number() + 1),
                    _ => None,
                });
                let numbers = (1, ack.expect("a SYN-ACK"));
                rogue.send_packet(&Packets::tcp(port, bulk, flag::ACK, numbers, &[]));
            }
            let _acknowledging = rogue.acknowledge();
            for chunk in chunks.iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                rogue.send(chunk);
                count.fetch_add(500, Ordering::Relaxed);
            }
        });
        Misbehaving {
            stop,
            sent,
            thread: Some(thread),
        }
    }

    fn packets(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Misbehaving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn alone_an_enclave_at_full_rate_leaves_the_other_its_share() {
    let lab = Lab::new();
    let daemons = lab.up();
    let _dns = FakeDns::new(&lab.internet, address::DNS[0], Answer::Silence);
    let source = source(&lab.internet, Family::V4.at(address::SERVER, 7000));
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let pattern = Pattern::new(1);
    let bulk = serve(
        &lab.internet,
        Family::V4.at(address::OTHER, 7001),
        move |mut to| {
            as_if_elsewhere();
            while pattern.send(&mut to, 64 * MIB).is_ok() {}
        },
    );
    let meter = Meter::new(connect(&lab.enclave, source, 5).unwrap());
    let connects = || {
        let mut took: Vec<Duration> = (0..20)
            .map(|_| {
                let begin = Instant::now();
                let mut stream = connect(&lab.enclave, echo, 5).unwrap();
                stream.write_all(b"x").unwrap();
                stream.read_exact(&mut [0]).unwrap();
                begin.elapsed()
            })
            .collect();
        took.sort();
        took[took.len() / 2]
    };
    let alone = connects();
    let mut best: f64 = 0.0;
    for _ in 0..TRIES {
        let before = meter.during(ALONE, || {});
        let misbehaving = Misbehaving::new(&lab, bulk);
        until(10, "it is at it", || {
            (misbehaving.packets() > 10_000).then_some(())
        });
        let sent = misbehaving.packets();
        let beside = meter.during(BESIDE, || {});
        let rate = (misbehaving.packets() - sent) as f64 / BESIDE.as_secs_f64();
        let slow = connects();
        let now = resident(&daemons.host);
        drop(misbehaving);
        let after = meter.during(ALONE, || {});
        let part = 2.0 * beside / (before + after);
        eprintln!(
            "beside an enclave that sends {rate:.0} packets/s: {:.0} % left ({beside:.0} MiB/s; alone \
             {before:.0}, {after:.0}); a request {slow:.1?} (alone {alone:.1?}); host-netd {now} MiB",
            part * 100.0,
        );
        assert!(now < promised(&daemons.host), "{now} MiB");
        best = best.max(part);
        if best >= 0.4 {
            break;
        }
    }
    // The target is 40 %, with processors of its own for each enclave.
    assert!(best > 0.25, "{best}");
}
