//! What processes use, as the kernel counts it.
//!
//! Processor time is user and system time of a process, all its threads, its descendants, and the
//! children that it has waited for. Work that the kernel does in softirq on behalf of nobody is in
//! no process's account; it is missing for every subject.

use anyhow::Context;
use procfs::process::{Process, Stat, all_processes};
use std::collections::{HashMap, HashSet};

/// A process and all its descendants that are alive.
pub(crate) fn tree(roots: &[i32]) -> Vec<i32> {
    let stats: Vec<Stat> = all_processes()
        .into_iter()
        .flatten()
        .filter_map(|process| process.ok()?.stat().ok())
        .collect();
    let mut found = roots.to_vec();
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(stats.iter().filter(|s| s.ppid == parent).map(|s| s.pid));
        next += 1;
    }
    found
}

/// Seconds of processor time that the trees of these processes have used so far.
pub(crate) fn cpu_seconds(roots: &[i32]) -> f64 {
    let ticks: i128 = tree(roots)
        .into_iter()
        .filter_map(|pid| Process::new(pid).ok()?.stat().ok())
        .map(|stat| used(&stat))
        .sum();
    ticks as f64 / procfs::ticks_per_second() as f64
}

/// Ticks of a process and of the children that it has waited for.
fn used(stat: &Stat) -> i128 {
    i128::from(stat.utime + stat.stime) + i128::from(stat.cutime + stat.cstime)
}

/// The same in nanoseconds and of the threads that are alive now: for times below one tick.
pub(crate) fn fine_cpu_seconds(roots: &[i32]) -> f64 {
    let threads = tree(roots)
        .into_iter()
        .filter_map(|pid| Process::new(pid).ok()?.tasks().ok())
        .flat_map(|tasks| tasks.flatten());
    let nanoseconds: u64 = threads
        .filter_map(|thread| thread.schedstat().ok())
        .map(|stat| stat.sum_exec_runtime)
        .sum();
    nanoseconds as f64 / 1e9
}

/// Processor time of every process that is neither of this run nor the kernel's own, with that of
/// the children it has waited for: what a process has used stays in the sum when it ends.
pub(crate) struct Others(HashMap<i32, (String, f64)>);

impl Others {
    /// Up to now.
    pub(crate) fn now() -> Others {
        /// The parent of the kernel's threads.
        const KERNEL: i32 = 2;
        let own = std::process::id().cast_signed();
        let own: HashSet<i32> = tree(&[own]).into_iter().collect();
        let stats = all_processes().into_iter().flatten();
        let stats = stats.filter_map(|process| process.ok()?.stat().ok());
        let others = stats.filter(|stat| stat.ppid != KERNEL && !own.contains(&stat.pid));
        let ticks = procfs::ticks_per_second() as f64;
        Others(
            others
                .map(|s| (s.pid, (s.comm.clone(), used(&s) as f64 / ticks)))
                .collect(),
        )
    }

    /// The one that has used most since then, and how many seconds all have.
    pub(crate) fn since(&self, before: &Others) -> Option<(&str, f64)> {
        let sum = |others: &Others| others.0.values().map(|(_, used)| used).sum::<f64>();
        let of_one = |pid: &i32, now: f64| now - before.0.get(pid).map_or(0.0, |(_, then)| *then);
        let each = self.0.iter();
        let each = each.map(|(pid, (name, now))| (name.as_str(), of_one(pid, *now)));
        let (name, _) = each.max_by(|a, b| a.1.total_cmp(&b.1))?;
        Some((name, sum(self) - sum(before)))
    }
}

/// Memory of one process, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Resident.
    pub(crate) resident: f64,
    /// Resident, shared pages divided by their users.
    pub(crate) proportional: f64,
    /// The most that was ever resident.
    pub(crate) peak: f64,
}

/// Memory of one process, and of none of its descendants.
pub(crate) fn memory(pid: i32) -> anyhow::Result<Memory> {
    let process = Process::new(pid).with_context(|| format!("process {pid} is gone"))?;
    let maps = process.smaps_rollup()?.memory_map_rollup;
    let field = |name: &str| -> f64 {
        let maps = maps.iter();
        maps.filter_map(|map| map.extension.map.get(name))
            .sum::<u64>() as f64
    };
    Ok(Memory {
        resident: field("Rss"),
        proportional: field("Pss"),
        peak: process.status()?.vmhwm.unwrap_or(0) as f64 * 1024.0,
    })
}
