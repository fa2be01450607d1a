//! The summary.

use crate::ledger::{Fault, Judgement, Window};
use crate::memory::{Sample, Watched};
use netd_tests::Census;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

/// Violations that are told one by one.
const TOLD: usize = 40;
const MIB: f64 = 1024.0 * 1024.0;

/// What is told of a run.
pub(crate) struct Report<'a> {
    pub(crate) seed: u64,
    pub(crate) mbit: u64,
    pub(crate) lasted: Duration,
    pub(crate) windows: &'a [Window],
    pub(crate) judgement: &'a Judgement,
    pub(crate) host: &'a Watched,
    pub(crate) enclave: &'a Watched,
    pub(crate) before: &'a Census,
    pub(crate) after: &'a Census,
    pub(crate) stall: Duration,
}

impl Report<'_> {
    /// The text.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("writing to a text succeeds");
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let cores = processor_seconds() / self.lasted.as_secs_f64();
        writeln!(
            out,
            "seed {}, {:.1} minutes, bulk up to {} Mbit/s; {cores:.2} processors used by daemons and \
             load; longest stall of the machine {:.2} s\n",
            self.seed,
            self.lasted.as_secs_f64() / 60.0,
            self.mbit,
            self.stall.as_secs_f64(),
        )?;
        self.operations(out)?;
        self.failures(out)?;
        self.faults(out)?;
        self.memory(out)?;
        self.held(out)?;
        let violations = &self.judgement.violations;
        writeln!(out, "\nviolations: {}", violations.len())?;
        for violation in violations.iter().take(TOLD) {
            writeln!(out, "- {violation}")?;
        }
        Ok(())
    }

    fn operations(&self, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "| operation | done | MiB | failed by a fault | failed |"
        )?;
        writeln!(out, "| --- | ---: | ---: | ---: | ---: |")?;
        let mut all = crate::ledger::Tally::default();
        let mut row = |name: &str, tally: &crate::ledger::Tally| {
            let mib = tally.bytes as f64 / MIB;
            let crate::ledger::Tally {
                done,
                excused,
                failed,
                ..
            } = tally;
            writeln!(out, "| {name} | {done} | {mib:.1} | {excused} | {failed} |")
        };
        for (name, tally) in &self.judgement.tallies {
            row(name, tally)?;
            all.done += tally.done;
            all.bytes += tally.bytes;
            all.excused += tally.excused;
            all.failed += tally.failed;
        }
        row("all", &all)
    }

    fn failures(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "\n| fault | failures by it |\n| --- | --- |")?;
        let mut by_fault: BTreeMap<Fault, Vec<String>> = BTreeMap::new();
        for ((symptom, fault), count) in &self.judgement.excused {
            let told = by_fault.entry(*fault).or_default();
            told.push(format!("{symptom} {count}"));
        }
        for (fault, told) in by_fault {
            writeln!(out, "| {fault} | {} |", told.join(", "))?;
        }
        Ok(())
    }

    fn faults(&self, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "\n| fault | times | service after, median | most | operations of 1 s and more that outlasted it |"
        )?;
        writeln!(out, "| --- | ---: | ---: | ---: | ---: |")?;
        let mut services: BTreeMap<Fault, Vec<Duration>> = BTreeMap::new();
        for window in self.windows {
            services
                .entry(window.fault)
                .or_default()
                .push(window.service);
        }
        for (fault, mut times) in services {
            times.sort_unstable();
            let median = times[times.len() / 2].as_secs_f64();
            let most = times[times.len() - 1].as_secs_f64();
            let outlasted = self.judgement.outlasted.get(&fault);
            let outlasted = outlasted.map_or_else(|| "-".to_owned(), ToString::to_string);
            let count = times.len();
            writeln!(
                out,
                "| {fault} | {count} | {median:.2} s | {most:.2} s | {outlasted} |"
            )?;
        }
        Ok(())
    }

    fn memory(&self, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "\n| | first | last | most |\n| --- | ---: | ---: | ---: |"
        )?;
        for (name, watched) in [("host-netd", self.host), ("enclave-netd", self.enclave)] {
            let samples = watched.samples();
            let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
                continue;
            };
            let mut row = |what: &str, field: fn(&Sample) -> f64| {
                let most = samples.iter().map(field).fold(0.0, f64::max);
                writeln!(
                    out,
                    "| {name}, {what} | {:.1} | {:.1} | {most:.1} |",
                    field(first),
                    field(last)
                )
            };
            row("resident MiB", |s| s.resident as f64 / MIB)?;
            row("proportional MiB", |s| s.proportional as f64 / MIB)?;
            row("open files", |s| s.files as f64)?;
            row("threads", |s| s.threads as f64)?;
        }
        writeln!(out)?;
        for (name, watched) in [("host-netd", self.host), ("enclave-netd", self.enclave)] {
            let trend = watched.trend();
            let floors = trend.floors.iter();
            let floors = floors.map(|&floor| format!("{:.1}", floor as f64 / MIB));
            let floors = floors.collect::<Vec<_>>().join(", ");
            let bound = match trend.bound() {
                Some(bound) => format!("the last two may be {:.1}", bound as f64 / MIB),
                None => "too short for a trend".to_owned(),
            };
            let life = trend.life.as_secs();
            writeln!(
                out,
                "{name}: floors of its memory in the parts of its last {life} s, in MiB: {floors} ({bound})"
            )?;
        }
        Ok(())
    }

    fn held(&self, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "\n| held | before the load | after it |\n| --- | ---: | ---: |"
        )?;
        for what in [
            "flows",
            "host-netd: file",
            "host-netd: thread",
            "enclave-netd: file",
            "enclave-netd: thread",
            "enclave: ",
            "parent: ",
            "internet: ",
            "namespaces",
            "files in",
        ] {
            let (before, after) = (self.before.total(what), self.after.total(what));
            let name = match what {
                "enclave: " => "sockets in the enclave",
                "parent: " => "sockets on the parent",
                "internet: " => "sockets of the servers",
                "host-netd: file" => "host-netd: open files",
                "enclave-netd: file" => "enclave-netd: open files",
                "host-netd: thread" => "host-netd: threads",
                "enclave-netd: thread" => "enclave-netd: threads",
                "files in" => "files of the link and in the enclave's /etc",
                _ => what,
            };
            writeln!(out, "| {name} | {before} | {after} |")?;
        }
        Ok(())
    }
}

/// Of this program and of what it has started and waited for.
fn processor_seconds() -> f64 {
    let whose = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN];
    let used = whose.into_iter().filter_map(|who| getrusage(who).ok());
    let used = used.map(|usage| usage.user_time() + usage.system_time());
    used.map(|time| time.num_microseconds() as f64 / 1e6).sum()
}
