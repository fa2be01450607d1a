//! One file over a [`Path`], through the tunnel and without it: how long it takes.
//!
//! ```text
//!  program - kernel (`tcp`) - link - Engine - turns (`host`) - host's socket - path - remote program
//!  program --------------------------------------------------- host's socket - path - remote program
//! ```
//!
//! Computing takes no time here; what is seen is what windows, buffers and timers do to each other.

use crate::ledger::Side;
use crate::path::{Conditions, Path};
use crate::random::Random;
use crate::tcp::Habits;
use crate::world::{ENCLAVE4, Terms, World};
use host_netd::engine::Limits;
use netd_proto::handshake::Features;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// One way over the link between enclave and parent, wake-ups included.
const LINK: Duration = Duration::from_micros(30);

/// Bytes of the file.
pub const FILE: u64 = 4 << 20;

/// A transfer that takes longer stands still.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Where the file goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the remote program.
    Up,
    /// To the program in the enclave.
    Down,
}

/// Time from the first byte to the last without a tunnel: the program is on the parent.
pub fn direct(conditions: Conditions, direction: Direction, seed: u64) -> Duration {
    let begin = World::epoch();
    let mut path = Path::new(conditions, Random::new(seed), begin);
    let mut now = begin;
    loop {
        path.advance(now);
        path.write(FILE - path.written);
        path.read = path.received;
        path.advance(now);
        if path.read == FILE {
            return now - begin;
        }
        now = path.next_event().expect("something is on its way").max(now);
        assert!(now - begin < PATIENCE, "{direction:?} stands still");
    }
}

/// The same through the tunnel: the program is in the enclave.
pub fn tunnelled(conditions: Conditions, direction: Direction, seed: u64) -> Duration {
    let mut transfer = Transfer::new(conditions, direction, seed);
    let begin = transfer.world.now;
    loop {
        transfer.happen();
        if transfer.is_done() {
            return transfer.world.now - begin;
        }
        let next = transfer.next_event().expect("something is on its way");
        let time = next.saturating_duration_since(transfer.world.now);
        transfer.world.pass(time);
        let took = transfer.world.now - begin;
        assert!(took < PATIENCE, "{direction:?} stands still");
    }
}

struct Transfer {
    world: World,
    path: Path,
    direction: Direction,
    /// Frames on their way to the engine.
    up: Vec<(Instant, Vec<u8>)>,
    /// When the link brings what is queued to the enclave.
    down: Option<Instant>,
}

impl Transfer {
    /// An open connection.
    fn new(conditions: Conditions, direction: Direction, seed: u64) -> Transfer {
        let terms = Terms {
            features: Features::ALL,
            mtu: 1500,
            limits: Limits {
                flows: 10,
                ring_memory: 64 << 20,
                ..Limits::DEFAULT
            },
            amount: 0,
            publishes_udp: false,
        };
        let mut world = World::with(terms, Random::new(seed), false);
        let local = SocketAddr::from((ENCLAVE4, 40_000));
        let remote = SocketAddr::from(([192, 0, 2, 1], 443));
        world.connect_as(local, remote, Habits::linux());
        let buffer = conditions.buffer as usize;
        world.enclave_transmits(0, 1);
        world.link_up();
        world.answer(0, Ok(()));
        world.connections[0].with_buffers(buffer);
        let path = Path::new(conditions, Random::new(seed), world.now);
        Transfer {
            world,
            path,
            direction,
            up: Vec::new(),
            down: None,
        }
    }

    fn is_done(&self) -> bool {
        match self.direction {
            Direction::Up => self.path.read == FILE,
            Direction::Down => self.world.connections[0].ledger.has_read(Side::Enclave) == FILE,
        }
    }

    fn next_event(&self) -> Option<Instant> {
        let up = self.up.first().map(|(at, _)| *at);
        let times = [
            up,
            self.down,
            self.path.next_event(),
            self.world.next_timeout(),
        ];
        times.into_iter().flatten().min()
    }

    /// Everything that happens at this moment.
    fn happen(&mut self) {
        let now = self.world.now;
        let due = self.up.partition_point(|(at, _)| *at <= now);
        for (_, frame) in self.up.drain(..due) {
            self.world.up.push_back(frame);
        }
        while self.world.link_up() {}
        if self.down.is_some_and(|at| at <= now) {
            self.down = None;
            self.world.link_down(usize::MAX);
            while self.world.link_deliver() {}
        }
        self.world.expire();
        loop {
            self.path.advance(now);
            let moved = self.exchange();
            self.world.poll_host(0);
            let mut served = self.world.serve(true);
            if self.world.engine.queue().has_room() {
                served |= self.world.serve(false);
            }
            if !moved && !served {
                break;
            }
        }
        self.world.enclave_transmits(0, usize::MAX);
        let frames = self.world.up.drain(..);
        self.up.extend(frames.map(|frame| (now + LINK, frame)));
        if !self.world.engine.queue().is_empty() {
            self.down.get_or_insert(now + LINK);
        }
    }

    /// The programs, and the host's socket at its end of the path. True if bytes moved.
    fn exchange(&mut self) -> bool {
        let world = &mut self.world;
        let before = (self.path.written, self.path.read);
        match self.direction {
            Direction::Up => {
                let written = world.connections[0].ledger.written(Side::Enclave);
                world.enclave_writes(0, FILE - written);
                self.path.read = self.path.received;
                let connection = &mut world.connections[0];
                let host = connection.host.as_mut().expect("connected");
                // What was acknowledged leaves the buffer.
                self.path.written = connection.ledger.has_read(Side::Outside);
                let kept = (self.path.written - self.path.acked) as usize;
                host.outside_reads(host.sending() - kept, &mut connection.ledger);
            }
            Direction::Down => {
                world.enclave_reads(0, u64::MAX);
                self.path.write(FILE - self.path.written);
                let connection = &mut world.connections[0];
                let host = connection.host.as_mut().expect("connected");
                let arrived = self.path.received - connection.ledger.written(Side::Outside);
                host.outside_writes(arrived as usize, &mut connection.ledger);
                self.path.read = self.path.received - host.received() as u64;
            }
        }
        before != (self.path.written, self.path.read)
    }
}
