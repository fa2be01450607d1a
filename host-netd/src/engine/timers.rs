//! Deadlines of flows: a heap with at most one live entry a flow.
//!
//! Deadlines move with every packet, mostly away. The heap is told only when a deadline comes
//! nearer than its entry; an entry that fires too early is put back at the flow's real deadline.
//! Entries that were overtaken by a nearer one (a flow that sends now and then leaves one at the far
//! end of its keep-alive each time) or whose flow is gone stay behind until they fire or, when they
//! are most of the heap, until it is made anew.

use super::FlowId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// A flow's side of the heap.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deadline {
    /// When the flow wants to be looked at.
    at: Option<Instant>,
    /// When its entry fires; not later than `at`.
    entry: Option<Instant>,
}

impl Deadline {
    pub(super) fn set(&mut self, at: Option<Instant>) {
        self.at = at;
    }
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, FlowId)>>,
}

/// Below this many entries a heap is not worth making anew.
const SMALL: usize = 4096;

impl Timers {
    /// Whether most entries of the heap must be dead, given that there are `flows` live ones at
    /// most.
    pub(super) fn is_stale(&self, flows: usize) -> bool {
        self.heap.len() > SMALL && self.heap.len() > 2 * flows
    }

    /// Makes the heap anew from the deadlines of all flows.
    pub(super) fn rebuild<'a>(&mut self, flows: impl Iterator<Item = (FlowId, &'a mut Deadline)>) {
        self.heap.clear();
        for (flow, deadline) in flows {
            deadline.entry = None;
            self.arm(flow, deadline);
        }
    }

    /// Makes sure that `flow` is found not later than its deadline.
    pub(super) fn arm(&mut self, flow: FlowId, deadline: &mut Deadline) {
        let Some(at) = deadline.at else { return };
        if deadline.entry.is_none_or(|entry| at < entry) {
            deadline.entry = Some(at);
            self.heap.push(Reverse((at, flow)));
        }
    }

    /// Entries, live and dead.
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// When something may be due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes one entry that fired; the caller asks the flow's deadline with [`due`](Self::due).
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Instant, FlowId)> {
        let Reverse((at, _)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// Whether the flow whose entry fired at `fired` is due now; if it is too early, its entry is
    /// put back.
    pub(super) fn due(
        &mut self,
        flow: FlowId,
        deadline: &mut Deadline,
        fired: Instant,
        now: Instant,
    ) -> bool {
        if deadline.entry != Some(fired) {
            return false;
        }
        deadline.entry = None;
        match deadline.at {
            Some(at) if at <= now => {
                deadline.at = None;
                true
            }
            _ => {
                self.arm(flow, deadline);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_deadline_that_moves_keeps_one_live_entry() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (mut timers, mut deadline) = (Timers::default(), Deadline::default());
        let flow = FlowId {
            index: 1,
            generation: 1,
        };
        for ms in [100, 200, 300] {
            deadline.set(Some(at(ms)));
            timers.arm(flow, &mut deadline);
        }
        assert_eq!(timers.heap.len(), 1);

        let (fired, flow) = timers.pop(at(150)).expect("the early entry fires");
        assert!(!timers.due(flow, &mut deadline, fired, at(150)));
        assert_eq!(timers.pop(at(299)), None);
        let (fired, flow) = timers.pop(at(300)).expect("put back");
        assert!(timers.due(flow, &mut deadline, fired, at(300)));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_nearer_deadline_fires_first_and_the_former_entry_is_ignored() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (mut timers, mut deadline) = (Timers::default(), Deadline::default());
        let flow = FlowId {
            index: 1,
            generation: 1,
        };
        for ms in [300, 100] {
            deadline.set(Some(at(ms)));
            timers.arm(flow, &mut deadline);
        }
        let (fired, _) = timers.pop(at(100)).expect("nearer");
        assert!(timers.due(flow, &mut deadline, fired, at(100)));
        let (fired, _) = timers.pop(at(300)).expect("stale");
        assert!(!timers.due(flow, &mut deadline, fired, at(300)));
    }
}
