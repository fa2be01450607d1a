//! An idle tunnel.

use super::Values;
use crate::subject::Subject;
use crate::usage;
use std::thread;
use std::time::Duration;

/// Timers of some seconds have to show.
const LEAST: u64 = 5;

/// Processor time of the tunnel with no flow, as per cent of one processor.
pub(super) fn idle_cpu(subject: &Subject<'_>, seconds: u64) -> Values {
    let pids = subject.pids();
    if pids.is_empty() {
        return Vec::new();
    }
    subject.settle();
    let before = usage::fine_cpu_seconds(&pids);
    let time = Duration::from_secs(seconds.max(LEAST));
    thread::sleep(time);
    let used = usage::fine_cpu_seconds(&pids) - before;
    vec![("idle_cpu", 100.0 * used / time.as_secs_f64())]
}
