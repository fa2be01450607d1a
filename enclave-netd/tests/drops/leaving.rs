//! What no program may send, and why it is dropped.

use crate::packets::{PEER, US, icmp, other, tcp, udp};
use etherparse::IpNumber;

/// What no packet of a program may be, and why.
pub fn unwelcome(family: usize) -> Vec<(&'static str, Vec<u8>)> {
    let (us, peer) = (US[family], PEER[family]);
    let leaving = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        let (from, to, size) = [(12, 16, 4), (8, 24, 16)][family];
        let (a, b) = (
            packet[from..from + size].to_vec(),
            packet[to..to + size].to_vec(),
        );
        packet[from..from + size].copy_from_slice(&b);
        packet[to..to + size].copy_from_slice(&a);
        packet
    };
    let mut rows = vec![
        ("out_malformed", vec![[0x45, 0x60][family]; 30]),
        ("out_malformed", tcp(us, peer)[..30].to_vec()),
        (
            "out_source",
            tcp(["192.0.2.9", "2001:db8::9"][family], peer),
        ),
        ("out_source", tcp(["127.0.0.1", "::1"][family], peer)),
        ("out_destination", udp(us, us, 1, b"text")),
        (
            "out_protocol",
            leaving(&other(family, IpNumber::GRE, &[0; 40])),
        ),
        ("out_protocol", leaving(&icmp(family, [5, 137][family]))),
        (
            "out_policy",
            udp(us, ["198.51.100.1", "2001:db8:1::1"][family], 1, b"text"),
        ),
    ];
    let to: &[&str] = [
        &["224.0.0.1", "127.0.0.1", "255.255.255.255", "0.0.0.0"][..],
        &["ff02::1", "::1", "fe80::1", "::"],
    ][family];
    rows.extend(
        to.iter()
            .map(|to| ("out_destination", udp(us, to, 1, b"text"))),
    );
    rows
}
