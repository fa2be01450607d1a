//! Random schedules: a seed, the events that follow from it, and a fair end.
//!
//! Each event has a seed of its own, so a schedule can be run without some of its events and the
//! others stay what they were; that is how a failing one is made short.

use crate::ledger::Side;
use crate::random::Random;
use crate::tcp::Tcp;
use crate::world::{GATEWAY4, GATEWAY6, World, enclave_of};
use host_netd::engine::DialError;
use netd_proto::build::IcmpError;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Time that open connections may stand still at a fair end: for delayed acknowledgements, which the
/// window may wait for. A connection that waits for anything else waits in vain.
const PATIENCE: Duration = Duration::from_millis(150);

/// The same for handshakes, of which the enclave ignored some SYNs.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(60);

/// Rounds of a fair end: many times what the longest schedule needs.
const ROUNDS: usize = 100_000;

/// Ports of the enclave's programs: few, so that they are used again.
const PORTS: [u16; 3] = [40_000, 40_001, 50_000];
/// A published port.
const PUBLISHED: u16 = 8080;

/// What is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Everything follows from it.
    pub seed: u64,
    /// Which of its events are left, by number; all without it.
    pub only: Option<Vec<usize>>,
}

/// How a schedule failed.
#[derive(Debug)]
pub struct Failure {
    /// The assertion.
    pub what: String,
    /// What happened before.
    pub trace: Vec<String>,
}

impl Schedule {
    /// All events of that seed.
    pub fn new(seed: u64) -> Schedule {
        Schedule { seed, only: None }
    }

    fn events(&self) -> usize {
        let mut random = Random::new(self.seed ^ 0xe7e7);
        random.magnitude(20..=1000)
    }

    /// Runs it to its fair end.
    ///
    /// # Errors
    /// What did not hold.
    pub fn run(&self, traced: bool) -> Result<(), Failure> {
        let mut world = World::new(Random::new(self.seed), traced);
        let ended = catch_unwind(AssertUnwindSafe(|| self.play(&mut world)));
        ended.map_err(|panic| {
            let text = (panic.downcast_ref::<String>().cloned())
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Failure {
                what: text.unwrap_or_default(),
                trace: world.trace().to_vec(),
            }
        })
    }

    fn play(&self, world: &mut World) {
        if world.terms.publishes_udp {
            world.publish_udp(PUBLISHED);
        }
        let all: Vec<usize> = (0..self.events()).collect();
        for number in self.only.as_ref().unwrap_or(&all) {
            let own = (*number as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95);
            world.random = Random::new(self.seed ^ own);
            world.note(|_| format!("event {number}"));
            event(world);
            world.assert_bounds();
        }
        world.note(|_| "the fair end".into());
        end(world);
    }

    /// The same with as few events as can be found and it still fails.
    pub fn shortened(&self) -> Schedule {
        let fails = |events: &[usize]| {
            let schedule = Schedule {
                seed: self.seed,
                only: Some(events.to_vec()),
            };
            schedule.run(false).is_err()
        };
        let mut events: Vec<usize> =
            (self.only.clone()).unwrap_or_else(|| (0..self.events()).collect());
        let mut part = events.len() / 2;
        while part > 0 {
            let mut start = 0;
            while start < events.len() {
                let mut fewer = events.clone();
                fewer.drain(start..(start + part).min(events.len()));
                if fails(&fewer) {
                    events = fewer;
                } else {
                    start += part;
                }
            }
            part /= 2;
        }
        Schedule {
            seed: self.seed,
            only: Some(events),
        }
    }
}

/// Something that may happen.
type Event = fn(&mut World);

/// What may happen, and how often in comparison.
const MIX: &[(usize, Event)] = &[
    (6, connect),
    (3, accept),
    (6, answer),
    (10, enclave_writes),
    (8, enclave_reads),
    (2, enclave_finishes),
    (1, enclave_closes),
    (10, enclave_transmits),
    (1, enclave_repeats),
    (1, enclave_floods),
    (10, outside_writes),
    (8, outside_reads),
    (2, outside_finishes),
    (1, outside_closes),
    (12, link_up),
    (12, link_down),
    (10, poll),
    (12, serve),
    (6, time_passes),
    (10, everything_once),
    (5, enclave_sends_udp),
    (2, enclave_sends_echo),
    (5, World::outside_sends),
    (1, World::outside_complains),
    (2, World::dns_answers),
];

fn event(world: &mut World) {
    let total = MIX.iter().map(|(weight, _)| weight).sum();
    let mut at = world.random.below(total);
    for (weight, happen) in MIX {
        if at < *weight {
            return happen(world);
        }
        at -= weight;
    }
}

fn enclave_sends_udp(world: &mut World) {
    let port = world.random.pick(&PORTS);
    world.enclave_sends_udp(port);
}

fn enclave_sends_echo(world: &mut World) {
    let identifier = world.random.pick(&PORTS);
    world.enclave_sends_echo(identifier);
}

fn server(world: &mut World) -> SocketAddr {
    let last = world.random.within(1..=2) as u16;
    let ip: IpAddr = if world.random.percent(50) {
        Ipv4Addr::new(192, 0, 2, last as u8).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()
    };
    SocketAddr::new(ip, 443)
}

fn connect(world: &mut World) {
    let mut remote = server(world);
    if world.random.percent(10) {
        // The gateway serves DNS and nothing else.
        remote.set_ip(match remote {
            SocketAddr::V4(_) => GATEWAY4.into(),
            SocketAddr::V6(_) => GATEWAY6.into(),
        });
        remote.set_port(world.random.pick(&[53, 80]));
    }
    let local = SocketAddr::new(enclave_of(remote), world.random.pick(&PORTS));
    world.connect(local, remote);
}

fn accept(world: &mut World) {
    let mut client = server(world);
    client.set_port(world.random.pick(&PORTS));
    world.accept(client, PUBLISHED);
}

/// Any connection: the newest most often.
fn some(world: &mut World) -> Option<usize> {
    let count = world.connections.len();
    if count == 0 {
        return None;
    }
    let back = world.random.magnitude(1..=count.max(2)).min(count);
    Some(count - back)
}

fn answer(world: &mut World) {
    for index in 0..world.connections.len() {
        if world.is_dialing(index) && world.random.percent(60) {
            let answer = any_answer(&mut world.random);
            world.answer(index, answer);
        }
    }
}

fn any_answer(random: &mut Random) -> Result<(), DialError> {
    match random.below(12) {
        0 => Err(DialError::Refused),
        1 => Err(DialError::Silent),
        2 => Err(DialError::Icmp(random.pick(&[
            IcmpError::HostUnreachable,
            IcmpError::NetUnreachable,
            IcmpError::Prohibited,
        ]))),
        _ => Ok(()),
    }
}

/// A number of bytes: often few, seldom more than any buffer.
fn amount(world: &mut World) -> usize {
    let most = if world.random.percent(30) {
        100
    } else {
        world.terms.amount
    };
    world.random.magnitude(1..=most)
}

fn enclave_writes(world: &mut World) {
    let bytes = amount(world) as u64;
    if let Some(index) = some(world) {
        world.enclave_writes(index, bytes);
    }
}

fn enclave_reads(world: &mut World) {
    let bytes = amount(world) as u64;
    if let Some(index) = some(world) {
        world.enclave_reads(index, bytes);
    }
}

fn enclave_finishes(world: &mut World) {
    if let Some(index) = some(world) {
        world.enclave_finishes(index);
    }
}

fn enclave_closes(world: &mut World) {
    let by_reset = world.random.percent(50);
    if let Some(index) = some(world) {
        world.enclave_closes(index, by_reset);
    }
}

fn enclave_transmits(world: &mut World) {
    let most = world.random.within(1..=20);
    if let Some(index) = some(world) {
        world.enclave_transmits(index, most);
    }
}

fn enclave_repeats(world: &mut World) {
    if let Some(index) = some(world) {
        world.enclave_repeats(index);
    }
}

/// A program writes all it can while its bytes are not read outside: rings and buffers fill.
fn enclave_floods(world: &mut World) {
    if world.terms.amount < 1_000_000 {
        return;
    }
    let Some(index) = some(world) else { return };
    for _ in 0..world.random.within(1..=12) {
        world.enclave_writes(index, u64::MAX);
        world.enclave_transmits(index, usize::MAX);
        while world.link_up() {}
        while world.serve(true) {}
        world.link_down(usize::MAX);
        while world.link_deliver() {}
    }
}

fn outside_writes(world: &mut World) {
    let bytes = amount(world);
    if let Some(index) = some(world) {
        outside(world, index, |host, ledger| {
            host.outside_writes(bytes, ledger);
        });
    }
}

fn outside_reads(world: &mut World) {
    let bytes = amount(world);
    if let Some(index) = some(world) {
        outside(world, index, |host, ledger| {
            host.outside_reads(bytes, ledger);
        });
    }
}

fn outside_finishes(world: &mut World) {
    if let Some(index) = some(world) {
        world.note(|_| format!("#{index} outside ends its half"));
        outside(world, index, |host, ledger| host.outside_finishes(ledger));
    }
}

fn outside_closes(world: &mut World) {
    let by_reset = world.random.percent(50);
    if let Some(index) = some(world) {
        world.note(|_| format!("#{index} outside closes, by reset: {by_reset}"));
        outside(world, index, |host, ledger| match by_reset {
            true => host.outside_resets(ledger),
            false => host.outside_closes(ledger),
        });
    }
}

/// The program outside does something, if there is one.
fn outside(
    world: &mut World,
    index: usize,
    act: impl FnOnce(&mut crate::host::Host, &mut crate::ledger::Ledger),
) {
    let connection = &mut world.connections[index];
    if let Some(host) = &mut connection.host
        && !connection.ledger.has_left(Side::Outside)
    {
        act(host, &mut connection.ledger);
    }
}

fn link_up(world: &mut World) {
    for _ in 0..world.random.magnitude(1..=30) {
        world.link_up();
    }
}

fn link_down(world: &mut World) {
    let bytes = world.random.magnitude(1..=300_000);
    world.link_down(bytes);
    for _ in 0..world.random.magnitude(1..=30) {
        world.link_deliver();
    }
}

fn poll(world: &mut World) {
    if world.random.percent(70) {
        world.poll_datagrams();
    }
    for index in 0..world.connections.len() {
        if world.random.percent(70) {
            world.poll_host(index);
        }
    }
}

fn serve(world: &mut World) {
    for _ in 0..world.random.within(1..=4) {
        world.serve(true);
    }
    let again = world.random.percent(50);
    if again && world.engine.queue().has_room() {
        world.serve(false);
    }
}

fn time_passes(world: &mut World) {
    let random = &mut world.random;
    let micros = match random.below(8) {
        0 => random.magnitude(1_000_000..=4 * 3_600_000_000),
        1 | 2 => random.magnitude(1000..=15_000_000),
        _ => random.magnitude(1..=50_000),
    };
    let time = Duration::from_micros(micros as u64);
    world.note(|_| format!("{time:?} pass"));
    world.pass(time);
    if world.random.percent(80) {
        world.expire();
    }
}

/// Everybody does what can be done, once.
fn everything_once(world: &mut World) {
    for index in 0..world.connections.len() {
        world.enclave_transmits(index, 10);
    }
    while world.link_up() {}
    answer(world);
    for index in 0..world.connections.len() {
        world.poll_host(index);
    }
    world.poll_datagrams();
    for _ in 0..world.fresh.len() {
        world.serve(true);
    }
    for _ in 0..world.again.len() {
        world.serve(false);
    }
    world.link_down(usize::MAX);
    while world.link_deliver() {}
}

/// Everything that can happen does, in turns, until nothing is left: both programs read on and end
/// their halves, dials are answered, the link is empty.
fn end(world: &mut World) {
    world.fair = true;
    let (mut waited, mut waited_for_handshakes) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let moved = world.moved;
        let mut busy = !are_read_up(world) || world.datagrams_wait();
        for index in 0..world.connections.len() {
            wind_up(world, index);
        }
        while world.link_up() {}
        for index in 0..world.connections.len() {
            world.poll_host(index);
        }
        world.poll_datagrams();
        while world.serve(true) {}
        for _ in 0..world.again.len() {
            busy |= world.serve(false);
        }
        busy |= world.expire();
        world.link_down(usize::MAX);
        while world.link_deliver() {}
        world.assert_bounds();
        if busy || world.moved > moved {
            continue;
        }
        if is_over(world) {
            return assert_end(world);
        }
        let Some(at) = world.next_timeout() else {
            panic!("everything stands still: {}", open_ones(world));
        };
        let time = at.saturating_duration_since(world.now);
        let open = (world.connections.iter())
            .any(|one| one.flow.is_some() && (one.tcp.as_ref()).is_some_and(Tcp::is_open));
        if open {
            waited += time;
        } else {
            waited_for_handshakes += time;
        }
        assert!(
            waited < PATIENCE && waited_for_handshakes < HANDSHAKE_PATIENCE,
            "nothing moves for {time:?}: {}",
            open_ones(world)
        );
        world.note(|_| format!("nothing moves for {time:?}"));
        world.pass(time);
    }
    panic!("it does not end: {}", open_ones(world));
}

/// Both programs of a connection come to their end.
fn wind_up(world: &mut World, index: usize) {
    if world.is_dialing(index) {
        let answer = if world.random.percent(50) {
            Ok(())
        } else {
            Err(DialError::Refused)
        };
        world.answer(index, answer);
    }
    let connection = &world.connections[index];
    let connecting = (connection.tcp.as_ref()).is_some_and(Tcp::is_connecting);
    if connecting && connection.flow.is_none() {
        // Nobody answers: the program does not wait for its kernel's next SYN.
        world.enclave_closes(index, false);
    }
    world.enclave_reads(index, u64::MAX);
    world.enclave_finishes(index);
    world.enclave_transmits(index, usize::MAX);
    outside(world, index, |host, ledger| {
        host.outside_reads(usize::MAX, ledger);
        host.outside_finishes(ledger);
    });
}

fn is_over(world: &World) -> bool {
    (world.connections.iter()).all(|connection| {
        connection.flow.is_none() && (connection.tcp.as_ref()).is_none_or(|tcp| tcp.is_gone())
    }) && are_read_up(world)
}

fn are_read_up(world: &World) -> bool {
    let mut hosts = (world.connections.iter()).filter_map(|connection| {
        let left = connection.ledger.has_left(Side::Outside);
        connection.host.as_ref().filter(|_| !left)
    });
    hosts.all(crate::host::Host::is_read_up)
}

fn open_ones(world: &World) -> String {
    let open = world.connections.iter().enumerate().filter(|(_, one)| {
        one.flow.is_some() || (one.tcp.as_ref()).is_some_and(|tcp| !tcp.is_gone())
    });
    open.map(|(index, one)| {
        format!(
            "\n  #{index} {:?}\n    {:?}\n    {:?}",
            one.ledger, one.tcp, one.host
        )
    })
    .collect()
}

/// Everything arrived, and nothing is left behind.
fn assert_end(world: &mut World) {
    for (index, connection) in world.connections.iter().enumerate() {
        let complete = catch_unwind(AssertUnwindSafe(|| connection.ledger.assert_complete()));
        assert!(complete.is_ok(), "#{index} {:?}", connection.ledger);
    }
    world.assert_all_received();
    while let Some(at) = world.engine.next_timeout() {
        let time = at.saturating_duration_since(world.now);
        world.pass(time);
        world.expire();
    }
    let usage = world.engine.usage();
    let published = world.datagrams.mappings.iter().flatten().count();
    assert_eq!(published, if world.terms.publishes_udp { 2 } else { 0 });
    assert_eq!(usage.flows, published, "{usage:?}");
    assert_eq!(usage.dialing, 0, "{usage:?}");
    assert_eq!(usage.ring_memory, 0, "{usage:?}");
    assert_eq!(usage.deadlines, 0, "{usage:?}");
}
