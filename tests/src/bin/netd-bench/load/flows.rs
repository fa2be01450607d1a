//! Many flows that are open at once and do nothing.
//!
//! Each has carried a request and an answer of [`BYTES`] before, so that whatever a tunnel keeps
//! for a flow that was used is there. They end with a reset, which leaves nothing behind that waits.

use super::{SILENCE, port, tell};
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// What each has carried, each way.
const BYTES: usize = 2048;
/// How many are opened at once.
const OPENERS: usize = 8;

/// Later than this, no more are opened.
const OPEN_WITHIN: Duration = Duration::from_secs(45);

/// How it went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Flows {
    /// Are open now.
    pub(crate) opened: usize,
    /// In how long.
    pub(crate) seconds: f64,
    /// Why there are no more, if there are fewer than asked for.
    pub(crate) error: Option<String>,
}

/// Opens them, tells, and keeps them until it is ended.
pub(super) fn run(server: IpAddr, flows: usize) -> anyhow::Result<()> {
    let begin = Instant::now();
    let one_opener = |first: usize| {
        let mut open = Vec::new();
        let mut error = None;
        for number in (first..flows).step_by(OPENERS) {
            if begin.elapsed() > OPEN_WITHIN {
                error = Some(format!("not faster in {OPEN_WITHIN:?}"));
                break;
            }
            let port = port::IDLE[number % port::IDLE.len()];
            match open_and_use(SocketAddr::new(server, port)) {
                Ok(stream) => open.push(stream),
                Err(failed) => {
                    error = Some(match failed.kind() {
                        ErrorKind::WouldBlock => format!("no answer within {SILENCE:?}"),
                        _ => failed.to_string(),
                    });
                    break;
                }
            }
        }
        (open, error)
    };
    let results: Vec<(Vec<TcpStream>, Option<String>)> = thread::scope(|scope| {
        let openers: Vec<_> = (0..OPENERS)
            .map(|first| scope.spawn(move || one_opener(first)))
            .collect();
        let ends = openers.into_iter();
        ends.map(|opener| opener.join().expect("an opener does not panic"))
            .collect()
    });
    tell(&Flows {
        opened: results.iter().map(|(open, _)| open.len()).sum(),
        seconds: begin.elapsed().as_secs_f64(),
        error: results.iter().find_map(|(_, error)| error.clone()),
    })?;
    loop {
        thread::sleep(Duration::MAX);
    }
}

fn open_and_use(server: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, SILENCE)?;
    stream.set_read_timeout(Some(SILENCE))?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let mut bytes = [3; BYTES];
    stream.write_all(&bytes)?;
    stream.read_exact(&mut bytes)?;
    Ok(stream)
}
