//! Why packets are dropped or refused, and how often.

use netd_proto::packet::PacketError;
use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a packet from the enclave, or one for it, went no further.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// Every reason.
            pub(super) const ALL: &[DropReason] = &[$(DropReason::$name,)*];

            /// The name in logs and metrics.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// Not an IP packet, or lengths that contradict each other.
    Malformed = "malformed",
    /// IPv4 options, or IPv6 extension headers.
    IpOptions = "ip_options",
    /// IPv4 header checksum wrong.
    HeaderChecksum = "header_checksum",
    /// The virtio-net header lies, or the transport checksum is wrong.
    Offload = "offload",
    /// The source is not the enclave's address.
    Spoofed = "spoofed",
    /// Fragments that overlap wrongly, or of TCP.
    Fragment = "fragment",
    /// Too many packets in parts at once, or the rest did not come.
    FragmentLimit = "fragment_limit",
    /// Neither TCP, UDP nor ICMP echo.
    Protocol = "protocol",
    /// ICMP from the enclave other than an echo request.
    UnsolicitedIcmp = "unsolicited_icmp",
    /// A TCP segment of no known flow; answered by a reset.
    UnknownFlow = "unknown_flow",
    /// The hop limit ended at the gateway.
    HopLimit = "hop_limit",
    /// A rule of the operator's policy.
    DeniedByRule = "denied_by_rule",
    /// The parent's loopback, closed unless a rule opens it.
    DeniedLoopback = "denied_loopback",
    /// An address of the parent itself, closed unless a rule opens it.
    DeniedOwnAddress = "denied_own_address",
    /// 169.254.0.0/16 (IMDS) and fe80::/10, closed unless a rule opens it.
    DeniedLinkLocal = "denied_link_local",
    /// Multicast.
    DeniedMulticast = "denied_multicast",
    /// Broadcast, unspecified and reserved addresses, and IPv4 in IPv6.
    DeniedReserved = "denied_reserved",
    /// `max_flows`, or the limit of open files.
    FlowLimit = "flow_limit",
    /// `ring_memory_mib`: new flows are refused, and segments far beyond it wait to be sent again.
    MemoryLimit = "memory_limit",
    /// `max_dials`.
    DialLimit = "dial_limit",
    /// More connects in a second than `DIALS_A_SECOND` or `DNS_STREAMS_A_SECOND`; not answered.
    DialPace = "dial_pace",
    /// `max_dials_per_destination`.
    DestinationLimit = "destination_limit",
    /// `max_udp_mappings`: UDP mappings and echo flows.
    MappingLimit = "mapping_limit",
    /// `max_half_open`: clients of published ports that the enclave did not answer.
    HalfOpenLimit = "half_open_limit",
    /// `max_dns_queries`: the query was answered SERVFAIL.
    DnsLimit = "dns_limit",
    /// `MAX_DNS_STREAMS`: connections to the gateway's DNS.
    DnsStreamLimit = "dns_stream_limit",
    /// The link's queue was full: a datagram or an error for the enclave.
    LinkFull = "link_full",
    /// The host's socket took no more datagrams.
    HostSocketFull = "host_socket_full",
    /// The host's kernel refused to send a datagram; the enclave got an ICMP error.
    HostRefused = "host_refused",
    /// A published UDP port that leads to another enclave by now.
    PublishedElsewhere = "published_elsewhere",
    /// Ping sockets are not permitted to this user.
    PingForbidden = "ping_forbidden",
    /// A client of a published port whose address and port are in use by another flow.
    InboundCollision = "inbound_collision",
}

impl From<PacketError> for DropReason {
    fn from(error: PacketError) -> Self {
        match error {
            PacketError::Length | PacketError::Header | PacketError::Transport => Self::Malformed,
            PacketError::Options => Self::IpOptions,
            PacketError::HeaderChecksum => Self::HeaderChecksum,
        }
    }
}

impl DropReason {
    /// The setting behind a limit, for whom it is too low.
    pub(super) fn setting(self) -> &'static str {
        match self {
            DropReason::FlowLimit => "max_flows, or the limit of open files",
            DropReason::MemoryLimit => "ring_memory_mib",
            DropReason::DialLimit => "max_dials",
            DropReason::DestinationLimit => "max_dials_per_destination",
            DropReason::MappingLimit => "max_udp_mappings",
            DropReason::HalfOpenLimit => "max_half_open",
            DropReason::DnsLimit => "max_dns_queries",
            _ => "none",
        }
    }
}

/// What one session did, for the log and the operator.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Packets and bytes from the enclave.
    pub from_enclave: Traffic,
    /// TCP flows, UDP mappings and echo flows that were opened.
    pub flows_opened: u64,
    drops: [u64; DropReason::ALL.len()],
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// A super-segment counts once.
    pub packets: u64,
    /// Length of the IP packets.
    pub bytes: u64,
}

impl Traffic {
    pub(crate) fn count(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }

    pub(crate) fn add(&mut self, other: Traffic) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl Counters {
    /// Counts one drop.
    pub fn drop(&mut self, reason: DropReason) {
        tracing::trace!(reason = reason.name(), "packet dropped");
        self.drops[reason as usize] += 1;
    }

    /// Counts drops that were made elsewhere.
    pub fn add(&mut self, reason: DropReason, drops: u64) {
        self.drops[reason as usize] += drops;
    }

    /// How often a reason was met.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Adds what others counted.
    pub(crate) fn add_all(&mut self, other: &Counters) {
        self.from_enclave.add(other.from_enclave);
        self.flows_opened += other.flows_opened;
        for (own, drops) in self.drops.iter_mut().zip(other.drops) {
            *own += drops;
        }
    }

    /// The reasons that were met, and how often.
    pub fn met(&self) -> impl Iterator<Item = (&'static str, u64)> + use<'_> {
        (DropReason::ALL.iter().zip(self.drops))
            .filter(|(_, drops)| *drops > 0)
            .map(|(reason, drops)| (reason.name(), drops))
    }

    /// The reasons that were met, as `name=count` words.
    pub fn drop_summary(&self) -> impl fmt::Display + use<'_> {
        fmt::from_fn(move |f| {
            let mut separator = "";
            for (name, drops) in self.met() {
                write!(f, "{separator}{name}={drops}")?;
                separator = " ";
            }
            if separator.is_empty() {
                f.write_str("none")
            } else {
                Ok(())
            }
        })
    }
}
