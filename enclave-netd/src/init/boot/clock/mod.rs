//! Keeps the enclave's clock right, and tells when it jumped.
//!
//! The hypervisor's clock is a PTP device (`ptp_kvm`). It is the host's, but the parent instance
//! cannot set it. What is done about it, and why, is in [`judge`]; [`clocks`] reads and sets.

mod clocks;
mod judge;

use crate::limits::CLOCK_INTERVAL;
use crate::privileges;
use clocks::{Clocks, Machine, Source};
use judge::{Correction, Finding, Judge};
use std::io;
use std::path::Path;
use std::thread;
use tracing::{debug, info, warn};

/// The hypervisor's clock.
pub(super) const PTP: &str = "/dev/ptp0";

/// The thread that looks after the clock.
#[derive(Debug)]
pub(crate) struct Discipline;

impl Discipline {
    /// Sets the clock to the hypervisor's if it is off, and starts the thread that keeps it there, for
    /// as long as the process lives. Without a clock of the hypervisor it only watches for jumps.
    /// Signals must be blocked and capabilities not yet dropped: the thread keeps CAP_SYS_TIME and
    /// nothing else.
    ///
    /// # Errors
    /// The kernel's clocks cannot be read, or the thread could not be started.
    pub(crate) fn start() -> io::Result<()> {
        let source = match Source::open(PTP) {
            Ok(source) => Some(source),
            // That it is missing was said with the kernel's other features.
            Err(_) if !Path::new(PTP).exists() => None,
            Err(error) => {
                warn!(%error, device = PTP, "cannot read the hypervisor's clock: the clock runs by itself");
                None
            }
        };
        let name = source.as_ref().map(|source| source.name.clone());
        let mut watch = Watch::begin(Machine::new(source))?;
        match name {
            Some(name) => info!(
                source = name,
                device = PTP,
                "the clock follows the hypervisor's"
            ),
            None => info!("the clock is watched for jumps"),
        }
        thread::Builder::new().name("clock".into()).spawn(move || {
            privileges::keep_clock_in_thread();
            loop {
                thread::sleep(CLOCK_INTERVAL);
                watch.look();
            }
        })?;
        Ok(())
    }
}

/// Looks at clocks and corrects them.
#[derive(Debug)]
struct Watch<C> {
    clocks: C,
    judge: Judge,
    /// The last correction failed, and was complained of.
    is_refused: bool,
}

impl<C: Clocks> Watch<C> {
    fn begin(mut clocks: C) -> io::Result<Watch<C>> {
        let (judge, correction) = Judge::begin(clocks.sample()?);
        let mut watch = Watch {
            clocks,
            judge,
            is_refused: false,
        };
        watch.correct(correction);
        Ok(watch)
    }

    fn look(&mut self) {
        match self.clocks.sample() {
            Ok(sample) => {
                let (findings, correction) = self.judge.look(sample);
                findings.iter().for_each(tell);
                self.correct(correction);
            }
            Err(error) => warn!(%error, "cannot read the clocks"),
        }
    }

    fn correct(&mut self, correction: Correction) {
        let done = match correction {
            Correction::Leave => return,
            Correction::Slew(by) => {
                debug!(%by, "the clock is slewed");
                self.clocks.slew(by)
            }
            Correction::Step(by) => self.clocks.step(by).and_then(|()| {
                info!(%by, "the clock was off and is set to the hypervisor's");
                self.judge.stepped(self.clocks.sample()?);
                Ok(())
            }),
        };
        if let Err(error) = &done
            && !self.is_refused
        {
            warn!(%error, ?correction, "cannot correct the clock: is this process 1 with CAP_SYS_TIME?");
        }
        self.is_refused = done.is_err();
    }
}

fn tell(finding: &Finding) {
    match finding {
        Finding::Set { by } => warn!(
            %by,
            "the clock was set, and not by enclave-netd: a program in the enclave has CAP_SYS_TIME"
        ),
        Finding::Jumped { by, within } => warn!(
            %by,
            %within,
            "the hypervisor's clock jumped against the kernel's count: the host set it, or stopped \
             the enclave for that time"
        ),
        Finding::Late { by } => warn!(
            %by,
            "nothing ran in the enclave for this time: the host stopped it, or its processors are \
             overloaded"
        ),
        Finding::Implausible { source } => warn!(
            %source,
            "the hypervisor's clock is not set: the clock runs by itself"
        ),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
