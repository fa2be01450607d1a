//! The memory of all rings of one enclave, under the one budget of the process.
//!
//! A ring is address space; what costs memory are the pages that bytes have passed through since
//! the ring was last given back to the kernel. A flow whose rings are empty gives them back when
//! it was idle for [`RING_IDLE`](crate::limits::RING_IDLE), or at once when memory is short.
//!
//! An engine takes memory from the budget in steps, ahead of its need, and gives back what it no
//! longer needs. Memory is short when no further step is to be had and three quarters of what was
//! taken are in use. Then windows are small, and little is read from host sockets; when all is in
//! use, new flows are refused, and only flows whose send ring is empty read from their host
//! sockets. Flows fill windows that they were promised before; when that takes a quarter more, a
//! segment of a flow that holds much is dropped, and the enclave's kernel sends it again.

use crate::budget::{Permit, Share};
use crate::limits::{FIRST_WINDOW, RING_MEMORY_STEP, SHORT_WINDOW};

/// What the rings of all flows take.
#[derive(Debug)]
pub(super) struct Memory {
    used: usize,
    share: Share,
    /// What was taken from the budget: the guarantee and so many steps.
    taken: usize,
    _guarantee: Option<Permit>,
    steps: Vec<Permit>,
}

impl Memory {
    pub(super) fn new(share: Share) -> Memory {
        let guarantee = share.guarantee();
        Memory {
            used: 0,
            taken: guarantee,
            _guarantee: share.take_many(guarantee),
            share,
            steps: Vec::new(),
        }
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Changes what one flow takes from `before` to `now`.
    pub(super) fn count(&mut self, before: usize, now: usize) {
        self.used = self.used - before + now;
        if self.used >= comfort(self.taken) {
            if let Some(step) = self.share.take_many(RING_MEMORY_STEP) {
                self.steps.push(step);
                self.taken += RING_MEMORY_STEP;
            }
        } else if !self.steps.is_empty() && self.used < comfort(self.taken - RING_MEMORY_STEP) / 2 {
            self.steps.pop();
            self.taken -= RING_MEMORY_STEP;
        }
    }

    /// Whether there is less left than is wanted for comfort.
    pub(super) fn is_short(&self) -> bool {
        self.used >= comfort(self.taken)
    }

    /// Whether no new flow may begin.
    pub(super) fn is_used_up(&self) -> bool {
        self.used >= self.taken
    }

    /// Whether flows would take more with `more` bytes than windows can prevent.
    pub(super) fn would_be_overdrawn(&self, more: usize) -> bool {
        self.used + more >= self.taken + self.taken / 4
    }

    /// `wanted` bytes in one ring of a flow, or what memory allows.
    pub(super) fn allowance(&self, wanted: usize) -> usize {
        if self.is_short() {
            wanted.min(SHORT_WINDOW)
        } else {
            wanted
        }
    }
}

/// How much may be used before memory is short.
fn comfort(taken: usize) -> usize {
    taken / 4 * 3
}

const _: () = assert!(SHORT_WINDOW <= FIRST_WINDOW);
