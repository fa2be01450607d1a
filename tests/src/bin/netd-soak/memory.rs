//! What the daemons use, sampled.

use nix::unistd::Pid;
use procfs::process::Process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// How often.
const EVERY: Duration = Duration::from_secs(2);
/// What a daemon may use more in the last quarter of its life than in the second, both as floors: see
/// [`Trend`]. Heaps and pooled buffers keep what they were given in a peak, and peaks differ.
const GROWTH_BYTES: u64 = 2 * 1024 * 1024;
/// See [`GROWTH_BYTES`].
const GROWTH_PART: f64 = 0.10;
/// In a shorter life the pools are still filling.
const ENOUGH: Duration = Duration::from_secs(600);
/// Parts of a life whose floors are told.
const PARTS: usize = 8;

/// One sample.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) resident: u64,
    pub(crate) proportional: u64,
    pub(crate) files: usize,
    pub(crate) threads: usize,
}

/// A daemon that may be replaced by another process.
#[derive(Debug)]
pub(crate) struct Watched {
    /// The most that it may use, in bytes.
    pub(crate) most: u64,
    pid: AtomicI32,
    samples: Mutex<Vec<(i32, Sample)>>,
}

impl Watched {
    /// None yet.
    pub(crate) fn new(most: u64) -> Watched {
        Watched {
            most,
            pid: AtomicI32::new(0),
            samples: Mutex::default(),
        }
    }

    /// Watches this process from now on.
    pub(crate) fn is_now(&self, pid: Pid) {
        self.pid.store(pid.as_raw(), Ordering::Relaxed);
    }

    fn sample(&self) {
        let pid = self.pid.load(Ordering::Relaxed);
        if let Some(sample) = sample(pid) {
            let mut samples = self.samples.lock().expect("nobody panics with it");
            samples.push((pid, sample));
        }
    }

    /// All samples.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let samples = self.samples.lock().expect("nobody panics with it");
        samples.iter().map(|(_, sample)| *sample).collect()
    }

    /// How it went in the life of the last process.
    pub(crate) fn trend(&self) -> Trend {
        let last = self.pid.load(Ordering::Relaxed);
        let samples = self.samples.lock().expect("nobody panics with it");
        let life = samples.iter().filter(|(pid, _)| *pid == last);
        let life: Vec<u64> = life.map(|(_, sample)| sample.proportional).collect();
        let part = life.len().div_ceil(PARTS).max(1);
        Trend {
            floors: life.chunks(part).map(floor).collect(),
            life: EVERY * u32::try_from(life.len()).unwrap_or(u32::MAX),
        }
    }
}

/// The floors of memory in the parts of a life: load makes peaks, a leak lifts the floor.
#[derive(Clone, Debug)]
pub(crate) struct Trend {
    pub(crate) floors: Vec<u64>,
    pub(crate) life: Duration,
}

impl Trend {
    /// The most that the floor of the last quarter may be, if the life was long enough to tell.
    pub(crate) fn bound(&self) -> Option<u64> {
        let early = self.floors.get(PARTS / 4..PARTS / 2)?.iter().min()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a part of a size in memory"
        )]
        let part = (*early as f64 * GROWTH_PART) as u64;
        (self.life >= ENOUGH).then_some(early + GROWTH_BYTES + part)
    }

    /// Whether it grew beyond that.
    pub(crate) fn is_growth(&self) -> bool {
        let late = self.floors.iter().skip(PARTS * 3 / 4).min();
        match (late, self.bound()) {
            (Some(late), Some(bound)) => *late > bound,
            _ => false,
        }
    }
}

/// The tenth part of samples is lower.
fn floor(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 10).copied().unwrap_or(0)
}

/// Samples until told to stop.
pub(crate) fn watch(all: &[&Watched], stop: impl Fn() -> bool) {
    while !stop() {
        let begin = Instant::now();
        all.iter().for_each(|watched| watched.sample());
        while begin.elapsed() < EVERY && !stop() {
            std::thread::sleep(EVERY / 20);
        }
    }
}

fn sample(pid: i32) -> Option<Sample> {
    let process = Process::new(pid).ok()?;
    let maps = process.smaps_rollup().ok()?.memory_map_rollup;
    let field = |name: &str| -> u64 {
        let maps = maps.iter();
        maps.filter_map(|map| map.extension.map.get(name)).sum()
    };
    let sample = Sample {
        resident: field("Rss"),
        proportional: field("Pss"),
        files: process.fd_count().ok()?,
        threads: process.tasks().ok()?.count(),
    };
    // A process that has just begun, or is a zombie.
    (sample.proportional > 0).then_some(sample)
}
