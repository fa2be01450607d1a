//! How many connects of one enclave are begun in a second.
//!
//! A connect costs this host a socket and several wake-ups, a hundred times what a packet of an open
//! flow costs. An enclave that asks for more than any service does would take the time of its own
//! open flows, and of the threads that all enclaves share. What is too much is not answered, like a
//! SYN that a busy server drops: the enclave's kernel repeats it a second later.

use std::time::{Duration, Instant};

/// Lets a number through each second, and so many at once (the generic cell rate algorithm of
/// ITU-T I.371).
#[derive(Debug)]
pub(super) struct Pace {
    /// Time between two.
    interval: Duration,
    /// How far ahead of time one may be.
    ahead: Duration,
    due: Option<Instant>,
}

impl Pace {
    pub(super) fn new(each_second: u32, at_once: u32) -> Pace {
        let interval = Duration::from_secs(1) / each_second;
        Pace {
            interval,
            ahead: interval * at_once.saturating_sub(1),
            due: None,
        }
    }

    /// Whether another one is let through now.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        let due = self.due.map_or(now, |due| due.max(now));
        let admitted = due <= now + self.ahead;
        if admitted {
            self.due = Some(due + self.interval);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_go_at_once_and_then_in_their_time() {
        let mut now = Instant::now();
        let mut pace = Pace::new(100, 10);
        assert_eq!((0..50).filter(|_| pace.admits(now)).count(), 10);
        now += Duration::from_millis(30);
        assert_eq!((0..50).filter(|_| pace.admits(now)).count(), 3);
        now += Duration::from_secs(60);
        assert_eq!((0..50).filter(|_| pace.admits(now)).count(), 10);
    }
}
