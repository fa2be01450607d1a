use super::*;

const BOOT: i64 = 100 * Nanos::SECOND;
const EPOCH: i64 = (CLOCK_EPOCH + 1_000_000) * Nanos::SECOND;
const MILLI: i64 = 1_000_000;
const INTERVAL: i64 = 10 * Nanos::SECOND;

/// All clocks right.
fn right() -> Sample {
    Sample {
        system: Nanos(EPOCH),
        boot: Nanos(BOOT),
        raw: Nanos(BOOT),
        source: Some(Nanos(EPOCH)),
        width: Nanos(2_000),
    }
}

/// A machine whose clocks a test moves.
struct World {
    now: Sample,
    judge: Judge,
}

impl World {
    fn new() -> World {
        let (judge, correction) = Judge::begin(right());
        assert_eq!(correction, Correction::Leave);
        World {
            now: right(),
            judge,
        }
    }

    fn pass(&mut self, by: i64) {
        for clock in [&mut self.now.system, &mut self.now.boot, &mut self.now.raw] {
            clock.0 += by;
        }
        self.move_source(by);
    }

    fn move_source(&mut self, by: i64) {
        if let Some(source) = &mut self.now.source {
            source.0 += by;
        }
    }

    fn look(&mut self) -> (Vec<Finding>, Correction) {
        self.judge.look(self.now)
    }
}

#[test]
fn at_the_start_the_clock_is_set_and_small_differences_are_slewed() {
    let off = |by: i64| {
        let mut sample = right();
        sample.system.0 -= by;
        Judge::begin(sample).1
    };
    assert_eq!(
        off(-3600 * Nanos::SECOND),
        Correction::Step(Nanos(-3600 * Nanos::SECOND))
    );
    assert_eq!(off(11 * MILLI), Correction::Step(Nanos(11 * MILLI)));
    assert_eq!(off(9 * MILLI), Correction::Slew(Nanos(9 * MILLI)));
    assert_eq!(off(MILLI / 10), Correction::Leave);
}

#[test]
fn later_the_clock_is_slewed_up_to_half_a_second() {
    let mut world = World::new();
    world.pass(INTERVAL);
    world.now.system.0 -= 400 * MILLI;
    assert_eq!(world.look().1, Correction::Slew(Nanos(400 * MILLI)));
    world.now.system.0 -= 200 * MILLI;
    assert_eq!(world.look().1, Correction::Step(Nanos(600 * MILLI)));
}

#[test]
fn quiet_clocks_find_nothing_however_long() {
    let mut world = World::new();
    for look in 0..10_000 {
        world.pass(INTERVAL);
        // Quartz at its worst, and our own slew of all clocks but the raw one.
        let jitter = if look % 2 == 0 { 7 * MILLI } else { -7 * MILLI };
        world.move_source(INTERVAL / 1_000_000 * 100 + jitter);
        world.now.system.0 += INTERVAL / 1_000_000 * 100;
        world.now.boot.0 += INTERVAL / 1_000_000 * 100;
        assert_eq!(world.look().0, [], "look {look}");
    }
}

#[test]
fn a_clock_that_somebody_set_is_told_once() {
    let mut world = World::new();
    world.pass(INTERVAL);
    world.now.system.0 -= 5 * Nanos::SECOND;
    let by = Nanos(-5 * Nanos::SECOND);
    let found = vec![Finding::Set { by }];
    let back = Correction::Step(Nanos(5 * Nanos::SECOND));
    assert_eq!(world.look(), (found, back));
    world.now.system.0 += 5 * Nanos::SECOND;
    world.judge.stepped(world.now);
    world.pass(INTERVAL);
    assert_eq!(world.look(), (vec![], Correction::Leave), "our own step");
}

#[test]
fn a_jump_of_the_source_is_told_and_followed() {
    for by in [
        -3600 * Nanos::SECOND,
        -40 * MILLI,
        40 * MILLI,
        2 * Nanos::SECOND,
    ] {
        let mut world = World::new();
        world.pass(INTERVAL);
        world.move_source(by);
        let (found, correction) = world.look();
        let (by, within) = (Nanos(by), Nanos(INTERVAL));
        assert_eq!(found, [Finding::Jumped { by, within }]);
        let followed = [Correction::Step(by), Correction::Slew(by)];
        assert!(followed.contains(&correction), "{correction:?}");
        world.pass(INTERVAL);
        assert_eq!(world.look().0, [], "once");
    }
}

#[test]
fn many_small_jumps_of_the_source_are_told() {
    let mut world = World::new();
    let looks = SOURCE_WATCH.as_secs().div_ceil(10);
    let told = (0..looks).find(|_| {
        world.pass(INTERVAL);
        world.move_source(14 * MILLI);
        !world.look().0.is_empty()
    });
    // 14 ms a look exceed 10 ms and 5 ms a look at the second.
    assert_eq!(told, Some(1));
}

#[test]
fn an_enclave_that_stood_still_is_told() {
    let mut world = World::new();
    world.pass(INTERVAL + 300 * Nanos::SECOND);
    let by = Nanos(300 * Nanos::SECOND);
    assert_eq!(world.look().0, [Finding::Late { by }]);
    world.pass(INTERVAL + Nanos::SECOND);
    assert_eq!(world.look().0, [], "busy");
}

#[test]
fn a_count_that_stood_still_with_the_enclave_is_told_by_the_source() {
    let mut world = World::new();
    world.pass(INTERVAL);
    world.move_source(300 * Nanos::SECOND);
    let (by, within) = (Nanos(300 * Nanos::SECOND), Nanos(INTERVAL));
    assert_eq!(world.look().0, [Finding::Jumped { by, within }]);
}

#[test]
fn without_a_source_nothing_is_corrected_and_setting_is_told() {
    let mut world = World::new();
    world.now.source = None;
    world.pass(INTERVAL);
    assert_eq!(world.look(), (vec![], Correction::Leave));
    world.pass(INTERVAL);
    world.now.system.0 += 2 * MILLI;
    let by = Nanos(2 * MILLI);
    assert_eq!(world.look(), (vec![Finding::Set { by }], Correction::Leave));
}

#[test]
fn a_source_that_is_not_set_is_not_followed() {
    for source in [0, i64::MIN, (CLOCK_EPOCH - 1) * Nanos::SECOND] {
        let mut sample = right();
        sample.source = Some(Nanos(source));
        let (mut judge, correction) = Judge::begin(sample);
        assert_eq!(correction, Correction::Leave);
        let source = Nanos(source);
        let (found, correction) = judge.look(sample);
        assert!(found.contains(&Finding::Implausible { source }));
        assert_eq!(correction, Correction::Leave);
    }
}

#[test]
fn what_no_clock_shows_breaks_nothing() {
    let extremes = [i64::MIN, -1, 0, 1, i64::MAX].map(Nanos);
    for a in extremes {
        for b in extremes {
            let mut sample = right();
            (sample.source, sample.system) = (Some(a), b);
            let (mut judge, _) = Judge::begin(sample);
            (sample.source, sample.system) = (Some(b), a);
            judge.look(sample);
            sample.raw = a;
            judge.look(sample);
        }
    }
}

#[test]
fn differences_are_written_in_seconds() {
    assert_eq!(Nanos(-1_500_000_000).to_string(), "-1.500000s");
    assert_eq!(Nanos(42_000).to_string(), "+0.000042s");
    assert_eq!(Nanos(i64::MIN).to_string(), "-9223372036.854775s");
}
