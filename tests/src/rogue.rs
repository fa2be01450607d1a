//! An enclave that keeps to the link's protocol and to nothing else: its packets are made by hand,
//! and as many as it likes.

use netd_proto::build::{self, EchoHeader};
use netd_proto::control::{Goodbye, Reason};
use netd_proto::frame::{Decoder, Kind, header};
use netd_proto::handshake::{Features, Hello, Lane, Network4, Network6, SessionId};
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{Packet, Transport};
use netd_proto::report::{Exit, LogLine, Source};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crate::lab::address;
use crate::wait::Deadline;

/// How long the host may take to answer a hello, in seconds.
const WELCOME: u64 = 20;

/// TCP flags.
pub mod flag {
    /// Resets.
    pub const RST: u8 = 4;
    /// Opens.
    pub const SYN: u8 = 2;
    /// Acknowledges.
    pub const ACK: u8 = 16;
}

/// The enclave's side of a link.
#[derive(Debug)]
pub struct Rogue {
    stream: UnixStream,
    /// Frames are written whole.
    writing: Arc<Mutex<()>>,
    decoder: Decoder,
}

impl Rogue {
    /// Connects to host-netd's unix socket and shakes hands; `session` tells enclaves apart.
    ///
    /// # Panics
    /// When the host does not take it.
    pub fn connect(link: &Path, session: u8) -> Rogue {
        let (rogue, kind) = Rogue::greet(link, session);
        assert_eq!(kind, Some(Kind::Welcome), "not welcome");
        rogue
    }

    /// Connects and says hello; tells what kind of frame the host answers with.
    pub fn greet(link: &Path, session: u8) -> (Rogue, Option<Kind>) {
        Rogue::greet_with(link, session, Features::ALL)
    }

    /// The same, with these features.
    pub fn greet_with(link: &Path, session: u8, features: Features) -> (Rogue, Option<Kind>) {
        let stream = UnixStream::connect(link).expect("host-netd listens");
        let mut rogue = Rogue {
            stream,
            writing: Arc::default(),
            decoder: Decoder::new(),
        };
        let hello = Hello {
            features,
            ..hello(session)
        };
        let (hello, _) = hello.open();
        // It may be dismissed before it has said all.
        let _ = rogue.stream.write_all(&framed(Kind::Hello, &hello));
        let answer = rogue.next(Deadline::after(WELCOME)).map(|(kind, _)| kind);
        (rogue, answer)
    }

    /// Sends frames as they are.
    ///
    /// # Panics
    /// When the link is gone.
    pub fn send(&mut self, frames: &[u8]) {
        self.try_send(frames).expect("the link stands");
    }

    fn try_send(&mut self, frames: &[u8]) -> std::io::Result<()> {
        let _whole = self.writing.lock().unwrap();
        (&self.stream).write_all(frames)
    }

    /// Says a line of the enclave's log.
    pub fn say(&mut self, source: Source, number: u64, text: &[u8]) {
        self.send(&log_frame(source, number, text));
    }

    /// Tells how the enclave's program ended.
    pub fn tell_exit(&mut self, exit: Exit) {
        self.send(&framed(Kind::Exit, &exit.encode()));
    }

    /// Says goodbye in good order.
    pub fn goodbye(&mut self) {
        let goodbye = Goodbye::new(Reason::Shutdown, "the enclave ends");
        self.send(&framed(Kind::Goodbye, &goodbye.encode()));
    }

    /// Waits until the host closes the link; tells whether it did within some seconds.
    pub fn is_dismissed(&mut self, seconds: u64) -> bool {
        let deadline = Deadline::after(seconds);
        while self.next(deadline).is_some() {}
        !deadline.is_over()
    }

    /// Sends one packet.
    pub fn send_packet(&mut self, packet: &[u8]) {
        self.send(&frame(packet));
    }

    /// The next packet for which `wanted` has a value, within some seconds. Pings are answered.
    pub fn packet<T>(
        &mut self,
        seconds: u64,
        mut wanted: impl FnMut(&Packet<'_>) -> Option<T>,
    ) -> Option<T> {
        let deadline = Deadline::after(seconds);
        while let Some((kind, payload)) = self.next(deadline) {
            if kind != Kind::Packet {
                continue;
            }
            let (_, bytes) = VnetHeader::split(&payload).expect("a header");
            let packet = Packet::parse(bytes).expect("the host sends valid packets");
            if let Some(value) = wanted(&packet) {
                return Some(value);
            }
        }
        None
    }

    fn next(&mut self, deadline: Deadline) -> Option<(Kind, Vec<u8>)> {
        loop {
            if let Some(frame) = self.decoder.next().expect("frames") {
                let (kind, payload) = (frame.kind, frame.payload.to_vec());
                if kind == Kind::Ping {
                    self.send(&framed(Kind::Pong, &payload));
                    continue;
                }
                return Some((kind, payload));
            }
            if deadline.is_over() {
                return None;
            }
            self.stream.set_read_timeout(Some(deadline.left())).unwrap();
            match self.stream.read(self.decoder.space()) {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.decoder.advance(n),
            }
        }
    }

    /// Acknowledges every byte of every connection from now on and answers nothing else, until the
    /// link ends: connections that were opened bring as much as they can.
    pub fn acknowledge(&mut self) -> JoinHandle<()> {
        let mut reader = Rogue {
            stream: self.stream.try_clone().unwrap(),
            writing: Arc::clone(&self.writing),
            decoder: std::mem::take(&mut self.decoder),
        };
        thread::spawn(move || {
            let answer = |packet: &Packet<'_>| match packet.transport() {
                Transport::Tcp(tcp) if !tcp.payload().is_empty() => {
                    let length = u32::try_from(tcp.payload().len()).unwrap();
                    let ack = tcp.sequence_number().wrapping_add(length);
                    let from = SocketAddr::new(packet.src(), tcp.source_port());
                    let numbers = (tcp.acknowledgment_number(), ack);
                    let port = tcp.destination_port();
                    Some(Packets::tcp(port, from, flag::ACK, numbers, &[]))
                }
                _ => None,
            };
            while let Some(answer) = reader.packet(3600, answer) {
                if reader.try_send(&frame(&answer)).is_err() {
                    return;
                }
            }
        })
    }

    /// Reads and forgets whatever comes from now on, until the link ends; tells how much it was.
    pub fn drain(&self) -> JoinHandle<u64> {
        let mut stream = self.stream.try_clone().unwrap();
        stream.set_read_timeout(None).unwrap();
        thread::spawn(move || {
            let (mut buffer, mut total) = (vec![0; 256 * 1024], 0);
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                total += n as u64;
            }
            total
        })
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        // Also for whoever drains it.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn hello(session: u8) -> Hello {
    let [IpAddr::V4(enclave), IpAddr::V6(enclave6)] = address::ENCLAVE else {
        unreachable!("one of each family")
    };
    let [IpAddr::V4(gateway), IpAddr::V6(gateway6)] = address::GATEWAY else {
        unreachable!("one of each family")
    };
    let [IpAddr::V4(loopback), IpAddr::V6(loopback6)] = address::PARENT_LOOPBACK else {
        unreachable!("one of each family")
    };
    Hello {
        features: Features::ALL,
        session: SessionId([session; 16]),
        lane: Lane(0),
        lanes: 1,
        mtu: 1500,
        v4: Network4 {
            enclave,
            gateway,
            parent_loopback: loopback,
        },
        v6: Network6 {
            enclave: enclave6,
            gateway: gateway6,
            parent_loopback: loopback6,
        },
    }
}

/// A packet as it crosses the link.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    framed(
        Kind::Packet,
        &[&VnetHeader::NONE.encode()[..], packet].concat(),
    )
}

/// A line of an enclave's log as it crosses the link.
pub fn log_frame(source: Source, number: u64, text: &[u8]) -> Vec<u8> {
    framed(Kind::Log, &LogLine::encode(source, number, text))
}

/// Any frame.
pub fn framed(kind: Kind, payload: &[u8]) -> Vec<u8> {
    [&header(kind, payload.len())[..], payload].concat()
}

/// Packets of the enclave, complete with their checksums.
#[derive(Clone, Copy, Debug)]
pub struct Packets;

impl Packets {
    fn enclave(like: SocketAddr, port: u16) -> SocketAddr {
        let [v4, v6] = address::ENCLAVE;
        SocketAddr::new(if like.is_ipv4() { v4 } else { v6 }, port)
    }

    /// A datagram from a port of the enclave.
    pub fn udp(port: u16, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let from = Packets::enclave(to, port);
        let mut packet = vec![0; build::udp_headroom(to.is_ipv6())];
        packet.extend(payload);
        let (total, vnet) = build::udp(&mut packet, from, to, 64, payload.len());
        build::complete_checksum(&mut packet[..total], &vnet);
        packet
    }

    /// An echo request.
    pub fn ping(identifier: u16, to: IpAddr, payload: &[u8]) -> Vec<u8> {
        let from = Packets::enclave(SocketAddr::new(to, 0), 0).ip();
        let mut packet = vec![0; build::echo_headroom(to.is_ipv6())];
        packet.extend(payload);
        let echo = EchoHeader {
            request: true,
            identifier,
            sequence: 1,
        };
        build::echo(&mut packet, from, to, 64, echo, payload.len());
        packet
    }

    /// A TCP segment; a SYN has no options.
    pub fn tcp(
        port: u16,
        to: SocketAddr,
        flags: u8,
        (seq, ack): (u32, u32),
        payload: &[u8],
    ) -> Vec<u8> {
        // The same headers, but for the transport's.
        let mut body = vec![0; 20];
        body[..2].copy_from_slice(&port.to_be_bytes());
        body[2..4].copy_from_slice(&to.port().to_be_bytes());
        body[4..8].copy_from_slice(&seq.to_be_bytes());
        body[8..12].copy_from_slice(&ack.to_be_bytes());
        body[12] = 5 << 4;
        body[13] = flags;
        body[14..16].copy_from_slice(&60_000u16.to_be_bytes());
        body.extend(payload);
        let udp = Packets::udp(port, to, &body[8..]);
        let start = udp.len() - body.len();
        let mut packet = [&udp[..start], &body].concat();
        let ipv6 = to.is_ipv6();
        if ipv6 {
            packet[6] = 6;
        } else {
            packet[9] = 6;
            fix_header(&mut packet);
        }
        build::partial_tcp_checksum(&mut packet);
        let ip_header = u16::try_from(start).unwrap();
        build::complete_checksum(&mut packet, &VnetHeader::tcp(ipv6, ip_header, 20, None));
        packet
    }

    /// The first fragment of a datagram whose rest never comes.
    pub fn fragment(identification: u16, to: Ipv4Addr) -> Vec<u8> {
        let mut packet = Packets::udp(9, SocketAddr::new(to.into(), 9), &[0; 1400]);
        packet[4..6].copy_from_slice(&identification.to_be_bytes());
        // More fragments follow.
        packet[6] = 0x20;
        fix_header(&mut packet);
        packet
    }

    /// A DNS query for the address of a name, from a port of the enclave.
    pub fn dns(port: u16, id: u16, name: &str) -> Vec<u8> {
        Packets::udp(
            port,
            SocketAddr::new(address::GATEWAY[0], 53),
            &dns_query(id, name),
        )
    }
}

/// A DNS query for the address of a name.
pub fn dns_query(id: u16, name: &str) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// Computes the checksum of an IPv4 header anew.
fn fix_header(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let words = packet[..20].chunks_exact(2);
    let mut sum: u32 = words
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
    let sum = !(sum as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}
