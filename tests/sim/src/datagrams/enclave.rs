//! The enclave's programs and kernel, as far as datagrams go.

use super::{Expected, destination, payload};
use crate::world::{World, enclave_of};
use netd_proto::build::{self, EchoHeader};
use netd_proto::handshake::Features;
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{Packet, Transport};
use netd_proto::run::mark_super_datagram;
use std::net::{IpAddr, SocketAddr};

/// Its protocol number.
const UDP: u8 = 17;

impl World {
    pub(crate) fn enclave_sends_udp(&mut self, port: u16) {
        let features = self.terms.features;
        let random = &mut self.random;
        let ipv6 = random.percent(50);
        let to = destination(random, ipv6);
        let from = SocketAddr::new(enclave_of(to), port);
        let longest = usize::from(self.terms.mtu) - build::udp_headroom(ipv6);
        let many = features.contains(Features::CHECKSUM.or(Features::USO)) && random.percent(30);
        let (size, count) = match many {
            true => (random.within(1..=1200), random.within(2..=20)),
            false => (random.within(0..=longest.min(1500)), 1),
        };
        // The last may be shorter.
        let length = size * count - if many { random.below(size) } else { 0 };
        let bytes = payload(random, length);
        let headroom = VnetHeader::LEN + build::udp_headroom(ipv6);
        let mut frame = vec![0; headroom];
        frame.extend(&bytes);
        let (_, vnet) = build::udp(&mut frame[VnetHeader::LEN..], from, to, 64, length);
        if features.contains(Features::CHECKSUM) {
            frame[..VnetHeader::LEN].copy_from_slice(&vnet.encode());
        } else {
            build::complete_checksum(&mut frame[VnetHeader::LEN..], &vnet);
        }
        if many && length > size {
            mark_super_datagram(ipv6, size as u16, &mut frame);
        }
        self.up.push_back(frame);
    }

    pub(crate) fn enclave_sends_echo(&mut self, identifier: u16) {
        let random = &mut self.random;
        let ipv6 = random.percent(50);
        let to = destination(random, ipv6);
        let length = random.within(0..=1200);
        let bytes = payload(random, length);
        let header = EchoHeader {
            request: true,
            identifier,
            sequence: random.any() as u16,
        };
        let headroom = build::echo_headroom(ipv6);
        let mut frame = vec![0; VnetHeader::LEN + headroom];
        frame.extend(&bytes);
        let from = enclave_of(to);
        build::echo(
            &mut frame[VnetHeader::LEN..],
            from,
            to.ip(),
            64,
            header,
            length,
        );
        self.up.push_back(frame);
    }

    pub(crate) fn enclave_gets_datagrams(&mut self, packet: &Packet<'_>, vnet: &VnetHeader) {
        let Transport::Udp(udp) = packet.transport() else {
            return;
        };
        let from = SocketAddr::new(packet.src(), udp.source_port());
        let to = SocketAddr::new(packet.dst(), udp.destination_port());
        let bytes = udp.payload();
        let size = vnet.datagram_size().map_or(bytes.len(), usize::from);
        if bytes.is_empty() {
            let payload = Vec::new();
            return self.sees(Expected::Udp { from, to, payload });
        }
        for part in bytes.chunks(size) {
            let payload = part.to_vec();
            self.sees(Expected::Udp { from, to, payload });
        }
    }

    pub(crate) fn enclave_gets_echo(&mut self, packet: &Packet<'_>) {
        let Transport::Echo(echo) = packet.transport() else {
            return;
        };
        assert!(!echo.request, "nobody pings the enclave");
        self.sees(Expected::Echo {
            from: packet.src(),
            to: SocketAddr::new(packet.dst(), echo.identifier),
            sequence: echo.sequence,
            payload: echo.payload.to_vec(),
        });
    }

    /// An ICMP error about a datagram, whose beginning it quotes.
    pub(crate) fn enclave_gets_error(&mut self, what: (u8, u8), quoted: &[u8]) {
        let ipv6 = quoted[0] >> 4 == 6;
        let ip = |at: usize| -> IpAddr {
            match ipv6 {
                true => <[u8; 16]>::try_from(&quoted[at..at + 16]).unwrap().into(),
                false => <[u8; 4]>::try_from(&quoted[at..at + 4]).unwrap().into(),
            }
        };
        let (from, to) = if ipv6 {
            (ip(8), ip(24))
        } else {
            (ip(12), ip(16))
        };
        let protocol = quoted[if ipv6 { 6 } else { 9 }];
        let header = &quoted[if ipv6 { 40 } else { 20 }..];
        let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let about = if protocol == UDP {
            let (source, destination) = (number(0), number(2));
            (
                SocketAddr::new(from, source),
                SocketAddr::new(to, destination),
            )
        } else {
            (SocketAddr::new(from, number(4)), SocketAddr::new(to, 0))
        };
        self.sees(Expected::Error { what, about });
    }
}
