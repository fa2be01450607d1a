//! How late this machine is: on a busy one, two seconds of a daemon can be the machine's own.

use std::sync::Mutex;
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(50);
/// Less than this is no stall.
const NOTED: Duration = Duration::from_millis(100);
/// How far back a stall can make something late.
const REACH: Duration = Duration::from_secs(15);

/// When this program ran late, and by how much.
#[derive(Debug, Default)]
pub(crate) struct Stalls(Mutex<Vec<(Instant, Duration)>>);

impl Stalls {
    /// Watches until told to stop.
    pub(crate) fn watch(&self, stop: impl Fn() -> bool) {
        while !stop() {
            let begin = Instant::now();
            std::thread::sleep(TICK);
            let late = begin.elapsed() - TICK;
            if late > NOTED {
                self.lock().push((Instant::now(), late));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, Duration)>> {
        self.0.lock().expect("nobody panics with it")
    }

    /// How late the machine was in the time before that moment.
    pub(crate) fn before(&self, at: Instant) -> Duration {
        let stalls = self.lock();
        let near = stalls
            .iter()
            .filter(|(when, late)| *when <= at + *late && *when + REACH >= at);
        near.map(|(_, late)| *late).sum()
    }

    /// The longest.
    pub(crate) fn longest(&self) -> Duration {
        let stalls = self.lock();
        stalls
            .iter()
            .map(|(_, late)| *late)
            .max()
            .unwrap_or_default()
    }
}
