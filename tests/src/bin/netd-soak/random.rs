//! A small generator of numbers (SplitMix64), so that a seed decides what is done.

use std::time::Duration;

/// The generator.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Another sequence for each pair of seed and stream.
    pub(crate) fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed ^ stream.wrapping_mul(0xa076_1d64_78bd_642f));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// At least `least`, less than `end`.
    pub(crate) fn between(&mut self, least: u64, end: u64) -> u64 {
        least + self.next() % (end - least)
    }

    /// The same for sizes, small ones as likely as large ones.
    pub(crate) fn size(&mut self, least: u64, end: u64) -> usize {
        let doublings = u64::from((end / least.max(1)).max(2).ilog2());
        let scale = least.max(1) << self.between(0, doublings + 1);
        let size = self.between(scale, scale * 2).clamp(least, end - 1);
        usize::try_from(size).expect("sizes fit")
    }

    /// Milliseconds, at least `least`, less than `end`.
    pub(crate) fn millis(&mut self, least: u64, end: u64) -> Duration {
        Duration::from_millis(self.between(least, end))
    }

    /// One of several.
    pub(crate) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let count = u64::try_from(all.len()).expect("few");
        &all[usize::try_from(self.between(0, count)).expect("few")]
    }

    /// Puts them into another order.
    pub(crate) fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            let end = u64::try_from(last + 1).expect("few");
            all.swap(last, usize::try_from(self.between(0, end)).expect("few"));
        }
    }
}
