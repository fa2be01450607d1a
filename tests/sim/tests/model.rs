//! Random schedules of the engine on a simulated network, judged by a reference model. Needs no
//! root; see `netd_sim`.

use netd_sim::{Failure, Schedule};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, panic, thread};

/// Schedules that a plain `cargo test` runs; `scripts/test` sets more with `NETD_SCHEDULES`.
const SCHEDULES: u64 = 2000;

/// How to run one schedule again.
const SEED: &str = "NETD_SEED";

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Runs schedules on all processors until one fails.
fn first_failure(seeds: std::ops::Range<u64>) -> Option<Schedule> {
    let next = AtomicU64::new(seeds.start);
    let failed = Mutex::new(None);
    let workers = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let schedule = Schedule::new(seed);
                    if schedule.run(false).is_err() {
                        next.store(seeds.end, Ordering::Relaxed);
                        failed
                            .lock()
                            .expect("no panic inside")
                            .get_or_insert(schedule);
                        return;
                    }
                }
            });
        }
    });
    failed.into_inner().expect("no panic inside")
}

/// The failure in full, and in short.
fn report(schedule: &Schedule) -> String {
    let mut text = String::new();
    let shortest = schedule.shortened();
    let Err(Failure { what, trace }) = shortest.run(true) else {
        return format!("seed {:#x} failed once and not again", schedule.seed);
    };
    for line in &trace {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(
        text,
        "{what}\nreplay: {SEED}={:#x} cargo test -p netd-sim --test model",
        schedule.seed
    );
    text
}

#[test]
fn programs_see_what_the_model_allows() {
    panic::set_hook(Box::new(|_| {}));
    let seeds = match number(SEED) {
        Some(seed) => seed..seed + 1,
        None => 0..number("NETD_SCHEDULES").unwrap_or(SCHEDULES),
    };

    let failed = first_failure(seeds);

    let _ = panic::take_hook();
    if let Some(schedule) = failed {
        panic::set_hook(Box::new(|_| {}));
        let report = report(&schedule);
        let _ = panic::take_hook();
        panic!("{report}");
    }
}
