//! What a schedule's enclave is like.

use crate::random::Random;
use host_netd::engine::Limits;
use netd_proto::handshake::Features;

/// Less than can be configured, so that a few flows use it up. What one flow may add at once, a full
/// ring, is still a small part.
const LEAST_MEMORY: usize = 2 << 20;

/// What the enclave and its link agreed on, and what it may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) features: Features,
    pub(crate) mtu: u16,
    pub(crate) limits: Limits,
    /// Bytes that programs write and read at once, at most.
    pub(crate) amount: usize,
    pub(crate) publishes_udp: bool,
}

impl Terms {
    pub(crate) fn new(random: &mut Random) -> Terms {
        let features = match random.below(10) {
            0 => Features::default(),
            1 => Features::CHECKSUM,
            2 => Features::CHECKSUM.or(Features::TSO4),
            _ => Features::ALL,
        };
        let mtu = if random.percent(70) {
            1500
        } else {
            random.pick(&[1280, 1400, 9001, 65_535])
        };
        let scarce = random.percent(10);
        let flows = match random.percent(20) {
            true => random.within(1..=4),
            false => 50,
        };
        let limits = Limits {
            flows,
            all_flows: flows,
            ring_memory: if scarce { LEAST_MEMORY } else { 64 << 20 },
            ..Limits::DEFAULT
        };
        let amount = match scarce {
            true => 1_000_000,
            false => random.pick(&[1000, 20_000, 200_000, 1_000_000]),
        };
        Terms {
            features,
            mtu,
            limits,
            amount,
            publishes_udp: limits.flows > 4 && random.percent(30),
        }
    }
}
