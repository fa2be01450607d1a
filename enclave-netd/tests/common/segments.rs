//! Just enough TCP to be the other end of a real socket.

use super::host::Link;
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, TcpHeader, TcpOptionElement};
use netd_proto::packet::{Packet, Transport};
use std::net::{IpAddr, SocketAddr};

/// What a segment from the enclave said.
#[derive(Clone, Debug)]
pub struct Segment {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: String,
    pub payload: Vec<u8>,
}

pub fn ip(src: IpAddr, dst: IpAddr) -> PacketBuilderStep<IpHeaders> {
    match (src, dst) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
        _ => panic!("two families"),
    }
}

pub fn segment(packet: &[u8]) -> Option<Segment> {
    let packet = Packet::parse(packet).expect("the daemon sends valid packets");
    let Transport::Tcp(tcp) = packet.transport() else {
        return None;
    };
    let flags = [
        (tcp.syn(), 'S'),
        (tcp.ack(), 'A'),
        (tcp.fin(), 'F'),
        (tcp.rst(), 'R'),
    ];
    Some(Segment {
        src: SocketAddr::new(packet.src(), tcp.source_port()),
        dst: SocketAddr::new(packet.dst(), tcp.destination_port()),
        seq: tcp.sequence_number(),
        ack: tcp.acknowledgment_number(),
        flags: flags
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, name)| name)
            .collect(),
        payload: tcp.payload().to_vec(),
    })
}

/// A segment to send to the enclave.
pub fn build(src: SocketAddr, dst: SocketAddr, seq: u32, ack: Option<u32>, flags: &str) -> Vec<u8> {
    let mut header = TcpHeader::new(src.port(), dst.port(), seq, u16::MAX);
    header.syn = flags.contains('S');
    header.fin = flags.contains('F');
    header.rst = flags.contains('R');
    header.ack = ack.is_some();
    header.acknowledgment_number = ack.unwrap_or(0);
    if header.syn {
        let options = [
            TcpOptionElement::MaximumSegmentSize(1400),
            TcpOptionElement::WindowScale(7),
        ];
        header.set_options(&options).expect("short");
    }
    let mut bytes = Vec::new();
    ip(src.ip(), dst.ip())
        .tcp_header(header)
        .write(&mut bytes, &[])
        .expect("built");
    bytes
}

/// The next segment on the link that `wanted` likes.
pub fn next(link: &mut Link, wanted: impl Fn(&Segment) -> bool) -> Segment {
    link.packet(|_, packet| segment(packet).filter(&wanted))
}

/// Takes the enclave's SYN to `peer` and answers it; returns the SYN.
pub fn accept(link: &mut Link, peer: SocketAddr) -> Segment {
    let syn = next(link, |s| s.dst == peer && s.flags == "S");
    link.send_packet(&build(
        peer,
        syn.src,
        5000,
        Some(syn.seq.wrapping_add(1)),
        "S",
    ));
    next(link, |s| {
        s.dst == peer && s.src == syn.src && s.flags == "A"
    });
    syn
}
