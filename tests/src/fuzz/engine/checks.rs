//! What holds for everything that the engine sends.

use super::peer::{enclave, gateway, is_unicast};
use crate::fuzz::own_hello;
use netd_proto::build::complete_checksum;
use netd_proto::handshake::Features;
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{Packet, Transport};
use std::net::{IpAddr, SocketAddr};

/// What a datagram or connect that leaves the host may be sent to, if `asked` was the destination.
pub(super) fn may_leave(to: SocketAddr, asked: SocketAddr) {
    let hello = own_hello();
    let stands_for_loopback = [
        IpAddr::from(hello.v4.parent_loopback),
        IpAddr::from(hello.v6.parent_loopback),
    ]
    .contains(&asked.ip());
    assert!(is_unicast(to.ip()) || to.ip().is_loopback() && stands_for_loopback);
    assert!(to.ip() != enclave(to.ip()) && to.ip() != gateway(to.ip()));
}

/// Checks a packet for the enclave: the payload of its frame.
pub(super) fn is_sound(frame: &[u8], features: Features) -> Packet<'_> {
    let (vnet, bytes) = VnetHeader::split(frame).expect("has a header");
    let packet = Packet::parse(bytes).expect("is whole");
    let dst = packet.dst();
    assert_eq!(dst, enclave(dst), "for someone else");
    let src = packet.src();
    assert!(
        src != dst && is_unicast(src),
        "no answer may come from {src}"
    );
    vnet.check(&packet, features).expect("as agreed");
    assert!(
        !matches!(
            packet.transport(),
            Transport::Fragment(_) | Transport::Other(_)
        ),
        "of a kind that the enclave does not take"
    );
    if vnet.needs_checksum() {
        let mut whole = bytes.to_vec();
        complete_checksum(&mut whole, &vnet);
        let whole = Packet::parse(&whole).expect("only a checksum differs");
        assert!(whole.transport_checksum_is_right(), "the partial checksum");
    }
    packet
}
