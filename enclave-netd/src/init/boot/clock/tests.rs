use super::judge::{Nanos, Sample};
use super::*;
use crate::limits::CLOCK_EPOCH;

const EPOCH: i64 = (CLOCK_EPOCH + 1_000_000) * Nanos::SECOND;

/// A machine that a test turns the hands of. The system's clock is `system` off the source.
struct Hands {
    elapsed: i64,
    system: i64,
    refuses: bool,
    slewed: Vec<i64>,
}

impl Clocks for Hands {
    fn sample(&mut self) -> io::Result<Sample> {
        Ok(Sample {
            system: Nanos(EPOCH + self.elapsed + self.system),
            boot: Nanos(self.elapsed),
            raw: Nanos(self.elapsed),
            source: Some(Nanos(EPOCH + self.elapsed)),
            width: Nanos(0),
        })
    }

    fn step(&mut self, by: Nanos) -> io::Result<()> {
        if self.refuses {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.system += by.0;
        Ok(())
    }

    fn slew(&mut self, by: Nanos) -> io::Result<()> {
        self.slewed.push(by.0);
        Ok(())
    }
}

fn hands(system: i64) -> Hands {
    Hands {
        elapsed: 0,
        system,
        refuses: false,
        slewed: Vec::new(),
    }
}

/// What is found an interval later.
fn findings(watch: &mut Watch<Hands>) -> Vec<Finding> {
    watch.clocks.elapsed += i64::try_from(CLOCK_INTERVAL.as_nanos()).expect("short");
    let sample = watch.clocks.sample().expect("clocks");
    watch.judge.look(sample).0
}

fn pass(watch: &mut Watch<Hands>) {
    watch.clocks.elapsed += i64::try_from(CLOCK_INTERVAL.as_nanos()).expect("short");
    watch.look();
}

#[test]
fn a_clock_that_is_hours_off_is_right_at_the_start_and_stays() {
    let mut watch = Watch::begin(hands(-7_200 * Nanos::SECOND)).expect("clocks");
    assert_eq!(watch.clocks.system, 0);
    pass(&mut watch);
    assert_eq!((watch.clocks.system, watch.clocks.slewed.len()), (0, 0));
    watch.clocks.system = 3_600 * Nanos::SECOND;
    watch.look();
    assert_eq!(watch.clocks.system, 0);
    assert_eq!(findings(&mut watch), [], "our own step");
}

#[test]
fn a_small_difference_is_slewed_and_a_large_one_stepped() {
    let mut watch = Watch::begin(hands(0)).expect("clocks");
    watch.clocks.system = 5_000_000;
    pass(&mut watch);
    assert_eq!(watch.clocks.slewed, [-5_000_000]);
    assert_eq!(watch.clocks.system, 5_000_000, "a slew takes its time");
    watch.clocks.system = -Nanos::SECOND;
    pass(&mut watch);
    assert_eq!(watch.clocks.system, 0);
}

#[test]
fn a_kernel_that_refuses_is_asked_again() {
    let mut refusing = hands(Nanos::SECOND);
    refusing.refuses = true;
    let mut watch = Watch::begin(refusing).expect("clocks");
    assert!(watch.is_refused);
    pass(&mut watch);
    assert_eq!(watch.clocks.system, Nanos::SECOND);
    watch.clocks.refuses = false;
    pass(&mut watch);
    assert_eq!((watch.clocks.system, watch.is_refused), (0, false));
}
