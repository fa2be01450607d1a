//! The enclave's end of a link, packet by packet: what packetdrill is to a kernel, for host-netd.
//!
//! # Theory of operation
//! A [`Wire`] shakes hands with a real host-netd as enclave-netd would and then sends and receives
//! single IP packets; real kernels and servers are on the other side. A thread reads the link,
//! answers pings and keeps every packet until somebody expects it.
//!
//! A [`Script`] is one TCP connection on a wire. It reads like one of packetdrill:
//!
//! ```text
//! peer.send("S 0 win 64000 mss 1460");
//! peer.expect("SA 0 ack 1");
//! peer.send("A 1 ack 1");
//! peer.send("A 1:11 ack 1");      // ten bytes
//! peer.expect("A 1 ack 11");
//! peer.silent_for(Duration::from_millis(300));
//! ```
//!
//! [`Line`] tells the words. Sequence numbers are relative to the SYN of each side. Every byte of a
//! stream is determined by its place ([`stream_bytes`]), so that a driver, a server and a comparison
//! need not pass contents around. An expectation takes the connection's next packet, waits for it up
//! to [`PATIENCE`], and fails with what was expected, what came, and all that came before.
//!
//! Here is no kernel beside the script that would answer by itself, and every field is the script's.

mod line;
mod script;

pub use line::{Line, Window, stream_bytes};
pub use script::Script;

use crate::lab::{Family, Lab, address};
use crate::process::Process;
use crate::wait::until;
use netd_proto::build;
use netd_proto::frame::{Decoder, Kind, header};
use netd_proto::handshake::{AwaitWelcome, Features, Hello, Lane, Network4, Network6, SessionId};
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{FlowKey, Packet, Transport};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How long a packet is waited for, in seconds.
pub const PATIENCE: u64 = 5;

const MTU: u16 = 1500;

/// A packet that host-netd sent.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The IP packet.
    pub bytes: Vec<u8>,
    /// The flow it belongs to, as the enclave names it: it is the sender. For an ICMP error that
    /// of the packet it quotes.
    pub flow: Option<FlowKey>,
    /// Type, code and the 32 bits behind the checksum, of an ICMP message that is no echo.
    pub icmp: Option<(u8, u8, u32)>,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    came: Condvar,
}

/// The enclave's end of a link.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    shared: Arc<Shared>,
}

impl Wire {
    /// Joins a lab's host-netd as an enclave that is able to do `features`.
    ///
    /// # Panics
    /// When host-netd does not take it.
    pub fn open(lab: &Lab, features: Features) -> Wire {
        let mut stream = UnixStream::connect(lab.link()).expect("host-netd listens");
        let (hello, await_welcome) = hello(features).open();
        send_frame(&stream, Kind::Hello, &hello);
        let mut decoder = Decoder::new();
        receive_welcome(&mut stream, &mut decoder, await_welcome);
        let shared = Arc::new(Shared::default());
        let (ours, reader) = (Arc::clone(&shared), stream.try_clone().unwrap());
        thread::spawn(move || ours.read(reader, decoder));
        Wire { stream, shared }
    }

    /// Sends a packet whose checksums are complete.
    pub fn send(&self, packet: &[u8]) {
        self.send_with(&VnetHeader::NONE, packet);
    }

    /// Sends a packet with any offload header.
    pub fn send_with(&self, vnet: &VnetHeader, packet: &[u8]) {
        let payload = [&vnet.encode()[..], packet].concat();
        send_frame(&self.stream, Kind::Packet, &payload);
    }

    /// A connection of the enclave's `port` to a server, not begun yet.
    pub fn tcp(&self, family: Family, port: u16, server: SocketAddr) -> Script<'_> {
        Script::new(self, family.at(address::ENCLAVE, port), server)
    }

    /// A datagram of the enclave's `port`.
    pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; build::udp_headroom(from.is_ipv6())];
        packet.extend(payload);
        let (_, vnet) = build::udp(&mut packet, from, to, 64, payload.len());
        build::complete_checksum(&mut packet, &vnet);
        packet
    }

    /// Waits for the next packet that `wanted` finds something in; others stay for whom they are.
    pub fn find<T>(&self, seconds: u64, wanted: impl FnMut(&Seen) -> Option<T>) -> Option<T> {
        self.find_within(Duration::from_secs(seconds), wanted)
    }

    /// The same, within some time.
    pub fn find_within<T>(
        &self,
        patience: Duration,
        mut wanted: impl FnMut(&Seen) -> Option<T>,
    ) -> Option<T> {
        let until = Instant::now() + patience;
        let mut seen = self.shared.seen.lock().unwrap();
        loop {
            let found = seen
                .iter()
                .enumerate()
                .find_map(|(place, packet)| Some((place, wanted(packet)?)));
            if let Some((place, found)) = found {
                seen.remove(place);
                return Some(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            (seen, _) = self.shared.came.wait_timeout(seen, left).unwrap();
        }
    }

    /// Waits for the next packet of a flow.
    fn next_of(&self, flow: FlowKey, patience: Duration) -> Option<Seen> {
        self.find_within(patience, |seen| {
            (seen.flow == Some(flow)).then(|| seen.clone())
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn read(&self, mut stream: UnixStream, mut decoder: Decoder) {
        loop {
            while let Some(frame) = decoder.next().expect("host-netd sends frames") {
                match frame.kind {
                    Kind::Ping => send_frame(&stream, Kind::Pong, frame.payload),
                    Kind::Packet => {
                        self.seen.lock().unwrap().push(Seen::parse(frame.payload));
                        self.came.notify_all();
                    }
                    _ => {}
                }
            }
            match stream.read(decoder.space()) {
                Ok(0) | Err(_) => return,
                Ok(n) => decoder.advance(n),
            }
        }
    }
}

impl Seen {
    fn parse(frame: &[u8]) -> Seen {
        let (vnet, bytes) = VnetHeader::split(frame).expect("an offload header");
        let packet = Packet::parse(bytes).expect("host-netd sends valid packets");
        vnet.check(&packet, Features::ALL)
            .expect("with valid offload headers and checksums");
        let (flow, icmp) = match packet.transport() {
            Transport::Icmp { kind, code } => {
                let message = &bytes[packet.transport_offset()..];
                let rest = message[4..].first_chunk().expect("an ICMP header");
                let quoted = quoted_flow(&message[8..]);
                (quoted, Some((*kind, *code, u32::from_be_bytes(*rest))))
            }
            _ => (packet.flow_key().map(FlowKey::reversed), None),
        };
        Seen {
            bytes: bytes.to_vec(),
            flow,
            icmp,
        }
    }
}

/// The flow of a quoted packet, which may be cut off behind the ports.
fn quoted_flow(quoted: &[u8]) -> Option<FlowKey> {
    let (src, dst, rest): (IpAddr, IpAddr, _) = match quoted.first()? >> 4 {
        4 => {
            let src: [u8; 4] = quoted.get(12..16)?.try_into().ok()?;
            let dst: [u8; 4] = quoted.get(16..20)?.try_into().ok()?;
            (src.into(), dst.into(), (quoted[9], quoted.get(20..)?))
        }
        _ => {
            let src: [u8; 16] = quoted.get(8..24)?.try_into().ok()?;
            let dst: [u8; 16] = quoted.get(24..40)?.try_into().ok()?;
            (src.into(), dst.into(), (quoted[6], quoted.get(40..)?))
        }
    };
    let port = |at: usize| Some(u16::from_be_bytes(rest.1.get(at..at + 2)?.try_into().ok()?));
    use netd_proto::packet::Protocol::{Icmp, Tcp, Udp};
    let (protocol, from, to) = match rest.0 {
        6 => (Tcp, port(0)?, port(2)?),
        17 => (Udp, port(0)?, port(2)?),
        1 | 58 => (Icmp, port(4)?, 0),
        _ => return None,
    };
    Some(FlowKey {
        protocol,
        src: SocketAddr::new(src, from),
        dst: SocketAddr::new(dst, to),
    })
}

fn hello(features: Features) -> Hello {
    static SESSIONS: AtomicU8 = AtomicU8::new(1);
    let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
    let v4 = |pair: [IpAddr; 2]| match pair[0] {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => unreachable!("the first of a pair"),
    };
    let v6 = |pair: [IpAddr; 2]| match pair[1] {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(_) => unreachable!("the second of a pair"),
    };
    Hello {
        features,
        session: SessionId([session; 16]),
        lane: Lane(0),
        lanes: 1,
        mtu: MTU,
        v4: Network4 {
            enclave: v4(address::ENCLAVE),
            gateway: v4(address::GATEWAY),
            parent_loopback: v4(address::PARENT_LOOPBACK),
        },
        v6: Network6 {
            enclave: v6(address::ENCLAVE),
            gateway: v6(address::GATEWAY),
            parent_loopback: v6(address::PARENT_LOOPBACK),
        },
    }
}

fn receive_welcome(stream: &mut UnixStream, decoder: &mut Decoder, awaits: AwaitWelcome) {
    loop {
        if let Some(frame) = decoder.next().expect("frames") {
            awaits.receive(frame).expect("a welcome");
            return;
        }
        let n = stream.read(decoder.space()).expect("a welcome");
        assert!(n > 0, "host-netd left before its welcome");
        decoder.advance(n);
    }
}

fn send_frame(mut stream: &UnixStream, kind: Kind, payload: &[u8]) {
    let frame = [&header(kind, payload.len())[..], payload].concat();
    stream.write_all(&frame).expect("host-netd reads");
}

/// How often a host-netd has dropped for a reason, as it tells on SIGUSR1.
///
/// # Panics
/// When it does not tell.
pub fn dropped(host: &Process, reason: &str) -> u64 {
    counted(host, reason)
}

/// A number of host-netd's report, such as `flows_opened`; 0 where it is not in it.
///
/// # Panics
/// When it does not report.
pub fn counted(host: &Process, name: &str) -> u64 {
    let before = host.log().len();
    host.signal(Signal::SIGUSR1);
    until(PATIENCE, "host-netd reports its counters", || {
        let log = host.log();
        let (lines, _) = log.get(before..)?.rsplit_once('\n')?;
        let report = lines.lines().find(|line| line.contains("drops="))?;
        let mut words = report.split([' ', '=']).skip_while(|word| *word != name);
        let count = words.nth(1).map(|count| count.parse().expect("a number"));
        Some(count.unwrap_or(0))
    })
}
