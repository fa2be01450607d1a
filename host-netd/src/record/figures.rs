//! What a session did and holds, as its thread tells it.

use crate::engine::drops::{Counters, Traffic};

/// Figures of a session: those of all its links together, and what it holds now.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// What is held now.
    pub held: Held,
    /// Packets and bytes to the enclave.
    pub to_enclave: Traffic,
    /// What came from the enclave, and what was dropped.
    pub counters: Counters,
    /// DNS queries over UDP.
    pub dns_asked: u64,
}

/// What a session holds at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Open flows, all protocols together.
    pub flows: usize,
    /// Connects that are not answered.
    pub dials: usize,
    /// UDP mappings and echo flows.
    pub mappings: usize,
    /// Clients of published ports whom the enclave has not answered.
    pub half_open: usize,
    /// DNS queries that are not answered.
    pub dns_queries: usize,
    /// Bytes of ring memory in use.
    pub ring_memory: usize,
}

impl Figures {
    /// The same after a former link of the session with `before`.
    pub(super) fn after(mut self, before: &Figures) -> Figures {
        self.to_enclave.add(before.to_enclave);
        self.counters.add_all(&before.counters);
        self.dns_asked += before.dns_asked;
        self
    }

    /// The same when nothing is held any more.
    pub(super) fn ended(self) -> Figures {
        Figures {
            held: Held::default(),
            ..self
        }
    }
}
