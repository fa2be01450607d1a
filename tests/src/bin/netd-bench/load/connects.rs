//! Connect, one request, one answer, the server closes: what many short calls cost.
//!
//! The server closes first, so the sockets that wait (TIME_WAIT) are the server's, and the client's
//! ports can be used again at once. The ports of the server are taken in turns.

use super::{MESSAGE, SILENCE, port, tell};
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// What all loops did together.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Connects {
    /// Finished exchanges.
    pub(crate) count: usize,
    /// In how long.
    pub(crate) seconds: f64,
}

pub(super) fn run(server: IpAddr, seconds: f64, loops: usize) -> anyhow::Result<()> {
    let (begin, duration) = (Instant::now(), Duration::from_secs_f64(seconds));
    let one_loop = |first: usize| -> anyhow::Result<usize> {
        let mut count = 0;
        while begin.elapsed() < duration {
            let port = port::CLOSE[(first + count) % port::CLOSE.len()];
            exchange(SocketAddr::new(server, port))
                .with_context(|| format!("exchange {count} of a loop"))?;
            count += 1;
        }
        Ok(count)
    };
    let counts = thread::scope(|scope| {
        let loops: Vec<_> = (0..loops)
            .map(|first| scope.spawn(move || one_loop(first)))
            .collect();
        let ends = loops.into_iter();
        ends.map(|one| one.join().expect("a loop does not panic"))
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    tell(&Connects {
        count: counts.iter().sum(),
        seconds: begin.elapsed().as_secs_f64(),
    })
}

fn exchange(server: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, SILENCE)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.write_all(&[1; MESSAGE])?;
    let mut answer = Vec::with_capacity(2 * MESSAGE);
    stream.read_to_end(&mut answer)?;
    ensure!(
        answer.len() == MESSAGE,
        "{} bytes of {MESSAGE}",
        answer.len()
    );
    Ok(())
}
