//! Decides what to do about the clock; asks no clock itself.
//!
//! # Theory of operation
//! A [`Sample`] is all clocks in one moment. What is compared with the sample before:
//!
//! - The system's clock with the kernel's count since boot. Both run at the same speed, also while
//!   the kernel slews; only who sets the clock moves one alone.
//! - The hypervisor's clock with the kernel's raw count, which nobody slews. They drift apart by
//!   what quartz is off. More than that is a jump: the host's clock was set, or the enclave stood
//!   still while its count did. Many small jumps are found against a sample of an hour ago.
//! - The count since boot with when the next look was due: an enclave that stood still while its
//!   count went on is seen by this alone, and without a clock of the hypervisor nothing else is.
//!
//! What is compared within a sample is the system's clock with the hypervisor's: that is the
//! correction. It follows the hypervisor wherever that goes; the findings are what tells.
//!
//! A host that lets its clock run fast or slow within what quartz does stays unseen. That is 43
//! seconds a day at most.

use crate::limits::{
    CLOCK_DEAD_BAND, CLOCK_EPOCH, CLOCK_INTERVAL, CLOCK_LATE, CLOCK_NOISE, CLOCK_START_STEP,
    CLOCK_STEP, SOURCE_DRIFT_PPM, SOURCE_NOISE, SOURCE_WATCH,
};
use std::time::Duration;

/// Nanoseconds: of an epoch, of a count, or between two of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Nanos(pub(super) i64);

impl Nanos {
    pub(super) const SECOND: i64 = 1_000_000_000;

    fn of(duration: Duration) -> Nanos {
        Nanos(duration.as_nanos().try_into().unwrap_or(i64::MAX))
    }

    fn minus(self, other: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(other.0))
    }

    fn plus(self, other: Nanos) -> Nanos {
        Nanos(self.0.saturating_add(other.0))
    }

    fn size(self) -> Nanos {
        Nanos(self.0.saturating_abs())
    }

    fn millionths(self, parts: i64) -> Nanos {
        Nanos((self.0 / 1_000_000).saturating_mul(parts))
    }
}

impl std::fmt::Display for Nanos {
    /// Seconds, signed, to the microsecond.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.0 < 0 { '-' } else { '+' };
        let micros = self.0.unsigned_abs() / 1000;
        write!(f, "{sign}{}.{:06}s", micros / 1_000_000, micros % 1_000_000)
    }
}

/// All clocks in one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// The system's clock (CLOCK_REALTIME).
    pub(super) system: Nanos,
    /// Since boot (CLOCK_BOOTTIME).
    pub(super) boot: Nanos,
    /// Since boot, as the hardware counts (CLOCK_MONOTONIC_RAW).
    pub(super) raw: Nanos,
    /// The hypervisor's clock, if there is one.
    pub(super) source: Option<Nanos>,
    /// How long the moment was.
    pub(super) width: Nanos,
}

/// What should not have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The system's clock was set, and not by us.
    Set { by: Nanos },
    /// The hypervisor's clock jumped against the kernel's count.
    Jumped { by: Nanos, within: Nanos },
    /// The next look came this much too late.
    Late { by: Nanos },
    /// The hypervisor's clock cannot be right.
    Implausible { source: Nanos },
}

/// What to do with the system's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Correction {
    Leave,
    /// Let it run faster or slower until it moved by this.
    Slew(Nanos),
    /// Set it, by this.
    Step(Nanos),
}

/// Remembers what samples are compared with.
#[derive(Debug)]
pub(super) struct Judge {
    last: Sample,
    /// What an hour's jumps are measured from.
    anchor: Sample,
}

impl Judge {
    /// Begins, and tells what is to be done before any program runs.
    pub(super) fn begin(sample: Sample) -> (Judge, Correction) {
        let judge = Judge {
            last: sample,
            anchor: sample,
        };
        (judge, correction(&sample, CLOCK_START_STEP))
    }

    /// Takes a look, one interval after the last.
    pub(super) fn look(&mut self, sample: Sample) -> (Vec<Finding>, Correction) {
        let mut findings = Vec::new();
        findings.extend(self.late(&sample));
        findings.extend(self.set(&sample));
        findings.extend(self.jumped(&sample));
        let implausible = sample.source.filter(|&source| !is_plausible(source));
        findings.extend(implausible.map(|source| Finding::Implausible { source }));
        self.last = sample;
        (findings, correction(&sample, CLOCK_STEP))
    }

    /// Takes note of the system's clock after we set it.
    pub(super) fn stepped(&mut self, sample: Sample) {
        self.last.system = sample.system;
        self.last.boot = sample.boot;
    }

    fn late(&self, sample: &Sample) -> Option<Finding> {
        let due = self.last.boot.plus(Nanos::of(CLOCK_INTERVAL));
        let by = sample.boot.minus(due);
        (by > Nanos::of(CLOCK_LATE)).then_some(Finding::Late { by })
    }

    fn set(&self, sample: &Sample) -> Option<Finding> {
        let system = sample.system.minus(self.last.system);
        let by = system.minus(sample.boot.minus(self.last.boot));
        let noise = Nanos::of(CLOCK_NOISE)
            .plus(sample.width)
            .plus(self.last.width);
        (by.size() > noise).then_some(Finding::Set { by })
    }

    fn jumped(&mut self, sample: &Sample) -> Option<Finding> {
        let found = jump(&self.last, sample).or_else(|| jump(&self.anchor, sample));
        let age = sample.raw.minus(self.anchor.raw);
        let is_old = age >= Nanos::of(SOURCE_WATCH) || self.anchor.source.is_none();
        if found.is_some() || is_old {
            self.anchor = *sample;
        }
        found
    }
}

/// Whether the hypervisor's clock jumped between two samples.
fn jump(from: &Sample, to: &Sample) -> Option<Finding> {
    let within = to.raw.minus(from.raw);
    let by = to.source?.minus(from.source?).minus(within);
    let noise = Nanos::of(SOURCE_NOISE)
        .plus(within.millionths(SOURCE_DRIFT_PPM))
        .plus(from.width)
        .plus(to.width);
    (by.size() > noise).then_some(Finding::Jumped { by, within })
}

fn is_plausible(source: Nanos) -> bool {
    source.0 >= CLOCK_EPOCH * Nanos::SECOND
}

fn correction(sample: &Sample, step_above: Duration) -> Correction {
    let Some(source) = sample.source.filter(|&source| is_plausible(source)) else {
        return Correction::Leave;
    };
    let off = source.minus(sample.system);
    if off.size() > Nanos::of(step_above) {
        Correction::Step(off)
    } else if off.size() > Nanos::of(CLOCK_DEAD_BAND).plus(sample.width) {
        Correction::Slew(off)
    } else {
        Correction::Leave
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
