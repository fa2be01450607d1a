//! How fast one stream is over a simulated path, with the tunnel and without, for each delay, loss and
//! buffer. The table is kept in `netsim.md`, so that a change shows as a diff. Nothing of it depends
//! on the machine.

use netd_sim::{Conditions, Direction, FILE, direct, tunnelled};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;
use std::{env, fs};

/// One way, in milliseconds.
const DELAYS: [u64; 3] = [1, 10, 50];
/// In 10,000 segments.
const LOSSES: [usize; 3] = [0, 10, 100];
/// In KiB.
const BUFFERS: [u64; 4] = [32, 128, 512, 2048];
/// With loss, one run says little.
const RUNS: u64 = 8;

const HEAD: &str = "\
# Throughput of one stream over a simulated path

Written by `NETD_UPDATE=1 cargo test -p netd-sim --test netsim`. A file of 4 MiB goes between a program
and a remote host, over a path of 100 Mbit/s with a queue of 50 ms. *direct*: the program is on the
parent. *tunnel*: it is in the enclave, with the engine in between. *buffer* is that of each socket at
the two ends of the path. Mbit/s, of the mean time of 8 runs where segments are lost.

| round trip | loss | buffer | down direct | down tunnel | up direct | up tunnel |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: |
";

fn megabits(conditions: Conditions, transfer: impl Fn(Conditions, u64) -> Duration) -> f64 {
    let runs = if conditions.loss == 0 { 1 } else { RUNS };
    let time: Duration = (0..runs).map(|seed| transfer(conditions, seed)).sum();
    FILE as f64 * 8.0 / (time.as_secs_f64() / runs as f64) / 1e6
}

fn table() -> String {
    let mut text = HEAD.to_owned();
    for delay in DELAYS {
        for loss in LOSSES {
            for buffer in BUFFERS {
                let conditions = Conditions {
                    delay: Duration::from_millis(delay),
                    loss,
                    buffer: buffer * 1024,
                };
                let cells = [Direction::Down, Direction::Up].map(|direction| {
                    let direct = megabits(conditions, |c, seed| direct(c, direction, seed));
                    let tunnel = megabits(conditions, |c, seed| tunnelled(c, direction, seed));
                    format!("{direct:.2} | {tunnel:.2}")
                });
                let _ = writeln!(
                    text,
                    "| {} ms | {} % | {buffer} KiB | {} | {} |",
                    2 * delay,
                    loss as f64 / 100.0,
                    cells[0],
                    cells[1]
                );
            }
        }
    }
    text
}

#[test]
fn throughput_by_delay_loss_and_buffer_is_as_it_was() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("netsim.md");
    let new = table();
    if env::var_os("NETD_UPDATE").is_some() {
        fs::write(&path, &new).expect("the table can be written");
    }

    let kept = fs::read_to_string(&path).unwrap_or_default();

    let mut diff = String::new();
    for (kept, new) in kept
        .lines()
        .zip(new.lines())
        .filter(|(kept, new)| kept != new)
    {
        let _ = writeln!(diff, "-{kept}\n+{new}");
    }
    assert!(
        kept == new,
        "{} is not what comes out:\n{diff}If that is meant, keep it: NETD_UPDATE=1 cargo test -p netd-sim --test netsim",
        path.display()
    );
}
