//! TCP connections of the enclave, as the fuzz target `engine` keeps them: enough to write segments
//! that fit, and to know what every byte of both streams is.

use crate::fuzz::craft::{Ends, RST, SYN, Segment, stream_byte, tcp};
use crate::fuzz::own_hello;
use host_netd::engine::FlowId;
use netd_proto::packet::{Packet, Transport};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// One connection: the enclave's end first.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) ends: Ends,
    /// The engine's flow, from the dial or accept on.
    pub(super) flow: Option<FlowId>,
    /// First sequence number of the enclave.
    isn: u32,
    /// What the enclave would send next.
    seq: u32,
    /// What it would acknowledge next.
    ack: u32,
    /// First sequence number of the engine.
    other_isn: Option<u32>,
    /// A segment of the enclave contradicted the known stream.
    tainted: bool,
    /// Bytes the host took and gave.
    taken: u32,
    given: u32,
}

/// Peers whose connections the enclave opens; the last two of all are clients of published ports.
pub(super) const DIALING: usize = 6;

/// All peers of a run.
pub(super) fn peers() -> Vec<Peer> {
    let outside = [
        "192.0.2.1:443",
        "[2001:db8::1]:443",
        "192.0.2.2:80",
        "[2001:db8::2]:80",
        "100.64.0.1:53",
        "[fd00:6e65:7464::1]:53",
        "198.51.100.9:5000",
        "[2001:db8::9]:5000",
    ];
    let peer = |(index, outside): (usize, &str)| {
        let outside: SocketAddr = outside.parse().expect("an address");
        let port = if index < DIALING { 40_000 } else { 8080 };
        let isn = if index & 2 == 0 { u32::MAX - 2000 } else { 999 };
        Peer {
            ends: (SocketAddr::new(enclave(outside.ip()), port), outside),
            flow: None,
            isn,
            seq: isn,
            ack: 0,
            other_isn: None,
            tainted: false,
            taken: 0,
            given: 0,
        }
    };
    outside.into_iter().enumerate().map(peer).collect()
}

/// The enclave's address of the family of `like`.
pub(super) fn enclave(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => own_hello().v4.enclave.into(),
        IpAddr::V6(_) => own_hello().v6.enclave.into(),
    }
}

/// The gateway's address of the family of `like`.
pub(super) fn gateway(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => own_hello().v4.gateway.into(),
        IpAddr::V6(_) => own_hello().v6.gateway.into(),
    }
}

/// Whether a packet may come from `ip`.
pub(super) fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => (1..224).contains(&v4.octets()[0]) && v4.octets()[0] != 127,
        IpAddr::V6(v6) => {
            !v6.is_multicast() && v6 != Ipv6Addr::UNSPECIFIED && v6 != Ipv6Addr::LOCALHOST
        }
    }
}

impl Peer {
    /// A new flow has this peer's ends.
    pub(super) fn open(&mut self, flow: FlowId) {
        self.flow = Some(flow);
        self.seq = self.isn;
        self.other_isn = None;
        self.tainted = false;
        self.taken = 0;
        self.given = 0;
    }

    /// A segment at `seq` and `ack` from where the connection stands, with `length` bytes of the
    /// enclave's stream.
    pub(super) fn segment(&mut self, mut segment: Segment, hops: u8, length: usize) -> Vec<u8> {
        let in_order = segment.seq == 0;
        let syn = segment.flags & SYN != 0;
        if syn && segment.seq == 0 {
            segment.seq = self.isn;
        } else {
            segment.seq = segment.seq.wrapping_add(self.seq);
        }
        segment.ack = segment.ack.wrapping_add(self.ack);
        let begin = segment
            .seq
            .wrapping_sub(self.isn)
            .wrapping_sub(u32::from(!syn));
        let count = u32::try_from(length).expect("short");
        let payload: Vec<u8> = (0..count)
            .map(|i| stream_byte(begin.wrapping_add(i)))
            .collect();
        if in_order && segment.flags & RST == 0 {
            let flags = u32::from(syn) + u32::from(segment.flags & 1);
            self.seq = segment.seq.wrapping_add(count).wrapping_add(flags);
        }
        tcp(self.ends, hops, &segment, &payload)
    }

    /// Notes a packet of the enclave, whoever made it.
    pub(super) fn sends(&mut self, packet: &Packet<'_>) {
        let Transport::Tcp(tcp) = packet.transport() else {
            return;
        };
        let seq = tcp.sequence_number();
        let begin = seq
            .wrapping_sub(self.isn)
            .wrapping_sub(u32::from(!tcp.syn()));
        let fits = |(i, byte): (u32, &u8)| stream_byte(begin.wrapping_add(i)) == *byte;
        let consistent = (0..).zip(tcp.payload()).all(fits);
        self.tainted |= !consistent || tcp.syn() && seq != self.isn;
    }

    /// Checks a packet of the engine that comes from this peer.
    pub(super) fn receives(&mut self, packet: &Packet<'_>) {
        let Transport::Tcp(tcp) = packet.transport() else {
            return;
        };
        let (seq, payload) = (tcp.sequence_number(), tcp.payload());
        let length = u32::try_from(payload.len()).expect("short");
        if tcp.syn() {
            self.other_isn = Some(seq);
        }
        if let Some(isn) = self.other_isn.filter(|_| !tcp.rst()) {
            let begin = seq.wrapping_sub(isn).wrapping_sub(u32::from(!tcp.syn()));
            // A keep-alive probe repeats a byte, without its content.
            let is_probe = payload == [0];
            let known = |(i, byte): (u32, &u8)| stream_byte(begin.wrapping_add(i)) == *byte;
            assert!(
                is_probe || (0..).zip(payload).all(known),
                "the enclave gets other bytes than the host gave"
            );
            assert!(
                is_probe || begin.wrapping_add(length) <= self.given || length == 0,
                "the enclave gets more bytes than the host gave"
            );
        }
        let end = seq
            .wrapping_add(length)
            .wrapping_add(u32::from(tcp.syn()) + u32::from(tcp.fin()));
        self.ack = end;
    }

    /// The host gives bytes to the flow: fills `space`.
    pub(super) fn gives(&mut self, space: &mut [u8]) {
        for byte in space {
            *byte = stream_byte(self.given);
            self.given = self.given.wrapping_add(1);
        }
    }

    /// The host takes bytes of the flow.
    pub(super) fn takes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            assert!(
                self.tainted || *byte == stream_byte(self.taken),
                "the host gets other bytes than the enclave sent"
            );
            self.taken = self.taken.wrapping_add(1);
        }
    }
}
