//! The clocks of this machine: read, and set.

use super::super::sys;
use super::judge::{Nanos, Sample};
use crate::limits::CLOCK_ATTEMPTS;
use nix::libc;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use tracing::warn;

/// All that the watch needs of a machine.
pub(super) trait Clocks {
    /// Reads all clocks in one moment.
    fn sample(&mut self) -> io::Result<Sample>;
    /// Sets the system's clock, by this.
    fn step(&mut self, by: Nanos) -> io::Result<()>;
    /// Lets the system's clock run faster or slower until it moved by this.
    fn slew(&mut self, by: Nanos) -> io::Result<()>;
}

/// The hypervisor's clock, as a PTP device.
#[derive(Debug)]
pub(super) struct Source {
    device: File,
    /// What the driver calls it.
    pub(super) name: String,
}

impl Source {
    /// Opens it and looks whether it can be read.
    pub(super) fn open(path: &str) -> io::Result<Source> {
        let device = File::open(path)?;
        let node = path.trim_start_matches("/dev/");
        let name = fs::read_to_string(format!("/sys/class/ptp/{node}/clock_name"))
            .map_or_else(|_| "unknown".into(), |name| name.trim().to_owned());
        let source = Source { device, name };
        source.now()?;
        Ok(source)
    }

    fn now(&self) -> io::Result<Nanos> {
        // FD_TO_CLOCKID of `include/linux/posix-timers.h`: clock_gettime(2), "Dynamic clocks".
        const CLOCKFD: libc::clockid_t = 3;
        let fd: libc::clockid_t = self.device.as_raw_fd();
        read(ClockId::from_raw((!fd << 3) | CLOCKFD))
    }
}

/// The kernel's clocks, and the hypervisor's if there is one.
#[derive(Debug)]
pub(super) struct Machine {
    source: Option<Source>,
}

impl Machine {
    pub(super) fn new(source: Option<Source>) -> Machine {
        Machine { source }
    }

    fn attempt(&self) -> io::Result<(Sample, Option<io::Error>)> {
        let before = read(ClockId::CLOCK_BOOTTIME)?;
        let raw = read(ClockId::CLOCK_MONOTONIC_RAW)?;
        let earlier = read(ClockId::CLOCK_REALTIME)?;
        let source = self.source.as_ref().map(Source::now).transpose();
        let later = read(ClockId::CLOCK_REALTIME)?;
        let after = read(ClockId::CLOCK_BOOTTIME)?;
        let middle = |a: Nanos, b: Nanos| Nanos(a.0 + (b.0 - a.0) / 2);
        let (source, error) = match source {
            Ok(source) => (source, None),
            Err(error) => (None, Some(error)),
        };
        let sample = Sample {
            system: middle(earlier, later),
            boot: middle(before, after),
            raw,
            source,
            width: Nanos(after.0 - before.0),
        };
        Ok((sample, error))
    }
}

impl Clocks for Machine {
    fn sample(&mut self) -> io::Result<Sample> {
        let (mut best, mut failure) = self.attempt()?;
        for _ in 1..CLOCK_ATTEMPTS {
            let (sample, error) = self.attempt()?;
            if sample.width < best.width {
                best = sample;
            }
            failure = failure.or(error);
        }
        if let Some(error) = failure {
            warn!(%error, "the hypervisor's clock cannot be read any more: the clock runs by itself");
            self.source = None;
            best.source = None;
        }
        Ok(best)
    }

    fn step(&mut self, by: Nanos) -> io::Result<()> {
        sys::step_clock(by.0)
    }

    fn slew(&mut self, by: Nanos) -> io::Result<()> {
        sys::slew_clock(by.0)
    }
}

/// A clock's time, which a host may have set to anything.
fn read(clock: ClockId) -> io::Result<Nanos> {
    let time: TimeSpec = clock_gettime(clock)?;
    let nanos = time
        .tv_sec()
        .saturating_mul(Nanos::SECOND)
        .saturating_add(time.tv_nsec());
    Ok(Nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_clocks_are_read_in_one_moment() {
        let mut machine = Machine::new(None);
        let (first, second) = (machine.sample(), machine.sample());
        let (first, second) = (first.expect("clocks"), second.expect("clocks"));
        assert!(first.boot <= second.boot && first.raw <= second.raw);
        assert!(first.system.0 > crate::limits::CLOCK_EPOCH * Nanos::SECOND);
        assert_eq!(first.source, None);
    }

    #[test]
    fn what_is_no_clock_is_refused() {
        Source::open("/dev/null").expect_err("no clock");
        Source::open("/dev/ptp-absent").expect_err("not there");
    }
}
