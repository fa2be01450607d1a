//! The load: threads that do one thing after the other, each at a bounded rate.

use crate::datagrams;
use crate::exchange::{Exchange, Patterns, Then};
use crate::ledger::{Carrier, Ledger};
use crate::random::Random;
use netd_tests::{Family, Lab, Machine, address, connect};
use nix::libc::{ECONNREFUSED, ECONNRESET, EHOSTUNREACH, EINPROGRESS};
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

/// Where the server is, in the internet and, published, in the enclave.
pub(crate) const PORT: u16 = 7000;
/// Where nobody listens.
const CLOSED: u16 = 1;
/// How long a program waits for a connection, in seconds.
const PATIENCE: u64 = 10;
const MIB: u64 = 1024 * 1024;

/// Tells workers to stop.
#[derive(Debug, Default)]
pub(crate) struct Stop(AtomicBool);

impl Stop {
    pub(crate) fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_now(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Rests, unless it is time to stop.
    pub(crate) fn rest(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.is_now() && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

/// What all workers share.
#[derive(Clone, Copy)]
pub(crate) struct World<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) patterns: &'a Patterns,
    pub(crate) ledger: &'a Ledger,
    pub(crate) stop: &'a Stop,
    /// What lingers stops earlier: host-netd keeps a UDP port for two minutes, and so long the
    /// parent's kernel goes on with a connect that the enclave has given up without a word.
    pub(crate) stop_lingering: &'a Stop,
    pub(crate) seed: u64,
    /// Most that one bulk worker moves, in bytes a second.
    pub(crate) bulk_rate: f64,
}

/// Bulk workers there are.
pub(crate) const BULK: u64 = 4;

/// Starts all workers.
pub(crate) fn start<'scope>(scope: &'scope Scope<'scope, '_>, world: World<'scope>) {
    type Work = for<'w> fn(World<'w>, &mut Random);
    let all: [Work; 18] = [
        |world, random| bulk(world, random, &OUT),
        |world, random| bulk(world, random, &OUT),
        |world, random| bulk(world, random, &OUT),
        |world, random| bulk(world, random, &IN),
        slow,
        slow,
        |world, random| short(world, random, &OUT),
        |world, random| short(world, random, &OUT),
        |world, random| short(world, random, &IN),
        |world, random| lasting(world, random, &OUT),
        |world, random| lasting(world, random, &OUT),
        |world, random| lasting(world, random, &OUT),
        |world, random| lasting(world, random, &IN),
        churn,
        |world, random| udp(world, random, &OUT),
        |world, random| udp(world, random, &IN),
        names,
        ping,
    ];
    for (number, work) in (1..).zip(all) {
        scope.spawn(move || work(world, &mut Random::new(world.seed, number)));
    }
}

/// A direction in which connections are opened.
struct Way {
    carrier: Carrier,
    machine: fn(&Lab) -> &Machine,
    to: [IpAddr; 2],
    names: [&'static str; 8],
}

const OUT: Way = Way {
    carrier: Carrier::Out,
    machine: |lab| &lab.enclave,
    to: address::SERVER,
    names: [
        "download",
        "upload",
        "both ways at once",
        "short connection",
        "exchange on a lasting connection",
        "idle time of a lasting connection",
        "UDP echo",
        "connecting",
    ],
};

const IN: Way = Way {
    carrier: Carrier::In,
    machine: |lab| &lab.internet,
    to: address::PARENT,
    names: [
        "published: download",
        "published: upload",
        "published: both ways at once",
        "published: short connection",
        "published: exchange on a lasting connection",
        "published: idle time of a lasting connection",
        "published: UDP echo",
        "published: connecting",
    ],
};

impl Way {
    fn connect(&self, world: World<'_>, random: &mut Random) -> io::Result<TcpStream> {
        let to = family(random).at(self.to, PORT);
        connect((self.machine)(world.lab), to, PATIENCE)
    }

    /// One exchange on a connection of its own.
    fn exchange(
        &self,
        world: World<'_>,
        random: &mut Random,
        what: &'static str,
        exchange: &Exchange,
    ) {
        let bytes = exchange.up + exchange.down;
        world.ledger.note(what, self.carrier, bytes, || {
            let stream = self.connect(world, random)?;
            exchange.run(&stream, world.patterns)
        });
    }
}

fn family(random: &mut Random) -> Family {
    *random.of(&Family::BOTH)
}

fn pattern(random: &mut Random) -> u8 {
    u8::try_from(random.between(0, 200)).expect("less than 200")
}

/// Transfers at full speed with rests between them.
fn bulk(world: World<'_>, random: &mut Random, way: &Way) {
    while !world.stop.is_now() {
        let begin = Instant::now();
        let size = random.size(64 * 1024, 32 * MIB);
        let small = random.size(1, 4096);
        let pattern = pattern(random);
        let [down, up, both, ..] = way.names;
        let (what, exchange) = match random.between(0, 3) {
            0 => (down, Exchange::new(pattern, small, size)),
            1 => (up, Exchange::new(pattern, size, small)),
            _ => {
                let mut exchange = Exchange::new(pattern, size / 2, size / 2);
                exchange.at_once = true;
                (both, exchange)
            }
        };
        way.exchange(world, random, what, &exchange);
        let due = Duration::from_secs_f64(size as f64 / world.bulk_rate);
        world.stop.rest(due.saturating_sub(begin.elapsed()));
    }
}

/// Readers that are slower than what they read.
fn slow(world: World<'_>, random: &mut Random) {
    while !world.stop.is_now() {
        let size = random.size(64 * 1024, 8 * MIB);
        let mut exchange = Exchange::new(pattern(random), random.size(1, 2 * MIB), size);
        exchange.pause = random.millis(5, 60);
        exchange.at_once = random.between(0, 2) == 1;
        OUT.exchange(world, random, "slow reader", &exchange);
        world.stop.rest(random.millis(0, 500));
    }
}

/// Connect, ask, answer, close; in one of the ways to close.
fn short(world: World<'_>, random: &mut Random, way: &Way) {
    while !world.stop.is_now() {
        let (up, down) = (random.size(1, 8192), random.size(1, 128 * 1024));
        let mut exchange = Exchange::new(pattern(random), up, down);
        exchange.half_close = random.between(0, 4) == 0;
        if random.between(0, 4) == 0 {
            exchange.then = Then::Closes;
        }
        way.exchange(world, random, way.names[3], &exchange);
        world.stop.rest(random.millis(10, 120));
    }
}

/// Connections that stand for long, with work and idle times.
fn lasting(world: World<'_>, random: &mut Random, way: &Way) {
    while !world.stop.is_now() {
        let mut stream = None;
        let connecting = || {
            stream = Some(way.connect(world, random)?);
            Ok(())
        };
        world.ledger.note(way.names[7], way.carrier, 0, connecting);
        let Some(stream) = stream else {
            world.stop.rest(random.millis(50, 500));
            continue;
        };
        let until = Instant::now() + random.millis(5_000, 120_000);
        while Instant::now() < until && !world.stop.is_now() {
            let exchange = Exchange::new(
                pattern(random),
                random.size(1, 256 * 1024),
                random.size(1, 256 * 1024),
            );
            let bytes = exchange.up + exchange.down;
            let run = || exchange.run(&stream, world.patterns);
            let idle = random.millis(10, 10_000);
            let stands = world.ledger.note(way.names[4], way.carrier, bytes, run)
                && (world.ledger).note(way.names[5], way.carrier, 0, || {
                    is_quiet(&stream, idle, world.stop)
                });
            if !stands {
                world.stop.rest(random.millis(50, 500));
                break;
            }
        }
    }
}

/// Waits on a connection on which nothing is to come.
fn is_quiet(stream: &TcpStream, time: Duration, stop: &Stop) -> io::Result<()> {
    const LOOK: Duration = Duration::from_millis(200);
    let end = Instant::now() + time;
    stream.set_read_timeout(Some(LOOK))?;
    while Instant::now() < end && !stop.is_now() {
        match stream.peek(&mut [0]) {
            Ok(0) => {
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "the end while idle",
                ));
            }
            Ok(_) => return Err(io::Error::new(ErrorKind::InvalidData, "a byte while idle")),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What ends a connection otherwise than by its end, and what makes none.
fn churn(world: World<'_>, random: &mut Random) {
    let note = |what, operation: &dyn Fn(&mut Random) -> io::Result<()>, random: &mut Random| {
        world
            .ledger
            .note(what, Carrier::Out, 0, || operation(random));
    };
    while !world.stop.is_now() {
        match random.between(0, 7) {
            0 => note(
                "connect and close",
                &|random| OUT.connect(world, random).map(drop),
                random,
            ),
            1 => note(
                "reset by the client",
                &|random| reset_by_client(world, random),
                random,
            ),
            2 => note(
                "reset by the server",
                &|random| reset_by_server(world, random),
                random,
            ),
            3 => note(
                "refused",
                &|random| {
                    fails(
                        world,
                        family(random).at(address::SERVER, CLOSED),
                        ECONNREFUSED,
                    )
                },
                random,
            ),
            4 => note(
                "host unreachable",
                &|random| {
                    fails(
                        world,
                        family(random).at(address::ABSENT, PORT),
                        EHOSTUNREACH,
                    )
                },
                random,
            ),
            _ if world.stop_lingering.is_now() => {}
            _ => note(
                "connect given up",
                &|random| give_up(world, family(random).at(address::SILENT, PORT), random),
                random,
            ),
        }
        world.stop.rest(random.millis(5, 60));
    }
}

fn reset_by_client(world: World<'_>, random: &mut Random) -> io::Result<()> {
    let mut stream = OUT.connect(world, random)?;
    let part = vec![b'X'; random.size(1, 20)];
    stream.write_all(&part)?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

fn reset_by_server(world: World<'_>, random: &mut Random) -> io::Result<()> {
    let stream = OUT.connect(world, random)?;
    let mut exchange = Exchange::new(pattern(random), 100, random.size(2, MIB));
    exchange.then = Then::Resets;
    match exchange.run(&stream, world.patterns) {
        Err(error) if error.raw_os_error() == Some(ECONNRESET) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(io::Error::other("no reset came")),
    }
}

fn fails(world: World<'_>, to: SocketAddr, errno: i32) -> io::Result<()> {
    match connect(&world.lab.enclave, to, PATIENCE) {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("connected to nobody")),
    }
}

/// Begins to connect to one who never answers, and loses patience.
fn give_up(world: World<'_>, to: SocketAddr, random: &mut Random) -> io::Result<()> {
    let begin = || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() == Some(EINPROGRESS) => Ok(socket),
            Err(error) => Err(error),
            Ok(()) => Err(io::Error::other("connected to nobody")),
        }
    };
    let socket = world.lab.enclave.inside(begin)?;
    world.stop.rest(random.millis(0, 300));
    drop(socket);
    Ok(())
}

fn udp(world: World<'_>, random: &mut Random, way: &Way) {
    while !world.stop_lingering.is_now() {
        let to = family(random).at(way.to, PORT);
        let socket = match datagrams::socket((way.machine)(world.lab), to) {
            Ok(socket) => socket,
            Err(error) => {
                (world.ledger).note(way.names[6], Carrier::Datagrams, 0, || Err(error));
                world.stop_lingering.rest(Duration::from_millis(200));
                continue;
            }
        };
        for _ in 0..random.between(1, 30) {
            // Now and then one that is fragmented on its way.
            let most = if random.between(0, 10) == 0 {
                9000
            } else {
                1400
            };
            let size = random.size(8, most);
            (world.ledger).note(way.names[6], Carrier::Datagrams, 2 * size, || {
                datagrams::echo(&socket, random, size)
            });
            world.stop_lingering.rest(random.millis(1, 60));
        }
    }
}

fn names(world: World<'_>, random: &mut Random) {
    while !world.stop_lingering.is_now() {
        let gateway = family(random).at(address::GATEWAY, 53);
        let over_tcp = random.between(0, 4) == 0;
        let what = match over_tcp {
            true => "name look-up over TCP",
            false => "name look-up",
        };
        (world.ledger).note(what, Carrier::Names, 0, || {
            datagrams::look_up(&world.lab.enclave, gateway, random, over_tcp)
        });
        world.stop_lingering.rest(random.millis(20, 200));
    }
}

fn ping(world: World<'_>, random: &mut Random) {
    while !world.stop_lingering.is_now() {
        let to = family(random).of(address::SERVER).to_string();
        world.ledger.note("ping", Carrier::Datagrams, 0, || {
            // Two, of which one may be lost.
            let ping = ["-q", "-c2", "-i0.2", "-W2", to.as_str()];
            let done = world.lab.enclave.run_within(10, "ping", &ping);
            match done {
                Some(done) if done.status.success() => Ok(()),
                _ => Err(io::Error::new(ErrorKind::TimedOut, "no reply")),
            }
        });
        world.stop_lingering.rest(random.millis(500, 3000));
    }
}
