//! What may leave the enclave, and what may enter.
//!
//! # Theory of operation
//! The guard sees every packet between the tun and the link and keeps no table of flows: the
//! kernel of the enclave has one already, and what it does not know it answers with a reset.
//! The guard decides from the packet alone, from the configuration, and from small memories of
//! fixed size:
//!
//! * when each local UDP port last sent something, by family. A datagram from outside enters only
//!   for a published port or for one that sent within [`UDP_REPLY_WINDOW`](crate::limits::UDP_REPLY_WINDOW);
//! * which peers lately sent to a published UDP port, so that answers to them pass rules that
//!   would forbid to *begin* a flow to them.
//!
//! Where a rule names a host, the answers of the gateway's resolver are read as they enter: they
//! say which addresses the name has. An answer counts once, and only for a question that left
//! before it. (Answers over TCP are not read.)
//!
//! For TCP the same is told by the flags: rules apply to the segment that opens a flow (SYN
//! without ACK), and from outside that segment enters for published ports only.
//!
//! Leaving, a packet comes from our own kernel: its shape is trusted, its addresses are checked.
//! Entering, it is hostile: the packet and its offload header are validated as a whole, so that
//! nothing reaches the kernel that an honest host would not send. Fragments from outside are
//! refused: an honest host sends whole datagrams, however long.
//!
//! A refused packet is never an error: it is counted by its [`DropReason`].

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use crate::config::Network;
use crate::dns;
use crate::drops::{DropReason, Drops};
use crate::limits::{NAME_HOLDS_FOR, REFUSED_DATAGRAMS};
use crate::memory::{Callers, LastSent, Questions, Seconds};
use crate::ports::Published;
use netd_proto::handshake::Features;
use netd_proto::offload::VnetHeader;
use netd_proto::packet::{FlowKey, Fragment, Packet, PacketError, Protocol, Transport};
use netd_proto::policy::{Action, Host, Policy, Rule};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where the transport begins in a packet without extension headers: hop-by-hop options and
/// routing headers have no business on this link.
const IPV6_HEADER: usize = 40;

/// What to do with a packet that wants to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Egress {
    Send,
    /// Tell its sender that a rule forbids it.
    Prohibit,
    Drop(DropReason),
}

/// What to do with a packet that wants to enter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ingress<'a> {
    /// To the tun, with what its headers say.
    Deliver(VnetHeader, Packet<'a>),
    /// Answer with a reset, towards the host.
    Reset(Packet<'a>),
    Drop(DropReason),
}

/// Which addresses are whose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) gateway4: Ipv4Addr,
    pub(crate) gateway6: Ipv6Addr,
}

impl From<&Network> for Addresses {
    fn from(network: &Network) -> Self {
        Addresses {
            v4: network.v4.address,
            v6: network.v6.address,
            gateway4: network.v4.gateway,
            gateway6: network.v6.gateway,
        }
    }
}

impl Addresses {
    /// Whether `address` is the enclave's own.
    pub(crate) fn is_ours(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.v4,
            IpAddr::V6(v6) => v6 == self.v6,
        }
    }

    /// Where the family of `address` asks for names.
    fn resolver(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(self.gateway(address), 53)
    }

    /// The gateway of the family of `address`.
    pub(crate) fn gateway(&self, address: IpAddr) -> IpAddr {
        if address.is_ipv4() {
            self.gateway4.into()
        } else {
            self.gateway6.into()
        }
    }
}

/// Decides on packets; see the module's text.
#[derive(Debug)]
pub(crate) struct Guard {
    addresses: Addresses,
    published: Published,
    /// `None` where there are no rules: everything may leave.
    policy: Option<Policy>,
    /// Whether a rule names a host.
    learns: bool,
    sent4: LastSent,
    sent6: LastSent,
    callers: Callers,
    asked: Questions,
    /// What the link agreed on.
    features: Features,
    refused: RefusedFragments,
    pub(crate) drops: Drops,
}

impl Guard {
    pub(crate) fn new(addresses: Addresses, published: Published, rules: Vec<Rule>) -> Guard {
        let is_name = |rule: &Rule| matches!(rule.host, Host::Name(_) | Host::Below(_));
        Guard {
            addresses,
            published,
            learns: rules.iter().any(is_name),
            policy: (!rules.is_empty()).then(|| Policy::new(rules)),
            sent4: LastSent::new(),
            sent6: LastSent::new(),
            callers: Callers::new(),
            asked: Questions::default(),
            features: Features::default(),
            refused: RefusedFragments::default(),
            drops: Drops::default(),
        }
    }

    /// Takes from now on what `features` permit.
    pub(crate) fn agree(&mut self, features: Features) {
        self.features = features;
    }

    /// Decides on a packet from the tun.
    pub(crate) fn egress(&mut self, packet: &Packet<'_>, now: Seconds) -> Egress {
        let verdict = self.judge_egress(packet, now);
        if let (Transport::Fragment(fragment), Egress::Prohibit | Egress::Drop(_)) =
            (packet.transport(), verdict)
            && fragment.offset == 0
        {
            self.refused.record(packet.dst(), fragment);
        }
        match verdict {
            Egress::Send => {}
            Egress::Prohibit => self.drops.count(DropReason::OutPolicy),
            Egress::Drop(reason) => self.drops.count(reason),
        }
        verdict
    }

    fn judge_egress(&mut self, packet: &Packet<'_>, now: Seconds) -> Egress {
        if !self.addresses.is_ours(packet.src()) {
            return Egress::Drop(DropReason::OutSource);
        }
        if !is_unicast(packet.dst()) || self.addresses.is_ours(packet.dst()) {
            return Egress::Drop(DropReason::OutDestination);
        }
        let key = match packet.transport() {
            Transport::Tcp(tcp) if tcp.syn() && !tcp.ack() => packet.flow_key(),
            Transport::Tcp(_) => None,
            Transport::Udp(_) => packet.flow_key(),
            Transport::Echo(echo) if echo.request => packet.flow_key(),
            Transport::Fragment(fragment)
                if fragment.offset != 0 && self.refused.contains(packet.dst(), fragment) =>
            {
                return Egress::Drop(DropReason::OutPolicy);
            }
            Transport::Fragment(fragment) => match first_fragment_key(packet, fragment) {
                Ok(key) => key,
                Err(reason) => return Egress::Drop(reason),
            },
            Transport::Icmp { kind, .. } if is_icmp_error(*kind, packet.is_ipv6()) => None,
            Transport::Echo(_) | Transport::Icmp { .. } | Transport::Other(_) => {
                return Egress::Drop(DropReason::OutProtocol);
            }
        };
        let Some(key) = key else { return Egress::Send };
        if self.is_denied(&key, now) {
            return Egress::Prohibit;
        }
        if key.protocol == Protocol::Udp {
            self.last_sent(packet.is_ipv6()).record(key.src.port(), now);
        }
        if self.must_see(packet)
            && let Transport::Udp(udp) = packet.transport()
            && let Some(question) = dns::Question::parse(udp.payload())
        {
            self.asked.record(key.src, question, now);
        }
        Egress::Send
    }

    /// Whether the guard has to see each datagram of this flow, not just the first of several.
    pub(crate) fn must_see(&self, packet: &Packet<'_>) -> bool {
        let to_resolver = |key: FlowKey| {
            key.protocol == Protocol::Udp && key.dst == self.addresses.resolver(packet.dst())
        };
        self.learns && packet.flow_key().is_some_and(to_resolver)
    }

    fn is_denied(&self, key: &FlowKey, now: Seconds) -> bool {
        let Some(policy) = &self.policy else {
            return false;
        };
        let (to, port) = (key.dst.ip(), key.dst.port());
        // Without its gateway's ping and DNS an enclave has no network to have rules about.
        if to == self.addresses.gateway(to) && (port == 53 || key.protocol == Protocol::Icmp) {
            return false;
        }
        if key.protocol == Protocol::Udp
            && self.published.udp.contains(key.src.port())
            && self.callers.called(key.src.port(), key.dst, now)
        {
            return false;
        }
        policy.decide(key.protocol, to, port, now.0.into()) == Some(Action::Deny)
    }

    /// Decides on the payload of a packet frame from the link.
    pub(crate) fn ingress<'a>(&mut self, frame: &'a [u8], now: Seconds) -> Ingress<'a> {
        match self.judge_ingress(frame, now) {
            Ok(ingress) => {
                if matches!(ingress, Ingress::Reset(_)) {
                    self.drops.count(DropReason::InTcpClosed);
                }
                ingress
            }
            Err(reason) => {
                self.drops.count(reason);
                Ingress::Drop(reason)
            }
        }
    }

    fn judge_ingress<'a>(
        &mut self,
        frame: &'a [u8],
        now: Seconds,
    ) -> Result<Ingress<'a>, DropReason> {
        let (vnet, bytes) = VnetHeader::split(frame).ok_or(DropReason::InMalformed)?;
        let packet = Packet::parse(bytes).map_err(|error| match error {
            PacketError::Options => DropReason::InProtocol,
            _ => DropReason::InMalformed,
        })?;
        if !self.addresses.is_ours(packet.dst()) {
            return Err(DropReason::InDestination);
        }
        if !is_unicast(packet.src()) || self.addresses.is_ours(packet.src()) {
            return Err(DropReason::InSource);
        }
        if matches!(packet.transport(), Transport::Fragment(_)) {
            return Err(DropReason::InFragment);
        }
        if packet.is_ipv6() && packet.transport_offset() != IPV6_HEADER {
            return Err(DropReason::InProtocol);
        }
        match packet.transport() {
            Transport::Tcp(tcp) => {
                let opens = tcp.syn() && !tcp.ack();
                let port = tcp.destination_port();
                vnet.check(&packet, self.features)
                    .map_err(|_| DropReason::InOffload)?;
                if opens && !self.published.tcp.contains(port) {
                    return Ok(Ingress::Reset(packet));
                }
            }
            Transport::Udp(udp) => {
                let port = udp.destination_port();
                let from = SocketAddr::new(packet.src(), udp.source_port());
                vnet.check(&packet, self.features)
                    .map_err(|_| DropReason::InOffload)?;
                if self.published.udp.contains(port) {
                    if self.policy.is_some() {
                        self.callers.record(port, from, now);
                    }
                } else if !self.last_sent(packet.is_ipv6()).is_recent(port, now) {
                    return Err(DropReason::InUdpClosed);
                }
                if self.learns && from == self.addresses.resolver(packet.dst()) {
                    let size = vnet.datagram_size().map_or(usize::MAX, usize::from);
                    let to = SocketAddr::new(packet.dst(), port);
                    for message in udp.payload().chunks(size) {
                        self.learn(to, message, now);
                    }
                }
            }
            Transport::Echo(echo) if !echo.request => {
                vnet.check(&packet, self.features)
                    .map_err(|_| DropReason::InOffload)?;
            }
            Transport::Icmp { kind, .. } if is_icmp_error(*kind, packet.is_ipv6()) => {
                vnet.check(&packet, self.features)
                    .map_err(|_| DropReason::InOffload)?;
            }
            Transport::Fragment(_)
            | Transport::Echo(_)
            | Transport::Icmp { .. }
            | Transport::Other(_) => {
                return Err(DropReason::InProtocol);
            }
        }
        Ok(Ingress::Deliver(vnet, packet))
    }

    fn learn(&mut self, to: SocketAddr, message: &[u8], now: Seconds) {
        if let (Some(policy), Some(answer)) = (&mut self.policy, dns::Answer::parse(message))
            && self.asked.take(to, &answer.question, now)
        {
            let now = u64::from(now.0);
            let until = now + u64::from(answer.ttl).max(NAME_HOLDS_FOR.as_secs());
            if !policy.learn(&answer.question.name, &answer.addresses, now, until) {
                self.drops.count(DropReason::InNameForgotten);
            }
        }
    }

    fn last_sent(&mut self, ipv6: bool) -> &mut LastSent {
        if ipv6 {
            &mut self.sent6
        } else {
            &mut self.sent4
        }
    }
}

/// The datagrams in parts whose first was refused lately: the others would only wait at the host
/// for it. Kernels send the parts one behind the other.
#[derive(Debug, Default)]
struct RefusedFragments {
    latest: [Option<(IpAddr, u32, u8)>; REFUSED_DATAGRAMS],
    next: usize,
}

impl RefusedFragments {
    fn record(&mut self, dst: IpAddr, fragment: &Fragment<'_>) {
        self.latest[self.next] = Some((dst, fragment.identification, fragment.protocol));
        self.next = (self.next + 1) % REFUSED_DATAGRAMS;
    }

    fn contains(&self, dst: IpAddr, fragment: &Fragment<'_>) -> bool {
        (self.latest).contains(&Some((dst, fragment.identification, fragment.protocol)))
    }
}

/// The flow that a first fragment belongs to; `None` for the others, which are worth nothing
/// without the first.
fn first_fragment_key(
    packet: &Packet<'_>,
    fragment: &Fragment<'_>,
) -> Result<Option<FlowKey>, DropReason> {
    if fragment.offset != 0 {
        return Ok(None);
    }
    let port = |at: usize| {
        fragment
            .payload
            .get(at..at + 2)
            .map(|b| u16::from_be_bytes([b[0], b[1]]))
    };
    let (protocol, src, dst) = match (fragment.protocol, packet.is_ipv6()) {
        (17, _) => (Protocol::Udp, port(0), port(2)),
        (1, false) | (58, true) => (Protocol::Icmp, Some(0), Some(0)),
        // Kernels segment TCP; a fragment of it hides the flags that rules look at.
        _ => return Err(DropReason::OutProtocol),
    };
    let (Some(src), Some(dst)) = (src, dst) else {
        return Err(DropReason::OutMalformed);
    };
    let (src, dst) = (
        SocketAddr::new(packet.src(), src),
        SocketAddr::new(packet.dst(), dst),
    );
    Ok(Some(FlowKey { protocol, src, dst }))
}

/// Unreachable, too big, time exceeded and parameter problem (RFC 792, RFC 4443).
fn is_icmp_error(kind: u8, ipv6: bool) -> bool {
    if ipv6 {
        (1..=4).contains(&kind)
    } else {
        matches!(kind, 3 | 11 | 12)
    }
}

fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            // 0.0.0.0/8 is "this network" and 240.0.0.0/4 reserved, with the broadcast address.
            !v4.is_loopback() && !v4.is_multicast() && v4.octets()[0] != 0 && v4.octets()[0] < 240
        }
        IpAddr::V6(v6) => {
            !v6.is_loopback()
                && !v6.is_multicast()
                && !v6.is_unspecified()
                && !v6.is_unicast_link_local()
                && v6.to_ipv4_mapped().is_none()
        }
    }
}

#[cfg(test)]
mod tests;
