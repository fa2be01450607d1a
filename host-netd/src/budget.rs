//! What all enclaves share, in fair parts.
//!
//! Of each thing that is bounded there is one pool for the process. Half of it is set aside in
//! equal guarantees, one for each enclave that may be connected; the other half is for whoever
//! comes first. A session uses its guarantee before the common half, and never more than one
//! enclave may have. So an enclave that takes all it can get leaves the others their guarantees,
//! and one that is alone has what it needs.
//!
//! ```text
//! pool     |  common: whoever comes first   | guarantee | guarantee | guarantee | guarantee |
//! session  |========================>       |===========|
//! ```
//!
//! The counts are atomics that are touched when a flow begins and ends, never for a packet. Ring
//! memory is taken from its pool in pieces of a MiB (`engine::memory`). Whoever holds a [`Permit`]
//! holds what it stands for; dropping it gives it back, wherever that happens: a socket that waits
//! in a queue while its flow is gone is still counted.

use crate::limits::{
    ADMIN_CLIENT_MEMORY, ADMIN_CLIENTS, DEFAULT_ENCLAVES, FLOW_MEMORY, MAX_DIALS,
    MAX_DIALS_PER_DESTINATION, MAX_DNS_QUERIES, MAX_FLOWS, MAX_HALF_OPEN, MAX_UDP_MAPPINGS,
    OVERALL, PAST_RECORDS, PROCESS_MEMORY, RECORD_MEMORY, RING_MEMORY_MIB, SESSION_MEMORY,
    SHORT_WINDOW,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const MIB: usize = 1024 * 1024;

/// What may be used. Unless it says otherwise, a field is about one enclave; all together may use
/// [`OVERALL`] times as much.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Enclaves that may be connected at a time.
    pub enclaves: usize,
    /// Flows, all protocols together.
    pub flows: usize,
    /// Flows of all enclaves together: each is an open file.
    pub all_flows: usize,
    /// Connects that are not answered yet.
    pub dials: usize,
    /// The same, to one address.
    pub dials_per_destination: usize,
    /// UDP mappings and echo flows.
    pub mappings: usize,
    /// DNS queries that are not answered yet.
    pub dns_queries: usize,
    /// Clients of published ports whom the enclave has not answered yet.
    pub half_open: usize,
    /// Bytes of memory in the rings of all flows of all enclaves. A quarter more can be in use, and
    /// [`SHORT_WINDOW`] a flow.
    pub ring_memory: usize,
}

impl Limits {
    /// Those that hold unless others are set.
    pub const DEFAULT: Limits = Limits {
        enclaves: DEFAULT_ENCLAVES,
        flows: MAX_FLOWS,
        all_flows: OVERALL * MAX_FLOWS,
        dials: MAX_DIALS,
        dials_per_destination: MAX_DIALS_PER_DESTINATION,
        mappings: MAX_UDP_MAPPINGS,
        dns_queries: MAX_DNS_QUERIES,
        half_open: MAX_HALF_OPEN,
        ring_memory: RING_MEMORY_MIB * MIB,
    };

    /// The most ring memory that can ever be in use, in bytes.
    pub fn most_ring_memory(&self) -> usize {
        self.ring_memory + self.ring_memory / 4 + self.all_flows * SHORT_WINDOW
    }

    /// The most memory that the process can ever use, in bytes, without the kernel's socket
    /// buffers.
    pub fn most_memory(&self) -> usize {
        PROCESS_MEMORY
            + self.most_ring_memory()
            + self.all_flows * FLOW_MEMORY
            + self.enclaves * (SESSION_MEMORY + RECORD_MEMORY)
            + PAST_RECORDS * RECORD_MEMORY
            + ADMIN_CLIENTS * ADMIN_CLIENT_MEMORY
            + crate::dns::memory(OVERALL * self.dns_queries)
    }
}

/// How much there is of one thing.
#[derive(Debug)]
struct Pool {
    /// What is left of the common half.
    common: AtomicUsize,
    guarantee: usize,
    /// What one session may have.
    most: usize,
}

impl Pool {
    fn new(total: usize, enclaves: usize, most: usize) -> Arc<Pool> {
        let guarantee = total / 2 / enclaves;
        let common = total - guarantee * enclaves;
        Arc::new(Pool {
            common: AtomicUsize::new(common),
            guarantee,
            most: most.min(guarantee + common),
        })
    }

    fn share(self: &Arc<Pool>) -> Share {
        Share(Arc::new(Shared {
            pool: Arc::clone(self),
            used: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    fn take(&self, n: usize) -> bool {
        let left = |left: usize| left.checked_sub(n);
        n == 0
            || self
                .common
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
                .is_ok()
    }

    fn give(&self, n: usize) {
        self.common.fetch_add(n, Ordering::Relaxed);
    }

    /// How much of `used` is not covered by the guarantee.
    fn beyond(&self, used: usize) -> usize {
        used.saturating_sub(self.guarantee)
    }
}

/// One session's part of a pool.
#[derive(Clone, Debug)]
pub struct Share(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pool: Arc<Pool>,
    used: AtomicUsize,
    refused: AtomicU64,
}

impl Share {
    /// A part of a pool of its own.
    pub fn alone(total: usize) -> Share {
        Pool::new(total, 1, total).share()
    }

    /// One more, if there is one for this session.
    pub fn take(&self) -> Option<Permit> {
        self.take_many(1)
    }

    /// `count` more, or none.
    pub fn take_many(&self, count: usize) -> Option<Permit> {
        let Shared { pool, used, .. } = &*self.0;
        let mut before = used.load(Ordering::Relaxed);
        loop {
            let after = before + count;
            let common = pool.beyond(after) - pool.beyond(before);
            if after > pool.most || !pool.take(common) {
                return None;
            }
            match used.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    let share = self.clone();
                    return Some(Permit { share, count });
                }
                Err(now) => {
                    pool.give(common);
                    before = now;
                }
            }
        }
    }

    fn give(&self, count: usize) {
        let Shared { pool, used, .. } = &*self.0;
        let before = used.fetch_sub(count, Ordering::Relaxed);
        pool.give(pool.beyond(before) - pool.beyond(before - count));
    }

    /// What this session has now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// What this session has for itself alone.
    pub fn guarantee(&self) -> usize {
        self.0.pool.guarantee
    }

    /// What this session may have if no other wants it.
    pub fn most(&self) -> usize {
        self.0.pool.most
    }

    /// Counts a refusal that the session's own thread does not see.
    pub fn refused(&self) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes what [`refused`](Self::refused) counted.
    pub fn take_refusals(&self) -> u64 {
        self.0.refused.swap(0, Ordering::Relaxed)
    }
}

/// Something that was taken from a pool, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    share: Share,
    count: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.share.give(self.count);
    }
}

/// Everything that is shared by the sessions of the process.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    /// For whoever comes first.
    seats: Share,
    /// For enclaves with a table, one each.
    kept_seats: Share,
    flows: Arc<Pool>,
    dials: Arc<Pool>,
    mappings: Arc<Pool>,
    dns_queries: Arc<Pool>,
    half_open: Arc<Pool>,
    memory: Arc<Pool>,
}

/// A session's parts.
#[derive(Debug)]
pub struct Shares {
    /// Flows: each is an open file.
    pub flows: Share,
    /// Connects that are not answered.
    pub dials: Share,
    /// UDP mappings and echo flows.
    pub mappings: Share,
    /// DNS queries that are not answered.
    pub dns_queries: Share,
    /// Clients of published ports whom the enclave has not answered.
    pub half_open: Share,
    /// Bytes of ring memory.
    pub memory: Share,
    /// Connects to one address that are not answered.
    pub dials_per_destination: usize,
}

/// A place for one session, and its parts of everything.
#[derive(Debug)]
pub struct Allotment {
    /// Also for those who do something for the session outside of its thread.
    pub shares: Arc<Shares>,
    _seat: Permit,
}

impl Budget {
    /// Nothing is used yet.
    pub fn new(limits: Limits) -> Budget {
        let pool = |most: usize| {
            let total = most * OVERALL.min(limits.enclaves);
            Pool::new(total, limits.enclaves, most)
        };
        let flows = limits.all_flows.min(limits.flows * limits.enclaves);
        Budget {
            limits,
            seats: Share::alone(limits.enclaves),
            kept_seats: Share::alone(0),
            flows: Pool::new(flows, limits.enclaves, limits.flows),
            dials: pool(limits.dials),
            mappings: pool(limits.mappings),
            dns_queries: pool(limits.dns_queries),
            half_open: pool(limits.half_open),
            memory: Pool::new(limits.ring_memory, limits.enclaves, limits.ring_memory),
        }
    }

    /// Keeps so many of the seats for enclaves with a table.
    pub fn keeping(self, seats: usize) -> Budget {
        Budget {
            seats: Share::alone(self.limits.enclaves.saturating_sub(seats)),
            kept_seats: Share::alone(seats),
            ..self
        }
    }

    /// What may be used.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A place for one more session; `None` when all are taken.
    pub fn allot(&self) -> Option<Allotment> {
        Some(self.allotment(self.seats.take()?))
    }

    /// A place for an enclave with a table; `None` when all that were kept are taken.
    pub fn allot_kept(&self) -> Option<Allotment> {
        Some(self.allotment(self.kept_seats.take()?))
    }

    fn allotment(&self, seat: Permit) -> Allotment {
        let shares = Shares {
            flows: self.flows.share(),
            dials: self.dials.share(),
            mappings: self.mappings.share(),
            dns_queries: self.dns_queries.share(),
            half_open: self.half_open.share(),
            memory: self.memory.share(),
            dials_per_destination: self.limits.dials_per_destination,
        };
        Allotment {
            shares: Arc::new(shares),
            _seat: seat,
        }
    }
}

/// For an enclave that has everything to itself.
impl From<Limits> for Allotment {
    fn from(limits: Limits) -> Allotment {
        let limits = Limits {
            enclaves: 1,
            ..limits
        };
        Budget::new(limits).allot().expect("the first seat is free")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(share: &Share) -> Vec<Permit> {
        std::iter::from_fn(|| share.take()).collect()
    }

    #[test]
    fn whoever_takes_all_leaves_the_others_their_guarantees() {
        let pool = Pool::new(80, 4, 80);
        let shares: Vec<Share> = (0..4).map(|_| pool.share()).collect();

        let greedy = take_all(&shares[0]);
        assert_eq!(greedy.len(), 10 + 40);
        for other in &shares[1..] {
            assert_eq!(take_all(other).len(), 10);
        }

        // What it gives back, another may have, beyond its own guarantee.
        drop(greedy);
        assert_eq!(take_all(&shares[1]).len(), 10 + 40);
        assert_eq!(shares[0].used(), 0);
    }

    #[test]
    fn one_session_has_no_more_than_one_may_have() {
        let share = Pool::new(80, 4, 30).share();
        assert_eq!(take_all(&share).len(), 30);
        assert_eq!(take_all(&Share::alone(7)).len(), 7);
    }

    #[test]
    fn many_at_once_are_taken_whole_or_not_at_all() {
        let pool = Pool::new(80, 4, 80);
        let share = pool.share();
        let first = share.take_many(45).expect("guarantee and common half");
        assert!(share.take_many(6).is_none());
        let second = share.take_many(5).expect("the rest");
        drop((first, second));
        assert_eq!(pool.common.load(Ordering::Relaxed), 40);
    }

    #[test]
    fn sessions_are_as_many_as_there_are_seats() {
        let limits = Limits {
            enclaves: 3,
            ..Limits::DEFAULT
        };
        let budget = Budget::new(limits).keeping(1);
        let first = budget.allot().expect("a seat");
        let _second = budget.allot().expect("a seat");
        assert!(budget.allot().is_none(), "the third is kept");
        let kept = budget.allot_kept().expect("kept for it");
        assert!(budget.allot_kept().is_none());
        drop((first, kept));
        assert!(budget.allot().is_some() && budget.allot_kept().is_some());
    }

    #[test]
    fn nothing_is_lost_when_threads_take_and_give_at_once() {
        let pool = Pool::new(24, 2, 24);
        let shares = [pool.share(), pool.share()];
        std::thread::scope(|scope| {
            for share in shares.iter().flat_map(|share| [share; 2]) {
                scope.spawn(|| {
                    for round in 0..20_000 {
                        let _one = share.take();
                        let _more = share.take_many(round % 9);
                    }
                });
            }
        });
        assert_eq!(pool.common.load(Ordering::Relaxed), 12);
        assert!(shares.iter().all(|share| share.used() == 0));
    }
}
