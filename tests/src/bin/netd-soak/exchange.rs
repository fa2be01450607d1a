//! What goes over a connection: a header, bytes one way, bytes the other, and a verdict.
//!
//! Both sides know every byte (see [`Pattern`]), so each compares what it gets. The verdict, one
//! byte at the end, tells the client what the server found.

use anyhow::Context;
use netd_tests::Pattern;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// What the server says when it serves.
pub(crate) const SERVING: &str = "serving";

const HEADER: usize = 24;
const RIGHT: u8 = b'k';
const WRONG: u8 = b'x';
/// What a slow reader reads at once.
const LITTLE: usize = 64 * 1024;
/// A transfer that stands still this long has failed.
const STALL: Duration = Duration::from_secs(30);

/// Streams of bytes that both sides know, by number.
#[derive(Clone, Debug)]
pub(crate) struct Patterns(Arc<[Pattern]>);

impl Patterns {
    const COUNT: u8 = 8;

    pub(crate) fn new() -> Patterns {
        let all = (0..Self::COUNT).map(|number| Pattern::new(100 + u64::from(number)));
        Patterns(all.collect())
    }

    fn of(&self, number: u8) -> &Pattern {
        &self.0[usize::from(number % Self::COUNT)]
    }
}

/// How the server ends an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It waits for the next one.
    Goes = 0,
    /// It closes first.
    Closes = 1,
    /// It resets the connection amid its answer.
    Resets = 2,
}

/// One exchange.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange {
    /// Which bytes.
    pub(crate) pattern: u8,
    /// How many to the server.
    pub(crate) up: usize,
    /// How many from it.
    pub(crate) down: usize,
    /// Both directions at once.
    pub(crate) at_once: bool,
    /// The client ends its direction before it reads.
    pub(crate) half_close: bool,
    /// What the server does after.
    pub(crate) then: Then,
    /// How long the client waits between reads: a slow reader.
    pub(crate) pause: Duration,
}

impl Exchange {
    /// Up and then down.
    pub(crate) fn new(pattern: u8, up: usize, down: usize) -> Exchange {
        Exchange {
            pattern,
            up,
            down,
            at_once: false,
            half_close: false,
            then: Then::Goes,
            pause: Duration::ZERO,
        }
    }

    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0] = b'X';
        header[1] = self.pattern;
        header[2] = u8::from(self.at_once);
        header[3] = self.then as u8;
        header[8..16].copy_from_slice(&(self.up as u64).to_be_bytes());
        header[16..].copy_from_slice(&(self.down as u64).to_be_bytes());
        header
    }

    fn parse(header: &[u8; HEADER]) -> io::Result<Exchange> {
        let size = |bytes: &[u8]| {
            let bytes = bytes.try_into().expect("eight bytes");
            usize::try_from(u64::from_be_bytes(bytes)).expect("usize has 64 bits")
        };
        let then = match header[3] {
            0 => Then::Goes,
            1 => Then::Closes,
            2 => Then::Resets,
            _ => return Err(wrong("the header")),
        };
        if header[0] != b'X' {
            return Err(wrong("the header"));
        }
        Ok(Exchange {
            pattern: header[1],
            at_once: header[2] != 0,
            half_close: false,
            then,
            pause: Duration::ZERO,
            up: size(&header[8..16]),
            down: size(&header[16..]),
        })
    }

    /// Runs it from the client's side.
    ///
    /// # Errors
    /// As the stream's; `InvalidData` when a byte differs, here or there; `UnexpectedEof` when the
    /// server's direction ended early.
    pub(crate) fn run(&self, stream: &TcpStream, patterns: &Patterns) -> io::Result<()> {
        stream.set_read_timeout(Some(STALL))?;
        stream.set_write_timeout(Some(STALL))?;
        if !self.pause.is_zero() {
            // A slow reader is told of a reset behind what its kernel holds: half a second of it.
            socket2::SockRef::from(stream).set_recv_buffer_size(4 * LITTLE)?;
        }
        let send = || {
            (&*stream).write_all(&self.header())?;
            patterns.of(self.pattern).send(&mut &*stream, self.up)?;
            match self.half_close {
                true => stream.shutdown(Shutdown::Write),
                false => Ok(()),
            }
        };
        let receive = || {
            exactly(stream, patterns.of(self.pattern + 1), self.down, self.pause)?;
            let mut verdict = [0];
            (&*stream).read_exact(&mut verdict)?;
            match verdict[0] {
                RIGHT => Ok(()),
                _ => Err(wrong("what the server got")),
            }
        };
        match self.at_once {
            true => both(send, receive)?,
            false => send().and_then(|()| receive())?,
        }
        let is_end = self.half_close || self.then == Then::Closes;
        if is_end && (&*stream).read(&mut [0])? != 0 {
            return Err(wrong("a byte after the end"));
        }
        Ok(())
    }

    /// Runs it from the server's side; false if the connection ended with it.
    fn answer(&self, stream: &TcpStream, patterns: &Patterns) -> io::Result<bool> {
        let mut verdict = RIGHT;
        let receive = || exactly(stream, patterns.of(self.pattern), self.up, self.pause);
        let down = match self.then {
            Then::Resets => self.down / 2,
            _ => self.down,
        };
        let send = || patterns.of(self.pattern + 1).send(&mut &*stream, down);
        let done = match self.at_once {
            true => both(send, receive),
            false => receive().and_then(|()| send()),
        };
        match done {
            Err(error) if error.kind() == ErrorKind::InvalidData => verdict = WRONG,
            other => other?,
        }
        if self.then == Then::Resets {
            socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
            return Ok(false);
        }
        (&*stream).write_all(&[verdict])?;
        Ok(self.then == Then::Goes)
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("{what} differs"))
}

/// Reads no more than a little at once, and waits after it.
struct Slow<'a>(&'a TcpStream, Duration);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.1.is_zero() {
            return self.0.read(buffer);
        }
        let most = buffer.len().min(LITTLE);
        let n = self.0.read(&mut buffer[..most])?;
        thread::sleep(self.1);
        Ok(n)
    }
}

/// Compares so many bytes.
fn exactly(
    stream: &TcpStream,
    pattern: &Pattern,
    length: usize,
    pause: Duration,
) -> io::Result<()> {
    let got = pattern.compare(&mut Slow(stream, pause).take(length as u64))?;
    if got == length {
        return Ok(());
    }
    Err(io::Error::new(
        ErrorKind::UnexpectedEof,
        format!("the end after {got} of {length} bytes"),
    ))
}

/// Sends on a thread of its own while it receives.
fn both(
    send: impl FnOnce() -> io::Result<()> + Send,
    receive: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    thread::scope(|scope| {
        let sent = scope.spawn(send);
        let received = receive();
        let sent = sent.join().expect("sending does not panic");
        match (received, sent) {
            // Linux tells of a reset once: when sending is told, reading sees an end.
            (Err(end), Err(reset))
                if end.kind() == ErrorKind::UnexpectedEof
                    && reset.kind() == ErrorKind::ConnectionReset =>
            {
                Err(reset)
            }
            (received, sent) => received.and(sent),
        }
    })
}

/// Serves exchanges over TCP and echoes datagrams, for as long as the process lives.
///
/// # Errors
/// A port is taken.
pub(crate) fn serve(at: &[SocketAddr]) -> anyhow::Result<()> {
    let patterns = Patterns::new();
    for &at in at {
        let listener = listen(at).with_context(|| format!("cannot listen on {at}"))?;
        let patterns = patterns.clone();
        thread::spawn(move || accept(&listener, &patterns));
        let socket = UdpSocket::bind(at).with_context(|| format!("cannot bind {at}"))?;
        thread::spawn(move || echo(&socket));
    }
    eprintln!("{SERVING}");
    loop {
        thread::park();
    }
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, patterns: &Patterns) {
    for stream in listener.incoming().flatten() {
        let patterns = patterns.clone();
        thread::spawn(move || {
            let _ = stream.set_nodelay(true);
            let mut header = [0; HEADER];
            while (&stream).read_exact(&mut header).is_ok() {
                let exchange = Exchange::parse(&header);
                match exchange.and_then(|exchange| exchange.answer(&stream, &patterns)) {
                    Ok(true) => {}
                    _ => return,
                }
            }
        });
    }
}

fn echo(socket: &UdpSocket) {
    let mut buffer = vec![0; 65_535];
    loop {
        // Errors tell of clients that are gone.
        if let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    }
}
