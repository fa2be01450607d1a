//! What the engine and the codec cost, without sockets, links or kernels.
//!
//! ```text
//! cargo bench -p host-netd --bench engine          nanoseconds of every scenario
//! engine list                                      scenarios: name, flows, iterations
//! engine count SCENARIO FLOWS ITERATIONS           runs once, for a tool that counts
//! engine time SCENARIO FLOWS                       nanoseconds of one iteration
//! ```
//!
//! `scripts/bench-engine` runs `count` under valgrind with N and with 2N iterations. Their
//! difference is what N iterations cost: process start, the opening of thousands of flows and the
//! end cancel out, and the number is the same on every run.
//!
//! The driver is kept thin: packets are made beforehand, an iteration patches ports and sequence
//! numbers into one and looks at the lengths of the replies. The scenario `driver` shows what that
//! costs.

#![expect(clippy::print_stdout, reason = "this is how a bench reports")]

mod bed;
mod codec;
mod datagrams;
mod packets;
mod streams;

use std::time::{Duration, Instant};

/// Something that can be done again and again.
trait Load {
    /// Does it `iterations` times.
    fn run(&mut self, iterations: usize);

    /// Does it until it goes on as ever, before anything is timed. `Err` when this machine has too
    /// little memory.
    fn settle(&mut self) -> Result<(), NoMemory> {
        self.run(20_000);
        Ok(())
    }
}

/// This machine has too little memory.
struct NoMemory;

/// A kind of load and how much of it is measured.
struct Scenario {
    name: &'static str,
    /// TCP flows or UDP mappings that are open.
    flows: &'static [usize],
    /// For one count: enough that every flow has its turn more than once.
    iterations: usize,
    make: fn(usize) -> Box<dyn Load>,
}

const ONE: &[usize] = &[1];
const TWO: &[usize] = &[1, 10_000];
const THREE: &[usize] = &[1, 100, 10_000];

const SCENARIOS: &[Scenario] = &[
    scenario("tcp-out-1460", THREE, 20_000, streams::out_segments),
    scenario("tcp-out-64k", THREE, 20_000, streams::out_super_segments),
    scenario("tcp-in-1460", THREE, 20_000, streams::in_segments),
    scenario("tcp-in-64k", THREE, 20_000, streams::in_super_segments),
    scenario("tcp-echo-64", THREE, 20_000, streams::busy_echo),
    scenario("tcp-echo-64-sparse", THREE, 30_000, streams::sparse_echo),
    scenario("tcp-connection", TWO, 20_000, streams::connections),
    scenario("udp-out-1200", TWO, 20_000, datagrams::out),
    scenario("udp-in-1200", TWO, 20_000, datagrams::incoming),
    scenario("decode-64", ONE, 50_000, codec::decode_small),
    scenario("decode-64k", ONE, 50_000, codec::decode_super_segments),
    scenario("queue-64", ONE, 50_000, codec::queue_small),
    scenario("queue-64k", ONE, 50_000, codec::queue_super_segments),
    scenario("parse-64", ONE, 50_000, codec::parse_small),
    scenario(
        "parse-1460-checksum",
        ONE,
        50_000,
        codec::parse_full_checksum,
    ),
    scenario("parse-64k", ONE, 50_000, codec::parse_super_segment),
    scenario("driver", TWO, 20_000, streams::driver),
];

const fn scenario(
    name: &'static str,
    flows: &'static [usize],
    iterations: usize,
    make: fn(usize) -> Box<dyn Load>,
) -> Scenario {
    Scenario {
        name,
        flows,
        iterations,
        make,
    }
}

/// How long one timed run takes at least, so that the clock and an interrupt weigh little.
const RUN: Duration = Duration::from_millis(20);

/// Timed runs; the median is told.
const RUNS: usize = 15;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        // What cargo says to a bench.
        [] | ["--bench"] => time_all(),
        ["list"] => list(),
        ["count", name, flows, iterations] => {
            let iterations = number(iterations);
            (find(name).make)(number(flows)).run(iterations);
        }
        ["time", name, flows] => println!("{}", time(find(name), number(flows))),
        _ => refuse("usage: engine [list | count SCENARIO FLOWS ITERATIONS | time SCENARIO FLOWS]"),
    }
}

fn find(name: &str) -> &'static Scenario {
    SCENARIOS
        .iter()
        .find(|scenario| scenario.name == name)
        .unwrap_or_else(|| refuse("no such scenario: see `engine list`"))
}

fn number(text: &str) -> usize {
    text.parse()
        .unwrap_or_else(|_| refuse("flows and iterations are numbers"))
}

fn refuse(why: &str) -> ! {
    eprintln!("{why}");
    std::process::exit(2)
}

fn all() -> impl Iterator<Item = (&'static Scenario, usize)> {
    SCENARIOS
        .iter()
        .flat_map(|scenario| scenario.flows.iter().map(move |&flows| (scenario, flows)))
}

fn list() {
    for (scenario, flows) in all() {
        println!("{} {flows} {}", scenario.name, scenario.iterations);
    }
}

fn time_all() {
    println!("| scenario | flows | ns |\n| --- | ---: | ---: |");
    for (scenario, flows) in all() {
        let ns = time(scenario, flows);
        println!("| {} | {flows} | {ns} |", scenario.name);
    }
}

/// Nanoseconds of one iteration: the median of several runs. A dash when there is too little memory.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn time(scenario: &Scenario, flows: usize) -> String {
    let mut load = (scenario.make)(flows);
    if load.settle().is_err() {
        return "-".into();
    }
    let mut iterations = scenario.iterations;
    while timed(&mut *load, iterations) < RUN {
        iterations *= 2;
    }
    let mut runs: Vec<f64> = (0..RUNS)
        .map(|_| timed(&mut *load, iterations).as_nanos() as f64 / iterations as f64)
        .collect();
    runs.sort_by(f64::total_cmp);
    format!("{:.1}", runs[RUNS / 2])
}

fn timed(load: &mut dyn Load, iterations: usize) -> Duration {
    let begun = Instant::now();
    load.run(iterations);
    begun.elapsed()
}
