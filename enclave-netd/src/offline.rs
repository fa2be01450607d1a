//! Answers that the enclave's kernel gets from this daemon instead of from the network.
//!
//! Without a link nothing may hang: a connect fails at once, a segment of a flow that is gone is
//! answered with a reset, a datagram with "network unreachable". A flow that a rule forbids is
//! told so.

use netd_proto::build::{IcmpError, MAX_ICMP_ERROR, icmp_error, tcp_reset};
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{Packet, Transport};
use std::net::IpAddr;

const HEADER: usize = VnetHeader::LEN;

/// Room for one answer, with the empty virtio-net header that the tun wants before it.
#[derive(Debug)]
pub(crate) struct Reply {
    buffer: Box<[u8; HEADER + MAX_ICMP_ERROR]>,
}

impl Reply {
    pub(crate) fn new() -> Reply {
        Reply {
            buffer: Box::new([0; HEADER + MAX_ICMP_ERROR]),
        }
    }

    /// The ICMP error about `packet` that its sender is told by `gateway`. `None` for what must
    /// not be answered (RFC 1122, 3.2.2): other errors, and fragments but the first.
    pub(crate) fn icmp(
        &mut self,
        packet: &Packet<'_>,
        gateway: IpAddr,
        error: IcmpError,
    ) -> Option<&[u8]> {
        match packet.transport() {
            Transport::Icmp { .. } => return None,
            Transport::Fragment(fragment) if fragment.offset != 0 => return None,
            _ => {}
        }
        let out = &mut self.buffer[HEADER..];
        let length = icmp_error(out, gateway, packet.src(), error, packet.bytes());
        Some(&self.buffer[..HEADER + length])
    }

    /// The reset that answers a TCP segment.
    pub(crate) fn reset(&mut self, packet: &Packet<'_>) -> Option<&[u8]> {
        let length = tcp_reset(&mut self.buffer[HEADER..], packet)?;
        Some(&self.buffer[..HEADER + length])
    }

    /// Writes what tells the sender of `packet` that it went nowhere because of `error`.
    ///
    /// A SYN is answered twice. The ICMP error gives the program the true reason, but the kernel
    /// drops it when it comes while the program is still inside `connect()`; the reset is kept
    /// for later then, and is a segment of no socket otherwise.
    pub(crate) fn unreachable(
        &mut self,
        packet: &Packet<'_>,
        gateway: IpAddr,
        error: IcmpError,
        mut write: impl FnMut(&[u8]),
    ) {
        let opens = matches!(packet.transport(), Transport::Tcp(tcp) if tcp.syn() && !tcp.ack());
        let tcp = matches!(packet.transport(), Transport::Tcp(_));
        if opens || !tcp {
            self.icmp(packet, gateway, error).map(&mut write);
        }
        if tcp {
            self.reset(packet).map(write);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    const US: [u8; 4] = [100, 64, 0, 2];
    const PEER: [u8; 4] = [192, 0, 2, 1];
    const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(100, 64, 0, 1));

    fn answers(bytes: &[u8]) -> Vec<Vec<u8>> {
        let packet = Packet::parse(bytes).expect("valid");
        let mut answers = Vec::new();
        Reply::new().unreachable(&packet, GATEWAY, IcmpError::NetUnreachable, |answer| {
            let (header, packet) = answer.split_at(HEADER);
            assert_eq!(header, [0; HEADER]);
            answers.push(packet.to_vec());
        });
        answers
    }

    fn icmp_kind(bytes: &[u8]) -> (u8, u8) {
        match Packet::parse(bytes).expect("valid").transport() {
            Transport::Icmp { kind, code } => (*kind, *code),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_segment_is_answered_with_the_reset_its_sender_must_believe() {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4(US, PEER, 64)
            .tcp(40000, 443, 1000, 500)
            .ack(7777);
        builder.write(&mut bytes, b"data").expect("built");

        let answers = answers(&bytes);

        let [reset] = answers.as_slice() else {
            panic!("{answers:?}")
        };
        let packet = Packet::parse(reset).expect("valid");
        let Transport::Tcp(tcp) = packet.transport() else {
            panic!("{packet:?}")
        };
        assert!(tcp.rst() && !tcp.ack() && packet.transport_checksum_is_right());
        assert_eq!(tcp.sequence_number(), 7777);
        assert_eq!(packet.dst(), IpAddr::from(US));
    }

    #[test]
    fn a_syn_is_answered_with_the_reason_and_a_reset() {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4(US, PEER, 64)
            .tcp(40000, 443, 1000, 500)
            .syn();
        builder.write(&mut bytes, &[]).expect("built");

        let answers = answers(&bytes);

        assert_eq!(answers.len(), 2);
        assert_eq!(icmp_kind(&answers[0]), (3, 0));
        let packet = Packet::parse(&answers[1]).expect("valid");
        let Transport::Tcp(tcp) = packet.transport() else {
            panic!("{packet:?}")
        };
        assert!(tcp.rst() && tcp.ack());
        assert_eq!(tcp.acknowledgment_number(), 1001);
    }

    #[test]
    fn a_reset_and_an_icmp_error_are_not_answered() {
        let mut reset = Vec::new();
        let builder = PacketBuilder::ipv4(US, PEER, 64)
            .tcp(40000, 443, 1000, 500)
            .rst();
        builder.write(&mut reset, &[]).expect("built");
        assert!(answers(&reset).is_empty());

        let mut error = vec![0; 100];
        let length = icmp_error(
            &mut error,
            US.into(),
            PEER.into(),
            IcmpError::PortUnreachable,
            &reset,
        );
        assert!(answers(&error[..length]).is_empty());
    }

    #[test]
    fn datagrams_and_pings_of_both_families_are_told() {
        let mut v6 = Vec::new();
        let builder = PacketBuilder::ipv6([0xFD; 16], [0x20; 16], 64).udp(1, 2);
        builder.write(&mut v6, b"x").expect("built");
        let packet = Packet::parse(&v6).expect("valid");
        let mut reply = Reply::new();
        let gateway = "fd00::1".parse().expect("valid");
        let answer = reply
            .icmp(&packet, gateway, IcmpError::NetUnreachable)
            .expect("answered");
        assert_eq!(icmp_kind(&answer[HEADER..]), (1, 0));

        let mut ping = Vec::new();
        let builder = PacketBuilder::ipv4(US, PEER, 64).icmpv4_echo_request(1, 2);
        builder.write(&mut ping, b"x").expect("built");
        let answers = answers(&ping);
        assert_eq!(
            answers.iter().map(|a| icmp_kind(a)).collect::<Vec<_>>(),
            [(3, 0)]
        );
    }
}
