//! What happens on the host: its sockets, its resolver, its errors.

use super::peer::{DIALING, enclave, gateway};
use super::{Known, World};
use crate::fuzz::{Input, craft, shape};
use host_netd::engine::{DatagramKind, DialError, FlowId, Received};
use netd_proto::build::{IcmpError, MAX_UDP_PAYLOAD};
use netd_proto::handshake::Features;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

impl World {
    /// A flow in this state, by one byte.
    fn flow(&self, input: &mut Input<'_>, state: Known) -> Option<FlowId> {
        let all: Vec<_> = (self.flows.iter())
            .filter(|(_, known)| **known == state)
            .map(|(id, _)| *id)
            .collect();
        (!all.is_empty()).then(|| all[input.below(all.len())])
    }

    pub(super) fn connected(&mut self, input: &mut Input<'_>) {
        let Some(id) = self.flow(input, Known::Dialing) else {
            return;
        };
        if self.engine.connected(id, self.now) {
            self.flows.insert(id, Known::Tcp);
            self.turn(id);
        } else {
            self.forget(id);
        }
    }

    pub(super) fn dial_failed(&mut self, input: &mut Input<'_>) {
        let Some(id) = self.flow(input, Known::Dialing) else {
            return;
        };
        let error = match input.byte() & 3 {
            0 => DialError::Refused,
            1 => DialError::Silent,
            _ => DialError::Icmp(icmp_error(input)),
        };
        self.engine.dial_failed(id, error);
        self.forget(id);
    }

    pub(super) fn accept(&mut self, input: &mut Input<'_>) {
        let clients = [
            "127.0.0.1:5000",
            "[::1]:5000",
            "100.64.0.2:5000",
            "100.64.0.1:53",
        ];
        let (index, mut client) = match input.below(2 + clients.len()) {
            index @ 0..=1 => (Some(DIALING + index), self.peers[DIALING + index].ends.1),
            index => (None, clients[index - 2].parse().expect("an address")),
        };
        if input.byte() & 7 == 7 {
            let mapped = |ip| match ip {
                IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
                v6 => v6,
            };
            client.set_ip(mapped(client.ip()));
        }
        if let Ok(id) = self.engine.accept(client, 8080, self.now) {
            let known = self.flows.insert(id, Known::Tcp);
            assert_eq!(known, None, "a new flow has the name of another");
            if let Some(index) = index {
                self.peers[index].open(id);
            }
            self.turn(id);
        }
    }

    /// The host has bytes for a flow.
    pub(super) fn give(&mut self, input: &mut Input<'_>) {
        let length = shape::length(input) * (1 + usize::from(input.byte() >> 5));
        let Some(id) = self.flow(input, Known::Tcp) else {
            return;
        };
        let mut peer = self.peers.iter_mut().find(|peer| peer.flow == Some(id));
        let Some(mut flow) = self.engine.tcp(id) else {
            return;
        };
        let mut rest = length;
        while rest > 0 {
            let given = flow.send(|space| {
                let n = space.len().min(rest);
                match &mut peer {
                    Some(peer) => peer.gives(&mut space[..n]),
                    None => space[..n].fill(0),
                }
                (n, n)
            });
            match given {
                Some(n) if n > 0 => rest -= n,
                _ => break,
            }
        }
        self.turn(id);
    }

    /// The host takes bytes of a flow.
    pub(super) fn take(&mut self, input: &mut Input<'_>) {
        let most = match input.byte() & 3 {
            0 => shape::length(input),
            _ => usize::MAX,
        };
        let Some(id) = self.flow(input, Known::Tcp) else {
            return;
        };
        let mut peer = self.peers.iter_mut().find(|peer| peer.flow == Some(id));
        let Some(mut flow) = self.engine.tcp(id) else {
            return;
        };
        let mut rest = most;
        while rest > 0 {
            let taken = flow.receive(|bytes| {
                let n = bytes.len().min(rest);
                if let Some(peer) = &mut peer {
                    peer.takes(&bytes[..n]);
                }
                (n, n)
            });
            match taken {
                Some(n) if n > 0 => rest -= n,
                _ => break,
            }
        }
        self.turn(id);
    }

    pub(super) fn end_half(&mut self, input: &mut Input<'_>) {
        let abort = input.byte() & 3 == 3;
        let Some(id) = self.flow(input, Known::Tcp) else {
            return;
        };
        if let Some(mut flow) = self.engine.tcp(id) {
            if abort {
                flow.abort();
            } else {
                flow.finish();
            }
        }
        self.turn(id);
    }

    fn any_datagram_flow(&self, input: &mut Input<'_>) -> Option<(FlowId, DatagramKind, bool)> {
        let mut all = self.flows.iter().filter_map(|(id, known)| match known {
            Known::Datagram { kind, ipv6 } => Some((*id, *kind, *ipv6)),
            _ => None,
        });
        let count = all.clone().count();
        all.nth(input.below(count.max(1)))
    }

    /// Something arrived at the socket of a datagram flow.
    pub(super) fn receive(&mut self, input: &mut Input<'_>) {
        let Some((id, kind, ipv6)) = self.any_datagram_flow(input) else {
            return;
        };
        for _ in 0..=input.below(8) {
            let length = shape::length(input).min(MAX_UDP_PAYLOAD);
            let from = outside(input, ipv6);
            let segment = input.byte();
            // No kernel reports such a sender.
            if from.ip().is_unspecified() {
                continue;
            }
            let Some(space) = self.engine.datagram_space(id) else {
                break;
            };
            assert!(
                space.place.len() + space.spill.len() >= length,
                "no room for a datagram"
            );
            let (place, spill) = (space.place, space.spill);
            for (byte, index) in place.iter_mut().chain(spill).take(length).zip(0..) {
                *byte = craft::stream_byte(index);
            }
            let reply = if ipv6 { 129 } else { 0 };
            if kind == DatagramKind::Echo && segment < 0xf0 && !place.is_empty() {
                place[0] = reply;
            }
            let segment = usize::from(segment) * 8;
            let many = kind == DatagramKind::Udp
                && self.features.contains(Features::CHECKSUM.or(Features::USO))
                && (1..length).contains(&segment)
                && length <= segment * 64;
            let received = Received {
                from,
                length,
                segment: many.then(|| u16::try_from(segment).expect("small")),
                hop_limit: input.flag().then(|| input.byte()),
            };
            self.engine.commit_datagram(id, received, self.now);
        }
        self.engine.seal_run();
        self.look();
    }

    pub(super) fn datagram_error(&mut self, input: &mut Input<'_>) {
        let Some((id, _, ipv6)) = self.any_datagram_flow(input) else {
            return;
        };
        let error = icmp_error(input);
        let (other_from, other_to) = (input.byte() == 0xff, input.byte() == 0xff);
        let from = input.flag().then(|| outside(input, ipv6 ^ other_from));
        let to = outside(input, ipv6 ^ other_to);
        let (sequence, n) = (input.word(), shape::length(input));
        let payload = vec![0x5a; n];
        let from = from.map(|from| from.ip());
        self.engine
            .datagram_error(id, from, to, error, sequence, &payload);
    }

    pub(super) fn dns(&mut self, input: &mut Input<'_>) {
        let from = input.pick(&[IpAddr::V4([0; 4].into()), IpAddr::V6([0; 16].into())]);
        let (client, server) = (
            SocketAddr::new(enclave(from), input.word()),
            SocketAddr::new(gateway(from), 53),
        );
        let message = vec![0x33; shape::length(input)];
        self.engine.dns_answer(server, client, &message);
        let addresses = [outside(input, false).ip(), outside(input, true).ip()];
        let keep = Duration::from_secs(input.byte().into());
        self.engine.learn("a.example", &addresses, keep, self.now);
    }

    /// The host cannot go on with a flow.
    pub(super) fn drop_flow(&mut self, input: &mut Input<'_>) {
        let count = self.flows.len();
        let id = self.flows.keys().nth(input.below(count.max(1))).copied();
        if let Some(id) = id {
            self.forget(id);
        }
    }
}

fn outside(input: &mut Input<'_>, ipv6: bool) -> SocketAddr {
    let choices: [&str; 6] = if ipv6 {
        [
            "[2001:db8::53]:53",
            "[2001:db8::1]:443",
            "[::1]:80",
            "[fd00:6e65:7464::2]:9",
            "[::ffff:192.0.2.1]:9",
            "[::]:0",
        ]
    } else {
        [
            "192.0.2.53:53",
            "192.0.2.1:443",
            "127.0.0.1:80",
            "100.64.0.2:9",
            "100.64.0.1:53",
            "0.0.0.0:0",
        ]
    };
    input.pick(&choices).parse().expect("an address")
}

fn icmp_error(input: &mut Input<'_>) -> IcmpError {
    match input.byte() & 7 {
        0 => IcmpError::NetUnreachable,
        1 => IcmpError::HostUnreachable,
        2 => IcmpError::PortUnreachable,
        3 => IcmpError::Prohibited,
        4 => IcmpError::PacketTooBig { mtu: input.word() },
        5 => IcmpError::TimeExceeded,
        _ => IcmpError::Other(input.byte(), input.byte(), input.long()),
    }
}
