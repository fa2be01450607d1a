//! Datagrams at a fixed rate, and how many of them arrive.
//!
//! The one who is behind a tunnel speaks first in either direction. Sender and receiver are two
//! processes in two machines; what one sent and the other got are compared by who started them.

use super::{SILENCE, tell};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// Said by the one who waits for the other.
pub(crate) const READY: &str = "waiting for the first datagram";
/// The receiver takes the sender for done when nothing has come for so long.
const QUIET: Duration = Duration::from_millis(700);
/// Between hellos, until the first datagram is there.
const HELLO_EVERY: Duration = Duration::from_millis(200);
/// Datagrams are sent in bursts, this often: no timer is exact enough for each.
const BURST_EVERY: Duration = Duration::from_micros(500);
/// For sockets on both ends, as far as the kernel permits: the tunnel is measured, not they.
const BUFFER: usize = 4 * 1024 * 1024;

/// What was sent or received.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Datagrams {
    /// How many.
    pub(crate) count: u64,
    /// From the first to the last.
    pub(crate) seconds: f64,
}

/// Where the other one is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Other {
    /// Speaks first, to this socket.
    Calls(SocketAddr),
    /// Waits there.
    Waits(SocketAddr),
}

impl Other {
    pub(super) fn new(waits: bool, address: SocketAddr) -> Other {
        match waits {
            true => Other::Waits(address),
            false => Other::Calls(address),
        }
    }

    fn socket(self) -> anyhow::Result<UdpSocket> {
        let (Other::Calls(address) | Other::Waits(address)) = self;
        let own = match self {
            Other::Calls(own) => own,
            Other::Waits(_) if address.is_ipv4() => SocketAddr::from(([0; 4], 0)),
            Other::Waits(_) => SocketAddr::from(([0; 16], 0)),
        };
        let socket = UdpSocket::bind(own).with_context(|| format!("cannot bind to {own}"))?;
        let options = socket2::SockRef::from(&socket);
        options.set_recv_buffer_size(BUFFER)?;
        options.set_send_buffer_size(BUFFER)?;
        match self {
            Other::Waits(to) => socket.connect(to)?,
            Other::Calls(_) => eprintln!("{READY}"),
        }
        Ok(socket)
    }
}

/// Sends `rate` datagrams a second for some time.
pub(super) fn send(other: Other, payload: usize, rate: f64, seconds: f64) -> anyhow::Result<()> {
    let socket = other.socket()?;
    if let Other::Calls(_) = other {
        socket.set_read_timeout(Some(SILENCE))?;
        let (_, caller) = socket.recv_from(&mut [0; 16]).context("nobody called")?;
        socket.connect(caller)?;
    }
    let datagram = vec![5; payload];
    let begin = Instant::now();
    let mut count = 0;
    let mut elapsed = 0.0;
    while elapsed < seconds {
        // Late bursts are made up for, so that all subjects are offered the same.
        while (count as f64) < elapsed * rate {
            match socket.send(&datagram) {
                Ok(_) => count += 1,
                // The far end is not there yet or any more, or a queue is full: offered is offered.
                Err(error) if is_passing(error.kind()) => count += 1,
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => count += 1,
                Err(error) => return Err(error).context("cannot send"),
            }
            if begin.elapsed().as_secs_f64() > seconds {
                break;
            }
        }
        thread::sleep(BURST_EVERY);
        elapsed = begin.elapsed().as_secs_f64();
    }
    tell(&Datagrams {
        count,
        seconds: elapsed,
    })
}

fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::WouldBlock)
}

/// Counts what comes until nothing does any more.
pub(super) fn receive(other: Other) -> anyhow::Result<()> {
    let socket = other.socket()?;
    let mut buffer = [0; 2048];
    let waiting = Instant::now();
    if let Other::Waits(_) = other {
        socket.set_read_timeout(Some(HELLO_EVERY))?;
        loop {
            // Refused: the server is not there yet.
            let _ = socket.send(b"hello");
            match socket.recv(&mut buffer) {
                Ok(_) => break,
                Err(_) if waiting.elapsed() < SILENCE => {}
                Err(error) => return Err(error).context("no datagram came"),
            }
        }
    } else {
        socket.set_read_timeout(Some(SILENCE))?;
        socket.recv(&mut buffer).context("no datagram came")?;
    }
    socket.set_read_timeout(Some(QUIET))?;
    let (begin, mut last, mut count) = (Instant::now(), Instant::now(), 1);
    while socket.recv(&mut buffer).is_ok() {
        count += 1;
        // The clock is asked now and then only.
        if count % 16 == 0 {
            last = Instant::now();
        }
    }
    tell(&Datagrams {
        count,
        seconds: (last - begin).as_secs_f64(),
    })
}
