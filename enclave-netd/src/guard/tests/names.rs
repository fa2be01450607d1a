//! Rules that name hosts: what the resolver's answers open, and what a host cannot slip in.

use super::*;
use crate::dns::tests::{message, question};
use crate::limits::QUESTIONS;

const NAME: &str = "kms.example.com";
const RULES: &[&str] = &["allow tcp kms.example.com:443", "deny *"];
const RESOLVER: [&str; 2] = ["100.64.0.1", "fd00:6e65:7464::1"];

fn datagram(from: &str, to: &str, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(from, to)
        .udp(ports.0, ports.1)
        .write(&mut bytes, payload)
        .expect("built");
    bytes
}

/// Asks for a name from port 5000.
fn ask(guard: &mut Guard, family: usize, name: &str, now: Seconds) {
    let asked = datagram(US[family], RESOLVER[family], (5000, 53), &question(name));
    assert_eq!(leave(guard, &asked, now), Egress::Send);
}

/// An answer that gives the name the address of the peer.
fn answer(family: usize, name: &str) -> Vec<u8> {
    message(name, &[PEER[family].parse().expect("valid")], 30)
}

/// What becomes of a connection to the peer after this answer.
fn after(guard: &mut Guard, family: usize, from: &str, to: (u16, u16), payload: &[u8]) -> Egress {
    enter(guard, &datagram(from, US[family], to, payload), NOW);
    leave(guard, &tcp(US[family], PEER[family], (1, 443), "S"), NOW)
}

#[test]
fn a_name_in_a_rule_is_what_the_resolver_said() {
    for family in [0, 1] {
        let mut guard = guard(&[], &[], RULES);
        let resolver = RESOLVER[family];
        let good = answer(family, NAME);
        ask(&mut guard, family, NAME, NOW);
        for (from, ports) in [
            (PEER[family], (53, 5000)),
            (resolver, (54, 5000)),
            (resolver, (53, 5001)),
        ] {
            let outcome = after(&mut guard, family, from, ports, &good);
            assert_eq!(outcome, Egress::Prohibit, "not the resolver's answer");
        }

        let outcome = after(&mut guard, family, resolver, (53, 5000), &good);

        assert_eq!(outcome, Egress::Send);
        let mut connect = |port, later| {
            let segment = tcp(US[family], PEER[family], (1, port), "S");
            leave(&mut guard, &segment, Seconds(NOW.0 + later))
        };
        assert_eq!(connect(80, 0), Egress::Prohibit);
        assert_eq!(connect(443, 599), Egress::Send);
        assert_eq!(connect(443, 600), Egress::Prohibit);
    }
}

#[test]
fn what_was_not_asked_is_not_learnt() {
    let good = answer(0, NAME);
    let mut another_number = good.clone();
    another_number[0] ^= 1;
    for (asked, said) in [
        ("www.example.com", &good),
        (NAME, &another_number),
        (NAME, &answer(0, "www.example.com")),
    ] {
        let mut guard = guard(&[], &[], RULES);
        ask(&mut guard, 0, asked, NOW);
        let outcome = after(&mut guard, 0, RESOLVER[0], (53, 5000), said);
        assert_eq!(outcome, Egress::Prohibit, "{asked}");
    }
    let mut guard = guard(&[], &[], RULES);
    ask(&mut guard, 1, NAME, NOW);
    let outcome = after(&mut guard, 0, RESOLVER[0], (53, 5000), &good);
    assert_eq!(outcome, Egress::Prohibit, "asked by the other family");
}

#[test]
fn a_question_has_one_answer_and_is_not_waited_for_for_ever() {
    let mut guard = guard(&[], &[], RULES);
    let first = message(NAME, &["192.0.2.99".parse().expect("valid")], 30);
    ask(&mut guard, 0, NAME, NOW);
    after(&mut guard, 0, RESOLVER[0], (53, 5000), &first);
    let outcome = after(&mut guard, 0, RESOLVER[0], (53, 5000), &answer(0, NAME));
    assert_eq!(outcome, Egress::Prohibit, "the second answer");

    ask(&mut guard, 0, NAME, Seconds(NOW.0 - 181));
    // The port stays open by another question.
    ask(&mut guard, 0, "www.example.com", NOW);
    let outcome = after(&mut guard, 0, RESOLVER[0], (53, 5000), &answer(0, NAME));
    assert_eq!(outcome, Egress::Prohibit, "an answer after three minutes");
}

#[test]
fn questions_are_bounded_and_the_latest_count() {
    let mut guard = guard(&[], &[], RULES);
    ask(&mut guard, 0, "first.example.com", NOW);
    for number in 0..QUESTIONS - 1 {
        ask(&mut guard, 0, &format!("n{number}.example.com"), NOW);
    }
    ask(&mut guard, 0, NAME, NOW);
    assert_eq!(guard.asked.len(), QUESTIONS);
    let outcome = after(&mut guard, 0, RESOLVER[0], (53, 5000), &answer(0, NAME));
    assert_eq!(outcome, Egress::Send);
    assert_eq!(guard.asked.len(), QUESTIONS - 1);
}

#[test]
fn an_answer_opens_nothing_that_is_no_address_of_a_peer() {
    let mut guard = guard(&[], &[], RULES);
    let lies = [
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        US[0],
    ];
    let addresses: Vec<IpAddr> = lies.map(|lie| lie.parse().expect(lie)).into();
    ask(&mut guard, 0, NAME, NOW);
    let said = message(NAME, &addresses, 30);
    after(&mut guard, 0, RESOLVER[0], (53, 5000), &said);
    for lie in lies {
        let outcome = leave(&mut guard, &tcp(US[0], lie, (1, 443), "S"), NOW);
        assert_eq!(outcome, Egress::Drop(DropReason::OutDestination), "{lie}");
    }
    // Nor does it take away what an earlier rule forbids.
    let mut guard = self::guard(&[], &[], &["deny 192.0.2.0/24", RULES[0], RULES[1]]);
    ask(&mut guard, 0, NAME, NOW);
    let outcome = after(&mut guard, 0, RESOLVER[0], (53, 5000), &answer(0, NAME));
    assert_eq!(outcome, Egress::Prohibit);
}

#[test]
fn each_question_is_seen_where_a_rule_names_a_host_and_only_there() {
    let asked = datagram(US[0], RESOLVER[0], (5000, 53), &question(NAME));
    let other = udp(US[0], PEER[0], (5000, 53));
    let must_see = |rules: &[&str], packet: &[u8]| {
        guard(&[], &[], rules).must_see(&Packet::parse(packet).expect("valid"))
    };
    assert!(must_see(RULES, &asked));
    assert!(!must_see(RULES, &other));
    assert!(!must_see(&["deny 192.0.2.0/24"], &asked));
}
