//! Frames that wait, in the order in which they came.

use std::ops::Range;
use std::time::Instant;

/// Room for one frame of a wire with an MTU of 1,500 bytes, VLAN tag included.
pub(super) const SLOT: usize = 1536;
/// 8,192 frames within 10 ms are 10 Gbit/s: more than a relay carries.
const SLOTS: usize = 8192;

/// Slots in a circle: free ones, then those that wait.
pub(super) struct Ring {
    bytes: Vec<u8>,
    /// Length and time of each; a frame that was lost has no length.
    frames: Vec<(usize, Instant)>,
    /// The first that waits, counted without end.
    head: usize,
    /// Behind the last that waits.
    tail: usize,
}

impl Ring {
    pub(super) fn new() -> Ring {
        Ring {
            bytes: vec![0; SLOTS * SLOT],
            frames: vec![(0, Instant::now()); SLOTS],
            head: 0,
            tail: 0,
        }
    }

    /// Free slots that lie side by side behind the last frame, `most` at most.
    pub(super) fn free(&mut self, most: usize) -> impl Iterator<Item = &mut [u8]> {
        let first = self.tail % SLOTS;
        let free = SLOTS - (self.tail - self.head);
        let count = free.min(SLOTS - first).min(most);
        self.bytes[first * SLOT..(first + count) * SLOT].chunks_exact_mut(SLOT)
    }

    /// Notes the length of the frame in the free slot of that number, counted from the first.
    pub(super) fn fill(&mut self, number: usize, length: usize) {
        self.frames[(self.tail + number) % SLOTS].0 = length.min(SLOT);
    }

    /// Lets the first free slots wait until `due`, but for those that are lost; tells how many.
    pub(super) fn accept(
        &mut self,
        count: usize,
        due: Instant,
        mut is_lost: impl FnMut() -> bool,
    ) -> u64 {
        let mut lost = 0;
        for number in self.tail..self.tail + count {
            let frame = &mut self.frames[number % SLOTS];
            frame.1 = due;
            if is_lost() {
                frame.0 = 0;
                lost += 1;
            }
        }
        self.tail += count;
        lost
    }

    /// The numbers of the first frames whose time has come, `most` at most.
    pub(super) fn due(&self, now: Instant, most: usize) -> Range<usize> {
        let waiting = self.head..self.tail;
        let is_due = |number: &usize| self.frames[number % SLOTS].1 <= now;
        let count = waiting.take(most).take_while(is_due).count();
        self.head..self.head + count
    }

    /// A frame's bytes; none if it was lost.
    pub(super) fn frame(&self, number: usize) -> &[u8] {
        let slot = number % SLOTS;
        &self.bytes[slot * SLOT..][..self.frames[slot].0]
    }

    /// Frees the slots before `number`.
    pub(super) fn release(&mut self, number: usize) {
        self.head = number;
    }

    /// When the first frame is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        (self.head < self.tail).then(|| self.frames[self.head % SLOTS].1)
    }
}
