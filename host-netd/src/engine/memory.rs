//! The memory of all rings of one enclave, under one budget.
//!
//! A ring is address space; what costs memory are the pages that bytes have passed through since
//! the ring was last given back to the kernel. A flow whose rings are empty gives them back when
//! it was idle for [`RING_IDLE`](crate::limits::RING_IDLE), or at once when memory is short. Then
//! windows are small too, and little is read from host sockets; at the budget new flows are
//! refused. A flow that takes more than that was promised its window before and holds the bytes
//! back on purpose: it is reset.

use crate::limits::{FIRST_WINDOW, SHORT_WINDOW};

/// What the rings of all flows take.
#[derive(Debug)]
pub(super) struct Memory {
    used: usize,
    budget: usize,
}

impl Memory {
    pub(super) fn new(budget: usize) -> Memory {
        Memory { used: 0, budget }
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Changes what one flow takes from `before` to `now`.
    pub(super) fn count(&mut self, before: usize, now: usize) {
        self.used = self.used - before + now;
    }

    /// Whether there is less left than is wanted for comfort.
    pub(super) fn is_short(&self) -> bool {
        self.used >= self.budget / 4 * 3
    }

    /// Whether no new flow may begin.
    pub(super) fn is_used_up(&self) -> bool {
        self.used >= self.budget
    }

    /// Whether flows took more than windows can prevent.
    pub(super) fn is_overdrawn(&self) -> bool {
        self.used >= self.budget + self.budget / 4
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

const _: () = assert!(SHORT_WINDOW <= FIRST_WINDOW);
