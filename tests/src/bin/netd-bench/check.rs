//! Whether what is so fast is also right: transfers over our daemons whose every byte is compared.
//!
//! They run after the measures, on daemons that have carried all of these.

use crate::bed::{Bed, SERVER};
use crate::subject::{OURS, Subject};
use anyhow::{Context, bail, ensure};
use netd_tests::{Pattern, connect, echo_compared, serve};
use serde::Serialize;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

const MIB: usize = 1024 * 1024;
/// Each way, on each connection.
const LARGE: usize = 64 * MIB;
/// At once.
const CONNECTIONS: usize = 8;
/// More than all buffers on the way hold together.
const SLOW: usize = 32 * MIB;
/// How long a slow reader does nothing: windows close, and probes come.
const PAUSE: Duration = Duration::from_secs(2);
/// For a server's verdict.
const VERDICT: Duration = Duration::from_secs(60);
/// For a connection, in seconds.
const CONNECT: u64 = 5;

/// One check and how it ended.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    pub(crate) failure: Option<String>,
}

type Outcome = anyhow::Result<()>;
type Body = fn(&Bed) -> Outcome;

const CHECKS: [(&str, Body); 5] = [
    ("64 MiB each way at once on 8 connections", both_ways),
    (
        "a reader in the enclave that stops and goes on",
        slow_reader_inside,
    ),
    (
        "a reader outside that stops and goes on",
        slow_reader_outside,
    ),
    ("a stopped reader does not stop another flow", others_go_on),
    (
        "half-closed: 32 MiB after the other half has ended",
        half_closed,
    ),
];

/// Runs all over our daemons.
pub(crate) fn run(bed: &Bed, subjects: &[Subject<'_>]) -> anyhow::Result<Vec<Check>> {
    if !subjects.iter().any(|subject| subject.name == OURS) {
        bail!("--check needs the subject {OURS}");
    }
    let one = |(what, body): (&'static str, Body)| {
        let failure = body(bed).err().map(|error| format!("{error:#}"));
        let outcome = failure.as_deref().unwrap_or("ok");
        eprintln!("check: {what}: {outcome}");
        Check { what, failure }
    };
    Ok(CHECKS.into_iter().map(one).collect())
}

fn both_ways(bed: &Bed) -> Outcome {
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    let (send, expect) = (down.clone(), up.clone());
    let (server, verdicts) = start(bed, move |stream| {
        Ok(echo_compared(stream, &send, &expect, LARGE)?)
    });
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                scope.spawn(|| -> Outcome {
                    let stream = connect(&bed.lab.enclave, server, CONNECT)?;
                    Ok(echo_compared(&stream, &up, &down, LARGE)?)
                })
            })
            .collect();
        let mut ends = clients.into_iter();
        ends.try_for_each(|client| client.join().expect("a client does not panic"))
    })?;
    (0..CONNECTIONS).try_for_each(|_| verdicts())
}

fn slow_reader_inside(bed: &Bed) -> Outcome {
    let down = Pattern::new(3);
    let send = down.clone();
    let (server, verdict) = start(bed, move |stream| send_all(stream, &send));
    let stream = connect(&bed.lab.enclave, server, CONNECT)?;
    read_slowly(&stream, &down)?;
    verdict()
}

fn slow_reader_outside(bed: &Bed) -> Outcome {
    let up = Pattern::new(4);
    let expect = up.clone();
    let (server, verdict) = start(bed, move |stream| read_slowly(stream, &expect));
    let stream = connect(&bed.lab.enclave, server, CONNECT)?;
    send_all(&stream, &up)?;
    verdict()
}

fn others_go_on(bed: &Bed) -> Outcome {
    let down = Pattern::new(5);
    let send = down.clone();
    let (server, verdicts) = start(bed, move |stream| send_all(stream, &send));
    let stopped = connect(&bed.lab.enclave, server, CONNECT)?;
    // Its windows are full by the time that the others have ended.
    for _ in 0..3 {
        let other = connect(&bed.lab.enclave, server, CONNECT)?;
        ensure!(down.compare(&mut &other)? == SLOW, "too few bytes");
        verdicts()?;
    }
    read_slowly(&stopped, &down)?;
    verdicts()
}

fn half_closed(bed: &Bed) -> Outcome {
    let down = Pattern::new(6);
    let send = down.clone();
    let (server, verdict) = start(bed, move |mut stream| {
        let mut request = Vec::new();
        stream.read_to_end(&mut request)?;
        ensure!(request == b"all, please", "another request came");
        send_all(stream, &send)
    });
    let stream = connect(&bed.lab.enclave, server, CONNECT)?;
    (&stream).write_all(b"all, please")?;
    stream.shutdown(Shutdown::Write)?;
    ensure!(down.compare(&mut &stream)? == SLOW, "too few bytes");
    verdict()
}

/// Starts a server in the internet, and tells how to learn what became of one of its connections.
fn start(
    bed: &Bed,
    session: impl Fn(&TcpStream) -> Outcome + Clone + Send + 'static,
) -> (SocketAddr, impl Fn() -> Outcome) {
    let (verdicts, seen): (Sender<Outcome>, _) = channel();
    let server = serve(
        &bed.lab.internet,
        SocketAddr::new(SERVER, 0),
        move |stream| {
            // Nobody listens any more if the client's end has failed: that is what is told then.
            let _ = verdicts.send(session(&stream));
        },
    );
    let verdict = move || {
        let outcome = seen.recv_timeout(VERDICT).context("the server's end hangs");
        outcome?.context("the server's end")
    };
    (server, verdict)
}

fn send_all(stream: &TcpStream, pattern: &Pattern) -> Outcome {
    pattern.send(&mut &*stream, SLOW)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}

/// Reads some, stops, and reads the rest.
fn read_slowly(stream: &TcpStream, pattern: &Pattern) -> Outcome {
    thread::sleep(PAUSE);
    let mut paused = Pausing {
        stream,
        until_pause: MIB,
    };
    let got = pattern.compare(&mut paused)?;
    ensure!(got == SLOW, "{got} bytes came, {SLOW} were sent");
    Ok(())
}

/// Stops once, after some bytes.
struct Pausing<'s> {
    stream: &'s TcpStream,
    until_pause: usize,
}

impl Read for Pausing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.stream.read(buffer)?;
        if self.until_pause > 0 {
            self.until_pause = self.until_pause.saturating_sub(n);
            if self.until_pause == 0 {
                thread::sleep(PAUSE);
            }
        }
        Ok(n)
    }
}
