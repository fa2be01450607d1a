//! Byte streams whose every byte is compared, and small servers that do what real ones will not.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::machine::Machine;
use crate::wait::until;

/// Longer than any buffer on the way and no multiple of any size: a shift by one is seen.
const PERIOD: usize = 4 * 1024 * 1024 + 4099;
/// A transfer that stands still this long has failed.
const STALL: Duration = Duration::from_secs(30);

/// An endless stream of bytes that both ends know.
#[derive(Clone, Debug)]
pub struct Pattern {
    block: std::sync::Arc<[u8]>,
}

impl Pattern {
    /// The stream of that seed.
    pub fn new(seed: u64) -> Pattern {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let words = (0..PERIOD.div_ceil(8)).flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        Pattern {
            block: words.take(PERIOD).collect(),
        }
    }

    /// What comes at a position: at least one byte, at most `most`.
    fn at(&self, position: usize, most: usize) -> &[u8] {
        let rest = &self.block[position % PERIOD..];
        &rest[..rest.len().min(most)]
    }

    /// Writes the first `length` bytes.
    ///
    /// # Errors
    /// As the stream's.
    pub fn send(&self, to: &mut impl Write, length: usize) -> io::Result<()> {
        let mut sent = 0;
        while sent < length {
            let piece = self.at(sent, (length - sent).min(256 * 1024));
            to.write_all(piece)?;
            sent += piece.len();
        }
        Ok(())
    }

    /// Reads to the end of the stream, compares every byte, and tells how many there were.
    ///
    /// # Errors
    /// As the stream's; `InvalidData` at the first byte that differs.
    pub fn compare(&self, from: &mut impl Read) -> io::Result<usize> {
        let mut buffer = vec![0; 256 * 1024];
        let mut position = 0;
        loop {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                return Ok(position);
            }
            let mut got = &buffer[..n];
            while !got.is_empty() {
                let expected = self.at(position, got.len());
                if got[..expected.len()] != *expected {
                    let place = got.iter().zip(expected).position(|(a, b)| a != b);
                    let place = position + place.unwrap_or(0);
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("byte {place} differs"),
                    ));
                }
                position += expected.len();
                got = &got[expected.len()..];
            }
        }
    }
}

/// Sends `length` bytes of one pattern and, at the same time, compares what comes with another, to
/// the end of both directions.
///
/// # Errors
/// As the stream's; when a byte differs or the number of bytes does.
pub fn echo_compared(
    stream: &TcpStream,
    send: &Pattern,
    expect: &Pattern,
    length: usize,
) -> io::Result<()> {
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            send.send(&mut &*stream, length)?;
            stream.shutdown(Shutdown::Write)
        });
        let got = expect.compare(&mut &*stream)?;
        writer.join().expect("the writer does not panic")?;
        if got == length {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{got} bytes came, {length} were sent"),
        ))
    })
}

/// Connects from a machine, within some seconds.
///
/// # Errors
/// As the program sees it.
pub fn connect(machine: &Machine, to: SocketAddr, seconds: u64) -> io::Result<TcpStream> {
    let once = || machine.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(seconds)));
    let mut stream = once();
    // Linux now and then (once in 80,000 connects on an idle machine) reports an ICMP error to
    // poll() on another CPU before getsockopt(SO_ERROR) tells it: an error without a number.
    for _ in 0..3 {
        match &stream {
            Err(error) if error.raw_os_error().is_none() && error.kind() != ErrorKind::TimedOut => {
                stream = once();
            }
            _ => break,
        }
    }
    let stream = stream?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    Ok(stream)
}

/// Accepts for as long as the process lives, and hands each connection to a thread of its own.
pub fn serve(
    machine: &Machine,
    at: SocketAddr,
    session: impl Fn(TcpStream) + Clone + Send + 'static,
) -> SocketAddr {
    let listener = machine
        .inside(|| TcpListener::bind(at))
        .expect("the port is free");
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let session = session.clone();
            match stream {
                Ok(stream) => drop(thread::spawn(move || session(stream))),
                Err(error) => panic!("accept: {error}"),
            }
        }
    });
    address
}

/// A server that sends back what it gets, and its end of stream after the client's.
pub fn echo_server(machine: &Machine, at: SocketAddr) -> SocketAddr {
    serve(machine, at, |stream| {
        let mut buffer = vec![0; 64 * 1024];
        let mut stream = &stream;
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
        let _ = stream.shutdown(Shutdown::Write);
    })
}

/// Waits until a new request to an echo server works, for two seconds at most.
///
/// # Panics
/// When it does not.
pub fn works_again(machine: &Machine, echo: SocketAddr) {
    until(2, "a new request works", || {
        let mut stream = connect(machine, echo, 1).ok()?;
        stream.write_all(b"again").ok()?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).ok()?;
        (&answer == b"again").then_some(())
    });
}
