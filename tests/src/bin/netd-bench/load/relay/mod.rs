//! A wire with delay and loss, between two interfaces of one machine.
//!
//! # Theory of operation
//! One thread a direction reads frames of one interface with a packet socket, in batches, into a
//! ring of slots, and writes each to the other interface when its time has come. Nothing is copied
//! in between. A frame that the (seeded) dice choose is not written. While frames wait, the thread
//! sleeps until the first is due or for [`TICK`], and does not wake for each that comes: arrival
//! times are therefore up to one tick late, delays never shorter than asked for.
//!
//! The interfaces have all offloads off, so frames are what travels on a real wire: 1,514 bytes at
//! most. When the ring is full, frames wait in the socket's buffer; what that cannot hold, the
//! kernel drops and counts, and the report tells.

mod ring;
mod socket;

use super::tell;
use anyhow::Context;
use ring::Ring;
use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;
use socket::PacketSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// Said once frames are carried.
pub(crate) const READY: &str = "relaying";
/// How late a frame may be noticed while others wait.
const TICK: Duration = Duration::from_micros(100);

/// What became of the frames of both directions.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Relayed {
    /// Written to the other side.
    pub(crate) carried: u64,
    /// Dropped on purpose.
    pub(crate) lost: u64,
    /// Dropped because the relay could not keep up.
    pub(crate) overflowed: u64,
}

#[derive(Default)]
struct Counters {
    carried: AtomicU64,
    lost: AtomicU64,
}

/// Carries frames until SIGTERM, then tells what became of them.
pub(super) fn run(interfaces: [&str; 2], delay: Duration, loss: f64) -> anyhow::Result<()> {
    let counters = Arc::new(Counters::default());
    // Before any frame: a signal always finds its handler.
    let mut signals = Signals::new([SIGTERM])?;
    let open = |name: &str| PacketSocket::open(name).with_context(|| format!("interface {name}"));
    let [left, right] = [
        Arc::new(open(interfaces[0])?),
        Arc::new(open(interfaces[1])?),
    ];
    for (seed, from, to) in [(1, &left, &right), (2, &right, &left)] {
        let (from, to) = (Arc::clone(from), Arc::clone(to));
        let counters = Arc::clone(&counters);
        let dice = Dice::new(seed, loss);
        thread::spawn(move || {
            if let Err(error) = carry(&from, &to, delay, dice, &counters) {
                eprintln!("relay: {error}");
                std::process::exit(1);
            }
        });
    }
    eprintln!("{READY}");
    signals.forever().next();
    tell(&Relayed {
        carried: counters.carried.load(Relaxed),
        lost: counters.lost.load(Relaxed),
        overflowed: left.overflowed()? + right.overflowed()?,
    })
}

fn carry(
    from: &PacketSocket,
    to: &PacketSocket,
    delay: Duration,
    mut dice: Dice,
    counters: &Counters,
) -> std::io::Result<()> {
    // The kernel would let sleeps be 50 us longer.
    nix::sys::prctl::set_timerslack(1)?;
    let mut ring = Ring::new();
    loop {
        let received = from.receive(&mut ring)?;
        let now = Instant::now();
        let lost = ring.accept(received, now + delay, || dice.says_lost());
        counters.lost.fetch_add(lost, Relaxed);
        let sent = to.send_due(&mut ring, now)?;
        counters.carried.fetch_add(sent, Relaxed);
        if received > 0 || sent > 0 {
            continue;
        }
        match ring.next_due() {
            None => from.wait()?,
            Some(due) => thread::sleep(due.saturating_duration_since(now).min(TICK)),
        }
    }
}

/// Decides which frames are lost, the same ones in each run.
struct Dice {
    state: u64,
    below: u64,
}

impl Dice {
    fn new(seed: u64, loss: f64) -> Dice {
        #[expect(clippy::cast_possible_truncation, reason = "loss is a part of 1")]
        let below = (loss * u32::MAX as f64) as u64;
        Dice {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            below,
        }
    }

    fn says_lost(&mut self) -> bool {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state >> 32 < self.below
    }
}
