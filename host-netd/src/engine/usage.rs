//! What an engine holds at the moment.

use super::{Engine, Flow};

/// What an engine holds at the moment; all but `deadlines` is nothing without flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Open flows, all protocols together.
    pub flows: usize,
    /// TCP flows whose real connect is not answered.
    pub dialing: usize,
    /// Bytes of ring memory that count against [`Limits::ring_memory`](super::Limits::ring_memory).
    pub ring_memory: usize,
    /// Entries in the heap of deadlines, also of flows that are gone.
    pub deadlines: usize,
}

impl Engine {
    /// What is in use now.
    pub fn usage(&self) -> Usage {
        Usage {
            flows: self.flows.len(),
            dialing: (self.flows.iter())
                .filter(|(_, entry)| matches!(entry.flow, Flow::Dialing(_)))
                .count(),
            ring_memory: self.memory.used(),
            deadlines: self.timers.len(),
        }
    }
}
