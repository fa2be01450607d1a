//! Waiting for what can be observed.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A moment after which waiting is failing.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// `seconds` from now.
    pub fn after(seconds: u64) -> Deadline {
        Deadline(Instant::now() + Duration::from_secs(seconds))
    }

    /// Whether it has passed.
    pub fn is_over(self) -> bool {
        Instant::now() >= self.0
    }

    /// What is left, but never nothing: a time-out of 0 means *for ever* to sockets.
    pub fn left(self) -> Duration {
        (self.0.saturating_duration_since(Instant::now())).max(Duration::from_millis(1))
    }
}

/// Looks until there is something to see.
///
/// # Panics
/// When `seconds` have passed; `what` says what was waited for.
pub fn until<T>(seconds: u64, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Deadline::after(seconds);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(!deadline.is_over(), "not within {seconds} s: {what}");
        sleep(LOOK_EVERY);
    }
}

/// How often a test of rare faults repeats itself: `NETD_REPEAT`, or `default`.
pub fn repeats(default: usize) -> usize {
    match std::env::var("NETD_REPEAT") {
        Ok(text) => text.parse().expect("NETD_REPEAT must be a number"),
        Err(_) => default,
    }
}
