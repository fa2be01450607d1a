//! Why packets were dropped, counted.

use tracing::info;

macro_rules! drop_reasons {
    ($($variant:ident = $name:literal, $doc:literal;)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum DropReason { $(#[doc = $doc] $variant,)* }

        impl DropReason {
            pub(crate) const ALL: &[DropReason] = &[$(DropReason::$variant,)*];

            /// For logs.
            pub(crate) fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    OutMalformed = "out_malformed", "Leaving: no packet that the link carries.";
    OutSource = "out_source", "Leaving: not from one of our addresses.";
    OutDestination = "out_destination", "Leaving: to a multicast, broadcast or loopback address.";
    OutProtocol = "out_protocol", "Leaving: neither TCP, UDP nor echo or error of ICMP.";
    OutPolicy = "out_policy", "Leaving: denied by a rule, and answered so.";
    OutNoLink = "out_no_link", "Leaving: no link to the parent, and answered so.";
    InMalformed = "in_malformed", "Entering: lengths, headers or checksums are wrong.";
    InOffload = "in_offload", "Entering: the offload header does not fit the packet.";
    InDestination = "in_destination", "Entering: not to one of our addresses.";
    InSource = "in_source", "Entering: from an address that no honest host sends from.";
    InFragment = "in_fragment", "Entering: a fragment.";
    InProtocol = "in_protocol", "Entering: a protocol or ICMP message that has no business here.";
    InTcpClosed = "in_tcp_closed", "Entering: opens TCP to a port that is not published.";
    InUdpClosed = "in_udp_closed", "Entering: UDP that nobody asked for.";
    InTunRefused = "in_tun_refused", "Entering: the kernel did not take it from the tun.";
    InNoRoom = "in_no_room", "Entering: its answer found the link full.";
    InNameForgotten = "in_name_forgotten", "Entering, not dropped: no room to learn its addresses.";
}

/// How many packets were dropped, by reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    pub(crate) fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// The counters that are not zero.
    pub(crate) fn nonzero(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL
            .iter()
            .map(|r| (*r, self.0[*r as usize]))
            .filter(|(_, n)| *n > 0)
    }

    /// Logs the counters that are not zero.
    pub(crate) fn report(&self) {
        let counted: Vec<_> = self
            .nonzero()
            .map(|(reason, count)| format!("{}={count}", reason.name()))
            .collect();
        if !counted.is_empty() {
            info!(packets = counted.join(" "), "dropped since the start");
        }
    }

    #[cfg(test)]
    pub(crate) fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: std::collections::HashSet<_> =
            DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
