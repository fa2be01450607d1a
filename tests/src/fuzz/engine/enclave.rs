//! What the enclave does: packets of all kinds.

use super::World;
use super::peer::enclave;
use crate::fuzz::craft::{self, Segment, echo, fragment, icmp, ip, udp};
use crate::fuzz::{Input, shape};
use host_netd::engine::Effect;
use netd_proto::build::{EchoHeader, MAX_UDP_PAYLOAD};
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{Packet, Protocol};
use std::net::SocketAddr;

impl World {
    pub(super) fn segment(&mut self, input: &mut Input<'_>) {
        let index = input.below(self.peers.len());
        let flags = shape::flags(input);
        let segment = Segment {
            flags,
            seq: shape::distance(input),
            ack: shape::distance(input),
            window: shape::window(input),
            options: shape::options(input, flags),
        };
        let (hops, length) = (shape::hop_limit(input), shape::length(input));
        let packet = self.peers[index].segment(segment, hops, length.min(65_000));
        self.send(packet, input);
    }

    pub(super) fn datagram(&mut self, input: &mut Input<'_>) {
        let to = self.destination(input);
        let from = SocketAddr::new(enclave(to.ip()), 4000 + u16::from(input.byte() & 15));
        let (hops, length) = (shape::hop_limit(input), shape::length(input));
        let payload: Vec<u8> = (0..1 << 16)
            .map(craft::stream_byte)
            .take(length.min(MAX_UDP_PAYLOAD))
            .collect();
        let packet = match input.byte() & 3 {
            0..=2 => udp((from, to), hops, &payload),
            _ => {
                let header = EchoHeader {
                    request: input.byte() & 7 != 7,
                    identifier: from.port(),
                    sequence: input.byte().into(),
                };
                echo((from.ip(), to.ip()), hops, header, &payload)
            }
        };
        if input.byte() & 3 != 3 {
            return self.send(packet, input);
        }
        // In parts, which the input may reorder, repeat or leave out.
        let ipv6 = packet[0] >> 4 == 6;
        let body = &packet[if ipv6 { 40 } else { 20 }..];
        let (units, identification) = (1 + usize::from(input.byte()), input.byte());
        let parts: Vec<_> = body.chunks(8 * units).take(24).collect();
        for in_order in 0..parts.len() {
            let at = match input.byte() & 7 {
                0..=6 => in_order,
                _ => input.below(parts.len()),
            };
            let offset = u16::try_from(at * units).expect("within 64 KiB");
            let more = at + 1 < parts.len();
            let part = fragment(&packet, identification.into(), offset, parts[at], more);
            self.send(part, input);
        }
    }

    /// Packets that no flow has: errors, other protocols, other destinations.
    pub(super) fn other_packet(&mut self, input: &mut Input<'_>) {
        let to = self.destination(input);
        let from = SocketAddr::new(enclave(to.ip()), 50_000);
        let hops = shape::hop_limit(input);
        let packet = match input.byte() & 3 {
            0 | 1 => {
                let flags = shape::flags(input);
                let segment = Segment {
                    flags,
                    options: shape::options(input, flags),
                    ..Segment::default()
                };
                craft::tcp((from, to), hops, &segment, &[])
            }
            2 => {
                let kind = (input.byte(), input.byte());
                let n = input.below(64);
                icmp((from.ip(), to.ip()), hops, kind, input.take(n))
            }
            _ => {
                let (protocol, n) = (input.byte(), input.below(64));
                ip((from.ip(), to.ip()), protocol, hops, input.take(n))
            }
        };
        self.send(packet, input);
    }

    fn destination(&self, input: &mut Input<'_>) -> SocketAddr {
        let choices = [
            "192.0.2.53:53",
            "[2001:db8::53]:53",
            "100.64.0.1:53",
            "[fd00:6e65:7464::1]:53",
            "100.64.0.1:7",
            "100.64.0.3:80",
            "[fd00:6e65:7464::3]:80",
            "169.254.169.254:80",
            "127.0.0.1:80",
            "[::1]:80",
            "224.0.0.251:5353",
            "[ff02::fb]:5353",
            "255.255.255.255:67",
            "0.0.0.0:9",
            "100.64.0.2:9",
            "[::ffff:192.0.2.1]:9",
        ];
        match input.below(2 * choices.len()) {
            index if index < choices.len() => choices[index].parse().expect("an address"),
            index => self.peers[index % 4].ends.1,
        }
    }

    fn send(&mut self, packet: Vec<u8>, input: &mut Input<'_>) {
        let mut frame = craft::frame(packet, shape::offload(input));
        if input.byte() >= 0xf0 {
            craft::damage(&mut frame, input);
        }
        self.packet(&frame);
    }

    pub(super) fn packet(&mut self, frame: &[u8]) {
        let parsed = VnetHeader::split(frame).and_then(|(_, bytes)| Packet::parse(bytes).ok());
        let key = parsed.as_ref().and_then(Packet::flow_key);
        let peer = key.and_then(|key| self.peer_of((key.src, key.dst), key.protocol));
        let effect = self.engine.handle_packet(frame, self.now);
        if let Effect::Dial(id, _) | Effect::Redial { id, .. } = &effect
            && let Some(index) = peer
        {
            self.peers[index].open(*id);
        }
        if let (Some(index), Some(packet)) = (peer, &parsed) {
            self.peers[index].sends(packet);
        }
        let todo = self.does(effect, key);
        self.look();
        if let Some(id) = todo {
            self.turn(id);
        }
    }

    fn peer_of(&self, ends: (SocketAddr, SocketAddr), protocol: Protocol) -> Option<usize> {
        let mut peers = self.peers.iter();
        peers.position(|peer| peer.ends == ends && protocol == Protocol::Tcp)
    }
}
