//! One run: bed, subjects, measures in turns, report.

use crate::bed::Bed;
use crate::check;
use crate::machine_facts::Facts;
use crate::measure::Measure;
use crate::options::Run;
use crate::report::Report;
use crate::results::{Gap, Results, Sample};
use crate::subject::{BUILT_IN, HOST, Kind, OURS, Subject};
use crate::usage::Others;
use crate::{INTERRUPTED, wait_if_interrupted};
use anyhow::{Context, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// The part of one processor that other programs may use before a run counts as disturbed.
const DISTURBING: f64 = 0.05;

/// Runs it all; false if a check failed.
pub(crate) fn run(options: &Run) -> anyhow::Result<bool> {
    let wanted = wanted(options)?;
    let measures = options.measures();
    let facts = Facts::gather(command_line(), &options.bin_dir()?);
    // What a killed tunnel leaves running stays a descendant of this process, and is told from other
    // programs by that.
    nix::sys::prctl::set_child_subreaper(true)?;
    let bed = Bed::new(options)?;
    end_on_signals(&bed)?;

    let mut results = Results::default();
    let names: Vec<String> = wanted.iter().map(|(name, _)| name.clone()).collect();
    let mut subjects = Vec::new();
    for (name, kind) in wanted {
        match Subject::start(&name, kind, &bed) {
            Ok(subject) => subjects.push(subject),
            Err(error) if name == OURS => return Err(error.context("our own daemons")),
            Err(error) => {
                let measure = "everything".to_owned();
                let why = format!("{error:#}");
                eprintln!("{name} could not be set up: {why}");
                let subject = name;
                results.gaps.push(Gap {
                    measure,
                    subject,
                    why,
                });
            }
        }
    }
    for measure in measures {
        for repeat in 0..measure.repeats(options.repeats()) {
            for subject in &mut subjects {
                once(&bed, measure, repeat, subject, options, &mut results);
            }
        }
    }
    let checks = match options.check {
        true => check::run(&bed, &subjects)?,
        false => Vec::new(),
    };
    for subject in &mut subjects {
        note_peaks(subject, &mut results);
    }
    drop(subjects);
    let report = Report {
        facts: &facts,
        subjects: &names,
        results: &results,
        checks: &checks,
        seconds: options.seconds(),
        repeats: options.repeats(),
    };
    eprintln!();
    std::io::stdout().write_all(report.markdown().as_bytes())?;
    if let Some(dir) = &options.output {
        report
            .write(dir)
            .with_context(|| format!("cannot write the report to {}", dir.display()))?;
    }
    Ok(checks.iter().all(|check| check.failure.is_none()))
}

/// One measure once over one subject.
fn once(
    bed: &Bed,
    measure: Measure,
    repeat: usize,
    subject: &mut Subject<'_>,
    options: &Run,
    results: &mut Results,
) {
    let name = measure.name();
    if results.is_gap(&name, &subject.name) {
        return;
    }
    let repeats = measure.repeats(options.repeats());
    let place = format!("{name} {}/{repeats} {}", repeat + 1, subject.name);
    let (begin, before) = (Instant::now(), Others::now());
    let outcome = measure.run(bed, subject, options.seconds());
    results.runs += 1;
    if let Some((who, seconds)) = Others::now().since(&before)
        && seconds > DISTURBING * begin.elapsed().as_secs_f64()
    {
        results.disturbed += 1;
        eprintln!(
            "{place}: other programs used {seconds:.2} s of processor time, most of all {who}"
        );
    }
    match outcome {
        Ok(values) => {
            let told = values
                .iter()
                .map(|(key, value)| format!("{key} {value:.4}"));
            eprintln!("{place}: {}", told.collect::<Vec<_>>().join(", "));
            results
                .samples
                .extend(values.into_iter().map(|(metric, value)| Sample {
                    metric,
                    subject: subject.name.clone(),
                    repeat,
                    value,
                }));
        }
        Err(error) => {
            wait_if_interrupted();
            let why = format!("{error:#}");
            eprintln!("{place}: not measured: {why}");
            let (measure, subject) = (name, subject.name.clone());
            results.gaps.push(Gap {
                measure,
                subject,
                why,
            });
        }
    }
}

/// Peak memory, over all that was measured.
fn note_peaks(subject: &mut Subject<'_>, results: &mut Results) {
    const MIB: f64 = 1024.0 * 1024.0;
    let peaks = subject.peaks();
    let all: f64 = peaks.values().sum();
    let host = peaks.get(HOST).copied();
    let mut note = |metric, value: f64| {
        results.samples.push(Sample {
            metric,
            subject: subject.name.clone(),
            repeat: 0,
            value: value / MIB,
        });
    };
    if all > 0.0 {
        note("peak", all);
    }
    if let Some(host) = host {
        note("peak_host", host);
    }
}

/// The subjects that were asked for, in the order of the report.
fn wanted(options: &Run) -> anyhow::Result<Vec<(String, Kind)>> {
    let kinds = [
        Kind::Direct,
        Kind::Ours,
        Kind::Slirp4netns,
        Kind::Pasta,
        Kind::Socat,
    ];
    let mut all: Vec<(String, Kind)> = BUILT_IN.iter().map(|&n| n.to_owned()).zip(kinds).collect();
    for (name, command) in &options.peers {
        if all.iter().any(|(known, _)| known == name) {
            bail!("--peer {name} is there twice");
        }
        all.push((name.clone(), Kind::Peer(command.clone())));
    }
    for name in &options.subjects {
        if !all.iter().any(|(known, _)| known == name) {
            let known: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
            bail!(
                "--subjects {name}: there is no such; there are {}",
                known.join(", ")
            );
        }
    }
    let is_wanted = |name: &String| options.subjects.is_empty() || options.subjects.contains(name);
    Ok(all
        .into_iter()
        .filter(|(name, _)| is_wanted(name))
        .collect())
}

/// What was typed, as a shell takes it.
fn command_line() -> String {
    let mut words: Vec<String> = std::env::args().collect();
    // The script that starts this program tells its own name.
    if let (Ok(script), Some(first)) = (std::env::var("NETD_BENCH_COMMAND"), words.first_mut()) {
        *first = script;
    }
    let quoted = words.iter().map(|word| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:".contains(c);
        match !word.is_empty() && word.chars().all(is_plain) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// On a signal, ends all that runs in the machines, and this program.
fn end_on_signals(bed: &Bed) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let abandon = bed.lab.abandon();
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("netd-bench: stopped");
            abandon();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
