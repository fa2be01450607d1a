//! What one enclave may have, and what it is told when it has it.

use super::*;
use crate::budget::Budget;
use crate::limits::SHORT_WINDOW;

fn bed(limits: Limits) -> Bed {
    Bed::made(Features::ALL, &[], limits)
}

fn from(port: u16) -> String {
    format!("100.64.0.2:{port}")
}

fn syn(port: u16, to: &str) -> Vec<u8> {
    tcp(&from(port), to, SYN, 999, 0, &[])
}

fn is_reset(bed: &mut Bed, packet: &[u8]) -> bool {
    matches!(bed.send(packet), Effect::None) && bed.one().segment().flags == RST | ACK
}

#[test]
fn connects_to_one_destination_are_bounded_and_others_go_on() {
    let mut bed = bed(Limits {
        dials: 5,
        dials_per_destination: 3,
        ..LIMITS
    });
    // Another port of the same host is the same destination.
    let ids = [
        bed.dial(&syn(1, "192.0.2.1:443")),
        bed.dial(&syn(2, "192.0.2.1:443")),
        bed.dial(&syn(3, "192.0.2.1:80")),
    ];
    assert!(is_reset(&mut bed, &syn(4, "192.0.2.1:443")));
    assert_eq!(bed.drops(DropReason::DestinationLimit), 1);

    bed.dial(&syn(5, "192.0.2.2:443"));
    bed.dial(&syn(6, "192.0.2.3:443"));
    assert!(is_reset(&mut bed, &syn(7, "192.0.2.4:443")));
    assert_eq!(bed.drops(DropReason::DialLimit), 1);
    // The gateway's DNS needs no connect.
    let effect = bed.send(&syn(100, "100.64.0.1:53"));
    assert!(
        matches!(effect, Effect::Dial(_, DialTarget::Dns)),
        "{effect:?}"
    );

    // Each way in which a connect ends makes room for one.
    assert!(bed.engine.connected(ids[0], bed.now));
    bed.egress(ids[0]);
    bed.dial(&syn(8, "192.0.2.1:443"));
    bed.engine.dial_failed(ids[1], DialError::Silent);
    bed.dial(&syn(9, "192.0.2.1:443"));
    bed.send(&tcp(&from(3), "192.0.2.1:80", RST, 1000, 0, &[]));
    bed.dial(&syn(10, "192.0.2.1:443"));
    assert!(is_reset(&mut bed, &syn(11, "192.0.2.1:443")));
    assert_eq!(bed.engine.dials_to.len(), 3);
}

#[test]
fn mappings_are_bounded_with_icmp_and_leave_room_for_tcp() {
    let mut bed = bed(Limits {
        flows: 5,
        mappings: 2,
        ..LIMITS
    });
    assert!(matches!(
        bed.send(&udp(&from(1), "192.0.2.1:53", b"x")),
        Effect::Datagram(_)
    ));
    assert!(matches!(
        bed.send(&ping("100.64.0.2", "192.0.2.1", 8)),
        Effect::Datagram(_)
    ));
    for port in 2..100 {
        let refused = udp(&from(port), "192.0.2.1:53", b"x");
        assert!(matches!(bed.send(&refused), Effect::None));
        assert_eq!(bed.one().icmp(), (3, 13));
    }
    let refused = udp("[fd00:6e65:7464::2]:7", "[2001:db8::1]:53", b"x");
    bed.send(&refused);
    assert_eq!(bed.one().icmp(), (1, 1));
    assert_eq!(bed.drops(DropReason::MappingLimit), 99);
    // Those that stand go on, and TCP has what is left.
    assert!(matches!(
        bed.send(&udp(&from(1), "192.0.2.2:53", b"x")),
        Effect::Datagram(Outgoing { is_new: false, .. })
    ));
    for port in 1..=3 {
        bed.dial(&syn(port, SERVER));
    }
    assert!(is_reset(&mut bed, &syn(4, SERVER)));
    assert_eq!(bed.drops(DropReason::FlowLimit), 1);

    bed.pass(2 * UDP_IDLE);
    while bed.engine.expired(bed.now).is_some() {}
    assert!(matches!(
        bed.send(&udp(&from(50), "192.0.2.1:53", b"x")),
        Effect::Datagram(Outgoing { is_new: true, .. })
    ));
}

#[test]
fn clients_that_the_enclave_does_not_answer_are_bounded() {
    let mut bed = bed(Limits {
        half_open: 2,
        ..LIMITS
    });
    let client = |n: u16| SocketAddr::from(([192, 0, 2, 9], n));
    let first = bed.engine.accept(client(1), 443, bed.now).unwrap();
    let second = bed.engine.accept(client(2), 443, bed.now).unwrap();
    let refused = bed.engine.accept(client(3), 443, bed.now);
    assert_eq!(refused.unwrap_err(), DropReason::HalfOpenLimit);
    assert_eq!(bed.drops(DropReason::HalfOpenLimit), 1);

    // An answer, a refusal and an end all make room.
    let asked = bed.egress(first).remove(0).segment();
    let answer = tcp(
        "100.64.0.2:443",
        "192.0.2.9:1",
        SYN | ACK,
        77,
        asked.seq + 1,
        &[],
    );
    bed.send(&answer);
    bed.engine.accept(client(4), 443, bed.now).unwrap();
    let asked = bed.egress(second).remove(0).segment();
    let refusal = tcp(
        "100.64.0.2:443",
        "192.0.2.9:2",
        RST | ACK,
        0,
        asked.seq + 1,
        &[],
    );
    bed.send(&refusal);
    let third = bed.engine.accept(client(5), 443, bed.now).unwrap();
    bed.engine.remove(third);
    bed.engine.accept(client(6), 443, bed.now).unwrap();
    assert!(bed.engine.accept(client(7), 443, bed.now).is_err());
}

/// One enclave takes all flows, connects, mappings and places for clients that it can get.
#[test]
fn an_enclave_that_takes_everything_leaves_the_other_its_part() {
    let budget = Budget::new(Limits {
        enclaves: 2,
        flows: 40,
        all_flows: 40,
        dials: 16,
        mappings: 16,
        half_open: 16,
        ..LIMITS
    });
    let [mut greedy, mut other] =
        [(); 2].map(|()| Bed::made(Features::ALL, &[], budget.allot().unwrap()));
    for port in 1..100 {
        greedy.send(&syn(port, "192.0.2.1:443"));
        greedy.send(&udp(&from(port), "192.0.2.1:53", b"x"));
        let client = SocketAddr::from(([192, 0, 2, 9], port));
        let _ = greedy.engine.accept(client, 443, greedy.now);
    }
    assert!(greedy.engine.flow_count() >= 30, "most of it");
    greedy.sent();

    for port in 1..=4 {
        other.dial(&syn(port, "192.0.2.1:443"));
        assert!(matches!(
            other.send(&udp(&from(port), "192.0.2.1:53", b"x")),
            Effect::Datagram(_)
        ));
    }
    let client = SocketAddr::from(([192, 0, 2, 9], 1));
    other.engine.accept(client, 443, other.now).unwrap();

    // When it goes, all that it had is there for others.
    drop(greedy);
    for port in 5..=16 {
        other.dial(&syn(port, "192.0.2.1:443"));
    }
}

/// Fills what an enclave may have of ring memory with bytes that nobody reads.
fn fill(bed: &mut Bed) -> Vec<Connection> {
    let mut held = Vec::new();
    for port in 1000.. {
        if bed.engine.memory.is_used_up() {
            break;
        }
        let enclave: &'static str = Box::leak(from(port).into_boxed_str());
        let mut connection = Connection::between(bed, (enclave, SERVER));
        while connection.edge.wrapping_sub(connection.seq) >= 1400 {
            if connection.send(bed, ACK, &[1; 1400]).is_empty() {
                break;
            }
        }
        held.push(connection);
    }
    held
}

#[test]
fn memory_is_one_budget_with_a_part_for_each() {
    let budget = Budget::new(Limits {
        enclaves: 2,
        ..LIMITS
    });
    let [mut greedy, mut other] =
        [(); 2].map(|()| Bed::made(Features::ALL, &[], budget.allot().unwrap()));
    let held = fill(&mut greedy);
    let most = LIMITS.ring_memory / 4 * 3;
    let used = greedy.engine.ring_memory();
    assert!((most..most + most / 4).contains(&used), "{used}");

    let mut connection = Connection::open(&mut other);
    assert_ne!(connection.send(&mut other, ACK, &[1; 1400]), []);
    assert_eq!(connection.read_all(&mut other), 1400);
    assert!(!other.engine.memory.is_short());

    // What is given back is for the other.
    for connection in &held {
        greedy.engine.remove(connection.id);
    }
    assert_eq!(greedy.engine.ring_memory(), 0);
    fill(&mut other);
    assert!(other.engine.ring_memory() >= most);
}

/// A program that reads slowly keeps its flow's send ring from ever being empty: when memory is used
/// up, each of its flows holds the short window and no more, however much passes.
#[test]
fn used_up_memory_bounds_what_is_sent_too() {
    let mut bed = Bed::new();
    let mut slow: Vec<Connection> = (1..=8)
        .map(|port| {
            let enclave: &'static str = Box::leak(from(port).into_boxed_str());
            Connection::between(&mut bed, (enclave, SERVER))
        })
        .collect();
    let _held = fill(&mut bed);
    let before = bed.engine.ring_memory();
    let mut passed = 0;
    for round in 0..200 {
        for connection in &mut slow {
            let mut flow = bed.engine.tcp(connection.id).unwrap();
            let wrote = flow.send(|space| (space.len(), space.len())).unwrap_or(0);
            passed += wrote;
            bed.egress(connection.id);
            // All but one byte, most of the time.
            let wrote = u32::try_from(wrote).unwrap();
            connection.ack += wrote;
            connection.ack -= u32::from(wrote > 0 && round % 10 != 0);
            connection.send(&mut bed, ACK, &[]);
            connection.ack += u32::from(wrote > 0 && round % 10 != 0);
        }
    }
    let grown = bed.engine.ring_memory().saturating_sub(before);
    assert!(grown <= slow.len() * SHORT_WINDOW, "{grown}");
    assert!(passed > 8 * SHORT_WINDOW, "{passed}: it goes on, slowly");
}
