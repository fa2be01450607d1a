//! What programs write: every byte follows from its stream and its place in it, so nothing has to
//! be kept to be compared, and a byte of another stream or another place is seen.

use crate::random::Random;
use std::sync::LazyLock;

/// A prime: no multiple of any size on the way.
const PERIOD: usize = 65_521;
const CHUNK: usize = 65_536;

static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(1);
    let period: Vec<u8> = (0..PERIOD).map(|_| random.any() as u8).collect();
    period.into_iter().cycle().take(PERIOD + CHUNK).collect()
});

/// An endless stream of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream(usize);

impl Stream {
    /// Any stream.
    pub(crate) fn new(random: &mut Random) -> Stream {
        Stream(random.below(PERIOD))
    }

    fn at(self, place: u64) -> &'static [u8] {
        let start = (place as usize + self.0) % PERIOD;
        &BLOCK[start..start + CHUNK]
    }

    /// Writes what comes at `place`.
    pub(crate) fn fill(self, place: u64, bytes: &mut [u8]) {
        let mut place = place;
        for part in bytes.chunks_mut(CHUNK) {
            part.copy_from_slice(&self.at(place)[..part.len()]);
            place += part.len() as u64;
        }
    }

    /// Whether `bytes` are what comes at `place`.
    pub(crate) fn is(self, place: u64, bytes: &[u8]) -> bool {
        let mut place = place;
        bytes.chunks(CHUNK).all(|part| {
            let same = self.at(place)[..part.len()] == *part;
            place += part.len() as u64;
            same
        })
    }
}
