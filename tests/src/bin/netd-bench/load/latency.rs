//! Request and answer over one connection, one at a time: what a small remote call takes.

use super::{MESSAGE, SILENCE, tell};
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What comes first is not counted: caches and windows settle.
const SETTLE: Duration = Duration::from_millis(200);

/// Round trips in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// How many there were.
    pub(crate) count: usize,
    /// Half took no longer.
    pub(crate) p50: f64,
    /// 99 in 100 took no longer.
    pub(crate) p99: f64,
}

pub(super) fn run(server: SocketAddr, seconds: f64) -> anyhow::Result<()> {
    let mut stream =
        TcpStream::connect_timeout(&server, SILENCE).with_context(|| format!("to {server}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let mut message = [7; MESSAGE];
    let mut round_trip = || -> std::io::Result<Duration> {
        let begin = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        Ok(begin.elapsed())
    };
    let begin = Instant::now();
    while begin.elapsed() < SETTLE {
        round_trip()?;
    }
    let (begin, duration) = (Instant::now(), Duration::from_secs_f64(seconds));
    let mut taken = Vec::with_capacity(1 << 20);
    while begin.elapsed() < duration {
        taken.push(round_trip()?);
    }
    ensure!(!taken.is_empty(), "no answer within {seconds} s");
    taken.sort_unstable();
    let at = |percent: usize| taken[(taken.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    tell(&Latency {
        count: taken.len(),
        p50: at(50),
        p99: at(99),
    })
}
