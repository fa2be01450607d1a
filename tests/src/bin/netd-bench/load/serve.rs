//! The servers of the small loads, in one process of the internet machine.

use super::{MESSAGE, port};
use anyhow::Context;
use mio::net::{TcpListener as MioListener, TcpStream as MioStream};
use mio::{Events, Interest, Poll, Token};
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;

/// Said once all ports are open.
pub(crate) const READY: &str = "serving";
/// The longest message.
const LONGEST: usize = 4096;

pub(super) fn run(address: IpAddr) -> anyhow::Result<()> {
    let listen = |port: u16| {
        let at = SocketAddr::new(address, port);
        TcpListener::bind(at).with_context(|| format!("cannot listen on {at}"))
    };
    let echo = listen(port::ECHO)?;
    thread::spawn(move || {
        for stream in echo.incoming().flatten() {
            // Its client's end is its own.
            thread::spawn(move || drop(answer_each(stream)));
        }
    });
    for port in port::CLOSE {
        let listener = listen(port)?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer_once(stream);
            }
        });
    }
    let idle = port::IDLE.iter().map(|&port| listen(port));
    let idle = idle.collect::<anyhow::Result<Vec<_>>>()?;
    eprintln!("{READY}");
    answer_all(idle)
}

fn answer_each(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
}

fn answer_once(mut stream: TcpStream) -> io::Result<()> {
    let mut message = [0; MESSAGE];
    stream.read_exact(&mut message)?;
    stream.write_all(&message)
}

/// Sends back what comes on any connection. Messages are small: they fit a socket's buffer.
fn answer_all(listeners: Vec<TcpListener>) -> anyhow::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut listening = Vec::new();
    for (number, listener) in listeners.into_iter().enumerate() {
        listener.set_nonblocking(true)?;
        let mut listener = MioListener::from_std(listener);
        let registry = poll.registry();
        registry.register(&mut listener, Token(number), Interest::READABLE)?;
        listening.push(listener);
    }
    let mut streams: HashMap<usize, MioStream> = HashMap::new();
    let mut next = listening.len();
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            let Token(token) = event.token();
            if let Some(listener) = listening.get(token) {
                while let Ok((mut stream, _)) = listener.accept() {
                    let registry = poll.registry();
                    registry.register(&mut stream, Token(next), Interest::READABLE)?;
                    streams.insert(next, stream);
                    next += 1;
                }
            } else if let Some(stream) = streams.get_mut(&token)
                && send_back(stream).is_err()
            {
                streams.remove(&token);
            }
        }
    }
}

/// An error when the connection is to be closed.
fn send_back(stream: &mut MioStream) -> io::Result<()> {
    let mut message = [0; LONGEST];
    loop {
        match stream.read(&mut message) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => stream.write_all(&message[..n])?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
