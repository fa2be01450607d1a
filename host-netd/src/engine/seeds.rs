//! Where the randomness of flows comes from: what cannot be guessed from outside (RFC 9293,
//! section 3.4.1) is the initial sequence number.

use super::{Engine, FlowId};
use std::hash::{BuildHasher, RandomState};

/// The seed of each flow.
#[derive(Debug)]
pub(super) enum Seeds {
    Random(RandomState),
    Fixed(u64),
}

impl Default for Seeds {
    fn default() -> Self {
        Seeds::Random(RandomState::new())
    }
}

impl Seeds {
    pub(super) fn of(&self, id: FlowId) -> u64 {
        match self {
            Seeds::Random(state) => state.hash_one(id),
            // Steele, Lea and Flood's odd constant: neighbours get seeds that are far apart.
            Seeds::Fixed(seed) => seed ^ id.to_bits().wrapping_mul(0x9e37_79b9_7f4a_7c15),
        }
    }
}

impl Engine {
    /// The same engine with sequence numbers that follow from `seed`: for simulations, which are to
    /// be repeated. Anybody can guess them.
    pub fn with_fixed_seed(mut self, seed: u64) -> Engine {
        self.seeds = Seeds::Fixed(seed);
        self
    }
}
