//! How long to wait before another attempt.

use std::time::Duration;

use aws_lc_rs::rand;

/// A random part of a bound, so that many who failed together do not come back together.
#[must_use]
pub fn random_part(bound: Duration) -> Duration {
    let mut random = [0; 4];
    // Without randomness the whole bound is waited.
    let part = match rand::fill(&mut random) {
        Ok(()) => f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    };
    bound.mul_f64(part)
}

/// Waits under a bound that doubles, up to a longest one. Each is at least half of its bound: what has
/// no other bound on its attempts must not become a busy loop.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    bound: Duration,
}

impl Backoff {
    /// Waits of `first` at most, then more.
    #[must_use]
    pub fn new((first, longest): (Duration, Duration)) -> Backoff {
        Backoff {
            first,
            longest,
            bound: first,
        }
    }

    /// The same after some waits.
    #[must_use]
    pub fn after(self, waits: u32) -> Backoff {
        let factor = 1_u32.checked_shl(waits).unwrap_or(u32::MAX);
        Backoff {
            bound: self.first.saturating_mul(factor).min(self.longest),
            ..self
        }
    }

    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        let half = self.bound / 2;
        self.bound = (self.bound * 2).min(self.longest);
        half + random_part(half)
    }

    /// It worked: the next wait is a short one.
    pub fn reset(&mut self) {
        self.bound = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_grow_to_a_bound_and_are_short_again_once_it_worked() {
        let mut backoff = Backoff::new((SECOND, 5 * SECOND));
        for bound in [1, 2, 4, 5, 5, 5] {
            let wait = backoff.wait();
            assert!(wait <= bound * SECOND, "{wait:?}");
            assert!(wait >= bound * SECOND / 2, "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= SECOND);
    }

    #[test]
    fn any_number_of_waits_can_be_passed_over() {
        for (waits, bound) in [
            (0, 1),
            (1, 2),
            (2, 4),
            (3, 5),
            (31, 5),
            (32, 5),
            (u32::MAX, 5),
        ] {
            let wait = Backoff::new((SECOND, 5 * SECOND)).after(waits).wait();
            assert!(wait <= bound * SECOND, "{waits}: {wait:?}");
            assert!(wait >= bound * SECOND / 2, "{waits}: {wait:?}");
        }
    }

    #[test]
    fn waits_differ() {
        let waits: Vec<_> = (0..8)
            .map(|_| Backoff::new((SECOND, SECOND)).wait())
            .collect();
        assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
    }
}
