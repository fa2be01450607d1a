//! Choices that follow from a seed alone.

use std::ops::RangeInclusive;

/// SplitMix64 (Steele, Lea and Flood 2014): every seed is a good one, also 0, 1, 2...
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The choices of that seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.any()) * end as u128) >> 64) as usize
    }

    /// A number of the range.
    pub fn within(&mut self, range: RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    /// A number of the range, which does not begin at 0: each order of magnitude is as likely.
    pub fn magnitude(&mut self, range: RangeInclusive<usize>) -> usize {
        let (low, high) = (range.start().ilog2(), range.end().ilog2());
        let bits = self.within(low as usize..=high as usize);
        let number = (1 << bits) + self.below(1 << bits);
        number.clamp(*range.start(), *range.end())
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, of_hundred: usize) -> bool {
        self.below(100) < of_hundred
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}
