//! The engine against an enclave whose packets are written by hand.
#![allow(clippy::unwrap_used)]

use super::datagram::DatagramKind;
use super::route::tests::hello;
use super::*;
use crate::limits::{ENCLAVE_HANDSHAKE, RECEIVE_RING, UDP_IDLE, UDP_IDLE_ANSWERED};
use etherparse::PacketBuilder;
use netd_proto::frame::Decoder;
use netd_proto::policy::Rule;
use proptest::prelude::*;
use std::net::{Ipv4Addr, SocketAddr};

mod begin_and_end;
mod caps;
mod full_link;
mod memory;
mod probes;
mod runs;
mod segments;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Every flow limit of these tests.
const FLOWS: usize = 50;

const LIMITS: Limits = Limits {
    flows: FLOWS,
    ring_memory: 8 * 1024 * 1024,
    ..Limits::DEFAULT
};

struct Bed {
    engine: Engine,
    now: Instant,
}

/// A packet that the engine sent.
struct Sent {
    vnet: VnetHeader,
    bytes: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
struct Segment {
    flags: u8,
    seq: u32,
    ack: u32,
    window: u16,
    payload: usize,
}

impl Sent {
    fn packet(&self) -> Packet<'_> {
        let packet = Packet::parse(&self.bytes).expect("the engine sends valid packets");
        self.vnet
            .check(&packet, Features::ALL)
            .expect("with valid offload headers");
        packet
    }

    fn segment(&self) -> Segment {
        let packet = self.packet();
        let Transport::Tcp(tcp) = packet.transport() else {
            panic!("not TCP: {packet:?}")
        };
        Segment {
            flags: tcp.header_slice()[13] & 0x17,
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            window: tcp.window_size(),
            payload: tcp.payload().len(),
        }
    }

    fn icmp(&self) -> (u8, u8) {
        match self.packet().transport() {
            Transport::Icmp { kind, code } => (*kind, *code),
            other => panic!("not ICMP: {other:?}"),
        }
    }
}

impl Bed {
    fn new() -> Bed {
        Bed::with(Features::ALL, &[])
    }

    fn with(features: Features, rules: &[&str]) -> Bed {
        Bed::made(features, rules, LIMITS)
    }

    fn made(features: Features, rules: &[&str], allotment: impl Into<Allotment>) -> Bed {
        let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().expect(rule)).collect();
        let now = Instant::now();
        let own = LocalAddresses::fixed(&["198.51.100.7"]);
        let policy = Policy::new(rules);
        let engine = Engine::new(hello(), features, policy, own, allotment, now);
        Bed { engine, now }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Hands a packet to the engine and tells what it wants done.
    fn send(&mut self, packet: &[u8]) -> Effect<'static> {
        let mut frame = VnetHeader::NONE.encode().to_vec();
        frame.extend(packet);
        self.engine.handle_packet(&frame, self.now).into_owned()
    }

    fn dial(&mut self, packet: &[u8]) -> FlowId {
        match self.send(packet) {
            Effect::Dial(id, DialTarget::Host(_))
            | Effect::Redial {
                id,
                target: DialTarget::Host(_),
                ..
            } => id,
            other => panic!("not a dial: {other:?}"),
        }
    }

    /// Everything that is queued for the link.
    fn sent(&mut self) -> Vec<Sent> {
        let queue = self.engine.queue();
        let mut decoder = Decoder::new();
        let pending = queue.pending().to_vec();
        decoder.space()[..pending.len()].copy_from_slice(&pending);
        decoder.advance(pending.len());
        queue.clear();
        let mut sent = Vec::new();
        while let Some(frame) = decoder.next().expect("own frames") {
            let (vnet, bytes) = VnetHeader::split(frame.payload).expect("has a header");
            sent.push(Sent {
                vnet,
                bytes: bytes.to_vec(),
            });
        }
        sent
    }

    fn egress(&mut self, id: FlowId) -> Vec<Sent> {
        let mut sent = Vec::new();
        while self.engine.egress(id, usize::MAX, self.now) != Egress::Done {
            sent.extend(self.sent());
        }
        sent.extend(self.sent());
        sent
    }

    fn one(&mut self) -> Sent {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "one packet is expected");
        sent.remove(0)
    }

    fn drops(&mut self, reason: DropReason) -> u64 {
        self.engine.counters().drops(reason)
    }
}

/// The enclave's side of one TCP connection.
struct Connection {
    enclave: &'static str,
    server: &'static str,
    id: FlowId,
    seq: u32,
    ack: u32,
    /// Right edge of the largest window that was promised.
    edge: u32,
}

const WINDOW_SCALE: u8 = 7;

/// The shift that host-netd's receive ring gives its windows.
const SHIFT: u32 = usize::BITS - RECEIVE_RING.leading_zeros() - 16;

fn tcp(src: &str, dst: &str, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let builder = match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => PacketBuilder::ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => PacketBuilder::ipv6(src.octets(), dst.octets(), 64),
        _ => panic!("two families"),
    };
    let mut builder = builder.tcp(src.port(), dst.port(), seq, 60_000);
    if flags & FIN != 0 {
        builder = builder.fin();
    }
    if flags & RST != 0 {
        builder = builder.rst();
    }
    if flags & ACK != 0 {
        builder = builder.ack(ack);
    }
    if flags & SYN != 0 {
        let options = [
            etherparse::TcpOptionElement::MaximumSegmentSize(1460),
            etherparse::TcpOptionElement::WindowScale(WINDOW_SCALE),
        ];
        builder = builder.syn().options(&options).unwrap();
    }
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

fn udp(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let mut bytes = vec![0; build::udp_headroom(src.is_ipv6())];
    bytes.extend(payload);
    let (_, vnet) = build::udp(&mut bytes, src, dst, 64, payload.len());
    build::complete_checksum(&mut bytes, &vnet);
    bytes
}

fn ping(src: &str, dst: &str, payload: usize) -> Vec<u8> {
    let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let mut bytes = vec![7; build::echo_headroom(src.is_ipv6()) + payload];
    let header = build::EchoHeader {
        request: true,
        identifier: 9,
        sequence: 3,
    };
    build::echo(&mut bytes, src, dst, 64, header, payload);
    bytes
}

const ENCLAVE: &str = "100.64.0.2:40000";
const SERVER: &str = "192.0.2.1:443";
const BOTH: [(&str, &str); 2] = [
    (ENCLAVE, SERVER),
    ("[fd00:6e65:7464::2]:40000", "[2001:db8::1]:443"),
];

impl Connection {
    fn open(bed: &mut Bed) -> Connection {
        Connection::between(bed, (ENCLAVE, SERVER))
    }

    fn between(bed: &mut Bed, (enclave, server): (&'static str, &'static str)) -> Connection {
        let id = bed.dial(&tcp(enclave, server, SYN, 999, 0, &[]));
        assert!(bed.engine.connected(id, bed.now));
        let syn_ack = bed.egress(id).remove(0).segment();
        assert_eq!((syn_ack.flags, syn_ack.ack), (SYN | ACK, 1000));
        let edge = 1000 + u32::from(syn_ack.window);
        let mut connection = Connection {
            enclave,
            server,
            id,
            seq: 1000,
            ack: syn_ack.seq + 1,
            edge,
        };
        connection.send(bed, ACK, &[]);
        connection
    }

    /// Sends a segment and takes note of what is promised in reply.
    fn send(&mut self, bed: &mut Bed, flags: u8, payload: &[u8]) -> Vec<Segment> {
        let packet = tcp(
            self.enclave,
            self.server,
            flags,
            self.seq,
            self.ack,
            payload,
        );
        self.seq += u32::try_from(payload.len()).unwrap() + u32::from(flags & FIN);
        let effect = bed.send(&packet);
        assert!(
            matches!(effect, Effect::Turn(id) if id == self.id),
            "{effect:?}"
        );
        self.replies(bed)
    }

    fn replies(&mut self, bed: &mut Bed) -> Vec<Segment> {
        let replies: Vec<_> = bed.egress(self.id).iter().map(Sent::segment).collect();
        for reply in &replies {
            self.edge = self
                .edge
                .max(reply.ack + (u32::from(reply.window) << SHIFT));
        }
        replies
    }

    fn read_all(&self, bed: &mut Bed) -> usize {
        let mut flow = bed.engine.tcp(self.id).expect("open");
        std::iter::from_fn(|| flow.receive(|bytes| (bytes.len(), bytes.len()))).sum()
    }
}

#[test]
fn a_syn_is_answered_only_when_the_real_connection_stands() {
    for (enclave, server) in BOTH {
        let mut bed = Bed::new();
        let syn = tcp(enclave, server, SYN, 999, 0, &[]);
        let id = bed.dial(&syn);
        assert!(
            matches!(bed.send(&syn), Effect::None),
            "a repeated SYN is the same flow"
        );
        assert!(bed.sent().is_empty());
        assert_eq!(bed.engine.flow_count(), 1);

        assert!(bed.engine.connected(id, bed.now));

        let syn_ack = bed.egress(id).remove(0);
        assert_eq!(syn_ack.segment().flags, SYN | ACK);
        assert_eq!(
            syn_ack.packet().src(),
            server.parse::<SocketAddr>().unwrap().ip()
        );
    }
}

#[test]
fn what_became_of_a_connect_is_told_as_it_was() {
    let answers = [
        (DialError::Icmp(IcmpError::HostUnreachable), (3, 1), (1, 3)),
        (DialError::Icmp(IcmpError::NetUnreachable), (3, 0), (1, 0)),
        (DialError::Icmp(IcmpError::Prohibited), (3, 13), (1, 1)),
    ];
    for ((enclave, server), v6) in BOTH.into_iter().zip([false, true]) {
        let syn = tcp(enclave, server, SYN, 999, 0, &[]);
        for (error, icmp4, icmp6) in answers {
            let mut bed = Bed::new();
            let id = bed.dial(&syn);
            bed.engine.dial_failed(id, error);
            let told = bed.one();
            assert_eq!(told.icmp(), if v6 { icmp6 } else { icmp4 });
            assert!(told.bytes.ends_with(&syn), "it quotes the SYN");
            assert_eq!(bed.engine.flow_count(), 0);
        }
        let mut bed = Bed::new();
        let id = bed.dial(&syn);
        bed.engine.dial_failed(id, DialError::Refused);
        assert_eq!(bed.one().segment().flags, RST | ACK);

        let id = bed.dial(&syn);
        bed.engine.dial_failed(id, DialError::Silent);
        assert!(bed.sent().is_empty());
        assert_eq!(bed.engine.flow_count(), 0);
    }
}

#[test]
fn a_connect_given_up_by_the_enclave_is_given_up_outside() {
    let mut bed = Bed::new();
    let id = bed.dial(&tcp(ENCLAVE, SERVER, SYN, 999, 0, &[]));
    let effect = bed.send(&tcp(ENCLAVE, SERVER, RST, 1000, 0, &[]));
    assert!(matches!(effect, Effect::Gone(gone) if gone == id));
    assert!(
        !bed.engine.connected(id, bed.now),
        "a late answer finds nothing"
    );
    assert_eq!(bed.engine.flow_count(), 0);
}

#[test]
fn segments_of_no_flow_are_reset_and_resets_are_not_answered() {
    let mut bed = Bed::new();
    bed.send(&tcp(ENCLAVE, SERVER, ACK, 5, 77, &[1]));
    let reset = bed.one().segment();
    assert_eq!((reset.flags, reset.seq), (RST, 77));

    bed.send(&tcp(ENCLAVE, SERVER, RST, 5, 0, &[]));
    assert!(bed.sent().is_empty());
    assert_eq!(bed.drops(DropReason::UnknownFlow), 2);
}

#[test]
fn segments_to_what_is_no_host_are_not_answered_from_there() {
    let mut bed = Bed::new();
    let nobody = [
        "255.255.255.255:9",
        "224.0.0.1:9",
        "127.0.0.1:9",
        "100.64.0.2:9",
    ];
    for dst in nobody {
        bed.send(&tcp(ENCLAVE, dst, ACK, 5, 77, &[]));
        assert!(bed.sent().is_empty(), "{dst}");
    }
    assert_eq!(bed.drops(DropReason::UnknownFlow), 4);
}

#[test]
fn a_half_closed_flow_goes_on_and_ends_when_both_halves_have() {
    let mut bed = Bed::new();
    let mut connection = Connection::open(&mut bed);
    connection.send(&mut bed, FIN | ACK, b"last words");
    let mut flow = bed.engine.tcp(connection.id).unwrap();
    assert!(!flow.enclave_finished(), "unread bytes come first");
    flow.receive(|bytes| (bytes.len(), ())).unwrap();
    assert!(flow.enclave_finished());
    assert_eq!(flow.standing(), Standing::Open);

    bed.pass(Duration::from_secs(3600));
    let answer = |space: &mut [u8]| {
        space[..5].copy_from_slice(b"later");
        (5, ())
    };
    bed.engine
        .tcp(connection.id)
        .unwrap()
        .send(answer)
        .expect("the other half is open");
    bed.engine.tcp(connection.id).unwrap().finish();
    let replies = connection.replies(&mut bed);
    assert!(
        replies.iter().any(|r| r.flags & FIN != 0 && r.payload == 5),
        "{replies:?}"
    );

    connection.ack += 6;
    connection.send(&mut bed, ACK, &[]);
    assert_eq!(
        bed.engine.tcp(connection.id).unwrap().standing(),
        Standing::Finished
    );
}

/// A server that reads slowly still has bytes to take when both halves are closed, whichever side
/// closed first and however long it takes.
#[test]
fn received_bytes_outlive_the_close() {
    for host_first in [true, false] {
        let mut bed = Bed::new();
        let mut connection = Connection::open(&mut bed);
        let finish = |bed: &mut Bed, connection: &mut Connection| {
            bed.engine.tcp(connection.id).unwrap().finish();
            connection.replies(bed);
            connection.ack += 1;
        };
        if host_first {
            finish(&mut bed, &mut connection);
        }
        connection.send(&mut bed, FIN | ACK, &[7; 5000]);
        if !host_first {
            finish(&mut bed, &mut connection);
            connection.send(&mut bed, ACK, &[]);
        }

        bed.pass(Duration::from_secs(60));
        while let Some(effect) = bed.engine.expired(bed.now) {
            assert!(matches!(effect, Effect::Turn(id) if id == connection.id));
        }
        bed.egress(connection.id);

        let standing = bed.engine.tcp(connection.id).unwrap().standing();
        assert_eq!(standing, Standing::Open, "host first: {host_first}");
        assert_eq!(connection.read_all(&mut bed), 5000);
        let flow = bed.engine.tcp(connection.id).unwrap();
        assert!(flow.enclave_finished());
        assert_eq!(flow.standing(), Standing::Finished);
    }
}

/// smoltcp takes the SYN-ACK's window for a scaled one: an enclave that sends far more than it was
/// promised, before it is answered, must not overrun the ring.
#[test]
fn more_than_the_window_is_cut_off_and_nothing_breaks() {
    let mut bed = Bed::new();
    let connection = Connection::open(&mut bed);
    let mut seq = connection.seq;
    while seq < connection.seq + 2 * u32::try_from(RECEIVE_RING).unwrap() {
        bed.send(&tcp(
            ENCLAVE,
            SERVER,
            ACK,
            seq,
            connection.ack,
            &[1; 60_000],
        ));
        seq += 60_000;
    }
    assert!(connection.read_all(&mut bed) <= RECEIVE_RING);
}

/// A rule with a name opens no address that is closed by default.
#[test]
fn a_name_does_not_open_the_parent() {
    let mut bed = Bed::with(Features::ALL, &["allow tcp *.example.com"]);
    let addresses = ["127.0.0.1", "169.254.169.254", "198.51.100.7"].map(|a| a.parse().unwrap());
    bed.engine.learn(
        "evil.example.com",
        &addresses,
        Duration::from_secs(60),
        bed.now,
    );
    for to in ["100.64.0.3:22", "169.254.169.254:80", "198.51.100.7:22"] {
        let effect = bed.send(&tcp(ENCLAVE, to, SYN, 9, 0, &[]));
        assert!(matches!(effect, Effect::None), "{to}: {effect:?}");
        assert_eq!(bed.one().icmp(), (3, 13));
    }
}

#[test]
fn a_flow_aborted_after_both_ends_closed_is_over() {
    let mut bed = Bed::new();
    let mut connection = Connection::open(&mut bed);
    bed.engine.tcp(connection.id).unwrap().finish();
    connection.replies(&mut bed);
    connection.ack += 1;
    connection.send(&mut bed, FIN | ACK, &[7; 5000]);
    bed.engine.tcp(connection.id).unwrap().abort();
    bed.egress(connection.id);
    assert_eq!(
        bed.engine.tcp(connection.id).unwrap().standing(),
        Standing::Reset
    );
}

#[test]
fn resets_travel_both_ways() {
    let mut bed = Bed::new();
    let mut connection = Connection::open(&mut bed);
    connection.send(&mut bed, RST, &[]);
    assert_eq!(
        bed.engine.tcp(connection.id).unwrap().standing(),
        Standing::Reset
    );

    let mut bed = Bed::new();
    let connection = Connection::open(&mut bed);
    bed.engine.tcp(connection.id).unwrap().abort();
    let reset = bed.egress(connection.id).remove(0).segment();
    assert_eq!(reset.flags & RST, RST);
}

/// The way round smoltcp's window deadlock (`Window::limit`). A whole unit of the scaled
/// window and a byte more make its right edge move back, by a unit less that byte, after it was
/// promised.
#[test]
fn every_byte_up_to_the_promised_edge_is_taken() {
    let mut bed = Bed::new();
    let mut connection = Connection::open(&mut bed);
    let unit = 1 << SHIFT;
    connection.send(&mut bed, ACK, &vec![0; unit]);
    connection.send(&mut bed, ACK, &[0; 1]);

    while connection.seq < connection.edge {
        let size = (connection.edge - connection.seq).min(60_000);
        let replies = connection.send(&mut bed, ACK, &vec![0; size as usize]);
        let acked = replies.last().map(|reply| reply.ack);
        assert_eq!(
            acked,
            Some(connection.seq),
            "bytes inside the promised window were cut off"
        );
    }
    assert!(
        (connection.seq - 1000) as usize > RECEIVE_RING - 4 * unit,
        "the ring is full"
    );

    // With a full ring, acknowledgements must still be understood: an echo server that waits for
    // room to write would otherwise never read again.
    let fill = |space: &mut [u8]| (1000.min(space.len()), ());
    bed.engine
        .tcp(connection.id)
        .unwrap()
        .send(fill)
        .expect("room");
    connection.replies(&mut bed);
    connection.ack += 1000;
    connection.send(&mut bed, ACK, &[]);
    bed.engine.tcp(connection.id).unwrap().finish();
    let fin = connection.replies(&mut bed);
    assert!(
        fin.iter().any(|r| r.flags & FIN != 0 && r.payload == 0),
        "{fin:?}: ACK not taken"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn no_pattern_of_sends_and_reads_loses_a_byte_of_the_promised_window(
        steps in prop::collection::vec((1u32..40_000, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let mut bed = Bed::new();
        let mut connection = Connection::open(&mut bed);
        let mut read = 0;
        for (size, greedy, reads) in steps {
            let room = connection.edge - connection.seq;
            let size = if greedy { room.min(60_000) } else { size.min(room) };
            if size > 0 {
                connection.send(&mut bed, ACK, &vec![0; size as usize]);
            }
            if reads {
                read += connection.read_all(&mut bed);
                connection.replies(&mut bed);
            }
        }
        read += connection.read_all(&mut bed);
        prop_assert_eq!(read, (connection.seq - 1000) as usize);
    }
}

#[test]
fn segments_and_checksums_are_as_long_and_whole_as_the_enclave_can_take() {
    for (features, longest) in [(Features::ALL, 30_000), (Features::default(), 1500)] {
        for ends in BOTH {
            let mut bed = Bed::with(features, &[]);
            let connection = Connection::between(&mut bed, ends);
            let mut given = 0;
            while let Some(size) = bed.engine.tcp(connection.id).unwrap().send(|space| {
                let size = space.len().min(30_000);
                (size, size)
            }) {
                given += size;
                if given >= 30_000 {
                    break;
                }
            }
            let sent = bed.egress(connection.id);
            assert_eq!(
                sent.iter().map(|s| s.segment().payload).sum::<usize>(),
                given
            );
            for packet in &sent {
                let partial = packet.vnet.needs_checksum();
                assert_eq!(partial, features == Features::ALL);
                assert!(packet.packet().transport_checksum_is_right() != partial);
            }
            let most = sent.iter().map(|s| s.bytes.len()).max().unwrap();
            assert!(most >= longest, "{ends:?}: {most} bytes at most");
            assert!(most <= longest + 60, "{ends:?}: {most} bytes at most");
        }
    }
}

#[test]
fn an_inbound_client_is_seen_by_its_own_address_and_the_parents_loopback_by_its_stand_in() {
    for (client, seen) in [
        ("198.51.100.9:5000", "198.51.100.9"),
        ("127.0.0.1:5000", "100.64.0.3"),
        ("[2001:db8::9]:5000", "2001:db8::9"),
        ("[::1]:5000", "fd00:6e65:7464::3"),
        ("[::ffff:198.51.100.9]:5000", "198.51.100.9"),
    ] {
        let mut bed = Bed::new();
        let id = bed
            .engine
            .accept(client.parse().unwrap(), 8080, bed.now)
            .expect("room");
        let syn = bed.egress(id).remove(0);
        assert_eq!(syn.segment().flags, SYN);
        let key = syn.packet().flow_key().unwrap();
        assert_eq!(key.src, SocketAddr::new(seen.parse().unwrap(), 5000));
        assert_eq!(key.dst.port(), 8080);

        let again = bed.engine.accept(client.parse().unwrap(), 8080, bed.now);
        assert_eq!(again, Err(DropReason::InboundCollision));
    }
}

#[test]
fn an_enclave_that_does_not_answer_an_inbound_client_loses_it() {
    let mut bed = Bed::new();
    let id = bed
        .engine
        .accept("198.51.100.9:5000".parse().unwrap(), 8080, bed.now)
        .expect("room");
    bed.egress(id);
    bed.pass(ENCLAVE_HANDSHAKE);
    while let Some(effect) = bed.engine.expired(bed.now) {
        assert!(matches!(effect, Effect::Turn(turn) if turn == id));
        bed.egress(id);
    }
    assert_eq!(bed.engine.tcp(id).unwrap().standing(), Standing::Reset);
}

#[test]
fn timers_of_long_lived_flows_do_not_pile_up() {
    let mut bed = Bed::new();
    let mut connections: Vec<_> = (0..20)
        .map(|n| {
            Connection::between(
                &mut bed,
                (format!("100.64.0.2:{}", 4000 + n).leak(), SERVER),
            )
        })
        .collect();
    for _ in 0..300 {
        for connection in &mut connections {
            let mut flow = bed.engine.tcp(connection.id).unwrap();
            flow.send(|_| (64, ()));
            connection.replies(&mut bed);
            connection.ack += 64;
            connection.send(&mut bed, ACK, &[]);
        }

        // The retransmission timers fire; the next deadlines are those of the far keep-alive.
        bed.pass(Duration::from_secs(1));
        assert!(bed.engine.expired(bed.now).is_none());
    }
    assert!(!bed.engine.timers.is_stale(bed.engine.flow_count()));
}

#[test]
fn limits_are_answered_and_counted() {
    let mut bed = Bed::new();
    for port in 0..FLOWS {
        bed.dial(&tcp(
            &format!("100.64.0.2:{}", 1000 + port),
            SERVER,
            SYN,
            9,
            0,
            &[],
        ));
    }
    bed.send(&tcp(ENCLAVE, SERVER, SYN, 9, 0, &[]));
    assert_eq!(bed.one().segment().flags, RST | ACK);
    bed.send(&udp(ENCLAVE, SERVER, b"x"));
    assert_eq!(bed.one().icmp(), (3, 13));
    let inbound = bed
        .engine
        .accept("198.51.100.9:5000".parse().unwrap(), 80, bed.now);
    assert_eq!(inbound, Err(DropReason::FlowLimit));
    assert_eq!(bed.drops(DropReason::FlowLimit), 3);
}

#[test]
fn the_policy_refuses_with_icmp_and_counts_why() {
    let mut bed = Bed::with(Features::ALL, &["deny 10.0.0.0/8"]);
    bed.send(&tcp(ENCLAVE, "10.0.0.1:80", SYN, 9, 0, &[]));
    assert_eq!(bed.one().icmp(), (3, 13));
    bed.send(&udp("[fd00:6e65:7464::2]:9", "[fe80::1]:9", b"x"));
    assert_eq!(bed.one().icmp(), (1, 1));
    bed.send(&ping("100.64.0.2", "198.51.100.7", 8));
    assert_eq!(bed.one().icmp(), (3, 13));
    for reason in [
        DropReason::DeniedByRule,
        DropReason::DeniedLinkLocal,
        DropReason::DeniedOwnAddress,
    ] {
        assert_eq!(bed.drops(reason), 1, "{reason:?}");
    }
    assert_eq!(bed.engine.flow_count(), 0);
}

#[test]
fn names_in_rules_follow_dns() {
    let mut bed = Bed::with(Features::ALL, &["allow tcp kms.example.com:443", "deny *"]);
    let syn = tcp(ENCLAVE, SERVER, SYN, 9, 0, &[]);
    assert!(matches!(bed.send(&syn), Effect::None));
    let address = [IpAddr::from(Ipv4Addr::new(192, 0, 2, 1))];
    bed.engine.learn(
        "kms.example.com",
        &address,
        Duration::from_secs(60),
        bed.now,
    );
    bed.dial(&syn);
}

fn datagram(effect: Effect<'static>) -> Outgoing<'static> {
    match effect {
        Effect::Datagram(outgoing) => outgoing,
        other => panic!("not a datagram: {other:?}"),
    }
}

#[test]
fn one_port_is_one_mapping_whatever_the_destination() {
    let mut bed = Bed::new();
    let first = datagram(bed.send(&udp(ENCLAVE, "192.0.2.1:53", b"one")));
    let second = datagram(bed.send(&udp(ENCLAVE, "192.0.2.2:54", b"two")));
    let other = datagram(bed.send(&udp("100.64.0.2:40001", "192.0.2.1:53", b"three")));
    assert!(first.is_new && !second.is_new && other.is_new);
    assert_eq!(first.flow, second.flow);
    assert_ne!(first.flow, other.flow);
    assert_eq!(
        (&*second.payload, second.to),
        (&b"two"[..], "192.0.2.2:54".parse().unwrap())
    );
}

/// Something comes to the flow's socket, as the kernel hands it over.
fn arrive(
    bed: &mut Bed,
    id: FlowId,
    from: &str,
    payload: &[u8],
    segment: Option<u16>,
) -> Option<()> {
    let DatagramSpace { place, spill } = bed.engine.datagram_space(id)?;
    let (first, rest) = payload.split_at(payload.len().min(place.len()));
    place[..first.len()].copy_from_slice(first);
    spill[..rest.len()].copy_from_slice(rest);
    let received = Received {
        from: from.parse().unwrap(),
        length: payload.len(),
        segment,
        hop_limit: None,
    };
    bed.engine.commit_datagram(id, received, bed.now);
    Some(())
}

fn receive(bed: &mut Bed, id: FlowId, from: &str, payload: &[u8]) -> Option<Sent> {
    arrive(bed, id, from, payload, None)?;
    bed.engine.seal_run();
    bed.sent().pop()
}

#[test]
fn a_mapping_ends_when_idle_later_if_it_was_answered_and_never_if_published() {
    let gone = |bed: &mut Bed| match bed.engine.expired(bed.now) {
        Some(Effect::Gone(id)) => Some(id),
        None => None,
        other => panic!("{other:?}"),
    };
    let mut bed = Bed::new();
    let id = datagram(bed.send(&udp(ENCLAVE, SERVER, b"one"))).flow;
    let published = bed
        .engine
        .publish_udp(53, Ipv4Addr::LOCALHOST.into())
        .expect("free");
    bed.pass(UDP_IDLE - Duration::from_secs(1));
    assert_eq!(gone(&mut bed), None);
    let reply = receive(&mut bed, id, "127.0.0.1:7", b"answer").expect("passed on");
    assert_eq!(
        reply.packet().src(),
        IpAddr::from(Ipv4Addr::new(100, 64, 0, 3))
    );

    bed.pass(UDP_IDLE_ANSWERED - Duration::from_secs(1));
    assert_eq!(gone(&mut bed), None);
    bed.pass(Duration::from_secs(1));
    assert_eq!(gone(&mut bed), Some(id));
    assert!(receive(&mut bed, id, "192.0.2.1:7", b"late").is_none());

    bed.pass(Duration::from_secs(1_000_000));
    assert_eq!(gone(&mut bed), None);
    let reply = datagram(bed.send(&udp("100.64.0.2:53", SERVER, b"reply")));
    assert_eq!(reply.flow, published, "it leaves by the published socket");
    assert!(!reply.is_new);
}

#[test]
fn a_datagram_in_parts_is_put_together_and_may_be_cut_again() {
    let mut whole = udp(ENCLAVE, SERVER, &[5; 3000]);
    let part = |whole: &[u8], offset: usize, end: usize, more: u8| {
        let mut bytes = whole[..20].to_vec();
        bytes.extend(&whole[20 + offset..20 + end]);
        let [high, low] = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        let [offset_high, offset_low] = u16::try_from(offset / 8).unwrap().to_be_bytes();
        bytes[2..8].copy_from_slice(&[high, low, 0, 9, more | offset_high, offset_low]);
        bytes[10..12].fill(0);
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum.ones_complement().to_ne_bytes());
        bytes
    };
    let mut bed = Bed::new();
    for part in [part(&whole, 0, 1480, 0x20), part(&whole, 1480, 2960, 0x20)] {
        assert!(matches!(bed.send(&part), Effect::None));
    }
    let outgoing = datagram(bed.send(&part(&whole, 2960, 3008, 0)));
    assert_eq!(&*outgoing.payload, &[5; 3000][..]);
    assert!(!outgoing.dont_fragment);

    // Parts of two datagrams: the checksum tells.
    bed.send(&part(&whole, 0, 1480, 0x20));
    whole[2000] ^= 1;
    bed.send(&part(&whole, 1480, 2960, 0x20));
    assert!(matches!(
        bed.send(&part(&whole, 2960, 3008, 0)),
        Effect::None
    ));
    assert_eq!(bed.drops(DropReason::Offload), 1);
}

#[test]
fn the_gateway_answers_pings_and_asks_for_dns_only() {
    for (enclave, gateway) in [
        ("100.64.0.2", "100.64.0.1"),
        ("fd00:6e65:7464::2", "fd00:6e65:7464::1"),
    ] {
        let mut bed = Bed::new();
        bed.send(&ping(enclave, gateway, 1400));
        let reply = bed.one();
        let packet = reply.packet();
        let Transport::Echo(echo) = packet.transport() else {
            panic!("{packet:?}")
        };
        assert!(!echo.request && echo.payload == [7; 1400]);

        let source = SocketAddr::new(enclave.parse().unwrap(), 999).to_string();
        let port = |port| SocketAddr::new(gateway.parse().unwrap(), port).to_string();
        let dns = bed.send(&udp(&source, &port(53), b"query"));
        assert!(matches!(dns, Effect::Dns { query, .. } if &*query == b"query"));
        bed.send(&udp(&source, &port(54), b"x"));
        let unreachable = if enclave.contains(':') {
            (1, 4)
        } else {
            (3, 3)
        };
        assert_eq!(bed.one().icmp(), unreachable);
        bed.send(&tcp(&source, &port(80), SYN, 1, 0, &[]));
        assert_eq!(bed.one().segment().flags, RST | ACK);
        let dns = bed.send(&tcp(&source, &port(53), SYN, 1, 0, &[]));
        assert!(matches!(dns, Effect::Dial(_, DialTarget::Dns)));
    }
}

#[test]
fn an_echo_reply_carries_the_enclaves_identifier() {
    let mut bed = Bed::new();
    let outgoing = datagram(bed.send(&ping("100.64.0.2", "192.0.2.1", 8)));
    assert_eq!(
        (outgoing.kind, outgoing.sequence, outgoing.hop_limit),
        (DatagramKind::Echo, 3, 63)
    );
    // As the kernel hands it over: with an identifier of its own.
    let reply = receive(
        &mut bed,
        outgoing.flow,
        "192.0.2.1:0",
        &[0, 0, 0, 0, 1, 2, 0, 3, 7, 7],
    );
    let reply = reply.expect("passed on");
    let packet = reply.packet();
    let Transport::Echo(echo) = packet.transport() else {
        panic!("{packet:?}")
    };
    assert_eq!(
        (echo.identifier, echo.sequence, echo.payload),
        (9, 3, &[7, 7][..])
    );
}

#[test]
fn hop_limits_end_at_the_gateway() {
    let mut bed = Bed::new();
    let mut packet = udp(ENCLAVE, SERVER, b"x");
    packet[8] = 1;
    packet[10..12].fill(0);
    let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.ones_complement().to_ne_bytes());
    bed.send(&packet);
    assert_eq!(bed.one().icmp(), (11, 0));
}

#[test]
fn what_is_forged_or_broken_is_dropped_and_counted() {
    let mut bed = Bed::new();
    bed.send(&udp("100.64.0.9:9", SERVER, b"x"));
    bed.send(&[0x45, 0, 0]);
    let mut wrong_sum = udp(ENCLAVE, SERVER, b"x");
    *wrong_sum.last_mut().unwrap() ^= 1;
    bed.send(&wrong_sum);
    for reason in [
        DropReason::Spoofed,
        DropReason::Malformed,
        DropReason::Offload,
    ] {
        assert_eq!(bed.drops(reason), 1, "{reason:?}");
    }
    assert!(bed.sent().is_empty());
    assert_eq!(
        bed.engine.counters().drop_summary().to_string(),
        "malformed=1 offload=1 spoofed=1"
    );
}

proptest! {
    #[test]
    fn any_packet_from_the_enclave_is_judged_without_panic(
        packets in prop::collection::vec(
            (0usize..4, prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)),
            1..20,
        ),
    ) {
        let mut bed = Bed::new();
        for (which, changes) in packets {
            let mut packet = [
                tcp(ENCLAVE, SERVER, SYN, 999, 0, &[]),
                tcp(ENCLAVE, SERVER, ACK, 1000, 1, b"data"),
                udp(ENCLAVE, SERVER, b"data"),
                ping("100.64.0.2", "192.0.2.1", 8),
            ][which].clone();
            for (at, value) in changes {
                let at = at.index(packet.len());
                packet[at] = value;
            }
            let mut frame = vec![1, 0, 0, 0, 0, 0, 20, 0, 16, 0];
            frame.extend(&packet);
            match bed.engine.handle_packet(&frame, bed.now) {
                Effect::Dial(id, _) => { bed.engine.connected(id, bed.now); }
                Effect::Turn(id) => { bed.engine.egress(id, usize::MAX, bed.now); }
                _ => {}
            }
            bed.engine.queue().clear();
        }
    }
}

#[test]
fn a_full_link_stops_egress_and_loses_nothing() {
    let mut bed = Bed::new();
    let connection = Connection::open(&mut bed);
    while let Some(space) = bed.engine.queue().packet_space() {
        let length = space.len();
        bed.engine.queue().commit_packet(length);
    }
    let fill = |space: &mut [u8]| (100.min(space.len()), ());
    bed.engine
        .tcp(connection.id)
        .unwrap()
        .send(fill)
        .expect("room");
    assert_eq!(
        bed.engine.egress(connection.id, usize::MAX, bed.now),
        Egress::LinkFull
    );

    bed.engine.queue().clear();
    let sent = bed.egress(connection.id);
    assert_eq!(sent.iter().map(|s| s.segment().payload).sum::<usize>(), 100);
}

#[test]
fn a_flow_id_survives_its_way_through_a_token() {
    let id = FlowId {
        index: 7,
        generation: u32::MAX,
    };
    assert_eq!(FlowId::from_bits(id.to_bits()), id);
}
