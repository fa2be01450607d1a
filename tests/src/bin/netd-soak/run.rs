//! One run: bed, load, faults, counts, report.

use crate::exchange::Patterns;
use crate::faults::Bed;
use crate::ledger::{Fault, Ledger, SERVICE_WITHIN, Window};
use crate::memory::{self, Watched};
use crate::options::Run;
use crate::random::Random;
use crate::report::Report;
use crate::stalls::Stalls;
use crate::workers::{self, BULK, Stop, World};
use anyhow::ensure;
use netd_tests::{Census, Lab};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::time::{Duration, Instant};

/// How much earlier than the rest that stops which lingers, so that none of it is left at the end:
/// see [`World::stop_lingering`].
const LINGERS: Duration = Duration::from_secs(130);
/// What may still be there when the load has ended goes within this time, in seconds.
const SETTLED: u64 = 40;
/// The most that host-netd may use: some twenty flows at once, each with up to 1 MiB of buffers, and
/// itself.
const HOST_MEMORY: u64 = 48 * 1024 * 1024;
/// The most that enclave-netd may use: it keeps nothing of a flow.
const ENCLAVE_MEMORY: u64 = 16 * 1024 * 1024;

/// Runs it all; false if something was not as it should be.
pub(crate) fn run(options: &Run) -> anyhow::Result<bool> {
    let binaries = options.bin_dir()?;
    for daemon in ["host-netd", "enclave-netd"] {
        let path = binaries.join(daemon);
        ensure!(
            path.exists(),
            "there is no {}: run scripts/soak, or say --bin-dir",
            path.display()
        );
    }
    let seed = options.seed();
    eprintln!(
        "netd-soak: {} s with seed {seed}",
        options.duration().as_secs()
    );
    let lab = Lab::with_daemons_of(binaries);
    end_on_signals(&lab)?;
    let (daemons, tap) = lab.up_tapped(&Bed::HOST, Bed::ENCLAVE);
    tap.stop_recording();
    let (patterns, ledger, stalls) = (Patterns::new(), Ledger::default(), Stalls::default());
    let (host, enclave) = (Watched::new(HOST_MEMORY), Watched::new(ENCLAVE_MEMORY));
    enclave.is_now(daemons.enclave.pid());
    let mut bed = Bed::new(&lab, &tap, daemons, &host, &patterns);
    let mut random = Random::new(seed, 0);
    ensure!(
        bed.service(&mut random) < Duration::from_secs(10),
        "it does not work even before the load: {}",
        bed.daemons.host.log()
    );
    let before = Census::settled(&Census::default(), 2, || Census::of(&lab, &mut bed.daemons));

    let (stop, stop_lingering, stop_watching) = (Stop::default(), Stop::default(), Stop::default());
    let start = Instant::now();
    let mut windows = Vec::new();
    std::thread::scope(|scope| {
        // Whatever ends this ends the workers, or they would be waited for in vain.
        let _ended = [&stop, &stop_lingering, &stop_watching].map(EndOnDrop);
        scope.spawn(|| stalls.watch(|| stop_watching.is_now()));
        scope.spawn(|| memory::watch(&[&host, &enclave], || stop_watching.is_now()));
        std::thread::scope(|scope| {
            let _ended = [&stop, &stop_lingering].map(EndOnDrop);
            let bulk_rate = options.mbit as f64 * 1e6 / 8.0 / BULK as f64;
            let world = World {
                lab: &lab,
                patterns: &patterns,
                ledger: &ledger,
                stop: &stop,
                stop_lingering: &stop_lingering,
                seed,
                bulk_rate,
            };
            workers::start(scope, world);
            let end = start + options.duration();
            scope.spawn(|| {
                stop.rest(options.duration() - LINGERS);
                stop_lingering.now();
            });
            windows = faults(&mut bed, options, &mut random, start, end);
        });
    });
    let after = Census::settled(&before, SETTLED, || Census::of(&lab, &mut bed.daemons));
    let mut judgement = ledger.judge(start, &windows, &stalls);
    judgement.violations.extend(late(&windows, &stalls));
    let left = after.beyond(&before);
    let left = left.into_iter().map(|line| format!("left over: {line}"));
    judgement.violations.extend(left);
    for (name, watched) in [("host-netd", &host), ("enclave-netd", &enclave)] {
        let trend = watched.trend();
        if trend.is_growth() {
            let line = format!("{name}'s memory grows: {trend:?}");
            judgement.violations.push(line);
        }
        let samples = watched.samples();
        let most = samples.iter().map(|sample| sample.proportional).max();
        if most.is_none_or(|most| most > watched.most) {
            let line = format!("{name} used {most:?} bytes, more than {}", watched.most);
            judgement.violations.push(line);
        }
    }
    judgement.violations.extend(complaints(&mut bed));
    let lasted = start.elapsed();
    drop(bed);
    drop(tap);
    let report = Report {
        seed,
        mbit: options.mbit,
        lasted,
        windows: &windows,
        judgement: &judgement,
        host: &host,
        enclave: &enclave,
        before: &before,
        after: &after,
        stall: stalls.longest(),
    };
    std::io::stdout().write_all(report.markdown().as_bytes())?;
    Ok(judgement.violations.is_empty())
}

/// Faults of every kind in turns, in another order each time. host-netd is killed in the first
/// third only: then it lives long enough to show whether its memory grows.
fn faults(
    bed: &mut Bed<'_>,
    options: &Run,
    random: &mut Random,
    start: Instant,
    end: Instant,
) -> Vec<Window> {
    /// The longest fault and the wait for service after it.
    const LONGEST: Duration = Duration::from_secs(25);
    let never = Stop::default();
    let mut windows = Vec::new();
    let mut deck = Vec::new();
    while Instant::now() < end {
        never.rest(random.millis(2_000, 12_000).min(end - Instant::now()));
        if options.calm || Instant::now() + LONGEST > end {
            continue;
        }
        let is_early = start.elapsed() < options.duration() / 3;
        let fault = match deck.pop() {
            Some(Fault::HostKilled) if !is_early => continue,
            Some(fault) => fault,
            None => {
                deck.extend(Fault::LASTING);
                if is_early {
                    deck.extend([Fault::HostKilled; 2]);
                }
                random.shuffle(&mut deck);
                continue;
            }
        };
        let window = bed.inflict(fault, random, &never);
        let at = (window.begin - start).as_secs();
        let lasted = (window.end - window.begin).as_secs_f64();
        let service = window.service.as_secs_f64();
        eprintln!("{at:>5} s  {fault}: {lasted:.1} s, service after {service:.2} s");
        windows.push(window);
    }
    windows
}

/// Faults after which service came too late.
fn late(windows: &[Window], stalls: &Stalls) -> Vec<String> {
    let late = windows.iter().filter(|window| {
        let within = SERVICE_WITHIN + stalls.before(window.end + window.service);
        window.service > within
    });
    late.map(|window| {
        let service = window.service.as_secs_f64();
        format!("{}: service after {service:.2} s", window.fault)
    })
    .collect()
}

/// Ends the daemons, and looks for what their logs should not say.
fn complaints(bed: &mut Bed<'_>) -> Vec<String> {
    let mut found = Vec::new();
    bed.logs.push(bed.daemons.enclave.log_path().to_owned());
    if !bed.daemons.enclave.terminate().success() {
        found.push("enclave-netd does not end in good order".to_owned());
    }
    if !bed.daemons.host.terminate().success() {
        found.push("host-netd does not end in good order".to_owned());
    }
    for path in &bed.logs {
        let log = std::fs::read_to_string(path).unwrap_or_default();
        let bad = log
            .lines()
            .filter(|line| line.contains("panicked") || line.contains(" ERROR "));
        found.extend(bad.map(|line| format!("in a log: {line}")));
    }
    found
}

/// Stops workers when it goes.
struct EndOnDrop<'a>(&'a Stop);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.now();
    }
}

/// On a signal, ends all that runs in the machines, and this program.
fn end_on_signals(lab: &Lab) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let abandon = lab.abandon();
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("netd-soak: stopped");
            abandon();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
